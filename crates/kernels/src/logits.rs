//! The end of a step that runs on the host: its logits, and what is drawn from them.

use crate::error::{KernelError, Result, require};
use crate::step::StepLimits;
use sampler::{Drawn, Draws};

#[derive(Default)]
pub(crate) struct HostLogits {
    /// `[outputs, vocab]`
    values: Vec<f32>,
    vocab: usize,
    outputs: usize,
    /// By the step that ended last.
    drawn: Vec<Drawn>,
    next: Vec<Drawn>,
}

impl HostLogits {
    /// Memory for the largest step.
    pub(crate) fn new(limits: &StepLimits) -> Result<Self> {
        let mut values = Vec::new();
        let len = limits.outputs.saturating_mul(limits.vocab_size);
        let failed = |_| KernelError::Memory { what: "logits", bytes: len.saturating_mul(4) };
        values.try_reserve_exact(len).map_err(failed)?;
        let drawn = || Vec::with_capacity(limits.rows);
        Ok(Self { values, vocab: 0, outputs: 0, drawn: drawn(), next: drawn() })
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.values.capacity()
    }

    /// A step's logits, `[outputs, vocab]`, to be filled.
    pub(crate) fn make(&mut self, outputs: usize, vocab: usize) -> &mut [f32] {
        (self.outputs, self.vocab) = (outputs, vocab);
        self.values.resize(outputs * vocab, 0.0);
        &mut self.values
    }

    pub(crate) fn row(&self, output: u32) -> &[f32] {
        &self.values[output as usize * self.vocab..][..self.vocab]
    }

    /// What the step before drew.
    pub(crate) fn drawn(&self) -> &[Drawn] {
        &self.drawn
    }

    pub(crate) fn check(&self, draws: &Draws) -> Result<()> {
        let checked = draws.check(self.outputs, self.vocab, self.drawn.len());
        checked.map_err(|what| KernelError::Shape { op: "sample", what: what.into() })
    }

    /// Draws by `draw`, which pushes one after the other, and ends the step.
    pub(crate) fn end(&mut self, draw: impl FnOnce(&Self, &mut Vec<Drawn>)) {
        let mut next = std::mem::take(&mut self.next);
        next.clear();
        draw(self, &mut next);
        self.next = std::mem::replace(&mut self.drawn, next);
    }

    pub(crate) fn collect(&self, drawn: &mut Vec<Drawn>) {
        drawn.clear();
        drawn.extend_from_slice(&self.drawn);
    }

    pub(crate) fn read(&self, outputs: &[u32], logits: &mut Vec<f32>) -> Result<()> {
        let there = outputs.iter().all(|&output| (output as usize) < self.outputs);
        require(there, "read_logits", || format!("outputs {outputs:?} of {}", self.outputs))?;
        logits.clear();
        outputs.iter().for_each(|&output| logits.extend_from_slice(self.row(output)));
        Ok(())
    }
}
