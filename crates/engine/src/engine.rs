//! The step loop: the one thread that owns model, pool and buffers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::TryRecvError;

use kv_cache::BlockPool;

use crate::counters::Counters;
use crate::handle::{Inbox, Message};
use crate::runner::{Batch, Fault, Limits, Logits, ModelRunner};
use crate::sampler::Scratch;
use crate::scheduler::Scheduler;

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
    /// Allocates what steps need: after this a step allocates only what it sends away.
    pub fn new(runner: R, inbox: Inbox) -> Self {
        let limits = inbox.limits.clone();
        let counters = inbox.life.0.clone();
        let engine = Self {
            scheduler: Scheduler::default(),
            pool: BlockPool::new(limits.n_blocks, limits.block_len),
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
            self.step();
        }
    }

    /// Takes what has arrived, waiting only when nothing runs; false when the engine shall end.
    pub fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() {
            self.check_pool();
            match self.inbox.messages.recv() {
                Ok(Message::Submit(request)) => self.scheduler.enqueue(request),
                Ok(Message::Shutdown) | Err(_) => return false,
            }
        }
        loop {
            // Bounded: each request holds one of the handle's permits until it runs.
            match self.inbox.messages.try_recv() {
                Ok(Message::Submit(request)) => self.scheduler.enqueue(request),
                Ok(Message::Shutdown) => return false,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// One forward pass for whoever is here, and what follows from it.
    pub fn step(&mut self) {
        self.retire();
        self.scheduler.plan(&self.pool, &self.limits);
        self.scheduler.fill(&mut self.batch);
        if self.batch.n_tokens() > 0 {
            self.counters.count_step(self.batch.n_tokens());
            match self.forward() {
                Ok(()) => self.scheduler.commit(&self.logits, &mut self.scratch, &self.counters),
                Err(fault) => self.scheduler.fail(&fault),
            }
        }
        self.retire();
    }

    /// # Panics
    /// If blocks were lost, lent twice, or are held by nobody: a bug, and no answer can be trusted.
    pub fn check_pool(&self) {
        if let Err(fault) = self.pool.check() {
            panic!("{fault}");
        }
        let (used, held) = (self.pool.stats().used, self.scheduler.blocks_held());
        assert_eq!(used, held, "blocks lent, against blocks held by sequences");
    }

    fn forward(&mut self) -> Result<(), Fault> {
        self.runner.forward(&self.batch, &mut self.logits)?;
        let (got, wanted) = (self.logits.values.len(), self.batch.outputs.len() * self.limits.vocab_size);
        if got != wanted || self.logits.vocab_size != self.limits.vocab_size {
            return Err(Fault(format!("the model returned {got} logits, {wanted} were asked for")));
        }
        Ok(())
    }

    /// Lets go of sequences that have ended or lost their client. Blocks first, then the gauges,
    /// then the word: a client that hears its end finds the engine as if it had left.
    fn retire(&mut self) {
        let ended = self.scheduler.retire(&self.counters);
        self.publish();
        for (reply, end) in ended {
            reply.finish(end);
        }
    }

    fn publish(&self) {
        let stats = self.pool.stats();
        self.counters.running.store(self.scheduler.n_running() as u64, Relaxed);
        self.counters.blocks_used.store(stats.used as u64, Relaxed);
        self.counters.blocks_total.store(stats.total as u64, Relaxed);
    }
}
