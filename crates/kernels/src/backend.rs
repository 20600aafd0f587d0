//! What a device must be able to do: the operations of one transformer step, at the grain at
//! which a device would launch them, over buffers made at start.
//!
//! A step is `begin_step`, `copy_blocks` if it copies any, `embed`, then for each layer the attention
//! ops (`rms_norm`, `linear`, `latent_write`, `absorb_query`, `attend_latent`, `absorb_output`,
//! `attend_expanded`) and either `gated_mlp` or `route` + `experts`, at last `lm_head` and `sample`, which ends it. What
//! was drawn is `collect`ed, perhaps when the next step was launched already. Activations are f32 buffers
//! `[tokens, width]`; only the first `tokens` rows of the current step mean anything.
//!
//! Each op's doc ends with how a GPU runs it: the launch, whether it can sit in a captured graph,
//! and the bytes that it must move (`e` = bytes an element of a weight, T = tokens of the step).
//! An op reads the step's indices from the backend, where `begin_step` put them with one copy, so a
//! captured graph has no arguments that change.

use crate::dtype::Precision;
use crate::error::{Result, require};
use crate::matrix::Parts;
use crate::ops::{
    AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, CopyBlocks, Embed, Experts, GatedMlp,
    LatentWrite, Linear, LmHead, RmsNorm, Route,
};
use crate::step::{Step, StepLimits};
use sampler::{Drawn, Draws};

/// Rotary embedding: the angle of pair `i` at position `p` is `p * inv_freq[i]`; cos and sin are
/// multiplied by `scale` (YaRN's ratio of mscales, 1 without).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// `[qk_rope_head_dim / 2]`
    pub inv_freq: Vec<f32>,
    pub scale: f32,
}

/// Dimensions of multi-head latent attention, in the checkpoint's words.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlaDims {
    pub n_heads: usize,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    /// Multiplies `q · k` before the softmax.
    pub softmax_scale: f32,
}

impl MlaDims {
    /// Numbers in a latent row: what the cache holds a token and layer.
    pub fn latent_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// Width of a head's query.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// New tokens from which a row is cheaper with keys and values expanded from the latent.
    ///
    /// A query and key cost `2 (latent_width + kv_lora_rank)` operations absorbed, and
    /// `2 (qk_head_dim + v_head_dim)` expanded, plus `2 kv_lora_rank (nope + v)` a key once.
    pub fn expand_from(&self) -> usize {
        let absorbed = self.latent_width() + self.kv_lora_rank;
        let expanded = self.qk_head_dim() + self.v_head_dim;
        let once = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim);
        match absorbed.checked_sub(expanded) {
            None | Some(0) => usize::MAX,
            Some(saved) => once.div_ceil(saved),
        }
    }
}

/// Sizes for which scratch memory is reserved at start.
#[derive(Debug, Clone, PartialEq)]
pub struct Workspace {
    pub limits: StepLimits,
    pub mla: MlaDims,
    /// Of all steps.
    pub rope: Rope,
    /// `hidden_size`: what experts give back.
    pub hidden: usize,
    /// Widest input of any product.
    pub widest: usize,
    /// `num_experts_per_tok * max(moe_intermediate)` and the like: widest row of a gated MLP's middle.
    pub widest_mlp: usize,
    pub n_experts: usize,
    pub top_k: usize,
}

impl Workspace {
    pub(crate) fn check(&self) -> Result<()> {
        self.limits.check()?;
        require(self.mla.n_heads > 0, "reserve", || "no heads".into())?;
        let width = 2 * self.rope.inv_freq.len();
        let fits = width > 0 && width == self.mla.qk_rope_head_dim;
        require(fits, "reserve", || format!("rope of {width}"))
    }
}

/// Rows of a buffer: row `t` is `buffer[offset + t * stride..]`.
#[derive(Debug)]
pub struct View<'a, B: Backend> {
    pub buffer: &'a B::Buffer,
    pub offset: usize,
    pub stride: usize,
}

impl<B: Backend> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for View<'_, B> {}

impl<'a, B: Backend> View<'a, B> {
    /// Rows of `width` that fill the buffer.
    pub fn dense(buffer: &'a B::Buffer, width: usize) -> Self {
        Self { buffer, offset: 0, stride: width }
    }

    /// Columns from `offset` on of rows `stride` wide.
    pub fn columns(buffer: &'a B::Buffer, offset: usize, stride: usize) -> Self {
        Self { buffer, offset, stride }
    }
}

/// A device. `unsafe` stays behind it: each op checks its arguments against the step's sizes first.
pub trait Backend: Sized + Send {
    /// f32 activations and small parameters.
    type Buffer: Send;
    /// Expert ids.
    type Indices: Send;
    /// A stack of matrices of one shape in the device's own layout.
    type Weight: Send;
    /// The latent cache of all layers: `[layers, n_blocks, block_len, latent_width]`.
    type Arena: Send;
    /// Whether FP8 weights that are computed with in bf16 stay 8 bits in memory (but for transposed ones).
    const KEEPS_FP8: bool;
    /// Steps that may be launched beside the one that is collected next.
    const STEPS_AHEAD: usize;

    // Made at load.

    /// A buffer of `len` zeros.
    fn buffer(&mut self, len: usize) -> Result<Self::Buffer>;
    fn upload(&mut self, values: &[f32]) -> Result<Self::Buffer>;
    fn indices(&mut self, len: usize) -> Result<Self::Indices>;
    /// Packs matrices of one shape. `precision` is what the elements are rounded to.
    fn pack(&mut self, stack: &[Parts<'_>], precision: Precision) -> Result<Self::Weight>;
    fn arena(&mut self, layers: usize, limits: &StepLimits, dims: &MlaDims) -> Result<Self::Arena>;
    /// Reserves the scratch memory of the largest step, and takes over its rope.
    fn reserve(&mut self, workspace: Workspace) -> Result<()>;

    // Sizes, for the checks that the ops share.

    fn buffer_len(buffer: &Self::Buffer) -> usize;
    fn indices_len(indices: &Self::Indices) -> usize;
    /// `[stack, rows, columns]`
    fn weight_shape(weight: &Self::Weight) -> [usize; 3];
    /// `[layers, slots, latent_width]`
    fn arena_shape(arena: &Self::Arena) -> [usize; 3];
    /// Bytes that the arena takes.
    fn arena_bytes(arena: &Self::Arena) -> usize;
    fn weight_bytes(weight: &Self::Weight) -> usize;
    /// Bytes that [`Self::reserve`] took.
    fn scratch_bytes(&self) -> usize;
    /// The first `len` values, copied to the host: for tests and diagnosis, never in a step.
    fn read(&self, buffer: &Self::Buffer, len: usize) -> Vec<f32>;
    fn read_indices(&self, indices: &Self::Indices, len: usize) -> Vec<u32>;

    // A step.

    /// Takes over the step's indices.
    /// GPU: one host-to-device copy of a pinned struct; 4 B × (3 T + rows × (table width + 3) + 2 copies).
    fn begin_step(&mut self, step: &Step<'_>) -> Result<()>;
    /// Tokens of the current step.
    fn step_tokens(&self) -> usize;

    fn copy_blocks(&mut self, op: CopyBlocks<'_, Self>) -> Result<()>;
    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()>;
    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()>;
    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()>;
    fn latent_write(&mut self, op: LatentWrite<'_, Self>) -> Result<()>;
    fn absorb_query(&mut self, op: AbsorbQuery<'_, Self>) -> Result<()>;
    fn attend_latent(&mut self, op: AttendLatent<'_, Self>) -> Result<()>;
    fn absorb_output(&mut self, op: AbsorbOutput<'_, Self>) -> Result<()>;
    fn attend_expanded(&mut self, op: AttendExpanded<'_, Self>) -> Result<()>;
    fn gated_mlp(&mut self, op: GatedMlp<'_, Self>) -> Result<()>;
    fn route(&mut self, op: Route<'_, Self>) -> Result<()>;
    fn experts(&mut self, op: Experts<'_, Self>) -> Result<()>;
    fn lm_head(&mut self, op: LmHead<'_, Self>) -> Result<()>;
    /// Lets a device that works on its own begin with the ops so far: what the step is to draw is not known yet.
    fn start(&mut self) -> Result<()> {
        Ok(())
    }
    /// Draws tokens from the logits, and ends the step. Its ids stay where the next step finds them, as
    /// [`DRAWN`](sampler::DRAWN) says.
    /// GPU: one copy of the draws to the device, one launch; reads each row some times, from the L2 cache.
    fn sample(&mut self, draws: &Draws) -> Result<()>;
    /// Waits for the oldest step that was not collected, and says what its draws came to.
    fn collect(&mut self, drawn: &mut Vec<Drawn>) -> Result<()>;
    /// The logits of some outputs of the step launched last, `[outputs, vocab]`.
    fn read_logits(&mut self, outputs: &[u32], logits: &mut Vec<f32>) -> Result<()>;
}
