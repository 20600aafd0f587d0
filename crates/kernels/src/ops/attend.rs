use super::{check_len, check_view, check_weight};
use crate::backend::{Backend, MlaDims, View};
use crate::error::{Result, require};

/// Causal attention in latent space over the row's blocks: all heads share one key, the latent row,
/// and one value, its first `kv_lora_rank` numbers (multi-query attention of head dim 576).
///
/// For the rows that the step does not say to expand.
///
/// GPU: one launch, grid (splits, rows), plus a combine of the splits, captured with bounds from
/// `kv_len` on the device; reads Σ kv_len · latent_width · e once for all heads.
pub struct AttendLatent<'a, B: Backend> {
    /// `[tokens, heads, latent_width]`
    pub q: &'a B::Buffer,
    pub arena: &'a B::Arena,
    pub layer: usize,
    /// `[tokens, heads, kv_lora_rank]`
    pub out: &'a mut B::Buffer,
    pub dims: MlaDims,
}

impl<B: Backend> AttendLatent<'_, B> {
    pub(crate) fn check(&self, tokens: usize) -> Result<()> {
        let d = &self.dims;
        check_len::<B>("attend_latent", "q", self.q, tokens, d.n_heads * d.latent_width())?;
        check_len::<B>("attend_latent", "out", self.out, tokens, d.n_heads * d.kv_lora_rank)?;
        check_arena::<B>("attend_latent", self.arena, self.layer, d)
    }
}

/// Causal attention with each head's keys and values expanded from the latent rows, tile by tile:
/// fewer operations a query, so cheaper for rows with many new tokens (a prompt).
///
/// For the rows that the step says to expand.
///
/// GPU: a flash-attention kernel per tile of context, with an up-projection GEMM into a fixed
/// workspace before it and a merge by log-sum-exp; not captured; reads Σ kv_len · latent_width · e.
pub struct AttendExpanded<'a, B: Backend> {
    /// `[tokens, heads, qk_nope + qk_rope]`, not yet rotated
    pub q: View<'a, B>,
    /// `[heads, qk_nope, kv_lora_rank]`
    pub w_k: &'a B::Weight,
    /// `[heads, v_head_dim, kv_lora_rank]`
    pub w_uv: &'a B::Weight,
    pub arena: &'a B::Arena,
    pub layer: usize,
    /// `[tokens, heads, v_head_dim]`
    pub out: &'a mut B::Buffer,
    pub dims: MlaDims,
}

impl<B: Backend> AttendExpanded<'_, B> {
    pub(crate) fn check(&self, tokens: usize) -> Result<()> {
        let d = &self.dims;
        let op = "attend_expanded";
        check_view(op, "q", &self.q, tokens, d.n_heads * d.qk_head_dim())?;
        check_weight::<B>(op, "w_k", self.w_k, [d.n_heads, d.qk_nope_head_dim, d.kv_lora_rank])?;
        check_weight::<B>(op, "w_uv", self.w_uv, [d.n_heads, d.v_head_dim, d.kv_lora_rank])?;
        check_len::<B>(op, "out", self.out, tokens, d.n_heads * d.v_head_dim)?;
        check_arena::<B>(op, self.arena, self.layer, d)
    }
}

fn check_arena<B: Backend>(op: &'static str, arena: &B::Arena, layer: usize, d: &MlaDims) -> Result<()> {
    let shape = B::arena_shape(arena);
    require(layer < shape[0] && shape[2] == d.latent_width(), op, || {
        format!("layer {layer} of an arena {shape:?}")
    })
}

/// Softmax attention of one query over `keys` and `values`; returns the weighted sum of values.
pub(crate) fn reference(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
    let scores: Vec<f32> =
        keys.iter().map(|k| q.iter().zip(*k).map(|(a, b)| a * b).sum::<f32>() * scale).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0.0; values[0].len()];
    for (w, v) in weights.iter().zip(values) {
        out.iter_mut().zip(*v).for_each(|(o, x)| *o += w / sum * x);
    }
    out
}
