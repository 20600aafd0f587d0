//! Where threads meet: clients that submit, listen and leave, others that ask for counters or a shutdown, and
//! an engine that may die between any two of its steps. The crate's modules, compiled on shuttle's primitives,
//! run under thousands of schedules that it makes up.
//!
//! No test harness: its attributes would run the modules' own tests outside of shuttle. A failure prints the
//! schedule that `shuttle::replay` takes.
#![allow(dead_code, unused_imports, unreachable_pub)] // most of the crate is not called from here

mod sync;

#[path = "../../src/budget.rs"]
mod budget;
#[path = "../../src/counters.rs"]
mod counters;
#[path = "../../src/engine.rs"]
mod engine;
#[path = "../../src/flight.rs"]
mod flight;
#[path = "../../src/grammar.rs"]
mod grammar;
#[path = "../../src/handle.rs"]
mod handle;
#[path = "../../src/head.rs"]
mod head;
#[path = "../../src/policy.rs"]
mod policy;
#[path = "../../src/queue.rs"]
mod queue;
#[path = "../../src/reply.rs"]
mod reply;
#[path = "../../src/request.rs"]
mod request;
#[path = "../../src/runner.rs"]
mod runner;
#[path = "../../src/sampling.rs"]
mod sampling;
#[path = "../../src/scheduler.rs"]
mod scheduler;
#[path = "../../src/sequence.rs"]
mod sequence;
#[path = "../../src/testing.rs"]
mod testing;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Instant;

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use engine::Engine;
use handle::{Busy, EngineHandle, Inbox, Options, connect};
use reply::Events;
use request::{End, Event, Request};
use runner::Limits;
use testing::FakeRunner;

const PROMPT_LEN: usize = 3;

/// What clients met in all schedules; outside of what shuttle sees.
static MET: Mutex<BTreeMap<&str, usize>> = Mutex::new(BTreeMap::new());

fn note(what: &'static str) {
    *MET.lock().unwrap().entry(what).or_default() += 1;
}

fn main() {
    // The seeds are fixed: what passes once passes always. `BOUNDARY_SCHEDULES=1000000` explores more.
    let n =
        std::env::var("BOUNDARY_SCHEDULES").map_or(10_000, |text| text.parse().expect("a whole number")) / 2;
    let n = explore(RandomScheduler::new_from_seed(1, n)) + explore(PctScheduler::new_from_seed(2, 3, n));
    let met = MET.lock().unwrap();
    println!("{n} schedules: {met:?}");
    for what in ["finished", "orphaned", "left", "busy", "stopped", "at rest"] {
        assert!(met.get(what).is_some_and(|&times| times > 100), "{what} is not tested: {met:?}");
    }
}

fn explore(scheduler: impl Scheduler + 'static) -> usize {
    let mut config = Config::new();
    config.silence_warnings = true; // it takes relaxed atomics, which are plain counters here, for ordered ones
    Runner::new(scheduler, config).run(scenario)
}

fn pick(range: Range<usize>) -> usize {
    thread_rng().gen_range(range)
}

fn scenario() {
    let limits = Limits { step_rows: 1, n_blocks: 9, context_len: 12, ..testing::limits() };
    // Room for one prompt and no more, so that a place that is not given back shows.
    let options = Options { max_waiting: 1, max_waiting_tokens: PROMPT_LEN, ..Options::default() };
    let (handle, inbox) = connect(limits.clone(), options);
    let steps = Some(pick(0..8)).filter(|&steps| steps < 5);
    let shuts_down = pick(0..3) == 0;
    let engine = thread::spawn(move || run(limits, inbox, steps));
    let mut others = Vec::new();
    for name in 0..2 {
        let handle = handle.clone();
        others.push(thread::spawn(move || ask(&handle, name)));
    }
    let watched = handle.clone();
    others.push(thread::spawn(move || watch(&watched)));
    if shuts_down {
        let handle = handle.clone();
        others.push(thread::spawn(move || handle.shutdown()));
    }
    others.into_iter().for_each(|other| other.join().unwrap());
    if steps.is_none() && !shuts_down {
        check_at_rest(&handle);
        drop(handle);
        return engine.join().unwrap();
    }
    if steps.is_some() {
        handle.shutdown(); // it may have less to do than it was to live for
    }
    engine.join().unwrap();
    let now = handle.snapshot();
    assert_eq!((now.alive, now.running, now.waiting, now.blocks_used), (false, 0, 0, 0));
    assert_eq!(handle.submit(request(2, 1)).err(), Some(Busy::Stopped));
}

/// An engine that is gone after so many steps, as one that panics.
fn run(limits: Limits, inbox: Inbox, steps: Option<usize>) {
    let mut engine = Engine::new(FakeRunner::new(limits), inbox);
    let mut steps_left = steps.unwrap_or(usize::MAX);
    while steps_left > 0 && engine.receive() {
        engine.step(Instant::now());
        steps_left -= 1;
    }
}

fn request(name: u32, n: usize) -> Request {
    Request { prompt: vec![name; PROMPT_LEN], n, max_new_tokens: 2, ..Request::default() }
}

fn ask(handle: &EngineHandle, name: u32) {
    match handle.submit(request(name, pick(1..3))) {
        Ok(choices) => choices.into_iter().for_each(|choice| listen(handle, choice)),
        Err(Busy::Stopped) => {
            assert!(!handle.snapshot().alive);
            note("stopped");
        }
        Err(Busy::Requests { .. } | Busy::Tokens { .. }) => note("busy"),
    }
}

/// To the end, or until the client has had enough.
fn listen(handle: &EngineHandle, mut events: Events) {
    let mut patience = pick(0..8);
    while let Some(event) = events.blocking_recv() {
        if let Event::End(end) = event {
            let orphaned = matches!(&end, End::Failed(text) if text.contains("engine stopped"));
            assert!(orphaned || matches!(end, End::Finished(_)), "{end:?}");
            assert!(!orphaned || !handle.snapshot().alive, "the engine has died, and seems alive");
            assert_eq!(events.blocking_recv(), None, "after the end");
            note(if orphaned { "orphaned" } else { "finished" });
            return;
        }
        if patience == 0 {
            note("left");
            return;
        }
        patience -= 1;
    }
    panic!("the stream closed without an end");
}

fn watch(handle: &EngineHandle) {
    let mut alive = true;
    for _ in 0..3 {
        let now = handle.snapshot();
        assert!(alive || !now.alive, "the dead do not rise");
        assert!(now.running <= 4 && now.waiting <= 4, "{now:?}");
        alive = now.alive;
    }
}

/// Nobody is left but those whose clients went: one more request finds its place, and the engine has
/// let go of all others once that one has ended.
fn check_at_rest(handle: &EngineHandle) {
    let choices = loop {
        match handle.submit(request(2, 1)) {
            Ok(choices) => break choices,
            Err(Busy::Stopped) => panic!("it lives"),
            // Those who went hold their places until the next step.
            Err(Busy::Requests { .. } | Busy::Tokens { .. }) => thread::yield_now(),
        }
    };
    for mut events in choices {
        let mut end = None;
        while let Some(event) = events.blocking_recv() {
            end = Some(event);
        }
        assert!(matches!(end, Some(Event::End(End::Finished(_)))), "{end:?}");
    }
    let now = handle.snapshot();
    assert_eq!((now.alive, now.running, now.waiting, now.blocks_used), (true, 0, 0, 0));
    note("at rest");
}
