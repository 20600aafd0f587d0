//! Steps that were launched, until they are collected.

use std::ops::Range;

use crate::runner::{Drawn, Outcome};
use crate::sequence::Rank;

/// Whose tokens a step computes, in the order of the batch's rows. A sequence that is gone by the time the step is over is
/// not looked for, and what it drew is nobody's.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    pub(crate) rows: Vec<FlightRow>,
    /// `[draws]` which answer of the row's request each is for
    pub(crate) choices: Vec<usize>,
    /// It is collected before the next is launched: the host reads logits of it, or what it draws decides on masks.
    pub(crate) waits: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct FlightRow {
    pub(crate) rank: Rank,
    /// Tokens of it that the step computes.
    pub(crate) granted: usize,
    /// Rows of [`Outcome::logits`].
    pub(crate) reads: Range<usize>,
    pub(crate) draws: Range<usize>,
    /// What it draws is its next token, which later steps may already compute.
    pub(crate) pending: bool,
}

/// What came of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Landed<'a> {
    pub(crate) row: &'a FlightRow,
    choices: &'a [usize],
    outcome: &'a Outcome,
    vocab_size: usize,
}

impl<'a> Landed<'a> {
    /// What was drawn for an answer, if anything was.
    pub(crate) fn drawn(&self, choice: usize) -> Option<Drawn> {
        let at = self.row.draws.clone().find(|&draw| self.choices[draw] == choice);
        at.map(|draw| self.outcome.drawn[draw])
    }

    pub(crate) fn all_drawn(&self) -> &'a [Drawn] {
        &self.outcome.drawn[self.row.draws.clone()]
    }

    /// Logits that were to be read, in the order of their tokens, `[vocab_size]` each.
    pub(crate) fn logits(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let &Self { outcome, vocab_size, .. } = self;
        self.row.reads.clone().map(move |read| &outcome.logits[read * vocab_size..][..vocab_size])
    }
}

impl Flight {
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.choices.clear();
        self.waits = false;
    }

    pub(crate) fn landed<'a>(
        &'a self,
        outcome: &'a Outcome,
        vocab_size: usize,
    ) -> impl Iterator<Item = Landed<'a>> {
        self.rows.iter().map(move |row| Landed { row, choices: &self.choices, outcome, vocab_size })
    }
}
