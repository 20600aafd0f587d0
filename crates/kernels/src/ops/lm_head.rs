use super::check_len;
use crate::backend::Backend;
use crate::error::{Result, require};

/// Logits of the step's output tokens: `logits[o] = W rms_norm(x[outputs[o]])`, `[outputs, vocab]`, which stay with the
/// backend.
///
/// GPU: gather + norm, then a GEMM (two launches, captured per bucket of outputs). Reads vocab · hidden · e.
pub struct LmHead<'a, B: Backend> {
    /// `[tokens, hidden]`
    pub x: &'a B::Buffer,
    /// `[hidden]`
    pub norm: &'a B::Buffer,
    pub eps: f32,
    /// `[1, vocab, hidden]`
    pub weight: &'a B::Weight,
}

impl<B: Backend> LmHead<'_, B> {
    /// Returns `[vocab, hidden]`.
    pub(crate) fn check(&self, tokens: usize) -> Result<[usize; 2]> {
        let [stack, vocab, hidden] = B::weight_shape(self.weight);
        check_len::<B>("lm_head", "x", self.x, tokens, hidden)?;
        let norm = B::buffer_len(self.norm);
        require(stack == 1 && norm == hidden, "lm_head", || {
            format!("norm of {norm} beside hidden {hidden}")
        })?;
        Ok([vocab, hidden])
    }
}
