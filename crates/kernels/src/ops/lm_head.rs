use super::check_len;
use crate::backend::Backend;
use crate::error::{Result, require};

/// Logits of the step's output tokens: `logits[o] = W rms_norm(x[outputs[o]])`.
///
/// GPU: gather + norm, then a GEMM (two launches, captured per bucket of outputs); the copy to the
/// host goes away once sampling is on the device. Reads vocab · hidden · e.
pub struct LmHead<'a, B: Backend> {
    /// `[tokens, hidden]`
    pub x: &'a B::Buffer,
    /// `[hidden]`
    pub norm: &'a B::Buffer,
    pub eps: f32,
    /// `[1, vocab, hidden]`
    pub weight: &'a B::Weight,
    /// `[outputs, vocab]`, on the host
    pub logits: &'a mut [f32],
}

impl<B: Backend> LmHead<'_, B> {
    /// Returns `[vocab, hidden]`.
    pub(crate) fn check(&self, tokens: usize, outputs: usize) -> Result<[usize; 2]> {
        let [stack, vocab, hidden] = B::weight_shape(self.weight);
        check_len::<B>("lm_head", "x", self.x, tokens, hidden)?;
        let norm = B::buffer_len(self.norm);
        require(stack == 1 && norm == hidden, "lm_head", || {
            format!("norm of {norm} beside hidden {hidden}")
        })?;
        let have = self.logits.len();
        require(have == outputs * vocab, "lm_head", || {
            format!("{have} logits for {outputs} outputs of {vocab}")
        })?;
        Ok([vocab, hidden])
    }
}
