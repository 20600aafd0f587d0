use super::{check_len, check_view};
use crate::backend::{Backend, View};
use crate::error::Result;

/// `out[t] = x[t] / sqrt(mean(x[t]²) + eps) * weight` (Zhang & Sennrich, 2019)
///
/// GPU: one launch, one warp or block a row, captured; reads and writes T · width · 4. Fused with
/// the product that follows where that pays.
pub struct RmsNorm<'a, B: Backend> {
    /// `[tokens, width]`
    pub x: View<'a, B>,
    /// `[width]`
    pub weight: &'a B::Buffer,
    pub eps: f32,
    /// `[tokens, width]`, dense
    pub out: &'a mut B::Buffer,
}

impl<B: Backend> RmsNorm<'_, B> {
    /// Returns `width`.
    pub(crate) fn check(&self, tokens: usize) -> Result<usize> {
        let width = B::buffer_len(self.weight);
        check_view("rms_norm", "x", &self.x, tokens, width)?;
        check_len::<B>("rms_norm", "out", self.out, tokens, width)?;
        Ok(width)
    }
}

/// One row.
pub(crate) fn reference(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
        *o = v * scale * w;
    }
}
