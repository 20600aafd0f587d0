//! One prompt on its way: its tokens, its blocks, and a head for each answer that is drawn from it.
//!
//! A sequence waits without blocks or runs with them, and can be sent back at any time: whatever it
//! has computed it can compute again, mostly by finding its own blocks in the cache.

use std::time::Instant;

use kv_cache::{BlockPool, BlockTable, Chain, PoolFull};
use sampler::{NoToken, Scratch, logprobs};

use crate::handle::Arrival;
use crate::head::Head;
use crate::queue::Place;
use crate::request::{End, Event, FinishReason};
use crate::runner::Batch;

/// Who goes first: the lower. Unique, since a request has a number and a choice an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// The request's priority, or less than any once it was overtaken too often.
    pub(crate) level: i64,
    /// Order of arrival.
    pub(crate) number: u64,
    pub(crate) choice: usize,
}

pub(crate) struct Sequence {
    pub(crate) rank: Rank,
    /// Tokens to compute in this step.
    pub(crate) granted: usize,
    /// A step with it and others failed: it runs alone until it is known to be innocent.
    pub(crate) suspect: bool,
    /// Younger requests that were admitted while it waited.
    pub(crate) overtaken: usize,
    /// Steps in a row in which others were read and not its prompt.
    pub(crate) passed_over: usize,
    /// The sequence that computes the block which this one waits for, and that block's index.
    pub(crate) awaited: Option<(Rank, usize)>,
    /// One for each choice until the prompt is computed, then one.
    pub(crate) heads: Vec<Head>,
    /// Prompt, then answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Length at which the answer ends.
    len_max: usize,
    /// Tokens whose latent rows are in the cache, and the most that ever were.
    computed: usize,
    computed_max: usize,
    /// Names of its full blocks.
    chain: Chain,
    /// While it runs.
    table: Option<BlockTable>,
    /// In the queue, until it is admitted for the first time.
    place: Option<Place>,
    prompt_logprobs: Option<usize>,
    /// Prompt positions whose scores were told.
    scored: usize,
    deadline: Option<Instant>,
}

/// What one step did for a sequence, in tokens.
pub(crate) struct Progress {
    pub(crate) prompt_tokens: usize,
    pub(crate) recomputed_tokens: usize,
    pub(crate) generated_tokens: usize,
}

impl Sequence {
    pub(crate) fn new(number: u64, arrival: Arrival, len_max: usize) -> Self {
        let Arrival { request, replies, chain, penalised, place } = arrival;
        let head = |(choice, reply)| Head::new(&request, choice, reply, &penalised);
        let heads = replies.into_iter().enumerate().map(head);
        Self {
            rank: Rank { level: request.priority.into(), number, choice: 0 },
            granted: 0,
            suspect: false,
            overtaken: 0,
            passed_over: 0,
            awaited: None,
            heads: heads.collect(),
            prompt_len: request.prompt.len(),
            tokens: request.prompt,
            len_max,
            computed: 0,
            computed_max: 0,
            chain,
            table: None,
            place: Some(place),
            prompt_logprobs: request.prompt_logprobs,
            scored: 0,
            deadline: request.deadline,
        }
    }

    /// Tokens that are known and not computed: at least one.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(crate) fn computed(&self) -> usize {
        self.computed
    }

    pub(crate) fn table(&self) -> Option<&BlockTable> {
        self.table.as_ref()
    }

    /// Blocks that this or a later step writes to.
    pub(crate) fn writable(&self) -> &[u32] {
        self.table.as_ref().map_or(&[], |table| table.writable(self.computed))
    }

    /// Has run before, or was split from one that has.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.table.is_none() && self.place.is_none()
    }

    /// Marks the heads of a request whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.fail(&End::Expired);
        }
    }

    /// Ends all its heads.
    pub(crate) fn fail(&mut self, end: &End) {
        for head in &mut self.heads {
            head.end.get_or_insert_with(|| end.clone());
        }
    }

    /// The most tokens that may come from the cache: the last one's logits are wanted, and those of a
    /// prompt until all its scores are told.
    fn cacheable(&self) -> usize {
        let scoring = self.prompt_logprobs.is_some() && self.scored + 1 < self.prompt_len;
        let scored = if scoring { self.scored } else { usize::MAX };
        scored.min(self.tokens.len() - 1)
    }

    /// Index of the first block that could be cached and is not.
    pub(crate) fn first_missing(&self, pool: &BlockPool) -> Option<usize> {
        let missing = pool.n_cached(&self.chain, &self.tokens);
        ((missing + 1) * pool.block_len() <= self.cacheable()).then_some(missing)
    }

    /// Is this sequence, which runs, about to publish what `other` knows as its `block`?
    pub(crate) fn computes_for(&self, other: &Self, block: usize, block_len: usize) -> bool {
        let end = (block + 1) * block_len;
        let name = self.chain.names().get(block);
        name.is_some()
            && name == other.chain.names().get(block)
            && self.computed < end
            && end <= self.prompt_len
    }

    /// Of the blocks from `block` on, which it computes for `other`, the last that it computes for it too.
    pub(crate) fn computes_up_to(&self, other: &Self, block: usize, block_len: usize) -> usize {
        let end = self.prompt_len.min(other.cacheable()) / block_len;
        let names = self.chain.names().iter().zip(other.chain.names()).take(end).skip(block + 1);
        block + names.take_while(|(own, others)| own == others).count()
    }

    /// Blocks that it lacks to grow by `tokens`, or to its longest; for one that waits, once it has blocks for
    /// what it is.
    pub(crate) fn growth(&self, tokens: usize, block_len: usize) -> usize {
        let now = self.tokens.len();
        let held = self.table.as_ref().map_or(now.div_ceil(block_len), |table| table.ids().len());
        now.saturating_add(tokens).min(self.len_max).div_ceil(block_len).saturating_sub(held)
    }

    /// Takes blocks for all its tokens, those in the cache shared, and leaves `spare` blocks available;
    /// or takes nothing.
    pub(crate) fn admit(&mut self, pool: &BlockPool, spare: usize) -> Result<(), PoolFull> {
        let mut table = pool.open(&self.chain, &self.tokens, self.cacheable());
        // Before anything is taken: room for one that cannot come yet would be made at the cache's expense.
        let wanted = self.tokens.len().div_ceil(pool.block_len()) - table.ids().len() + spare;
        let available = pool.stats().available();
        if available < wanted {
            return Err(PoolFull { wanted, available });
        }
        table.reserve(self.tokens.len())?;
        self.computed = table.len_cached();
        self.computed_max = self.computed_max.max(self.computed);
        self.table = Some(table);
        self.awaited = None;
        Ok(())
    }

    /// It runs for the first time: tells its clients, and how many tokens the cache had for it, in shared
    /// blocks and beyond them.
    pub(crate) fn start(&mut self, block_len: usize) -> Option<(usize, usize)> {
        self.place.take()?;
        let copied = self.computed % block_len;
        let cached_tokens = self.computed - copied;
        self.heads.iter().for_each(|head| head.reply.send(Event::Started { cached_tokens }));
        Some((cached_tokens, copied))
    }

    /// Gives up its blocks, to be admitted again.
    pub(crate) fn preempt(&mut self) {
        (self.table, self.computed, self.granted) = (None, 0, 0);
    }

    /// Room for `tokens` more than are computed.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), PoolFull> {
        let len = self.computed + tokens;
        self.table.as_mut().map_or(Ok(()), |table| table.reserve(len))
    }

    /// Are the logits after the token at `position` wanted? To score the next prompt token, or to
    /// draw the next one of the answer.
    fn wants_output(&self, position: usize) -> bool {
        let next = position + 1;
        if next < self.prompt_len {
            self.prompt_logprobs.is_some() && position >= self.scored
        } else {
            next == self.tokens.len() && next < self.len_max
        }
    }

    /// Its next tokens belong to a unit, which is computed as one as far as it is not cached: a single token
    /// is of no use to it. See [`crate::runner::Limits::prefill_unit`].
    pub(crate) fn takes_units(&self) -> bool {
        self.chain.units().hold(self.computed)
    }

    /// Tokens beyond those granted already that the budgets allow, and the outputs they take: to the end of
    /// a unit, and more whole units; else single tokens, up to the next unit.
    pub(crate) fn affordable(&self, tokens_max: usize, outputs_max: usize) -> (usize, usize) {
        let (units, first) = (self.chain.units(), self.computed + self.granted);
        let alike = (self.tokens.len() - first).min(units.alike_from(first));
        let alike = if self.takes_units() == units.hold(first) { alike } else { 0 };
        let (mut tokens, mut outputs) = (0, 0);
        while tokens < alike {
            let position = first + tokens;
            let piece = if self.takes_units() { units.left(position) } else { 1 };
            let wanted = (position..position + piece).filter(|&position| self.wants_output(position)).count();
            if tokens + piece > tokens_max || outputs + wanted > outputs_max {
                break;
            }
            tokens += piece;
            outputs += wanted;
        }
        (tokens, outputs)
    }

    pub(crate) fn granted_outputs(&self) -> usize {
        (self.computed..self.computed + self.granted).filter(|&position| self.wants_output(position)).count()
    }

    /// Writes the granted tokens as the batch's next row.
    pub(crate) fn push_row(&self, batch: &mut Batch) {
        let Some(table) = &self.table else { return };
        let kv_len = self.computed + self.granted;
        batch.copies.extend(table.copy());
        for position in self.computed..kv_len {
            if self.wants_output(position) {
                batch.outputs.push(batch.tokens.len() as u32);
            }
            batch.tokens.push(self.tokens[position]);
            batch.positions.push(position as u32);
            batch.slots.push(table.slot(position));
        }
        batch.row_start.push(batch.tokens.len() as u32);
        batch.expanded.push(self.takes_units());
        batch.kv_len.push(kv_len as u32);
        batch.tables.extend_from_slice(table.ids());
        batch.tables.resize(batch.kv_len.len() * batch.table_width, 0);
    }

    /// The granted tokens are computed; `rows` are the logits they asked for, in order. Sequences that
    /// split off go to `forks`; so many may run.
    pub(crate) fn commit<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        scratch: &mut Scratch,
        forks: &mut Vec<Self>,
        places: usize,
    ) -> Progress {
        let from = self.computed;
        self.computed += self.granted;
        self.suspect = false;
        let mut rows = rows.peekable();
        // Rows of the cache that are no numbers make all logits NaN, for whoever would find them.
        let sound = rows.peek().is_none_or(|row| !row[0].is_nan());
        if let Some(table) = &mut self.table {
            table.copied();
            if sound {
                table.publish(&mut self.chain, &self.tokens[..self.computed]);
            }
        }
        let fresh = from.max(self.computed_max).min(self.computed);
        self.computed_max = self.computed_max.max(self.computed);
        let mut generated_tokens = 0;
        match self.read_scores(from, rows) {
            Ok(Some(row)) => generated_tokens = self.draw(row, scratch, forks, places),
            // Only scored: nothing was to be drawn.
            Ok(None) if self.computed == self.len_max => self.fail(&End::Finished(FinishReason::Length)),
            Ok(None) => {}
            Err(reason) => self.fail(&End::Failed(reason.to_string())),
        }
        Progress {
            prompt_tokens: self.computed.min(self.prompt_len) - fresh.min(self.prompt_len),
            recomputed_tokens: fresh - from,
            generated_tokens,
        }
    }

    /// Tells the scores among the logits; returns the row to draw from.
    fn read_scores<'a>(
        &mut self,
        from: usize,
        mut rows: impl Iterator<Item = &'a [f32]>,
    ) -> Result<Option<&'a [f32]>, NoToken> {
        let mut scores = Vec::new();
        let mut draw_from = None;
        for position in (from..self.computed).filter(|&position| self.wants_output(position)) {
            let row = rows.next().expect("a row of logits for each output");
            if position + 1 < self.prompt_len {
                scores.push(logprobs(row, self.tokens[position + 1], self.prompt_logprobs.unwrap_or(0))?);
            } else {
                draw_from = Some(row);
            }
        }
        if !scores.is_empty() {
            self.scored += scores.len();
            self.heads.iter().for_each(|head| head.reply.send(Event::Prompt(scores.clone())));
        }
        Ok(draw_from)
    }

    /// Each head draws its next token. The first that goes on stays here, with those that have ended; each
    /// other gets a sequence of its own, which shares the prompt's blocks. Heads for whom there is no place
    /// draw nothing and stay together: they come back to the prompt later. Returns how many tokens were drawn.
    fn draw(&mut self, row: &[f32], scratch: &mut Scratch, forks: &mut Vec<Self>, places: usize) -> usize {
        let last = self.tokens.len() + 1 == self.len_max;
        let (mut own, mut n_drawn, mut n_forks) = (None, 0, 0);
        let mut heads = std::mem::take(&mut self.heads).into_iter();
        while own.is_none() || n_forks < places {
            let Some(mut head) = heads.next() else { break };
            let drawn = head.draw(row, scratch, last);
            n_drawn += drawn.iter().len();
            match drawn.filter(|_| head.end.is_none()) {
                Some(id) if own.is_some() => {
                    forks.push(self.fork(vec![head], Some(id)));
                    n_forks += 1;
                }
                goes_on => {
                    own = own.or(goes_on);
                    self.heads.push(head);
                }
            }
        }
        let rest: Vec<Head> = heads.collect();
        if !rest.is_empty() {
            forks.push(self.fork(rest, None));
        }
        self.tokens.extend(own);
        n_drawn
    }

    /// Goes on with the token `drawn`, if there is one and room for a block of its own; else it waits.
    fn fork(&self, heads: Vec<Head>, drawn: Option<u32>) -> Self {
        let len = self.computed;
        Self {
            rank: Rank { choice: heads[0].choice, ..self.rank },
            granted: 0,
            suspect: false,
            overtaken: 0,
            passed_over: 0,
            awaited: None,
            heads,
            tokens: self.tokens.iter().copied().chain(drawn).collect(),
            prompt_len: self.prompt_len,
            len_max: self.len_max,
            computed: len,
            computed_max: len,
            chain: self.chain.clone(),
            table: self.table.as_ref().filter(|_| drawn.is_some()).and_then(|table| table.fork(len).ok()),
            place: None,
            prompt_logprobs: self.prompt_logprobs,
            scored: self.scored,
            deadline: self.deadline,
        }
    }
}
