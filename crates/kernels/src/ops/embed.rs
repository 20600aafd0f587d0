use super::check_len;
use crate::backend::Backend;
use crate::error::Result;

/// `out[t] = table[tokens[t]]`
///
/// GPU: one launch, captured; reads T · hidden · e, writes T · hidden · 4.
pub struct Embed<'a, B: Backend> {
    /// `[1, vocab, hidden]`
    pub table: &'a B::Weight,
    /// `[tokens, hidden]`
    pub out: &'a mut B::Buffer,
}

impl<B: Backend> Embed<'_, B> {
    /// Returns `hidden`.
    pub(crate) fn check(&self, tokens: usize) -> Result<usize> {
        let [_, _, hidden] = B::weight_shape(self.table);
        check_len::<B>("embed", "out", self.out, tokens, hidden)?;
        Ok(hidden)
    }
}
