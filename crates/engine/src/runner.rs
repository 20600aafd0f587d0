//! What the engine asks of a model: one forward pass over a packed batch, and a token for each row that is to go on.
//!
//! This module, and what it says of draws ([`sampler`]), is all that a model crate sees of the engine.

pub use sampler::{DRAWN, Drawn, Draws};

/// Sizes that a runner is built for. They never change while it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the output matrix; logits have this width.
    pub vocab_size: usize,
    /// Longest sequence (prompt and answer together), in tokens.
    pub context_len: usize,
    /// Tokens in one KV block.
    pub block_len: usize,
    /// Blocks in the KV pool, block 0 included: it is padding and never handed out.
    pub n_blocks: usize,
    /// Most tokens in one step, over all rows.
    pub step_tokens: usize,
    /// Most rows (sequences) in one step.
    pub step_rows: usize,
    /// Most tokens whose logits may be asked for in one step.
    pub step_outputs: usize,
    /// Prompts are computed in aligned units of so many tokens, together as far as they are not cached, and with
    /// [`Batch::expanded`] set; what lies in no whole unit comes in rows without it. A model may use another
    /// kernel for the one than for the other: so which one computes a token, and with that its numbers,
    /// depends on its place in the request alone and not on what else runs or is cached. See
    /// [`kv_cache::Units`]. At most `step_tokens - step_rows` and `step_outputs - step_rows`, and more than the
    /// single token that an answer takes; `usize::MAX`: there are no units.
    pub prefill_unit: usize,
}

impl Limits {
    /// Width of a row of [`Batch::tables`]: blocks that the longest sequence needs.
    pub fn table_width(&self) -> usize {
        self.context_len.div_ceil(self.block_len)
    }

    /// Sequences that may run together: each computes at least one token in every step, or waits for the
    /// unit that it begins with.
    pub(crate) fn places(&self) -> usize {
        self.step_rows.min(self.step_tokens).min(self.step_outputs)
    }

    /// # Panics
    /// If a size is 0, no block could be lent, or a prefill unit is a single token or might never fit beside
    /// one for each row: some request could never run, or not as promised.
    pub(crate) fn assert_usable(&self) {
        let sizes = [
            self.vocab_size,
            self.context_len,
            self.block_len,
            self.step_tokens,
            self.step_rows,
            self.step_outputs,
        ];
        assert!(sizes.iter().all(|&size| size > 0) && self.n_blocks > 1, "nothing can run in {self:?}");
        assert!(self.prefill_unit > 1, "an answer's token would be a prefill unit in {self:?}");
        let room = self.step_tokens.min(self.step_outputs).saturating_sub(self.step_rows);
        let unit_fits = self.prefill_unit <= room || self.prefill_unit == usize::MAX;
        assert!(unit_fits, "a prefill unit may never fit in {self:?}");
    }
}

/// One step's work: rows are sequences, each with one or many new tokens.
///
/// Plain vectors whose capacity is fixed at start, laid out as a device takes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `(from, to)` block ids: before anything else, in this order, the rows of `from` are copied to `to`
    /// in every layer. Only `to` is new to its owner; others may read `from`, or append to it in this step.
    pub copies: Vec<(u32, u32)>,
    /// `[n_tokens]` a token's id; or [`DRAWN`] and the number of a draw of the step before, whose token it is
    pub tokens: Vec<u32>,
    /// `[n_tokens]` position of each token in its sequence, from 0
    pub positions: Vec<u32>,
    /// `[n_tokens]` `block_id * block_len + offset`: where the token's latent row is written
    pub slots: Vec<u32>,
    /// `[n_rows + 1]` row `r` owns `tokens[row_start[r]..row_start[r + 1]]`; its positions are consecutive
    pub row_start: Vec<u32>,
    /// `[n_rows]` the row's tokens belong to whole prefill units of their prompt; see [`Limits::prefill_unit`]
    pub expanded: Vec<bool>,
    /// `[n_rows]` tokens of the sequence in the cache after this step
    pub kv_len: Vec<u32>,
    /// `[n_rows, table_width]` block ids, padded with block 0
    pub tables: Vec<u32>,
    /// Width of a row of `tables`.
    pub table_width: usize,
    /// `[n_outputs]` indices into `tokens`, rising: the tokens whose logits are wanted
    pub outputs: Vec<u32>,
    /// Indices into `outputs`, rising: whose logits [`Outcome::logits`] shall hold
    pub reads: Vec<u32>,
    /// What is drawn from the outputs' logits. At most `step_rows`.
    pub draws: Draws,
}

impl Batch {
    /// An empty batch that never grows its memory while steps stay within `limits`.
    pub fn with_capacity(limits: &Limits, sampled_vocab: usize) -> Self {
        let table_width = limits.table_width();
        Self {
            reads: Vec::with_capacity(limits.step_outputs),
            draws: Draws { sampled_vocab, draws: Vec::with_capacity(limits.step_rows), ..Draws::default() },
            copies: Vec::with_capacity(limits.step_rows),
            tokens: Vec::with_capacity(limits.step_tokens),
            positions: Vec::with_capacity(limits.step_tokens),
            slots: Vec::with_capacity(limits.step_tokens),
            row_start: Vec::with_capacity(limits.step_rows + 1),
            expanded: Vec::with_capacity(limits.step_rows),
            kv_len: Vec::with_capacity(limits.step_rows),
            tables: Vec::with_capacity(limits.step_rows * table_width),
            table_width,
            outputs: Vec::with_capacity(limits.step_outputs),
        }
    }

    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    pub fn n_rows(&self) -> usize {
        self.kv_len.len()
    }

    /// Empties the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.copies.clear();
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.row_start.clear();
        self.expanded.clear();
        self.kv_len.clear();
        self.tables.clear();
        self.outputs.clear();
        self.reads.clear();
        self.draws.clear();
    }
}

/// What came of a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// One a draw of [`Batch::draws`].
    pub drawn: Vec<Drawn>,
    /// `[n_reads, vocab_size]`, in the order of [`Batch::reads`]
    pub logits: Vec<f32>,
}

/// A step that failed; the requests in it end with this text, the engine goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A loaded model. The engine's thread owns it.
pub trait ModelRunner: Send {
    fn limits(&self) -> Limits;

    /// Steps that may be launched beside the one that is collected next: 0 where a step runs while it is launched, 1 where
    /// a device works on one while the host thinks about the next.
    fn steps_ahead(&self) -> usize {
        0
    }

    /// Begins one step: copies the blocks of [`Batch::copies`], writes each token's latent row to its slot, attends over
    /// the row's blocks, and draws. Between the two it calls `masks`, once, which fills in [`Draws::masks`]: they are made
    /// while the model computes, and may have to be waited for. Steps run in the order in which they are launched. One with [`Batch::reads`] or
    /// masks is collected before the next is launched.
    fn launch(&mut self, batch: &mut Batch, masks: &mut dyn FnMut(&mut Draws)) -> Result<(), Fault>;

    /// Waits for the oldest step that was launched and not collected. One that fails is over, and so is what the
    /// tokens of steps launched after it were to come from; they are collected all the same.
    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault>;
}

impl<R: ModelRunner + ?Sized> ModelRunner for Box<R> {
    fn limits(&self) -> Limits {
        (**self).limits()
    }

    fn steps_ahead(&self) -> usize {
        (**self).steps_ahead()
    }

    fn launch(&mut self, batch: &mut Batch, masks: &mut dyn FnMut(&mut Draws)) -> Result<(), Fault> {
        (**self).launch(batch, masks)
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        (**self).collect(outcome)
    }
}
