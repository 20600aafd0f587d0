//! The step loop: the one thread that owns model, pool and buffers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use kv_cache::{BlockId, BlockPool};
use sampler::mask_words;

use crate::counters::Counters;
use crate::flight::Flight;
use crate::grammar::Masks;
use crate::handle::{Inbox, Message};
use crate::runner::{Batch, Fault, Limits, ModelRunner, Outcome};
use crate::scheduler::Scheduler;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::mpsc::TryRecvError;

/// A model, its KV pool and the sequences that run on it. [`crate::start`] gives it a thread;
/// tests build it by [`Engine::new`] and call [`Engine::receive`] and [`Engine::step`] themselves.
pub struct Engine<R> {
    inbox: Inbox, // first, so that an engine that panics is seen dead before its clients hear of it
    scheduler: Scheduler,
    pool: BlockPool,
    runner: R,
    limits: Arc<Limits>,
    batch: Batch,
    /// Launched and not collected, the oldest first.
    flights: VecDeque<Flight>,
    /// Its memory serves again.
    landed: Vec<Flight>,
    outcome: Outcome,
    counters: Arc<Counters>,
}

impl<R: ModelRunner> Engine<R> {
    /// Allocates what steps need.
    pub fn new(runner: R, inbox: Inbox) -> Self {
        let limits = inbox.limits.clone();
        let counters = inbox.life.0.clone();
        let mut policy = inbox.options.policy.clone();
        policy.await_prefixes &= inbox.options.prefix_cache;
        let engine = Self {
            scheduler: Scheduler::new(policy),
            pool: BlockPool::new(limits.n_blocks, limits.block_len, inbox.options.prefix_cache),
            runner,
            batch: Batch::with_capacity(&limits, inbox.options.sampled_vocab.min(limits.vocab_size)),
            flights: VecDeque::new(),
            landed: Vec::new(),
            outcome: Outcome::default(),
            limits,
            counters,
            inbox,
        };
        engine.publish();
        engine
    }

    pub fn run(mut self) {
        while self.receive() {
            self.step(Instant::now());
        }
    }

    /// Takes what has arrived, waiting only when nothing runs; false when the engine shall end.
    pub fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() && self.flights.is_empty() {
            assert_eq!(self.pool.stats().used, 0, "blocks are held, and nobody is there to hold them");
            if cfg!(debug_assertions) {
                self.check_pool(); // takes milliseconds where the pool is large
            }
            match self.inbox.messages.recv() {
                Ok(Message::Submit(arrival)) => self.scheduler.enqueue(*arrival, &self.limits),
                Ok(Message::Shutdown) | Err(_) => return false,
            }
        }
        loop {
            // Bounded: each request holds a place in the queue until it runs.
            match self.inbox.messages.try_recv() {
                Ok(Message::Submit(arrival)) => self.scheduler.enqueue(*arrival, &self.limits),
                Ok(Message::Shutdown) => return false,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// Launches a forward pass for whoever is here, and commits one: the same, or the one before where the runner works on
    /// a step while the next is planned.
    pub fn step(&mut self, now: Instant) {
        self.counters.in_step.store(true, Relaxed);
        self.retire(now);
        let under_way = !self.flights.is_empty();
        self.scheduler.plan(&self.pool, &self.limits, &self.counters, under_way);
        self.publish(); // a step may take long
        let launched = self.launch();
        let ahead = if launched { self.runner.steps_ahead() } else { self.flights.len().saturating_sub(1) };
        while self.flights.len() > ahead || self.flights.back().is_some_and(|flight| flight.waits) {
            self.collect();
        }
        self.retire(now);
        self.counters.in_step.store(false, Relaxed);
    }

    /// # Panics
    /// If blocks were lost, lent twice, held by nobody, or could be written by one sequence and read by
    /// another: a bug, and no answer can be trusted.
    pub fn check_pool(&self) {
        let running = self.scheduler.running();
        if let Err(fault) = self.pool.check(running.iter().filter_map(|s| s.table())) {
            panic!("{fault}");
        }
        let mut listed: HashMap<BlockId, usize> = HashMap::new();
        let tables = running.iter().filter_map(|s| s.table());
        tables.flat_map(|table| table.ids()).for_each(|id| *listed.entry(*id).or_default() += 1);
        for id in running.iter().flat_map(|s| s.writable()) {
            assert_eq!(listed[id], 1, "block {id} is written by one sequence and listed by others");
        }
    }

    /// False if there was nothing to launch.
    fn launch(&mut self) -> bool {
        let mut flight = self.landed.pop().unwrap_or_default();
        self.scheduler.fill(&mut self.batch, &mut flight, &self.limits);
        if self.batch.n_tokens() == 0 {
            self.landed.push(flight);
            return false;
        }
        self.counters.count_step(self.batch.n_tokens());
        match self.run_batch() {
            Ok(()) => self.flights.push_back(flight),
            Err(fault) => {
                while !self.flights.is_empty() {
                    self.collect();
                }
                self.fail(flight, &fault);
            }
        }
        true
    }

    /// Launches the batch. Masks are made while the model computes.
    fn run_batch(&mut self) -> Result<(), Fault> {
        let Self { runner, batch, scheduler, .. } = self;
        if batch.draws.masks.is_empty() {
            return runner.launch(batch, &mut |_| ());
        }
        let words = mask_words(batch.draws.sampled_vocab);
        let constrained = scheduler.constrained();
        thread::scope(|scope| {
            let mut masks = Masks::start(scope, constrained, words);
            runner.launch(batch, &mut |draws| masks.finish(&mut draws.masks))
        })
    }

    /// The oldest step under way.
    fn collect(&mut self) {
        let Some(flight) = self.flights.pop_front() else { return };
        match self.runner.collect(&mut self.outcome) {
            Ok(()) => {
                let Self { outcome, limits, counters, .. } = self;
                self.scheduler.commit(&flight, outcome, limits, counters);
                self.landed.push(flight);
            }
            Err(fault) => {
                // What was launched after it built on it.
                while let Some(later) = self.flights.pop_front() {
                    let _ = self.runner.collect(&mut self.outcome);
                    self.landed.push(later);
                }
                self.fail(flight, &fault);
            }
        }
    }

    fn fail(&mut self, flight: Flight, fault: &Fault) {
        self.counters.steps_failed.fetch_add(1, Relaxed);
        self.scheduler.fail(&flight, fault);
        self.landed.push(flight);
    }

    /// Lets go of choices that have ended or lost their client. Blocks first, then the gauges,
    /// then the word: a client that hears its end finds the engine as if it had left.
    fn retire(&mut self, now: Instant) {
        let ended = self.scheduler.retire(now, &self.counters);
        self.publish();
        for (reply, end) in ended {
            reply.finish(end);
        }
    }

    fn publish(&self) {
        let running = self.scheduler.running().iter().map(|sequence| sequence.heads.len()).sum();
        self.counters.set_gauges(running, self.scheduler.n_interrupted(), self.pool.stats());
        self.inbox.queue.set_open(self.scheduler.n_open(&self.limits));
    }
}
