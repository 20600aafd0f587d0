//! The forward pass, once for all families: what differs between them is in [`ModelSpec`].

use crate::spec::{Mlp, ModelSpec};
use crate::tensors::Checked;
use crate::weights::{self, Gated, Head, MlpWeights, Query, Weights};
use kernels::{
    AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, Backend, CopyBlocks, Drawn, Draws, Embed,
    Experts, GatedMlp, KernelError, LatentWrite, Linear, LmHead, Precision, RmsNorm, Route, Step, StepLimits,
    View, Workspace,
};
use std::collections::VecDeque;

/// A loaded model: weights, the latent cache, and the buffers of the largest step.
pub struct Model<B: Backend> {
    spec: ModelSpec,
    limits: StepLimits,
    backend: B,
    weights: Weights<B>,
    arena: B::Arena,
    run: RunState<B>,
    /// Of each step that was not collected, the oldest first: outputs whose logits are to be read.
    reads: VecDeque<Vec<u32>>,
    /// Memory for the next.
    spare: Vec<Vec<u32>>,
}

/// Activations, `[tokens, width]` each, made once for the largest step.
struct RunState<B: Backend> {
    /// `[tokens, hidden]` the residual stream
    x: B::Buffer,
    /// `[tokens, hidden]` normed input of a half-layer
    h: B::Buffer,
    /// `[tokens, q + latent_width]` where q is `q_lora_rank`, or all heads' queries
    qkv_a: B::Buffer,
    /// `[tokens, q_lora_rank]` and `[tokens, heads * qk_head_dim]`, with `q_lora_rank` only
    q_a: B::Buffer,
    q: B::Buffer,
    /// `[tokens, heads, latent_width]`
    q_latent: B::Buffer,
    /// `[tokens, heads, kv_lora_rank]`
    latent: B::Buffer,
    /// `[tokens, heads, v_head_dim]`
    attended: B::Buffer,
    /// `[tokens, top_k]`
    expert_ids: B::Indices,
    expert_weights: B::Buffer,
}

/// Places in the forward pass at which a test may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// After the embedding.
    Embedding,
    /// After the router of a layer has chosen.
    Router(usize),
    /// After a layer.
    Layer(usize),
}

impl<B: Backend> Model<B> {
    /// Packs the weights and makes cache and buffers. `place` is asked for the limits once the weights are there,
    /// and may look at what memory the device has left. `progress` hears bytes read, in pieces.
    pub fn load(
        spec: ModelSpec,
        checkpoint: &Checked<'_>,
        mut backend: B,
        precision: Precision,
        place: impl FnOnce(&mut B) -> Result<StepLimits, KernelError>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, KernelError> {
        let weights = weights::load(&spec, checkpoint, &mut backend, precision, progress)?;
        let limits = place(&mut backend)?;
        let arena = backend.arena(spec.n_layers(), &limits, &spec.mla)?;
        backend.reserve(workspace(&spec, &limits))?;
        let run = RunState::new(&spec, limits.tokens, &mut backend)?;
        let spare = (0..=B::STEPS_AHEAD).map(|_| Vec::with_capacity(limits.outputs)).collect();
        let reads = VecDeque::with_capacity(1 + B::STEPS_AHEAD);
        Ok(Self { spec, limits, backend, weights, arena, run, reads, spare })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub fn step_limits(&self) -> &StepLimits {
        &self.limits
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// See [`prefill_unit`].
    pub(crate) fn prefill_unit(&self) -> usize {
        prefill_unit(&self.spec, &self.limits)
    }

    /// Bytes of the latent cache.
    pub fn arena_bytes(&self) -> usize {
        B::arena_bytes(&self.arena)
    }

    /// Bytes of all packed matrices.
    pub fn weight_bytes(&self) -> usize {
        let gated = |g: &Gated<B>| B::weight_bytes(&g.gate_up) + B::weight_bytes(&g.down);
        let layers = self.weights.layers.iter().map(|layer| {
            let query = match &layer.query {
                Query::Whole => 0,
                Query::Compressed { b, .. } => B::weight_bytes(b),
            };
            let mlp = match &layer.mlp {
                MlpWeights::Dense(mlp) => gated(mlp),
                MlpWeights::Moe { router, experts, shared, .. } => {
                    B::weight_bytes(router) + gated(experts) + shared.as_ref().map_or(0, gated)
                }
            };
            let attention = [&layer.qkv_a, &layer.w_uk, &layer.w_k, &layer.w_uv, &layer.o];
            attention.into_iter().map(B::weight_bytes).sum::<usize>() + query + mlp
        });
        let head = match &self.weights.head {
            Head::Tied => 0,
            Head::Own(w) => B::weight_bytes(w),
        };
        B::weight_bytes(&self.weights.embed) + layers.sum::<usize>() + head
    }

    /// Residual stream of the first `tokens` tokens, `[tokens, hidden]`.
    pub fn hidden(&self, tokens: usize) -> Vec<f32> {
        self.backend.read(&self.run.x, tokens * self.spec.hidden_size)
    }

    /// What the last router chose for the first `tokens` tokens: ids and weights, `[tokens, top_k]`.
    pub fn routing(&self, tokens: usize) -> (Vec<u32>, Vec<f32>) {
        let n = tokens * self.spec.moe().map_or(0, |moe| moe.rule.top_k);
        (self.backend.read_indices(&self.run.expert_ids, n), self.backend.read(&self.run.expert_weights, n))
    }

    /// Fills the step's slots with made-up latent rows in every layer, so that decoding at a depth can be
    /// measured without computing all that comes before it.
    pub fn prime(&mut self, step: &Step<'_>) -> Result<(), KernelError> {
        self.backend.begin_step(step)?;
        let width = self.spec.latent_width();
        let noise = (0..step.tokens.len() * width).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0);
        let noise = self.backend.upload(&noise.collect::<Vec<_>>())?;
        for (layer, weights) in self.weights.layers.iter().enumerate() {
            let (norm, eps, dims) = (&weights.latent_norm, self.spec.latent_norm_eps, self.spec.mla);
            let kv = View::dense(&noise, width);
            self.backend.latent_write(LatentWrite { kv, norm, eps, dims, layer, arena: &mut self.arena })?;
        }
        Ok(())
    }

    /// Begins one step: its tokens are computed, and `draws` made from its outputs' logits. Of `reads`, indices into the
    /// outputs, [`Self::collect`] will bring the logits: the step is then collected before the next is launched.
    pub fn launch(&mut self, step: &Step<'_>, draws: &Draws, reads: &[u32]) -> Result<(), KernelError> {
        self.compute(step, |_, _| ())?;
        self.draw(draws, reads.iter().copied())
    }

    /// The end of a step that is computed.
    pub(crate) fn draw(
        &mut self,
        draws: &Draws,
        reads: impl Iterator<Item = u32>,
    ) -> Result<(), KernelError> {
        self.backend.sample(draws)?;
        let mut list = self.spare.pop().unwrap_or_default();
        list.clear();
        list.extend(reads);
        self.reads.push_back(list);
        Ok(())
    }

    /// Waits for the oldest step that was launched and not collected: what its draws came to, and the logits that were to
    /// be read, `[reads, vocab]`.
    pub fn collect(&mut self, drawn: &mut Vec<Drawn>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        let reads = self.reads.pop_front().unwrap_or_default();
        logits.clear();
        let collected = self.backend.collect(drawn).and_then(|()| match reads.is_empty() {
            true => Ok(()),
            false => self.backend.read_logits(&reads, logits),
        });
        self.spare.push(reads);
        collected
    }

    /// One step; `logits` becomes `[outputs, vocab]`.
    pub fn forward(&mut self, step: &Step<'_>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        self.forward_watched(step, logits, |_, _| ())
    }

    /// [`Self::forward`], letting `look` see the model at each [`Place`].
    pub fn forward_watched(
        &mut self,
        step: &Step<'_>,
        logits: &mut Vec<f32>,
        look: impl FnMut(Place, &Self),
    ) -> Result<(), KernelError> {
        self.compute(step, look)?;
        self.draw(&Draws::default(), 0..step.outputs.len() as u32)?;
        self.collect(&mut Vec::new(), logits)
    }

    /// All up to the logits.
    pub(crate) fn compute(
        &mut self,
        step: &Step<'_>,
        mut look: impl FnMut(Place, &Self),
    ) -> Result<(), KernelError> {
        self.backend.begin_step(step)?;
        if !step.copies.is_empty() {
            self.backend.copy_blocks(CopyBlocks { arena: &mut self.arena })?;
        }
        self.backend.embed(Embed { table: &self.weights.embed, out: &mut self.run.x })?;
        look(Place::Embedding, self);
        for layer in 0..self.spec.n_layers() {
            self.attention(layer)?;
            self.mlp_norm(layer)?;
            if let Mlp::Moe(_) = self.spec.layers[layer] {
                self.route(layer)?;
                look(Place::Router(layer), self);
            }
            self.mlp(layer)?;
            look(Place::Layer(layer), self);
        }
        self.backend.lm_head(LmHead {
            x: &self.run.x,
            norm: &self.weights.final_norm,
            eps: self.spec.rms_norm_eps,
            weight: match &self.weights.head {
                Head::Tied => &self.weights.embed,
                Head::Own(head) => head,
            },
        })
    }

    /// `x += W_O attend(norm(x))`, DeepSeek-V2 (arXiv 2405.04434) §2.1, absorbed or expanded row by row.
    fn attention(&mut self, index: usize) -> Result<(), KernelError> {
        let Self { spec, backend, run, arena, .. } = self;
        let layer = &self.weights.layers[index];
        let (dims, hidden) = (spec.mla, spec.hidden_size);
        let q_width = dims.n_heads * dims.qk_head_dim();
        let q_a_width = spec.q_lora_rank.unwrap_or(q_width);
        let a_width = q_a_width + dims.latent_width();

        let x = View::dense(&run.x, hidden);
        backend.rms_norm(RmsNorm {
            x,
            weight: &layer.attention_norm,
            eps: spec.rms_norm_eps,
            out: &mut run.h,
        })?;
        let h = View::dense(&run.h, hidden);
        backend.linear(Linear { weight: &layer.qkv_a, x: h, out: &mut run.qkv_a, accumulate: false })?;
        let kv = View::columns(&run.qkv_a, q_a_width, a_width);
        let (norm, eps) = (&layer.latent_norm, spec.latent_norm_eps);
        backend.latent_write(LatentWrite { kv, norm, eps, dims, layer: index, arena })?;
        let q_a = View::columns(&run.qkv_a, 0, a_width);
        let q = match &layer.query {
            Query::Whole => q_a,
            Query::Compressed { norm, b } => {
                backend.rms_norm(RmsNorm { x: q_a, weight: norm, eps, out: &mut run.q_a })?;
                let x = View::dense(&run.q_a, q_a_width);
                backend.linear(Linear { weight: b, x, out: &mut run.q, accumulate: false })?;
                View::dense(&run.q, q_width)
            }
        };

        // Rows that stay in latent space.
        backend.absorb_query(AbsorbQuery { q, w_uk: &layer.w_uk, out: &mut run.q_latent, dims })?;
        let q_latent = &run.q_latent;
        backend.attend_latent(AttendLatent {
            q: q_latent,
            arena,
            layer: index,
            out: &mut run.latent,
            dims,
        })?;
        let latent = &run.latent;
        backend.absorb_output(AbsorbOutput { latent, w_uv: &layer.w_uv, out: &mut run.attended, dims })?;
        // Rows that do not.
        let (w_k, w_uv, out) = (&layer.w_k, &layer.w_uv, &mut run.attended);
        backend.attend_expanded(AttendExpanded { q, w_k, w_uv, arena, layer: index, out, dims })?;

        let x = View::dense(&run.attended, dims.n_heads * dims.v_head_dim);
        backend.linear(Linear { weight: &layer.o, x, out: &mut run.x, accumulate: true })
    }

    fn mlp_norm(&mut self, index: usize) -> Result<(), KernelError> {
        let x = View::dense(&self.run.x, self.spec.hidden_size);
        let weight = &self.weights.layers[index].mlp_norm;
        self.backend.rms_norm(RmsNorm { x, weight, eps: self.spec.rms_norm_eps, out: &mut self.run.h })
    }

    fn route(&mut self, index: usize) -> Result<(), KernelError> {
        let (MlpWeights::Moe { router, bias, .. }, Mlp::Moe(moe)) =
            (&self.weights.layers[index].mlp, &self.spec.layers[index])
        else {
            return Ok(());
        };
        self.backend.route(Route {
            x: View::dense(&self.run.h, self.spec.hidden_size),
            weight: router,
            bias: bias.as_ref(),
            rule: moe.rule,
            ids: &mut self.run.expert_ids,
            weights: &mut self.run.expert_weights,
        })
    }

    /// `x += mlp(h)`
    fn mlp(&mut self, index: usize) -> Result<(), KernelError> {
        let Self { spec, backend, run, .. } = self;
        let x = View::dense(&run.h, spec.hidden_size);
        let out = &mut run.x;
        match &self.weights.layers[index].mlp {
            MlpWeights::Dense(Gated { gate_up, down }) => {
                backend.gated_mlp(GatedMlp { gate_up, down, x, out })
            }
            MlpWeights::Moe { experts, shared, .. } => {
                if let Some(Gated { gate_up, down }) = shared {
                    backend.gated_mlp(GatedMlp { gate_up, down, x, out })?;
                }
                let Gated { gate_up, down } = experts;
                let (ids, weights) = (&run.expert_ids, &run.expert_weights);
                let top_k = spec.moe().map_or(0, |moe| moe.rule.top_k);
                backend.experts(Experts { gate_up, down, x, ids, weights, top_k, out })
            }
        }
    }
}

impl<B: Backend> RunState<B> {
    fn new(spec: &ModelSpec, tokens: usize, backend: &mut B) -> Result<Self, KernelError> {
        let d = &spec.mla;
        let q_width = d.n_heads * d.qk_head_dim();
        let top_k = spec.moe().map_or(0, |moe| moe.rule.top_k);
        let mut buffer = |width: usize| backend.buffer(tokens * width);
        Ok(Self {
            x: buffer(spec.hidden_size)?,
            h: buffer(spec.hidden_size)?,
            qkv_a: buffer(spec.q_lora_rank.unwrap_or(q_width) + d.latent_width())?,
            q_a: buffer(spec.q_lora_rank.unwrap_or(0))?,
            q: buffer(if spec.q_lora_rank.is_some() { q_width } else { 0 })?,
            q_latent: buffer(d.n_heads * d.latent_width())?,
            latent: buffer(d.n_heads * d.kv_lora_rank)?,
            attended: buffer(d.n_heads * d.v_head_dim)?,
            expert_weights: buffer(top_k)?,
            expert_ids: backend.indices(tokens * top_k)?,
        })
    }

    /// f32 numbers a token that [`Self::new`] makes.
    fn width(spec: &ModelSpec) -> usize {
        let d = &spec.mla;
        let q_width = d.n_heads * d.qk_head_dim();
        let query = spec.q_lora_rank.map_or(q_width, |rank| 2 * rank + q_width);
        let attention = d.n_heads * (d.latent_width() + d.kv_lora_rank + d.v_head_dim);
        let top_k = spec.moe().map_or(0, |moe| moe.rule.top_k);
        2 * spec.hidden_size + query + d.latent_width() + attention + 2 * top_k
    }
}

/// Bytes of the activations of the largest step; a backend's scratch comes on top.
pub fn activation_bytes(spec: &ModelSpec, step_tokens: usize) -> usize {
    RunState::<kernels::Reference>::width(spec) * step_tokens * 4
}

/// Length of the units of a prompt whose tokens are computed with keys and values expanded from the latent: for so
/// many together, that takes fewer operations than staying in latent space. See
/// [`engine::runner::Limits::prefill_unit`].
pub fn prefill_unit(spec: &ModelSpec, limits: &StepLimits) -> usize {
    /// Short prompts stay in latent space, where a prompt's numbers are those of decoding it.
    const LEAST: usize = 256;
    let cheaper_from = spec.mla.expand_from();
    let unit = cheaper_from.checked_next_multiple_of(64).unwrap_or(usize::MAX).max(LEAST);
    if unit <= limits.tokens.saturating_sub(limits.rows) { unit } else { usize::MAX }
}

/// What a backend must reserve scratch memory for.
pub fn workspace(spec: &ModelSpec, limits: &StepLimits) -> Workspace {
    let d = &spec.mla;
    let widest_mlp = spec.layers.iter().map(|mlp| match mlp {
        Mlp::Dense { intermediate_size } => *intermediate_size,
        Mlp::Moe(moe) => {
            moe.shared_intermediate_size.max(moe.rule.top_k * moe.intermediate_size.next_multiple_of(16))
        }
    });
    Workspace {
        limits: limits.clone(),
        mla: *d,
        rope: spec.rope.clone(),
        hidden: spec.hidden_size,
        widest: [
            spec.hidden_size,
            spec.q_lora_rank.unwrap_or(0),
            d.n_heads * d.qk_head_dim(),
            d.n_heads * d.kv_lora_rank,
            d.n_heads * d.v_head_dim,
        ]
        .into_iter()
        .max()
        .unwrap_or(0),
        widest_mlp: widest_mlp.max().unwrap_or(0),
        n_experts: spec.moe().map_or(0, |moe| moe.rule.n_experts),
        top_k: spec.moe().map_or(0, |moe| moe.rule.top_k),
    }
}
