use super::{check_len, check_view};
use crate::backend::{Backend, View};
use crate::error::{Result, require};

/// `out[t] += W_down (silu(W_gate x[t]) * (W_up x[t]))`: the dense layers' and the shared experts' MLP.
///
/// GPU: two launches (gate and up interleaved so that silu · up stays in registers; down with the
/// residual add), captured; reads 3 · hidden · intermediate · e.
pub struct GatedMlp<'a, B: Backend> {
    /// `[1, 2 * intermediate, hidden]`, packed as [`crate::Parts::GateUp`]
    pub gate_up: &'a B::Weight,
    /// `[1, hidden, intermediate]`
    pub down: &'a B::Weight,
    /// `[tokens, hidden]`
    pub x: View<'a, B>,
    /// `[tokens, hidden]`, the residual stream
    pub out: &'a mut B::Buffer,
}

impl<B: Backend> GatedMlp<'_, B> {
    /// Returns `[hidden, intermediate]`.
    pub(crate) fn check(&self, tokens: usize) -> Result<[usize; 2]> {
        let [_, hidden, intermediate] = B::weight_shape(self.down);
        let gate_up = B::weight_shape(self.gate_up);
        require(gate_up == [1, 2 * intermediate, hidden], "gated_mlp", || {
            format!("gate and up {gate_up:?} beside down [1, {hidden}, {intermediate}]")
        })?;
        check_view("gated_mlp", "x", &self.x, tokens, hidden)?;
        check_len::<B>("gated_mlp", "out", self.out, tokens, hidden)?;
        Ok([hidden, intermediate])
    }
}

pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
