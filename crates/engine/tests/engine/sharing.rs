//! Answers do not depend on what is cached, shared, given up and found again.

use std::collections::BTreeMap;

use engine::request::{End, Request};
use engine::testing::{FakeRunner, limits};
use engine::{Options, Policy, Snapshot};

use crate::harness::{Client, Heard, Limits, Rig, prompt, request, sampled};

/// A crowd that begins alike in several ways: equal, at a block's border or within, under another salt, scored,
/// with choices, and not at all.
fn crowd() -> Vec<Request> {
    let like = |shared: usize, name: u32, len: usize| {
        let own = prompt(name, len);
        Request { prompt: [&prompt(1, 180)[..shared], &own[..len - shared]].concat(), ..request(1, 1, 25) }
    };
    vec![
        like(150, 2, 150),
        Request { n: 3, sampling: sampled(4), ..like(150, 2, 150) },
        like(64, 3, 90),
        Request { n: 2, ..like(61, 4, 140) },
        Request { prompt_logprobs: Some(1), logprobs: Some(2), ..like(100, 5, 120) },
        Request { cache_salt: b"another".into(), ..like(150, 2, 150) },
        Request { sampling: sampled(9), logprobs: Some(0), ..like(100, 6, 101) },
        like(1, 7, 9),
        Request { n: 3, sampling: sampled(11), max_new_tokens: 60, ..like(20, 8, 33) },
        Request { max_new_tokens: 0, ..like(150, 9, 170) },
    ]
}

/// Each choice as a request of its own and of the next seed, alone in an engine with room for everything and
/// without a prefix cache.
fn undisturbed(requests: &[Request], prefill_unit: usize) -> Vec<Heard> {
    let limits = Limits { prefill_unit, step_tokens: 4096, step_outputs: 4096, n_blocks: 500, ..limits() };
    let alone = |request: &Request, choice: u64| {
        let mut single = Request { n: 1, ..request.clone() };
        single.sampling.seed = single.sampling.seed.map(|seed| seed + choice);
        let options = Options { prefix_cache: false, ..Options::default() };
        Rig::with_options(FakeRunner::new(limits.clone()), options).answers([single]).remove(0)
    };
    requests.iter().flat_map(|request| (0..request.n as u64).map(|choice| alone(request, choice))).collect()
}

/// Sizes of steps, blocks and units, with a pool of so many tokens or a little more.
fn sizes(pool_tokens: usize) -> Vec<Limits> {
    let mut sizes = Vec::new();
    for step_tokens in [1, 7, 64, 4096] {
        for block_len in [1, 3, 16, 64] {
            for prefill_unit in [usize::MAX, 2, 5, 16] {
                if prefill_unit == usize::MAX || prefill_unit + 5 <= step_tokens {
                    let n_blocks = 1 + pool_tokens.div_ceil(block_len);
                    let steps = Limits { step_tokens, step_outputs: step_tokens, step_rows: 5, ..limits() };
                    sizes.push(Limits { block_len, n_blocks, prefill_unit, ..steps });
                }
            }
        }
    }
    sizes
}

/// Plays `rounds` of the crowd in one engine for each of the sizes; returns what the counters said.
fn check(pool_tokens: usize, options: &Options, rounds: usize, requests: &[Request]) -> Vec<Snapshot> {
    let mut known: BTreeMap<usize, Vec<Heard>> = BTreeMap::new();
    let mut late = false;
    let play = |limits: Limits| {
        let unit = limits.prefill_unit;
        let expected = known.entry(unit).or_insert_with(|| undisturbed(requests, unit));
        // Every other one is told late what its steps come to.
        late = !late;
        let runner = FakeRunner::new(limits.clone());
        let runner = if late { runner.ahead() } else { runner };
        let mut rig = Rig::with_options(runner, options.clone());
        for round in 0..rounds {
            let clients: Vec<Client> =
                requests.iter().flat_map(|request| rig.submit_choices(request.clone())).collect();
            rig.finish();
            for (client, expected) in clients.into_iter().zip(&*expected) {
                assert_eq!(client.end(), *expected, "round {round} of {limits:?}");
            }
        }
        rig.handle.snapshot()
    };
    sizes(pool_tokens).into_iter().map(play).collect()
}

/// As many as find a block are admitted, and sent back when they grow.
fn crowded(prefix_cache: bool) -> Options {
    let policy = Policy { spare_tokens: 0, ..Policy::default() };
    Options { prefix_cache, policy, ..Options::default() }
}

#[test]
fn found_as_computed() {
    for snapshot in check(4_000, &Options::default(), 2, &crowd()) {
        assert!(snapshot.cache_hits > 500, "{snapshot:?}");
    }
}

#[test]
fn without_a_prefix_cache_as_with_one() {
    for snapshot in check(4_000, &crowded(false), 1, &crowd()) {
        assert_eq!((snapshot.cache_hits, snapshot.cache_copied), (0, 0));
    }
}

#[test]
fn sent_back_as_undisturbed() {
    for prefix_cache in [true, false] {
        // The longest may become 175 tokens.
        let snapshots = check(192, &crowded(prefix_cache), 2, &crowd());
        let sent_back: u64 = snapshots.iter().map(|snapshot| snapshot.preempted).sum();
        assert!(sent_back > 50, "{sent_back} were sent back");
    }
}

#[test]
fn first_as_last() {
    let ranked = |rank: fn(i32) -> i32| {
        let requests = crowd().into_iter().zip(0..);
        requests.map(|(request, at)| Request { priority: rank(at), ..request }).collect::<Vec<_>>()
    };
    check(192, &crowded(true), 1, &ranked(|at| -at));
    check(400, &crowded(true), 1, &ranked(|at| at * 7 % 5));
}

#[test]
fn the_next_turn_finds_the_answer_and_is_as_computed() {
    for limits in sizes(4_000) {
        let (unit, block_len) = (limits.prefill_unit, limits.block_len);
        let mut rig = Rig::new(FakeRunner::new(limits));
        let first = request(1, 70, 50);
        let answer = rig.answers([first.clone()]).remove(0);
        assert!(matches!(answer.end, Some(End::Finished(_))));
        let begin = first.prompt.len();
        let mut turn = [first.prompt, answer.ids()].concat();
        let drawn = begin..turn.len();
        turn.extend(prompt(2, 40));
        let next = Request { prompt: turn, drawn: vec![drawn.clone()], ..request(1, 1, 20) };
        let before = rig.handle.snapshot();
        let client = rig.submit(next.clone());
        rig.finish();
        let after = rig.handle.snapshot();
        let found = after.cache_hits + after.cache_copied - before.cache_hits - before.cache_copied;
        // All that was computed, in whole blocks, but for a unit that a block's end cuts.
        let least = (drawn.end - 1) / block_len * block_len - if unit == usize::MAX { 0 } else { unit - 1 };
        assert!(found >= least as u64, "{found} of {least} found: units of {unit}, blocks of {block_len}");
        assert_eq!(client.end(), undisturbed(&[next], unit).remove(0));
    }
}
