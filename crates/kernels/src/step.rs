//! One step's indices, checked once so that the ops need not look again.

use crate::error::{KernelError, Result, require};
use sampler::{DRAWN, Drawn};

/// Sizes that a step may not pass; buffers are made for them at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLimits {
    pub tokens: usize,
    pub rows: usize,
    pub outputs: usize,
    pub vocab_size: usize,
    /// Tokens that a sequence may have: the width of a block table is `ceil(context / block_len)`.
    pub context_len: usize,
    pub block_len: usize,
    pub n_blocks: usize,
}

impl StepLimits {
    pub fn table_width(&self) -> usize {
        self.context_len.div_ceil(self.block_len)
    }

    pub fn slots(&self) -> usize {
        self.n_blocks * self.block_len
    }

    /// No size is 0 where that makes no sense, and a slot's number fits in 32 bits.
    pub(crate) fn check(&self) -> Result<()> {
        let slots = self.n_blocks.checked_mul(self.block_len).and_then(|n| u32::try_from(n).ok());
        let tables = self.rows.checked_mul(self.context_len);
        let sound = slots.is_some_and(|n| n > 0) && tables.is_some() && u32::try_from(self.tokens).is_ok();
        if sound { Ok(()) } else { Err(KernelError::Shape { op: "limits", what: format!("{self:?}") }) }
    }
}

/// One step as the caller has it; rows are sequences. See `engine::runner::Batch`.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// `(from, to)` blocks, copied in this order before any row is written; at most one a row of the limits
    pub copies: &'a [(u32, u32)],
    /// `[tokens]`; with [`DRAWN`] set, what a draw of the step before came to
    pub tokens: &'a [u32],
    /// `[tokens]`, consecutive within a row
    pub positions: &'a [u32],
    /// `[tokens]` where each latent row is written: `block * block_len + offset`
    pub slots: &'a [u32],
    /// `[rows + 1]`
    pub row_start: &'a [u32],
    /// `[rows]` sequence length after this step
    pub kv_len: &'a [u32],
    /// `[rows]` whether a row takes `attend_expanded`, else `attend_latent`: rows of any length may take either
    pub expanded: &'a [bool],
    /// `[rows, table_width]`
    pub tables: &'a [u32],
    /// `[outputs]` rising indices into `tokens`
    pub outputs: &'a [u32],
}

/// A row of the step: one sequence's new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub index: usize,
    /// First token of the row in the step.
    pub first: usize,
    /// New tokens of the row.
    pub len: usize,
    /// Tokens in the cache after this step; the row's last token is the last of them.
    pub kv_len: usize,
    /// Takes `attend_expanded`.
    pub expanded: bool,
}

/// The step that a backend works on: a checked copy in memory reserved at start.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepState {
    pub copies: Vec<(u32, u32)>,
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub slots: Vec<u32>,
    pub outputs: Vec<u32>,
    pub rows: Vec<Row>,
    tables: Vec<u32>,
    table_width: usize,
    pub block_len: usize,
    /// Slots of the arena that the indices were checked for.
    pub arena_slots: usize,
}

impl StepState {
    pub(crate) fn new(limits: &StepLimits) -> Self {
        Self {
            copies: Vec::with_capacity(limits.rows),
            tokens: Vec::with_capacity(limits.tokens),
            positions: Vec::with_capacity(limits.tokens),
            slots: Vec::with_capacity(limits.tokens),
            outputs: Vec::with_capacity(limits.outputs),
            rows: Vec::with_capacity(limits.rows),
            tables: Vec::with_capacity(limits.rows * limits.table_width()),
            table_width: limits.table_width(),
            block_len: limits.block_len,
            arena_slots: limits.slots(),
        }
    }

    /// Puts what was drawn in the step before in the place of what stood for it.
    pub(crate) fn resolve(&mut self, drawn: &[Drawn]) {
        for token in self.tokens.iter_mut().filter(|token| **token & DRAWN != 0) {
            *token = drawn[(*token & !DRAWN) as usize].unwrap_or(NOBODYS);
        }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The block table of row `row`, `[table_width]`.
    pub(crate) fn table(&self, row: usize) -> &[u32] {
        &self.tables[row * self.table_width..][..self.table_width]
    }

    /// Slot of position `position` of row `row`.
    pub(crate) fn slot(&self, row: usize, position: usize) -> usize {
        let block = self.table(row)[position / self.block_len];
        block as usize * self.block_len + position % self.block_len
    }

    /// Checks every index of `step` against `limits`, then takes it over. `n_drawn`: draws of the step before.
    pub(crate) fn load(&mut self, step: &Step<'_>, limits: &StepLimits, n_drawn: usize) -> Result<()> {
        check(step, limits, n_drawn)?;
        self.rows.clear();
        self.rows.extend(step.kv_len.iter().enumerate().map(|(index, &kv_len)| {
            let first = step.row_start[index] as usize;
            let len = step.row_start[index + 1] as usize - first;
            Row { index, first, len, kv_len: kv_len as usize, expanded: step.expanded[index] }
        }));
        self.copies.clear();
        self.copies.extend_from_slice(step.copies);
        for (to, from) in [
            (&mut self.tokens, step.tokens),
            (&mut self.positions, step.positions),
            (&mut self.slots, step.slots),
            (&mut self.outputs, step.outputs),
            (&mut self.tables, step.tables),
        ] {
            to.clear();
            to.extend_from_slice(from);
        }
        Ok(())
    }
}

/// A draw that came to no token is nobody's, and the token behind it neither.
const NOBODYS: u32 = 0;

fn check(step: &Step<'_>, limits: &StepLimits, n_drawn: usize) -> Result<()> {
    let say = |holds: bool, what: &str| require(holds, "step", || what.to_owned());
    let n = step.tokens.len();
    let rows = step.kv_len.len();
    say(n > 0 && n <= limits.tokens, "more tokens than the step budget, or none")?;
    say(rows <= limits.rows && step.row_start.len() == rows + 1, "row_start does not fit the rows")?;
    say(step.expanded.len() == rows, "expanded does not fit the rows")?;
    say(step.positions.len() == n && step.slots.len() == n, "positions or slots do not fit the tokens")?;
    say(step.tables.len() == rows * limits.table_width(), "tables do not fit the rows")?;
    say(step.outputs.len() <= limits.outputs, "more outputs than the step budget")?;
    say(step.outputs.is_sorted() && step.outputs.last().is_none_or(|&o| (o as usize) < n), "outputs")?;
    let (drawn, known) = (|t: &&u32| **t & DRAWN != 0, |t: &&u32| **t & DRAWN == 0);
    say(
        step.tokens.iter().filter(known).all(|&t| (t as usize) < limits.vocab_size),
        "a token is outside the vocabulary",
    )?;
    say(
        step.tokens.iter().filter(drawn).all(|&t| ((t & !DRAWN) as usize) < n_drawn),
        "a token of a draw that was not made",
    )?;
    say(step.slots.iter().all(|&s| (s as usize) < limits.slots()), "a slot is outside the arena")?;
    say(step.tables.iter().all(|&b| (b as usize) < limits.n_blocks), "a block is outside the arena")?;
    say(step.copies.len() <= limits.rows, "more copies than rows")?;
    for &(from, to) in step.copies {
        say((from.max(to) as usize) < limits.n_blocks, "a copied block is outside the arena")?;
        say(from != 0 && to != 0, "a copy of the padding, or over it")?;
        say(from != to, "a block copied to itself")?;
    }
    say(step.row_start[0] == 0 && step.row_start[rows] as usize == n, "rows do not cover the tokens")?;
    for (r, pair) in step.row_start.windows(2).enumerate() {
        let kv_len = step.kv_len[r];
        say(pair[0] < pair[1], "an empty row")?;
        say(pair[1] as usize <= n, "rows do not cover the tokens")?;
        say(kv_len as usize <= limits.context_len, "a row is longer than the context")?;
        say(pair[1] - pair[0] <= kv_len, "a row has more new tokens than its length")?;
        let first = kv_len - (pair[1] - pair[0]);
        let positions = &step.positions[pair[0] as usize..pair[1] as usize];
        say(positions.iter().copied().eq(first..kv_len), "positions do not end at the row's length")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> StepLimits {
        StepLimits {
            tokens: 8,
            rows: 2,
            outputs: 2,
            vocab_size: 10,
            context_len: 6,
            block_len: 2,
            n_blocks: 4,
        }
    }

    #[test]
    fn bad_indices_are_refused() {
        let good = Step {
            copies: &[(1, 3), (3, 2)],
            tokens: &[1, 2, 3],
            positions: &[0, 1, 4],
            slots: &[2, 3, 6],
            row_start: &[0, 2, 3],
            kv_len: &[2, 5],
            expanded: &[true, false],
            tables: &[1, 0, 0, 2, 1, 3],
            outputs: &[1, 2],
        };
        let mut state = StepState::new(&limits());
        state.load(&good, &limits(), 0).unwrap();
        assert_eq!(state.slot(1, 4), 6);
        assert_eq!([0, 1].map(|r| state.rows[r].expanded), [true, false]);
        for (bad, what) in [
            (Step { tokens: &[1, 2, 10], ..good }, "vocabulary"),
            (Step { tokens: &[1, DRAWN, 2], ..good }, "not made"),
            (Step { positions: &[0, 1, 3], ..good }, "positions"),
            (Step { slots: &[2, 3, 8], ..good }, "slot"),
            (Step { row_start: &[0, 3, 3], kv_len: &[3, 5], ..good }, "positions"),
            (Step { row_start: &[0, 0, 3], ..good }, "empty row"),
            (Step { row_start: &[0, 2, 2], ..good }, "cover"),
            (Step { row_start: &[0, 4, 3], kv_len: &[4, 5], ..good }, "cover"),
            (Step { kv_len: &[2, 7], ..good }, "context"),
            (Step { tables: &[1, 0, 0, 2, 1, 4], ..good }, "block"),
            (Step { tables: &[1, 0, 0], ..good }, "tables"),
            (Step { expanded: &[true], ..good }, "expanded"),
            (Step { outputs: &[2, 1], ..good }, "outputs"),
            (Step { outputs: &[3], ..good }, "outputs"),
        ] {
            let error = state.load(&bad, &limits(), 0).unwrap_err().to_string();
            assert!(error.contains(what), "{error} should name {what}");
        }
    }
}
