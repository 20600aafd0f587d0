use super::{check_len, check_view, check_weight};
use crate::backend::{Backend, MlaDims, View};
use crate::error::Result;

/// The query in latent space: `[q_nope · W_UK, rope(q_pe)]` for each head. With W_UK moved from the
/// keys to the query, a key is the latent row itself, the same for all heads.
///
/// Computed for the tokens of rows that take `attend_latent`; the others are left as they are.
///
/// GPU: one launch of a GEMM batched over heads, rope in its epilogue, captured; reads
/// heads · kv_lora_rank · nope · e, writes T · heads · latent_width · 4 (or 2).
pub struct AbsorbQuery<'a, B: Backend> {
    /// `[tokens, heads, qk_nope + qk_rope]`
    pub q: View<'a, B>,
    /// `[heads, kv_lora_rank, qk_nope]`: W_UK of each head, transposed
    pub w_uk: &'a B::Weight,
    /// `[tokens, heads, latent_width]`
    pub out: &'a mut B::Buffer,
    pub dims: MlaDims,
}

impl<B: Backend> AbsorbQuery<'_, B> {
    pub(crate) fn check(&self, tokens: usize) -> Result<()> {
        let d = &self.dims;
        check_view("absorb_query", "q", &self.q, tokens, d.n_heads * d.qk_head_dim())?;
        check_weight::<B>(
            "absorb_query",
            "w_uk",
            self.w_uk,
            [d.n_heads, d.kv_lora_rank, d.qk_nope_head_dim],
        )?;
        check_len::<B>("absorb_query", "out", self.out, tokens, d.n_heads * d.latent_width())
    }
}

/// Back from latent space: `out[t, head] = W_UV[head] · latent[t, head]`.
///
/// Computed for the tokens of rows that take `attend_latent`.
///
/// GPU: one launch of a GEMM batched over heads, captured (later fused with the combine of the
/// splits); reads heads · v · kv_lora_rank · e.
pub struct AbsorbOutput<'a, B: Backend> {
    /// `[tokens, heads, kv_lora_rank]`
    pub latent: &'a B::Buffer,
    /// `[heads, v_head_dim, kv_lora_rank]`
    pub w_uv: &'a B::Weight,
    /// `[tokens, heads, v_head_dim]`
    pub out: &'a mut B::Buffer,
    pub dims: MlaDims,
}

impl<B: Backend> AbsorbOutput<'_, B> {
    pub(crate) fn check(&self, tokens: usize) -> Result<()> {
        let d = &self.dims;
        check_len::<B>("absorb_output", "latent", self.latent, tokens, d.n_heads * d.kv_lora_rank)?;
        check_weight::<B>("absorb_output", "w_uv", self.w_uv, [d.n_heads, d.v_head_dim, d.kv_lora_rank])?;
        check_len::<B>("absorb_output", "out", self.out, tokens, d.n_heads * d.v_head_dim)
    }
}
