//! Random arrivals, departures and faults, with what must hold after every step.
//!
//! The fake itself checks that no step passes its budgets or breaks the batch's contract; the rig
//! checks the pool after each step, and clients the order of what they hear.

use engine::request::{End, Request};
use engine::testing::FakeRunner;
use proptest::prelude::*;

use crate::harness::{Client, Limits, Rig, expected, request};

#[derive(Debug, Clone)]
struct Arrival {
    /// Steps before it comes.
    pause: usize,
    prompt_len: usize,
    max_new_tokens: usize,
    scored: bool,
    /// Steps after which its client leaves.
    patience: Option<usize>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0usize..4, 1usize..40, 0usize..12, any::<bool>(), prop::option::weighted(0.3, 0usize..12))
        .prop_map(|(pause, prompt_len, max_new_tokens, scored, patience)| Arrival {
            pause,
            prompt_len,
            max_new_tokens,
            scored,
            patience,
        });
    prop::collection::vec(arrival, 1..14)
}

fn sizes() -> impl Strategy<Value = Limits> {
    (1usize..9, 1usize..30, 1usize..24, 1usize..6, 1usize..12, 2usize..8).prop_map(
        |(block_len, n_blocks, step_tokens, step_rows, step_outputs, unit)| Limits {
            vocab_size: 96,
            context_len: 48,
            block_len,
            n_blocks: n_blocks + 1,
            step_tokens,
            step_rows,
            step_outputs,
            prefill_unit: match step_tokens.min(step_outputs).saturating_sub(step_rows) {
                0 | 1 => usize::MAX,
                room => unit.min(room),
            },
        },
    )
}

struct Guest {
    request: Request,
    client: Option<Client>,
    leaves_in: Option<usize>,
    /// Tokens and steps without progress while it is among the running.
    progress: (usize, usize),
}

/// Steps in which everybody ahead of a request has surely finished, and it too: each step serves
/// at least one token of someone, and turns go round.
fn steps_max(arrivals: &[Arrival]) -> usize {
    arrivals.iter().map(|a| a.pause + a.prompt_len + a.max_new_tokens + 2).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn everyone_hears_one_end_and_the_pool_is_whole(
        limits in sizes(),
        arrivals in arrivals(),
        fail_at in prop::option::weighted(0.2, 0usize..20),
    ) {
        let mut runner = FakeRunner::new(limits.clone());
        if let Some(step) = fail_at {
            runner = runner.fail_at(step);
        }
        let mut rig = Rig::new(runner);
        let mut guests: Vec<Guest> = Vec::new();
        for (name, arrival) in arrivals.iter().enumerate() {
            for _ in 0..arrival.pause {
                step(&mut rig, &mut guests);
            }
            let request = Request {
                prompt_logprobs: arrival.scored.then_some(1),
                ..request(name as u32, arrival.prompt_len, arrival.max_new_tokens)
            };
            let client = Some(rig.submit(request.clone()));
            guests.push(Guest { request, client, leaves_in: arrival.patience, progress: (0, 0) });
        }
        let mut steps = 0;
        while step(&mut rig, &mut guests) {
            steps += 1;
            prop_assert!(steps <= steps_max(&arrivals), "someone starves");
        }
        rig.finish();
        let now = rig.handle.snapshot();
        let ends = now.stopped + now.exhausted + now.cancelled + now.rejected + now.failed;
        prop_assert_eq!(ends, guests.len() as u64);
        for guest in guests {
            check_answer(guest, &limits);
        }
    }
}

/// A step of the engine, and of each guest's patience.
fn step(rig: &mut Rig, guests: &mut [Guest]) -> bool {
    for guest in &mut *guests {
        match &mut guest.leaves_in {
            Some(0) => guest.client = None,
            Some(steps) => *steps -= 1,
            None => {}
        }
    }
    let busy = rig.step();
    for guest in guests {
        let Some(client) = &mut guest.client else { continue };
        let heard = client.listen();
        // Among at most 5 rows a turn comes at least every 5 steps, so an answer that has begun
        // never pauses longer.
        let n_tokens = heard.tokens.len();
        let begun = n_tokens > 0 && heard.end.is_none();
        let waited = if begun && n_tokens == guest.progress.0 { guest.progress.1 + 1 } else { 0 };
        assert!(waited <= 5, "an answer stands still");
        guest.progress = (n_tokens, waited);
    }
    busy
}

fn check_answer(guest: Guest, limits: &Limits) {
    let Some(client) = guest.client else { return };
    let heard = client.end();
    match &heard.end {
        Some(End::Finished(_)) => {
            let expected = expected(&guest.request, limits);
            assert_eq!(heard.ids(), expected.ids());
            assert_eq!(heard.end, expected.end);
            let scored = guest.request.prompt_logprobs.is_some();
            assert_eq!(heard.scores.len(), if scored { guest.request.prompt.len() - 1 } else { 0 });
        }
        Some(End::Rejected(_)) => assert!(guest.request.check(limits).is_err()),
        Some(End::Failed(_)) => assert!(guest.request.check(limits).is_ok()),
        Some(End::Expired) => panic!("it has no deadline"),
        None => unreachable!("`end` sees to it"),
    }
}
