//! One prompt on its way: its tokens, its blocks, and a head for each answer that is drawn from it.
//!
//! A sequence waits without blocks or runs with them, and can be sent back at any time: whatever it
//! has computed it can compute again, mostly by finding its own blocks in the cache.

use std::time::Instant;

use kv_cache::{BlockPool, BlockTable, Chain, PoolFull};
use sampler::{DRAWN, NoToken, logprobs};

use crate::flight::{Flight, FlightRow, Landed};
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
    /// Tokens beyond `computed` that steps under way compute.
    flying: usize,
    /// Tokens beyond `tokens` that steps under way draw, where there is one head; and the number of the last of these
    /// draws in its step. Before a step is planned, at most one is under way.
    pending: usize,
    last_draw: u32,
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

/// What logits are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// To score the next token of the prompt.
    Score,
    /// To draw the next one of the answer.
    Draw,
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
            flying: 0,
            pending: 0,
            last_draw: 0,
            chain,
            table: None,
            place: Some(place),
            prompt_logprobs: request.prompt_logprobs,
            scored: 0,
            deadline: request.deadline,
        }
    }

    /// Tokens that can be computed and are not, nor are on their way.
    pub(crate) fn remaining(&self) -> usize {
        self.len() - self.launched()
    }

    /// Tokens that are computed, or will be before any further step runs.
    pub(crate) fn launched(&self) -> usize {
        self.computed + self.flying
    }

    /// Tokens that are there to be computed, or will be drawn before any further step runs. The answer's last
    /// never is.
    fn len(&self) -> usize {
        let len = self.tokens.len() + self.pending;
        len - usize::from(self.pending > 0 && len == self.len_max)
    }

    /// Nothing can come of it any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.heads.iter().all(|head| head.end.is_some())
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

    /// Gives up its blocks, to be admitted again. No step with it is under way.
    pub(crate) fn preempt(&mut self) {
        assert_eq!((self.flying, self.pending), (0, 0), "a step under way writes to its blocks");
        (self.table, self.computed, self.granted) = (None, 0, 0);
    }

    /// No step is under way any more, and nothing came of those with it that were.
    pub(crate) fn ground(&mut self) {
        (self.flying, self.pending) = (0, 0);
    }

    /// Room for `tokens` more than are launched.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), PoolFull> {
        let len = self.launched() + tokens;
        self.table.as_mut().map_or(Ok(()), |table| table.reserve(len))
    }

    /// Why the logits after the token at `position` are wanted, if they are.
    fn wants_output(&self, position: usize) -> Option<Want> {
        let next = position + 1;
        if next < self.prompt_len {
            (self.prompt_logprobs.is_some() && position >= self.scored).then_some(Want::Score)
        } else {
            (next == self.tokens.len() + self.pending && next < self.len_max).then_some(Want::Draw)
        }
    }

    /// Its next tokens belong to a unit, which is computed as one as far as it is not cached: a single token
    /// is of no use to it. See [`crate::runner::Limits::prefill_unit`].
    pub(crate) fn takes_units(&self) -> bool {
        self.chain.units().hold(self.launched())
    }

    /// Tokens beyond those granted already that the budgets allow, and the outputs they take: to the end of
    /// a unit, and more whole units; else single tokens, up to the next unit.
    pub(crate) fn affordable(&self, tokens_max: usize, outputs_max: usize) -> (usize, usize) {
        let (units, first) = (self.chain.units(), self.launched() + self.granted);
        let alike = (self.len() - first).min(units.alike_from(first));
        let alike = if self.takes_units() == units.hold(first) { alike } else { 0 };
        let (mut tokens, mut outputs) = (0, 0);
        while tokens < alike {
            let position = first + tokens;
            let piece = if self.takes_units() { units.left(position) } else { 1 };
            let wants = |&position: &usize| self.wants_output(position).is_some();
            let wanted = (position..position + piece).filter(wants).count();
            if tokens + piece > tokens_max || outputs + wanted > outputs_max {
                break;
            }
            tokens += piece;
            outputs += wanted;
        }
        (tokens, outputs)
    }

    /// Writes the granted tokens as the batch's next row and the flight's. At most `draws_max` heads draw, at least one.
    /// Returns how many do.
    pub(crate) fn launch(&mut self, batch: &mut Batch, flight: &mut Flight, draws_max: usize) -> usize {
        let Some(table) = &self.table else { return 0 };
        let (first, kv_len) = (self.launched(), self.launched() + self.granted);
        let (reads, draws) = (batch.reads.len(), batch.draws.len());
        let after = (self.pending > 0).then_some(self.last_draw);
        if self.flying == 0 {
            batch.copies.extend(table.copy());
        }
        for position in first..kv_len {
            let output = batch.outputs.len() as u32;
            let want = self.wants_output(position);
            let mut read = want == Some(Want::Score);
            if want == Some(Want::Draw) {
                for head in self.heads.iter_mut().take(draws_max.max(1)) {
                    flight.waits |= head.constrained().is_some();
                    head.push_draw(&mut batch.draws, output, after);
                    flight.choices.push(head.choice);
                    read |= head.reads();
                }
            }
            batch.reads.extend(read.then_some(output));
            batch.outputs.extend(want.map(|_| batch.tokens.len() as u32));
            batch.tokens.push(self.tokens.get(position).copied().unwrap_or(DRAWN | self.last_draw));
            batch.positions.push(position as u32);
            batch.slots.push(table.slot(position));
        }
        batch.row_start.push(batch.tokens.len() as u32);
        batch.expanded.push(self.takes_units());
        batch.kv_len.push(kv_len as u32);
        batch.tables.extend_from_slice(table.ids());
        batch.tables.resize(batch.kv_len.len() * batch.table_width, 0);

        let draws = draws..batch.draws.len();
        let pending = self.heads.len() == 1 && !draws.is_empty();
        if pending {
            self.last_draw = draws.start as u32;
            self.pending += 1;
        }
        let n_draws = draws.len();
        let reads = reads..batch.reads.len();
        flight.waits |= !reads.is_empty();
        flight.rows.push(FlightRow { rank: self.rank, granted: self.granted, reads, draws, pending });
        self.flying += std::mem::take(&mut self.granted);
        n_draws
    }

    /// A step with it is over. Sequences that split off go to `forks`; so many may run.
    pub(crate) fn commit(&mut self, landed: &Landed<'_>, forks: &mut Vec<Self>, places: usize) -> Progress {
        let from = self.computed;
        self.computed += landed.row.granted;
        self.flying -= landed.row.granted;
        self.pending -= usize::from(landed.row.pending);
        self.suspect = false;
        // Rows of the cache that are no numbers make all logits NaN, for whoever would find them.
        let sound = landed.logits().next().is_none_or(|row| !row[0].is_nan())
            && !landed.all_drawn().contains(&Err(NoToken::NotFinite));
        if let Some(table) = &mut self.table {
            table.copied();
            if sound {
                table.publish(&mut self.chain, &self.tokens[..self.computed]);
            }
        }
        let fresh = from.max(self.computed_max).min(self.computed);
        self.computed_max = self.computed_max.max(self.computed);
        let mut generated_tokens = 0;
        match self.read_scores(from, landed) {
            Ok(row) if !landed.all_drawn().is_empty() => {
                generated_tokens = self.draw(landed, row, forks, places);
            }
            // Only scored: nothing was to be drawn.
            Ok(_) if self.computed == self.len_max => self.fail(&End::Finished(FinishReason::Length)),
            Ok(_) => {}
            Err(reason) => self.fail(&End::Failed(reason.to_string())),
        }
        Progress {
            prompt_tokens: self.computed.min(self.prompt_len) - fresh.min(self.prompt_len),
            recomputed_tokens: fresh - from,
            generated_tokens,
        }
    }

    /// Tells the scores among the logits; returns the row that was drawn from, if it is there.
    fn read_scores<'a>(&mut self, from: usize, landed: &Landed<'a>) -> Result<Option<&'a [f32]>, NoToken> {
        let mut scores = Vec::new();
        let mut rows = landed.logits();
        for position in (from..self.computed).filter(|&at| self.wants_output(at) == Some(Want::Score)) {
            let row = rows.next().expect("a row of logits for each score");
            scores.push(logprobs(row, self.tokens[position + 1], self.prompt_logprobs.unwrap_or(0))?);
        }
        if !scores.is_empty() {
            self.scored += scores.len();
            self.heads.iter().for_each(|head| head.reply.send(Event::Prompt(scores.clone())));
        }
        Ok(rows.next())
    }

    /// Each head takes its next token. The first that goes on stays here, with those that have ended; each
    /// other gets a sequence of its own, which shares the prompt's blocks. Heads for whom there is no place
    /// take nothing and stay together: they come back to the prompt later. Returns how many tokens were taken.
    fn draw(
        &mut self,
        landed: &Landed<'_>,
        row: Option<&[f32]>,
        forks: &mut Vec<Self>,
        places: usize,
    ) -> usize {
        let last = self.tokens.len() + 1 == self.len_max;
        let (mut own, mut n_drawn, mut n_forks) = (None, 0, 0);
        let mut rest = Vec::new();
        for mut head in std::mem::take(&mut self.heads) {
            let placed = own.is_none() || n_forks < places;
            let Some(drawn) = landed.drawn(head.choice).filter(|_| placed && rest.is_empty()) else {
                rest.push(head);
                continue;
            };
            let taken = head.take(drawn, row, last);
            n_drawn += taken.iter().len();
            match taken.filter(|_| head.end.is_none()) {
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
            flying: 0,
            pending: 0,
            last_draw: 0,
            chain: self.chain.clone(),
            table: self.table.as_ref().filter(|_| drawn.is_some()).and_then(|table| table.fork(len).ok()),
            place: None,
            prompt_logprobs: self.prompt_logprobs,
            scored: self.scored,
            deadline: self.deadline,
        }
    }
}
