use super::{check_len, check_view};
use crate::backend::{Backend, View};
use crate::dtype::Precision;
use crate::error::{Result, require};

/// `out[t] = W x[t]`, or `out[t] += W x[t]`
///
/// GPU: skinny GEMM (T ≤ 16) or GEMM with the residual add in its epilogue, one launch, captured;
/// reads rows · cols · e + T · cols · 4, writes T · rows · 4.
pub struct Linear<'a, B: Backend> {
    /// `[1, rows, cols]`
    pub weight: &'a B::Weight,
    /// `[tokens, cols]`
    pub x: View<'a, B>,
    /// `[tokens, rows]`, dense
    pub out: &'a mut B::Buffer,
    /// Adds to `out` (the residual stream) instead of replacing it.
    pub accumulate: bool,
}

impl<B: Backend> Linear<'_, B> {
    /// Returns `[rows, cols]`.
    pub(crate) fn check(&self, tokens: usize) -> Result<[usize; 2]> {
        let [stack, rows, cols] = B::weight_shape(self.weight);
        require(stack == 1, "linear", || format!("a stack of {stack} weights"))?;
        check_view("linear", "x", &self.x, tokens, cols)?;
        check_len::<B>("linear", "out", self.out, tokens, rows)?;
        Ok([rows, cols])
    }
}

/// `W x` for one vector; `w` is `[rows, cols]`, `x` is rounded to `precision` first.
pub(crate) fn reference(w: &[f32], x: &[f32], precision: Precision) -> Vec<f32> {
    let x: Vec<f32> = x.iter().map(|&v| precision.round(v)).collect();
    w.chunks_exact(x.len()).map(|row| row.iter().zip(&x).map(|(a, b)| a * b).sum()).collect()
}
