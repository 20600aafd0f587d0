//! Who computes how many tokens in a step.
//!
//! There are no phases. A sequence has `computed` and `total` tokens, and a step hands out a
//! budget of tokens until they meet: a long prompt takes many, an answer takes one at a time. One
//! rule keeps it fair: first one token for each running sequence, then the rest in order of
//! arrival. So a long prompt delays no answer, and no answer holds up a prompt. A prompt is cut at
//! multiples of the model's prefill unit only, so that its numbers do not depend on the crowd.
//!
//! A request is admitted, first come first served, once its blocks for prompt and whole answer
//! are free; it keeps them to its end. A running sequence therefore never runs out of blocks, at
//! the price of room that a short answer leaves unused. (Taking blocks as they are needed asks
//! for preemption, which is not there yet.)

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use kv_cache::BlockPool;

use crate::counters::Counters;
use crate::handle::Waiting;
use crate::reply::Reply;
use crate::request::{End, Event};
use crate::runner::{Batch, Fault, Limits, Logits};
use crate::sampler::Scratch;
use crate::sequence::Sequence;

#[derive(Default)]
pub(crate) struct Scheduler {
    /// In order of arrival.
    waiting: VecDeque<Waiting>,
    /// In order of admission; never more than `step_rows`.
    running: Vec<Sequence>,
    /// Number of the next sequence to be admitted.
    next_number: u64,
    /// Number of the sequence whose turn is first: a budget smaller than the crowd goes round.
    first_turn: u64,
}

/// What is left of a step's budget.
struct Budget {
    tokens: usize,
    outputs: usize,
    /// Of prompts; see [`Limits::prefill_unit`].
    unit: usize,
}

impl Budget {
    fn grant(&mut self, sequence: &mut Sequence, tokens_max: usize) {
        let (tokens, outputs) = sequence.affordable(self.tokens.min(tokens_max), self.outputs, self.unit);
        sequence.granted += tokens;
        self.tokens -= tokens;
        self.outputs -= outputs;
    }
}

impl Scheduler {
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn n_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn blocks_held(&self) -> usize {
        self.running.iter().map(Sequence::n_blocks).sum()
    }

    pub(crate) fn enqueue(&mut self, request: Waiting) {
        self.waiting.push_back(request);
    }

    /// Admits whoever fits, then spends the budget.
    pub(crate) fn plan(&mut self, pool: &BlockPool, limits: &Limits) {
        self.admit(pool, limits);
        let unit = limits.prefill_unit;
        let mut budget = Budget { tokens: limits.step_tokens, outputs: limits.step_outputs, unit };
        let first = self.running.partition_point(|s| s.number < self.first_turn);
        let mut left_out = None;
        for turn in 0..self.running.len() {
            let index = (first + turn) % self.running.len();
            let sequence = &mut self.running[index];
            sequence.granted = 0;
            budget.grant(sequence, 1);
            if sequence.granted == 0 && !sequence.takes_units(unit) {
                left_out = left_out.or(Some(sequence.number));
            }
        }
        self.first_turn = left_out.unwrap_or(0);
        for sequence in &mut self.running {
            budget.grant(sequence, usize::MAX);
            if sequence.granted > 0 && sequence.computed() == 0 {
                sequence.reply.send(Event::Started { cached_tokens: 0 });
            }
        }
    }

    fn admit(&mut self, pool: &BlockPool, limits: &Limits) {
        while self.running.len() < limits.step_rows
            && let Some(next) = self.waiting.front()
        {
            let mut table = pool.open();
            let len_max = next.request.len_max(limits);
            if table.reserve(len_max).is_err() {
                return; // nobody overtakes: whoever waits for much room would wait for ever
            }
            if let Some(Waiting { request, reply, .. }) = self.waiting.pop_front() {
                self.running.push(Sequence::new(self.next_number, request, len_max, table, reply));
                self.next_number += 1;
            }
        }
    }

    pub(crate) fn fill(&self, batch: &mut Batch) {
        batch.clear();
        batch.row_start.push(0);
        for sequence in self.running.iter().filter(|s| s.granted > 0) {
            sequence.push_row(batch);
        }
    }

    /// Takes the step's logits: each sequence moves on, draws, tells its client, perhaps ends.
    pub(crate) fn commit(&mut self, logits: &Logits, scratch: &mut Scratch, counters: &Counters) {
        let mut first = 0; // row of `logits` where the sequence's outputs begin
        for sequence in self.running.iter_mut().filter(|s| s.granted > 0) {
            let n_outputs = sequence.granted_outputs();
            let rows = (first..first + n_outputs).map(|output| logits.row(output));
            first += n_outputs;
            let progress = sequence.commit(rows, scratch);
            counters.prompt_tokens.fetch_add(progress.prompt_tokens as u64, Relaxed);
            counters.generated_tokens.fetch_add(progress.generated_tokens as u64, Relaxed);
        }
    }

    /// The step failed: whoever was in it ends, whoever was not goes on.
    pub(crate) fn fail(&mut self, fault: &Fault) {
        tracing::error!(%fault, "a step failed");
        for sequence in self.running.iter_mut().filter(|s| s.granted > 0) {
            sequence.end = Some(End::Failed(fault.to_string()));
        }
    }

    /// The one place where sequences leave. Their blocks are free when this returns.
    pub(crate) fn retire(&mut self, counters: &Counters) -> Vec<(Reply, End)> {
        let mut ended = Vec::new();
        let mut cancelled = self.waiting.len();
        self.waiting.retain(|request| !request.reply.is_closed());
        cancelled -= self.waiting.len();
        for Sequence { end, reply, .. } in self.running.extract_if(.., |s| s.has_left()) {
            match end {
                Some(end) => {
                    counters.count_end(&end);
                    ended.push((reply, end));
                }
                None => cancelled += 1,
            }
        }
        counters.cancelled.fetch_add(cancelled as u64, Relaxed);
        ended
    }
}
