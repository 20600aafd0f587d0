use super::{check_len, check_view};
use crate::backend::{Backend, View};
use crate::error::{Result, require};

/// `out[t] += Σ weights[t, j] · MLP_e(x[t])` over the chosen experts `e = ids[t, j]`, computed
/// grouped by expert, so that each chosen expert's weights are read once a step, whatever the batch.
/// A token's experts are summed by rising id.
///
/// GPU: three launches: count and offsets (no sort), grouped gate-up, grouped down with the weighted
/// sum in a fixed order; captured, with bounds from the counts on the device; reads
/// (experts hit) · 3 · hidden · intermediate · e.
pub struct Experts<'a, B: Backend> {
    /// `[experts, 2 * intermediate, hidden]`, packed as [`crate::Parts::GateUp`]
    pub gate_up: &'a B::Weight,
    /// `[experts, hidden, intermediate]`
    pub down: &'a B::Weight,
    /// `[tokens, hidden]`
    pub x: View<'a, B>,
    /// `[tokens, top_k]`, each below the number of experts
    pub ids: &'a B::Indices,
    /// `[tokens, top_k]`
    pub weights: &'a B::Buffer,
    pub top_k: usize,
    /// `[tokens, hidden]`, the residual stream
    pub out: &'a mut B::Buffer,
}

impl<B: Backend> Experts<'_, B> {
    /// Returns `[experts, hidden, intermediate]`.
    pub(crate) fn check(&self, tokens: usize) -> Result<[usize; 3]> {
        let [n, hidden, intermediate] = B::weight_shape(self.down);
        let gate_up = B::weight_shape(self.gate_up);
        require(gate_up == [n, 2 * intermediate, hidden], "experts", || {
            format!("gate and up {gate_up:?} beside down [{n}, {hidden}, {intermediate}]")
        })?;
        check_view("experts", "x", &self.x, tokens, hidden)?;
        check_len::<B>("experts", "weights", self.weights, tokens, self.top_k)?;
        check_len::<B>("experts", "out", self.out, tokens, hidden)?;
        let ids = B::indices_len(self.ids);
        require(self.top_k > 0 && tokens * self.top_k <= ids, "experts", || format!("{ids} ids"))?;
        Ok([n, hidden, intermediate])
    }
}
