//! What scheduling costs: a step of the engine around a model that does nothing.
//!
//! ```text
//! cargo bench -p engine --bench step
//! ```
//!
//! Each line is the median over steps in which every sequence gets one token: plan, batch, commit and
//! an event to each client. Clients take their events outside the time measured.
use std::time::{Duration, Instant};

use engine::request::Request;
use engine::runner::{Batch, Draws, Fault, Limits, ModelRunner, Outcome};
use engine::{Engine, Events, Options, connect};

const STEPS: usize = 400;
const DEPTH: usize = 512;

/// Every draw comes to token 0.
struct Null(Limits, usize);

impl ModelRunner for Null {
    fn limits(&self) -> Limits {
        self.0.clone()
    }

    fn launch(&mut self, batch: &mut Batch, _: &mut dyn FnMut(&mut Draws)) -> Result<(), Fault> {
        self.1 = batch.draws.len();
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        outcome.drawn.clear();
        outcome.drawn.resize(self.1, Ok(0));
        Ok(())
    }
}

fn main() {
    println!("| sequences | waiting | µs a step, median | p99 | ns a sequence |\n|---|---|---|---|---|");
    for (running, waiting) in [(1, 0), (16, 0), (256, 0), (1_024, 0), (256, 1_000)] {
        let mut times = step_times(running, waiting);
        times.sort();
        let (median, p99) = (times[STEPS / 2].as_secs_f64(), times[STEPS * 99 / 100].as_secs_f64());
        println!(
            "| {running} | {waiting} | {:.1} | {:.1} | {:.0} |",
            median * 1e6,
            p99 * 1e6,
            median * 1e9 / running as f64
        );
    }
}

fn step_times(running: usize, waiting: usize) -> Vec<Duration> {
    let len = DEPTH + STEPS + 64;
    let limits = Limits {
        vocab_size: 16,
        context_len: len,
        block_len: 64,
        n_blocks: 1 + running * len.div_ceil(64),
        step_tokens: 8_192.max(running),
        step_rows: running,
        step_outputs: running,
        prefill_unit: usize::MAX,
    };
    let options = Options { max_waiting: 2 * (running + waiting), ..Options::default() };
    let (handle, inbox) = connect(limits.clone(), options);
    let mut engine = Engine::new(Null(limits, 0), inbox);
    let mut clients: Vec<Events> = (0..running + waiting)
        .flat_map(|client| {
            let prompt = (0..DEPTH).map(|i| (client >> (4 * (i % 8)) & 15) as u32).collect();
            let request = Request { prompt, max_new_tokens: STEPS + 64, ..Request::default() };
            handle.submit(request).expect("room in the queue")
        })
        .collect();
    let mut step = |clients: &mut [Events]| {
        assert!(engine.receive());
        let start = Instant::now();
        engine.step(start);
        let time = start.elapsed();
        clients.iter_mut().for_each(|events| while events.try_recv().is_some() {});
        time
    };
    let drawn = |clients: usize| handle.snapshot().generated_tokens >= clients as u64;
    while !drawn(running) {
        step(&mut clients); // prompts first
    }
    (0..STEPS).map(|_| step(&mut clients)).collect()
}
