//! Answers do not depend on company, chunks, blocks or luck.

use engine::Options;
use engine::request::{End, FinishReason, Request, Sampling};
use engine::testing::{FakeRunner, limits};

use crate::constrained::constrained;
use crate::harness::{Heard, Limits, Rig, expected, request, sampled};

/// Prompts of all sorts, greedy and sampled, with and without scores.
fn requests() -> Vec<Request> {
    let lens = [(1, 20), (3, 40), (64, 3), (65, 9), (130, 17), (17, 1), (40, 0), (200, 30)];
    let plain = lens.iter().enumerate().map(|(name, &(len, new))| request(name as u32, len, new));
    let varied = |request: Request| {
        let penalised =
            Sampling { repetition_penalty: 1.3, frequency_penalty: 0.2, min_p: 0.1, top_k: 20, ..sampled(5) };
        [
            Request { sampling: sampled(7), logprobs: Some(2), ..request.clone() },
            Request { sampling: penalised, prompt_logprobs: Some(3), ..request.clone() },
            Request { sampling: sampled(9), ..constrained(request.clone(), 12) },
            request,
        ]
    };
    plain.flat_map(varied).collect()
}

fn answers(limits: Limits, requests: Vec<Request>) -> Vec<Heard> {
    Rig::new(FakeRunner::new(limits)).answers(requests)
}

fn alone(limits: &Limits) -> Vec<Heard> {
    requests().into_iter().flat_map(|request| answers(limits.clone(), vec![request])).collect()
}

#[test]
fn greedy_answers_are_the_model_s_own() {
    let limits = limits();
    let greedy: Vec<Request> = requests().into_iter().filter(|r| r.sampling == Sampling::default()).collect();
    assert!(greedy.iter().all(|request| request.constraint.is_none()));
    let expected: Vec<Heard> = greedy.iter().map(|request| expected(request, &limits)).collect();
    assert_eq!(answers(limits, greedy), expected);
}

#[test]
fn in_a_batch_as_alone() {
    let limits = Limits { step_tokens: 64, ..limits() };
    assert_eq!(answers(limits.clone(), requests()), alone(&limits));
}

#[test]
fn in_chunks_as_whole_whatever_the_blocks() {
    let whole = Limits { step_tokens: 4096, step_outputs: 4096, n_blocks: 2_000, ..limits() };
    let expected = alone(&whole);
    for step_tokens in [1, 7, 64, 4096] {
        for (block_len, n_blocks) in [(1, 260), (3, 100), (16, 60), (64, 5)] {
            for step_outputs in [1, 9, 4096] {
                let limits = Limits { step_tokens, block_len, n_blocks, step_outputs, ..limits() };
                let label = format!("{limits:?}");
                assert!(answers(limits, requests()) == expected, "{label}");
            }
        }
    }
}

/// The next step is launched before it is known what the last one drew.
#[test]
fn ahead_as_step_by_step() {
    let quiet = |request| Request { logprobs: None, prompt_logprobs: None, ..request };
    let quiet: Vec<Request> = requests().into_iter().map(quiet).collect();
    let stopping = |request: Request| Request { stop_ids: (0..30).collect(), min_new_tokens: 3, ..request };
    let stopping: Vec<Request> = quiet.iter().cloned().map(stopping).collect();
    let ahead = |limits: &Limits, requests: &[Request]| {
        Rig::new(FakeRunner::new(limits.clone()).ahead()).answers(requests.to_vec())
    };
    for (step_tokens, n_blocks, prefill_unit) in
        [(1, 64, usize::MAX), (16, 64, 5), (64, 64, 16), (64, 500, usize::MAX)]
    {
        let step_outputs = step_tokens;
        let limits = Limits { step_tokens, step_outputs, n_blocks, prefill_unit, ..limits() };
        for requests in [&quiet, &stopping, &requests()] {
            let expected = answers(limits.clone(), requests.clone());
            assert!(ahead(&limits, requests) == expected, "{limits:?}");
        }
    }
}

#[test]
fn in_units_as_whole() {
    let whole = Limits { step_tokens: 4096, step_outputs: 4096, n_blocks: 2_000, ..limits() };
    for prefill_unit in [2, 5, 16] {
        let expected = alone(&Limits { prefill_unit, ..whole.clone() });
        // As tight as it may be, and with room for several units.
        for room in [prefill_unit, 3 * prefill_unit + 1] {
            let step = room + whole.step_rows;
            let limits = Limits { step_tokens: step, step_outputs: step, prefill_unit, ..whole.clone() };
            assert!(answers(limits, requests()) == expected, "units of {prefill_unit}, {step} tokens a step");
        }
    }
}

#[test]
fn equal_seeds_give_equal_answers() {
    let with = |seed| {
        let sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        Request { sampling, ..request(1, 5, 30) }
    };
    let seeded = [Some(1), Some(1), Some(2), None, None].map(with);
    let ids: Vec<Vec<u32>> = answers(limits(), seeded.into()).iter().map(Heard::ids).collect();
    assert_eq!(ids[0], ids[1]);
    for (a, b) in [(0, 2), (3, 4), (0, 3)] {
        assert_ne!(ids[a], ids[b], "{a} and {b}");
    }
}

#[test]
fn a_shorter_answer_begins_a_longer_one() {
    for sampling in [Sampling::default(), sampled(3)] {
        let with = |n| Request { sampling: sampling.clone(), ..request(1, 5, n) };
        let heard = answers(limits(), vec![with(8), with(16)]);
        assert_eq!(heard[0].ids(), heard[1].ids()[..8]);
    }
}

#[test]
fn a_stop_id_ends_the_answer_and_is_its_last_token() {
    let limits = limits();
    let ids = expected(&request(1, 5, 12), &limits).ids();
    let stop_at = (1..12).rfind(|&i| !ids[..i].contains(&ids[i])).unwrap();
    let check = |max_new_tokens, stop_ids: Vec<u32>, reason, length: usize| {
        let request = Request { stop_ids, ..request(1, 5, max_new_tokens) };
        let heard = &answers(limits.clone(), vec![request])[0];
        assert_eq!(heard.end, Some(End::Finished(reason)));
        assert_eq!(heard.ids(), ids[..length]);
    };
    check(12, vec![1_000, ids[stop_at]], FinishReason::Stop, stop_at + 1);
    check(stop_at + 1, vec![ids[stop_at]], FinishReason::Stop, stop_at + 1); // stop wins at the limit
    check(stop_at, vec![ids[stop_at]], FinishReason::Length, stop_at);
}

#[test]
fn stop_ids_wait_for_min_new_tokens() {
    let limits = limits();
    let stop_ids: Vec<u32> = (0..90).collect();
    let request = Request { stop_ids: stop_ids.clone(), min_new_tokens: 6, ..request(1, 5, 50) };
    let ids = answers(limits, vec![request])[0].ids();
    assert!(ids.len() > 6 && ids.len() < 50, "{ids:?}");
    let stops = ids.iter().filter(|id| stop_ids.contains(id)).count();
    assert!(stops == 1 && stop_ids.contains(ids.last().unwrap()), "{ids:?}");
}

#[test]
fn padded_rows_of_the_vocabulary_are_never_drawn() {
    let runner = FakeRunner::new(limits()).edit(|_, row| row[80..].fill(50.0));
    let options = Options { sampled_vocab: 80, ..Options::default() };
    let mut rig = Rig::with_options(runner, options);
    let hot = Sampling { temperature: 2.0, ..Sampling::default() };
    let requests = [Sampling::default(), hot].map(|sampling| Request { sampling, ..request(1, 3, 60) });
    for heard in rig.answers(requests) {
        assert!(heard.ids().iter().all(|&id| id < 80), "{:?}", heard.ids());
    }
}

#[test]
fn an_answer_ends_with_the_context() {
    let limits = Limits { context_len: 20, ..limits() };
    let request = request(1, 15, usize::MAX);
    let heard = &answers(limits.clone(), vec![request.clone()])[0];
    assert_eq!(*heard, expected(&Request { max_new_tokens: 5, ..request }, &limits));
}
