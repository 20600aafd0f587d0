//! One running request: its tokens, its blocks, its client.

use kv_cache::BlockTable;

use crate::reply::Reply;
use crate::request::{End, Event, FinishReason, Logprobs, Request, Token};
use crate::runner::Batch;
use crate::sampler::{NoToken, Sampler, Scratch, logprobs};

pub(crate) struct Sequence {
    /// Order of admission.
    pub(crate) number: u64,
    /// Tokens to compute in this step.
    pub(crate) granted: usize,
    /// Set by the step that ends it.
    pub(crate) end: Option<End>,
    pub(crate) reply: Reply,
    /// Prompt, then answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Length at which the answer ends.
    len_max: usize,
    /// Tokens whose latent rows are in the cache.
    computed: usize,
    /// Room for `len_max` tokens.
    table: BlockTable,
    sampler: Sampler,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
}

/// What one step did for a sequence, in tokens.
pub(crate) struct Progress {
    pub(crate) prompt_tokens: usize,
    pub(crate) generated_tokens: usize,
}

impl Sequence {
    pub(crate) fn new(
        number: u64,
        request: Request,
        len_max: usize,
        table: BlockTable,
        reply: Reply,
    ) -> Self {
        let sampler = Sampler::new(&request);
        Self {
            number,
            granted: 0,
            end: None,
            reply,
            prompt_len: request.prompt.len(),
            tokens: request.prompt,
            len_max,
            computed: 0,
            table,
            sampler,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
        }
    }

    pub(crate) fn computed(&self) -> usize {
        self.computed
    }

    pub(crate) fn n_blocks(&self) -> usize {
        self.table.ids().len()
    }

    /// It has ended, or nobody listens any more.
    pub(crate) fn has_left(&self) -> bool {
        self.end.is_some() || self.reply.is_closed()
    }

    /// Are the logits after the token at `position` wanted? To score the next prompt token, or to
    /// draw the next one of the answer.
    fn wants_output(&self, position: usize) -> bool {
        let next = position + 1;
        if next < self.prompt_len {
            self.prompt_logprobs.is_some()
        } else {
            next == self.tokens.len() && next < self.len_max
        }
    }

    /// Does a whole unit of the prompt begin at `position`? See [`crate::runner::Limits::prefill_unit`].
    fn unit_begins(&self, position: usize, unit: usize) -> bool {
        position.is_multiple_of(unit) && unit <= self.prompt_len.saturating_sub(position)
    }

    /// Waits for room for a whole unit: a single token is of no use to it.
    pub(crate) fn takes_units(&self, unit: usize) -> bool {
        self.unit_begins(self.computed, unit)
    }

    /// Tokens beyond those granted already that the budgets allow, and the outputs they take: whole
    /// units where they begin, else single tokens.
    pub(crate) fn affordable(&self, tokens_max: usize, outputs_max: usize, unit: usize) -> (usize, usize) {
        let piece = if self.takes_units(unit) { unit } else { 1 };
        let (mut tokens, mut outputs) = (0, 0);
        loop {
            let first = self.computed + self.granted + tokens;
            let whole = if piece > 1 { self.unit_begins(first, unit) } else { first < self.tokens.len() };
            if !whole || tokens + piece > tokens_max {
                return (tokens, outputs);
            }
            let wanted = (first..first + piece).filter(|&position| self.wants_output(position)).count();
            if outputs + wanted > outputs_max {
                return (tokens, outputs);
            }
            tokens += piece;
            outputs += wanted;
        }
    }

    pub(crate) fn granted_outputs(&self) -> usize {
        (self.computed..self.computed + self.granted).filter(|&position| self.wants_output(position)).count()
    }

    /// Writes the granted tokens as the batch's next row.
    pub(crate) fn push_row(&self, batch: &mut Batch) {
        let kv_len = self.computed + self.granted;
        for position in self.computed..kv_len {
            if self.wants_output(position) {
                batch.outputs.push(batch.tokens.len() as u32);
            }
            batch.tokens.push(self.tokens[position]);
            batch.positions.push(position as u32);
            batch.slots.push(self.table.slot(position));
        }
        batch.row_start.push(batch.tokens.len() as u32);
        batch.kv_len.push(kv_len as u32);
        batch.tables.extend_from_slice(self.table.ids());
        batch.tables.resize(batch.kv_len.len() * batch.table_width, 0);
    }

    /// The granted tokens are computed; `rows` are the logits they asked for, in order.
    pub(crate) fn commit<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        scratch: &mut Scratch,
    ) -> Progress {
        let from = self.computed;
        self.computed += self.granted;
        let total = self.tokens.len();
        if let Err(reason) = self.read_logits(from, rows, scratch) {
            self.end = Some(End::Failed(reason.to_string()));
        } else if self.computed == self.len_max {
            self.end = Some(End::Finished(FinishReason::Length)); // only scored: nothing was to be drawn
        }
        Progress {
            prompt_tokens: self.computed.min(self.prompt_len) - from.min(self.prompt_len),
            generated_tokens: self.tokens.len() - total,
        }
    }

    fn read_logits<'a>(
        &mut self,
        from: usize,
        mut rows: impl Iterator<Item = &'a [f32]>,
        scratch: &mut Scratch,
    ) -> Result<(), NoToken> {
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
            self.reply.send(Event::Prompt(scores));
        }
        draw_from.map_or(Ok(()), |row| self.draw(row, scratch))
    }

    fn draw(&mut self, row: &[f32], scratch: &mut Scratch) -> Result<(), NoToken> {
        let id = self.sampler.draw(row, scratch)?;
        let logprobs: Option<Logprobs> = self.logprobs.map(|n| logprobs(row, id, n)).transpose()?;
        self.tokens.push(id);
        self.reply.send(Event::Tokens(vec![Token { id, logprobs }]));
        if self.sampler.is_stop(id) {
            self.end = Some(End::Finished(FinishReason::Stop));
        } else if self.tokens.len() == self.len_max {
            self.end = Some(End::Finished(FinishReason::Length));
        }
        Ok(())
    }
}
