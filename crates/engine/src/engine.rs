//! The step loop: the one thread that owns model, pool and buffers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kv_cache::{BlockId, BlockPool};
use sampler::Scratch;

use crate::counters::Counters;
use crate::handle::{Inbox, Message};
use crate::runner::{Batch, Fault, Limits, Logits, ModelRunner};
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
    logits: Logits,
    scratch: Scratch,
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
            batch: Batch::with_capacity(&limits),
            logits: Logits::with_capacity(limits.step_outputs, limits.vocab_size),
            scratch: Scratch::new(inbox.options.sampled_vocab.min(limits.vocab_size)),
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
        if self.scheduler.is_idle() {
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

    /// One forward pass for whoever is here, and what follows from it.
    pub fn step(&mut self, now: Instant) {
        self.counters.in_step.store(true, Relaxed);
        self.retire(now);
        self.scheduler.plan(&self.pool, &self.limits, &self.counters);
        self.publish(); // a step may take long
        self.scheduler.fill(&mut self.batch);
        if self.batch.n_tokens() > 0 {
            match self.forward() {
                Ok(()) => {
                    let Self { logits, scratch, limits, counters, .. } = self;
                    self.scheduler.commit(logits, scratch, limits, counters);
                }
                Err(fault) => self.scheduler.fail(&fault),
            }
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

    fn forward(&mut self) -> Result<(), Fault> {
        self.counters.count_step(self.batch.n_tokens());
        let result = self.runner.forward(&self.batch, &mut self.logits).and_then(|()| {
            let (got, wanted) = (self.logits.values.len(), self.batch.outputs.len() * self.limits.vocab_size);
            let fits = got == wanted && self.logits.vocab_size == self.limits.vocab_size;
            fits.then_some(())
                .ok_or_else(|| Fault(format!("the model returned {got} logits, {wanted} were asked for")))
        });
        self.counters.steps_failed.fetch_add(u64::from(result.is_err()), Relaxed);
        result
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
