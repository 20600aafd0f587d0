//! Who computes how many tokens in a step, and who holds blocks meanwhile.
//!
//! There are no phases. A sequence has `computed` and `total` tokens, and a step hands out a
//! budget of tokens until they meet: a long prompt takes many, an answer takes one at a time.
//! Sequences stand in one order, by priority and arrival ([`Rank`]); it decides who is admitted first
//! and who gives up blocks last. [`Scheduler::plan`] is the policy:
//!
//! 1. **Go on**: each running sequence gets one token, but for those that wait for a unit of their prompt.
//!    Where no block is left for one, the last in rank is sent back to the queue; the first never is.
//! 2. **Admit** whoever is next and finds blocks for all its tokens, with some to spare for those that
//!    run. Nobody overtakes for want of room; who waits for a prefix that is just being computed lets
//!    others pass. One that was overtaken too often goes before all.
//! 3. **Read prompts** with the rest of the budget, of which answers leave them a fixed share, so that
//!    nobody's next token waits for a long prompt: the shortest first, now and then the one that was passed
//!    over longest.
//!
//! Which kernel computes a token depends on its place in its request alone ([`kv_cache::Units`]), so that
//! its numbers do not depend on the crowd.

use std::collections::BTreeMap;
use std::time::Instant;

use kv_cache::BlockPool;

use crate::budget::{Budget, Share};
use crate::counters::Counters;
use crate::flight::Flight;
use crate::grammar::Constrained;
use crate::handle::Arrival;
use crate::head::Head;
use crate::policy::Policy;
use crate::reply::Reply;
use crate::request::End;
use crate::runner::{Batch, Fault, Limits, Outcome};
use crate::sequence::{Rank, Sequence};
use crate::sync::atomic::Ordering::Relaxed;

pub(crate) struct Scheduler {
    policy: Policy,
    /// Without blocks.
    waiting: BTreeMap<Rank, Sequence>,
    /// With blocks, by rank; never more than [`Limits::places`].
    running: Vec<Sequence>,
    /// Number of the next request.
    next_number: u64,
    /// The next in rank found no room.
    blocked: bool,
    /// Steps in a row in which the shortest prompt was read first.
    by_length: usize,
}

/// Who got a token in [`Scheduler::go_on`].
enum GoOn {
    All,
    /// Some had to give way.
    Some,
    /// Some will have to give way, once no step is under way.
    Later,
}

/// Waiting sequences that are looked up in the cache before one is admitted.
const CANDIDATES_MAX: usize = 64;

impl Scheduler {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            next_number: 0,
            blocked: false,
            by_length: 0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Choices that ran and wait to go on.
    pub(crate) fn n_interrupted(&self) -> usize {
        self.waiting.values().filter(|s| s.is_interrupted()).map(|s| s.heads.len()).sum()
    }

    /// Sequences that could be admitted at once.
    pub(crate) fn n_open(&self, limits: &Limits) -> usize {
        if self.blocked && !self.waiting.is_empty() { 0 } else { limits.places() - self.running.len() }
    }

    pub(crate) fn enqueue(&mut self, arrival: Arrival, limits: &Limits) {
        let len_max = arrival.request.len_max(limits);
        self.wait(Sequence::new(self.next_number, arrival, len_max));
        self.next_number += 1;
    }

    /// `under_way`: a step is, whose outcome is not known yet. What would have to wait for it waits, and nothing is
    /// granted.
    pub(crate) fn plan(&mut self, pool: &BlockPool, limits: &Limits, counters: &Counters, under_way: bool) {
        let mut budget = Budget { tokens: limits.step_tokens, outputs: limits.step_outputs };
        self.running.iter_mut().for_each(|sequence| sequence.granted = 0);
        if let Some(suspect) = self.running.iter_mut().find(|s| s.suspect) {
            if !under_way {
                budget.grant(suspect, usize::MAX);
            }
            return;
        }
        match self.go_on(&mut budget, counters, under_way) {
            GoOn::All => {
                self.blocked = false;
                self.admit(pool, limits, counters);
            }
            GoOn::Some => self.blocked = true,
            GoOn::Later => {
                self.running.iter_mut().for_each(|sequence| sequence.granted = 0);
                return;
            }
        }
        self.read_prompts(&mut budget, limits);
    }

    /// One token each, the last in rank giving way.
    fn go_on(&mut self, budget: &mut Budget, counters: &Counters, under_way: bool) -> GoOn {
        let (mut index, mut went) = (0, GoOn::All);
        while let Some(sequence) = self.running.get_mut(index) {
            if sequence.takes_units() || sequence.remaining() == 0 {
                index += 1; // a single token is of no use to it, or what it draws just now comes first
            } else if sequence.reserve(1).is_ok() {
                budget.grant(sequence, 1);
                index += 1;
            } else if under_way {
                return GoOn::Later;
            } else if let Some(mut last) = self.running.pop() {
                last.preempt();
                counters.preempted.fetch_add(1, Relaxed);
                went = GoOn::Some;
                self.wait(last);
            }
        }
        went
    }

    fn admit(&mut self, pool: &BlockPool, limits: &Limits, counters: &Counters) {
        while self.running.len() < limits.places()
            && let Some(rank) = self.next_candidate(pool)
            && let Some(mut sequence) = self.waiting.remove(&rank)
        {
            let growth = |s: &Sequence| s.growth(self.policy.spare_tokens, limits.block_len);
            let others: usize = self.running.iter().map(growth).sum();
            let spare = if self.running.is_empty() { 0 } else { others + growth(&sequence) };
            if sequence.admit(pool, spare).is_err() {
                self.blocked = true;
                return self.wait(sequence); // nobody overtakes: who needs much room would wait for ever
            }
            let queried = sequence.remaining();
            if let Some((hits, copied)) = sequence.start(limits.block_len) {
                counters.count_lookup(queried + hits + copied, hits, copied);
            }
            self.note_overtaken(&sequence);
            self.run(sequence);
        }
    }

    /// The first in rank that does not wait for what another computes just now.
    fn next_candidate(&mut self, pool: &BlockPool) -> Option<Rank> {
        let Self { waiting, running, policy, .. } = self;
        if !policy.await_prefixes {
            return waiting.keys().next().copied();
        }
        let mut n_asked = 0;
        for (rank, sequence) in waiting.iter_mut() {
            if still_awaits(sequence, running, pool.block_len()) {
                continue;
            }
            n_asked += 1;
            if n_asked > CANDIDATES_MAX {
                break;
            }
            if !awaits_prefix(sequence, running, pool) {
                return Some(*rank);
            }
        }
        None
    }

    /// Those that came before `admitted` and still wait; whoever was overtaken too often goes first.
    fn note_overtaken(&mut self, admitted: &Sequence) {
        let older = self.waiting.values_mut().filter(|s| s.rank.number < admitted.rank.number);
        let mut promoted = Vec::new();
        for sequence in older {
            sequence.overtaken += 1;
            if sequence.overtaken >= self.policy.overtaken_max && sequence.rank.level > i64::MIN {
                promoted.push(sequence.rank);
            }
        }
        for rank in promoted {
            if let Some(mut sequence) = self.waiting.remove(&rank) {
                sequence.rank.level = i64::MIN;
                self.wait(sequence);
            }
        }
    }

    /// The shortest first; once in a while whoever was passed over longest.
    fn read_prompts(&mut self, budget: &mut Budget, limits: &Limits) {
        let answers = self.running.iter().any(|s| s.granted > 0 && s.granted == s.remaining());
        let mut share = Share { tokens: budget.tokens, pairs: usize::MAX };
        if answers {
            let unit = if limits.prefill_unit == usize::MAX { 0 } else { limits.prefill_unit };
            share.tokens = self.policy.prompt_tokens_beside_answers.max(unit).min(budget.tokens);
            share.pairs = self.policy.prompt_pairs_beside_answers;
        }
        let mut prompts: Vec<&mut Sequence> =
            self.running.iter_mut().filter(|s| s.granted < s.remaining()).collect();
        if self.policy.passed_over_max > 0 {
            prompts.sort_by_key(|s| s.remaining());
            self.by_length += 1;
            let longest = (0..prompts.len()).rev().max_by_key(|&at| prompts[at].passed_over);
            if let Some(at) = longest.filter(|_| self.by_length > self.policy.passed_over_max) {
                prompts[..=at].rotate_right(1);
                self.by_length = 0;
            }
        }
        for sequence in prompts {
            let got = share.grant(budget, sequence);
            sequence.passed_over = if got > 0 { 0 } else { sequence.passed_over + 1 };
        }
    }

    fn wait(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.rank, sequence);
    }

    fn run(&mut self, sequence: Sequence) {
        let at = self.running.partition_point(|other| other.rank < sequence.rank);
        self.running.insert(at, sequence);
    }

    /// Writes what was granted as a batch, and whom to tell what comes of it as a flight. Heads draw in advance as far as
    /// there are places for them.
    pub(crate) fn fill(&mut self, batch: &mut Batch, flight: &mut Flight, limits: &Limits) {
        batch.clear();
        flight.clear();
        batch.row_start.push(0);
        let mut open = limits.places() - self.running.len();
        for sequence in self.running.iter_mut().filter(|s| s.granted > 0) {
            let n_draws = sequence.launch(batch, flight, 1 + open);
            open -= n_draws.saturating_sub(1);
        }
    }

    /// Those whose masks the step that was just filled wants, in the order of its draws.
    pub(crate) fn constrained(&mut self) -> Vec<&mut Constrained> {
        let heads = self.running.iter_mut().flat_map(|sequence| &mut sequence.heads);
        heads.filter_map(Head::constrained).filter_map(|one| one.was_asked().then_some(one)).collect()
    }

    fn running_mut(&mut self, rank: Rank) -> Option<&mut Sequence> {
        let at = self.running.binary_search_by_key(&rank, |sequence| sequence.rank).ok()?;
        Some(&mut self.running[at])
    }

    /// A step is over: each sequence moves on, takes what it drew, tells its clients, perhaps splits or ends.
    pub(crate) fn commit(
        &mut self,
        flight: &Flight,
        outcome: &Outcome,
        limits: &Limits,
        counters: &Counters,
    ) {
        let open = limits.places() - self.running.len();
        let mut forks = Vec::new();
        for landed in flight.landed(outcome, limits.vocab_size) {
            let places = open.saturating_sub(forks.len());
            let sequence = self.running_mut(landed.row.rank).filter(|sequence| !sequence.has_ended());
            let Some(sequence) = sequence else { continue };
            counters.count_progress(&sequence.commit(&landed, &mut forks, places));
        }
        for mut fork in forks {
            if fork.table().is_some() && self.running.len() < limits.places() {
                self.run(fork);
            } else {
                fork.preempt();
                self.wait(fork);
            }
        }
    }

    /// A step failed, and none is under way any more. Whoever was in it alone ends; of several, each is tried again alone.
    pub(crate) fn fail(&mut self, flight: &Flight, fault: &Fault) {
        self.running.iter_mut().for_each(Sequence::ground);
        let ranks = flight.rows.iter().map(|row| row.rank);
        let ranks: Vec<Rank> =
            ranks.filter(|&rank| self.running_mut(rank).is_some_and(|s| !s.has_ended())).collect();
        tracing::error!(%fault, sequences = ranks.len(), "a step failed");
        for &rank in &ranks {
            let Some(sequence) = self.running_mut(rank) else { continue };
            if flight.rows.len() > 1 {
                sequence.suspect = true;
            } else {
                sequence.fail(&End::Failed(fault.to_string()));
            }
        }
    }

    /// The one place where choices leave. Their blocks are free when this returns.
    pub(crate) fn retire(&mut self, now: Instant, counters: &Counters) -> Vec<(Reply, End)> {
        let mut ended = Vec::new();
        let mut stays = |sequence: &mut Sequence| {
            sequence.expire(now);
            for head in sequence.heads.extract_if(.., |head| head.has_left()) {
                match head.end {
                    Some(end) => {
                        counters.count_end(&end);
                        ended.push((head.reply, end));
                    }
                    None => counters.count_cancelled(),
                }
            }
            !sequence.heads.is_empty()
        };
        self.running.retain_mut(&mut stays);
        self.waiting.retain(|_, sequence| stays(sequence));
        ended
    }
}

/// Does a running sequence compute the first block that `sequence` lacks? Then it is better found than
/// computed twice. Only one that goes first is waited for: it gets on whatever happens.
fn awaits_prefix(sequence: &mut Sequence, running: &[Sequence], pool: &BlockPool) -> bool {
    let block_len = pool.block_len();
    let missing = if running.is_empty() { None } else { sequence.first_missing(pool) };
    let first = running.partition_point(|other| other.rank < sequence.rank);
    let computes =
        |block| running[..first].iter().find(|other| other.computes_for(sequence, block, block_len));
    let computing = missing.and_then(computes);
    let awaited = computing.zip(missing);
    sequence.awaited =
        awaited.map(|(other, block)| (other.rank, other.computes_up_to(sequence, block, block_len)));
    sequence.awaited.is_some()
}

/// What it was found to wait for is computed still; needs no look into the cache.
fn still_awaits(sequence: &Sequence, running: &[Sequence], block_len: usize) -> bool {
    sequence.awaited.is_some_and(|(rank, block)| {
        let at = running.binary_search_by_key(&rank, |other| other.rank);
        at.is_ok_and(|at| running[at].computes_for(sequence, block, block_len))
    })
}
