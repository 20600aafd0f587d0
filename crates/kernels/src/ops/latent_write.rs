use super::check_view;
use crate::backend::{Backend, MlaDims, View};
use crate::error::{Result, require};

/// Writes each token's latent row to its slot: `[rms_norm(c_kv), rope(k_pe)]`.
/// DeepSeek-V2 (arXiv 2405.04434), equations 9 to 15; the only thing the cache holds.
///
/// GPU: one launch, captured; reads T · latent_width · 4, writes T · latent_width · e.
pub struct LatentWrite<'a, B: Backend> {
    /// `[tokens, kv_lora_rank + qk_rope_head_dim]`: `kv_a_proj_with_mqa` of the layer's input
    pub kv: View<'a, B>,
    /// `[kv_lora_rank]`
    pub norm: &'a B::Buffer,
    pub eps: f32,
    pub dims: MlaDims,
    pub layer: usize,
    pub arena: &'a mut B::Arena,
}

impl<B: Backend> LatentWrite<'_, B> {
    pub(crate) fn check(&self, tokens: usize) -> Result<()> {
        let width = self.dims.latent_width();
        check_view("latent_write", "kv", &self.kv, tokens, width)?;
        let norm = B::buffer_len(self.norm);
        require(norm == self.dims.kv_lora_rank, "latent_write", || format!("norm of {norm}"))?;
        let shape = B::arena_shape(self.arena);
        require(self.layer < shape[0] && shape[2] == width, "latent_write", || {
            format!("layer {} of an arena {shape:?}", self.layer)
        })
    }
}
