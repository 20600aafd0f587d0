//! Ends of all kinds: refusals, faults, panics, clients that leave, handles that go.

use std::time::{Duration, Instant};

use engine::request::{End, Request, Sampling};
use engine::testing::{FakeRunner, limits};
use engine::{Busy, EngineHandle, Options, STEP_TOKENS_BOUNDS, start};

use crate::harness::{Client, Limits, Rig, expected, request};

fn submit(handle: &EngineHandle, request: Request) -> Client {
    Client::new(handle.submit(request).unwrap().pop().unwrap())
}

/// Waits for the engine's thread to get somewhere; a bound, not a pace.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn assert_failed(end: Option<End>, part: &str) {
    assert!(matches!(&end, Some(End::Failed(text)) if text.contains(part)), "{end:?} without {part:?}");
}

#[test]
fn requests_that_can_never_run_are_refused_with_the_reason() {
    fn check(request: Request, part: &str) {
        let limits = Limits { n_blocks: 21, ..limits() }; // 20 blocks of 4
        let mut rig = Rig::new(FakeRunner::new(limits));
        let heard = rig.submit(request).end();
        let text = match &heard.end {
            Some(End::Rejected(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text.contains(part) && !heard.started, "{text}");
        assert_eq!(rig.handle.snapshot().rejected, 1);
        assert!(!rig.step(), "nothing is left of it");
    }
    let with = |sampling| Request { sampling, ..request(1, 3, 3) };
    let plain = Sampling::default;
    check(request(1, 0, 3), "empty");
    check(Request { prompt: vec![5, 96], ..request(1, 1, 3) }, "prompt[1] is token 96");
    check(Request { prompt: vec![u32::MAX], ..request(1, 1, 3) }, "4294967295");
    check(request(1, 252, 1), "maximum context length is 252");
    check(request(1, 60, 30), "up to 30 new ones need 23 KV blocks of 4 tokens; the whole pool has 20 (80");
    check(with(Sampling { temperature: f32::NAN, ..plain() }), "temperature is NaN");
    check(with(Sampling { temperature: -0.5, ..plain() }), "of 0 or more");
    check(with(Sampling { temperature: f32::INFINITY, ..plain() }), "temperature is inf");
    check(with(Sampling { top_p: 0.0, ..plain() }), "top_p is 0; give a number above 0, up to 1");
    check(with(Sampling { min_p: 1.5, ..plain() }), "min_p");
    check(with(Sampling { presence_penalty: 3.0, ..plain() }), "presence_penalty");
    check(with(Sampling { frequency_penalty: f32::NAN, ..plain() }), "frequency_penalty");
    check(with(Sampling { repetition_penalty: 0.0, ..plain() }), "repetition_penalty");
    check(with(Sampling { logit_bias: vec![(3, 101.0)], ..plain() }), "logit_bias of token 3");
    check(with(Sampling { logit_bias: vec![(96, 1.0)], ..plain() }), "logit_bias names token 96");
    check(with(Sampling { logit_bias: vec![(5, 1.0), (3, 0.0), (5, 1.0)], ..plain() }), "token 5 twice");
    check(with(Sampling { logit_bias: vec![(5, 1.0); 1025], ..plain() }), "1025 entries");
    check(Request { stop_ids: vec![5; 1025], ..request(1, 3, 3) }, "1025 stop ids");
}

#[test]
fn a_row_of_nothing_to_draw_ends_that_request_alone() {
    let poison = |value: f32| {
        move |tokens: &[u32], row: &mut [f32]| {
            if tokens[0] == 1 && tokens.len() == 6 {
                row.fill(value);
            }
        }
    };
    for (value, part) in
        [(f32::NAN, "not numbers"), (f32::INFINITY, "not numbers"), (f32::NEG_INFINITY, "no token is left")]
    {
        let mut rig = Rig::new(FakeRunner::new(limits()).edit(poison(value)));
        let scored = Request { prompt_logprobs: Some(1), ..request(1, 8, 4) };
        let heard = rig.answers([request(1, 4, 9), request(2, 4, 9), scored]);
        assert_failed(heard[0].end.clone(), part);
        assert_eq!(heard[0].tokens.len(), 2, "tokens before the row are delivered");
        assert_eq!(heard[1], expected(&request(2, 4, 9), &limits()));
        assert_failed(heard[2].end.clone(), "not numbers");
    }
    let ban_all = Sampling { logit_bias: (0..96).map(|id| (id, -100.0)).collect(), ..Sampling::default() };
    let banned = Request { sampling: ban_all, ..request(1, 4, 9) };
    let heard = Rig::new(FakeRunner::new(limits())).answers([banned, request(2, 4, 9)]);
    assert_eq!(heard[0].end, Some(End::Stuck), "it is the request's own doing");
    assert_eq!(heard[1], expected(&request(2, 4, 9), &limits()));
}

#[test]
fn a_full_queue_is_busy_until_someone_is_admitted() {
    // Eight may run at once and so need not wait; two may wait.
    let options = Options { max_waiting: 2, ..Options::default() };
    let mut rig = Rig::with_options(FakeRunner::new(limits()), options);
    let clients: Vec<Client> = (0..10).map(|name| rig.submit(request(name, 1, 4))).collect();
    let busy = Some(Busy::Requests { max_waiting: 2 });
    assert_eq!((rig.handle.snapshot().waiting, rig.try_submit(request(10, 4, 4)).err()), (10, busy.clone()));
    rig.step();
    assert_eq!((rig.handle.snapshot().waiting, rig.handle.snapshot().running), (2, 8));
    assert_eq!(rig.try_submit(request(10, 4, 4)).err(), busy);
    while rig.handle.snapshot().waiting == 2 {
        rig.step();
    }
    let late = rig.submit(request(10, 4, 4));
    rig.finish();
    assert_eq!(late.end(), expected(&request(10, 4, 4), &limits()));
    clients.into_iter().for_each(|client| drop(client.end()));
}

#[test]
fn counters_add_up() {
    let mut rig = Rig::new(FakeRunner::new(limits()).fail_at(4));
    let ids = expected(&request(1, 20, 9), &limits()).ids();
    let stopped = Request { stop_ids: vec![ids[0]], ..request(1, 20, 9) };
    let clients = [rig.submit(request(0, 5, 2)), rig.submit(stopped), rig.submit(request(1, 0, 1))];
    drop(rig.submit(request(3, 5, 1)));
    let mut steps = 0;
    while rig.step() {
        steps += 1;
    }
    let failed = rig.submit(request(4, 20, 9));
    rig.finish();
    assert_failed(failed.end().end, "fails at step 4");
    let now = rig.handle.snapshot();
    assert_eq!((now.exhausted, now.stopped, now.rejected, now.cancelled, now.failed), (1, 1, 1, 1, 1));
    assert_eq!((steps, now.steps), (2, 5));
    assert_eq!((now.prompt_tokens, now.generated_tokens), (5 + 20 + 20, 2 + 1 + 1));
    // Steps of 16 tokens (5 + 11), 10 (1 + 9), 16 and 4 (of 20), and 1, which fails.
    let by_bound: Vec<(u64, u64)> =
        STEP_TOKENS_BOUNDS.into_iter().zip(now.step_tokens).filter(|(_, n_steps)| *n_steps > 0).collect();
    assert_eq!((by_bound, now.step_tokens_sum), (vec![(1, 1), (5, 1), (10, 1), (20, 2)], 47));
    clients.into_iter().for_each(|client| drop(client.end()));
}

#[test]
fn on_its_thread_many_clients_hear_their_own_answers() {
    let (handle, thread) = start(FakeRunner::new(limits()), Options::default());
    let clients: Vec<_> = (0..12)
        .map(|name| {
            let handle = handle.clone();
            std::thread::spawn(move || submit(&handle, request(name, 9, 30)).wait())
        })
        .collect();
    for (name, client) in clients.into_iter().enumerate() {
        assert_eq!(client.join().unwrap(), expected(&request(name as u32, 9, 30), &limits()));
    }
    let now = handle.snapshot();
    assert!(now.alive && now.running == 0 && now.blocks_used == 0, "{now:?}");
    let idle_steps = now.steps;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(handle.snapshot().steps, idle_steps, "an idle engine takes no steps");
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn a_client_that_leaves_the_thread_frees_its_blocks() {
    let runner = FakeRunner::new(limits()).delay(Duration::from_millis(1));
    let (handle, thread) = start(runner, Options::default());
    let clients: Vec<Client> = (0..3).map(|name| submit(&handle, request(name, 4, 200))).collect();
    eventually("someone runs", || handle.snapshot().running > 0);
    drop(clients);
    eventually("the pool is whole", || handle.snapshot().blocks_used == 0);
    assert_eq!(handle.snapshot().cancelled, 3);
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn the_thread_outlives_its_handles_until_the_last_answer() {
    let (handle, thread) = start(FakeRunner::new(limits()), Options::default());
    let client = submit(&handle, request(1, 9, 100));
    drop(handle);
    assert_eq!(client.wait(), expected(&request(1, 9, 100), &limits()));
    thread.join().unwrap();
}

/// One step is launched too many for an answer that stops, and its fault is heard of too.
#[test]
fn what_nobody_waits_for_is_collected() {
    let ids = expected(&request(1, 4, 9), &limits()).ids();
    let stopping = Request { stop_ids: vec![ids[0]], ..request(1, 4, 9) };
    let (handle, thread) = start(FakeRunner::new(limits()).ahead().fail_at(1), Options::default());
    assert_eq!(submit(&handle, stopping.clone()).wait(), expected(&stopping, &limits()));
    eventually("the fault is counted", || handle.snapshot().steps_failed == 1);
    assert_eq!((handle.snapshot().failed, handle.snapshot().stopped), (0, 1));
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn a_panic_in_the_model_is_heard_by_everyone() {
    let runner = FakeRunner::new(Limits { step_rows: 2, ..limits() }).panic_at(3);
    let (handle, thread) = start(runner.delay(Duration::from_millis(5)), Options::default());
    let clients: Vec<Client> = (0..4).map(|name| submit(&handle, request(name, 4, 100))).collect();
    for client in clients {
        assert_failed(client.wait().end, "engine stopped");
        assert!(!handle.snapshot().alive, "whoever hears of it finds it so");
    }
    assert!(thread.join().is_err());
    let now = handle.snapshot();
    assert_eq!((now.running, now.waiting, now.blocks_used), (0, 0, 0));
    assert_eq!(handle.submit(request(1, 4, 4)).err(), Some(Busy::Stopped));
}

#[test]
fn shutdown_ends_whoever_is_left() {
    let runner = FakeRunner::new(limits()).delay(Duration::from_millis(1));
    let (handle, thread) = start(runner, Options::default());
    let client = submit(&handle, request(1, 4, 240));
    eventually("it runs", || handle.snapshot().running == 1);
    handle.shutdown();
    assert_failed(client.wait().end, "engine stopped");
    thread.join().unwrap();
    assert!(!handle.snapshot().alive);
    assert_eq!(handle.submit(request(1, 4, 4)).err(), Some(Busy::Stopped));
}
