//! Crowds that once held somebody up: long prompts before short ones, waiting requests before others, full
//! pools before the cache.

use engine::request::{End, Request};
use engine::testing::{FakeRunner, limits};
use engine::{Options, Policy};

use crate::harness::{Limits, Rig, prompt, request};

fn wide() -> Limits {
    Limits {
        n_blocks: 20_000,
        context_len: 4_000,
        step_rows: 200,
        step_tokens: 264,
        step_outputs: 264,
        ..limits()
    }
}

#[test]
fn long_prompts_however_many_do_not_keep_a_short_one() {
    for prefill_unit in [usize::MAX, 16] {
        for n_long in [1, 9, 20] {
            let policy = Policy { prompt_tokens_beside_answers: 16, passed_over_max: 8, ..Policy::default() };
            let limits = Limits { prefill_unit, ..wide() };
            let mut rig =
                Rig::with_options(FakeRunner::new(limits), Options { policy, ..Options::default() });
            let _answer = rig.submit(request(90, 2, 3_900));
            rig.step();
            let _long: Vec<_> = (0..n_long).map(|name| rig.submit(request(1 + name, 1_600, 1))).collect();
            assert!((0..40).all(|_| rig.step()));
            let mut short = rig.submit(request(60, 32, 1));
            let steps = (1..100).find(|_| rig.step() && short.listen().end.is_some());
            assert!(steps.is_some_and(|steps| steps <= 4), "{n_long} long ones: {steps:?} steps");
        }
    }
}

/// Beside a crowd of short prompts that never ends.
#[test]
fn a_long_prompt_is_not_passed_over_for_ever() {
    let policy = Policy { prompt_tokens_beside_answers: 16, passed_over_max: 8, ..Policy::default() };
    let limits = Limits { prefill_unit: 16, ..wide() };
    let mut rig = Rig::with_options(FakeRunner::new(limits), Options { policy, ..Options::default() });
    let _answer = rig.submit(request(90, 2, 3_900));
    rig.step();
    let mut long = rig.submit(request(91, 160, 1)); // ten units
    let mut short = Vec::new();
    let steps = (1u32..400).find(|step| {
        short.push(rig.submit(request(step % 89, 16 + (step / 89) as usize, 1)));
        rig.step();
        long.listen().end.is_some()
    });
    // One step in nine goes to who was passed over longest, which is now and then a short one.
    assert!(steps.is_some_and(|steps| steps <= 10 * 9 * 3), "{steps:?} steps");
}

#[test]
fn an_admission_that_fails_evicts_nothing() {
    let mut rig = Rig::new(FakeRunner::new(Limits { n_blocks: 9, step_tokens: 64, ..limits() }));
    rig.answers([request(5, 12, 1)]);
    let _runs = rig.submit(request(1, 4, 20));
    rig.step();
    let _waits = rig.submit(request(2, 20, 4));
    rig.step();
    let now = rig.handle.snapshot();
    assert_eq!((now.running, now.waiting, now.blocks_cached), (1, 1, 3));
}

#[test]
fn others_pass_however_many_await_a_prefix() {
    let mut rig = Rig::new(FakeRunner::new(wide()));
    let _long = rig.submit(request(1, 1_500, 1));
    rig.step();
    let await_it = |last| {
        let prompt = [&prompt(1, 1_490)[..], &[last; 10]].concat();
        rig.submit(Request { prompt, max_new_tokens: 1, ..Request::default() })
    };
    let _awaiting: Vec<_> = (0..80).map(await_it).collect();
    let mut other = rig.submit(request(90, 4, 1));
    let steps = (1..20).find(|_| rig.step() && other.listen().end.is_some());
    assert!(steps.is_some_and(|steps| steps <= 2), "{steps:?} steps");
}

#[test]
fn who_need_not_wait_is_bound_by_no_queue() {
    let options = Options { max_waiting: 0, max_waiting_tokens: 10, ..Options::default() };
    let mut rig = Rig::with_options(FakeRunner::new(limits()), options);
    let together: Vec<_> = (0..8).map(|name| rig.submit(request(name, 6, 1))).collect();
    assert!(rig.try_submit(request(9, 6, 1)).is_err(), "all eight places are taken");
    rig.finish();
    assert!(together.into_iter().all(|client| matches!(client.end().end, Some(End::Finished(_)))));
    assert!(rig.try_submit(request(9, 6, 1)).is_ok());
}

/// A request that found no room leaves in the step in which the last one that ran ends.
#[test]
fn an_engine_at_rest_has_room() {
    let options = Options { max_waiting: 1, ..Options::default() };
    let limits = Limits { n_blocks: 9, step_tokens: 64, ..limits() };
    let mut rig = Rig::with_options(FakeRunner::new(limits), options);
    let (runs, blocked) = (rig.submit(request(1, 4, 3)), rig.submit(request(2, 32, 0)));
    rig.step();
    assert_eq!((rig.handle.snapshot().running, rig.handle.snapshot().waiting), (1, 1));
    drop((runs, blocked));
    rig.finish();
    let all: Vec<_> = (0..9).map(|name| rig.try_submit(request(name, 1, 1))).collect();
    assert!(all.iter().all(Result::is_ok), "eight places, and one that may wait");
    assert!(rig.try_submit(request(9, 1, 1)).is_err());
}

#[test]
fn rows_behind_logits_that_are_no_numbers_are_found_by_nobody() {
    let mut first = true;
    let runner = FakeRunner::new(limits()).edit(move |_, row| {
        if std::mem::take(&mut first) {
            row.fill(f32::NAN);
        }
    });
    let mut rig = Rig::new(runner);
    let heard = rig.answers([request(1, 12, 4)]).remove(0);
    assert!(matches!(heard.end, Some(End::Failed(_))));
    rig.answers([request(1, 12, 4)]);
    assert_eq!(rig.handle.snapshot().cache_hits, 0);
    rig.answers([request(1, 12, 4)]);
    assert_eq!(rig.handle.snapshot().cache_hits, 8);
}

/// A unit of 16 tokens of which 10 are shared: two blocks of 4 are found, and the unit goes on behind them.
#[test]
fn a_unit_goes_on_where_its_cached_part_ends() {
    let limits = Limits { prefill_unit: 16, step_tokens: 64, step_outputs: 64, ..limits() };
    let ask = |own: u32| {
        let prompt = [&prompt(1, 10)[..], &[own; 14]].concat();
        Request { prompt, max_new_tokens: 5, ..Request::default() }
    };
    let alone = Rig::new(FakeRunner::new(limits.clone())).answers([ask(7)]);
    let mut rig = Rig::new(FakeRunner::new(limits));
    rig.answers([ask(5)]);
    assert_eq!(rig.answers([ask(7)]), alone);
    let now = rig.handle.snapshot();
    assert_eq!((now.cache_hits, now.cache_copied), (8, 2));
}

/// At a depth of 64 a prompt gets 8 tokens for 512 pairs, and fewer the deeper it is.
#[test]
fn prompts_take_less_beside_answers_the_deeper_they_are() {
    let steps = |prompt_pairs_beside_answers| {
        let policy =
            Policy { prompt_tokens_beside_answers: 64, prompt_pairs_beside_answers, ..Policy::default() };
        let mut rig = Rig::with_options(FakeRunner::new(wide()), Options { policy, ..Options::default() });
        let _answer = rig.submit(request(90, 2, 3_900));
        rig.step();
        let mut prompt = rig.submit(request(1, 256, 1));
        (1..200).find(|_| rig.step() && prompt.listen().end.is_some()).unwrap()
    };
    assert_eq!(steps(usize::MAX), 4);
    let bounded = steps(512);
    assert!((30..100).contains(&bounded), "{bounded} steps");
}

/// With units that the fake computes otherwise than single tokens.
#[test]
fn a_score_of_an_answer_is_what_it_was_drawn_with() {
    let limits = Limits { prefill_unit: 16, step_tokens: 64, step_outputs: 64, ..limits() };
    let runner = || FakeRunner::new(limits.clone());
    let asked = Request { logprobs: Some(2), ..request(1, 5, 60) };
    let drawn = Rig::new(runner()).answers([asked.clone()]).remove(0);
    let whole = [&asked.prompt[..], &drawn.ids()].concat();
    let scored = Request { prompt: whole, prompt_logprobs: Some(2), ..Request::default() };
    let scored = Rig::new(runner()).answers([scored]).remove(0);
    let drawn: Vec<_> = drawn.tokens.into_iter().filter_map(|token| token.logprobs).collect();
    assert_eq!(scored.scores[4..], drawn[..]);
}
