//! The slow, plain backend: every op as its definition reads. Tests compare the fast ones with it.

use crate::backend::{Backend, MlaDims, Rope, View, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{KernelError, Result};
use crate::logits::HostLogits;
use crate::matrix::Parts;
use crate::ops::{
    AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, CopyBlocks, Embed, Experts, GatedMlp,
    LatentWrite, Linear, LmHead, RmsNorm, Route, RouteScratch, attend_reference, copy_blocks_reference,
    linear_reference, rms_norm_reference, rotate_pairs, route_reference, silu,
};
use crate::step::{Row, Step, StepLimits, StepState};
use sampler::{Drawn, Draws};

pub struct Reference {
    precision: Precision,
    cache: CacheFormat,
    step: StepState,
    reserved: Option<(StepLimits, Rope)>,
    /// `[tokens, rope / 2, 2]`
    cos_sin: Vec<f32>,
    logits: HostLogits,
}

/// `[stack, rows, cols]`, row-major, rounded to `precision`.
pub struct PlainMatrices {
    values: Vec<f32>,
    shape: [usize; 3],
    precision: Precision,
}

impl PlainMatrices {
    fn matrix(&self, i: usize) -> &[f32] {
        let len = self.shape[1] * self.shape[2];
        &self.values[i * len..][..len]
    }

    fn mul(&self, i: usize, x: &[f32]) -> Vec<f32> {
        linear_reference(self.matrix(i), x, self.precision)
    }
}

/// `[layers, slots, latent_width]`, as a cache of that format gives them back.
pub struct PlainArena {
    values: Vec<f32>,
    shape: [usize; 3],
    /// What attention computes in.
    precision: Precision,
    format: CacheFormat,
}

impl PlainArena {
    fn row(&self, layer: usize, slot: usize) -> &[f32] {
        let [_, slots, width] = self.shape;
        &self.values[(layer * slots + slot) * width..][..width]
    }
}

impl Reference {
    pub fn new(precision: Precision) -> Self {
        Self {
            precision,
            cache: CacheFormat::Plain,
            step: StepState::default(),
            reserved: None,
            cos_sin: Vec::new(),
            logits: HostLogits::default(),
        }
    }

    /// How arenas made from now on round their rows.
    pub fn with_cache(self, cache: CacheFormat) -> Self {
        Self { cache, ..self }
    }

    fn angles(&self, t: usize) -> &[f32] {
        let width = self.cos_sin.len() / self.step.n_tokens();
        &self.cos_sin[t * width..][..width]
    }

    /// `(row, token, keys that the token sees)` of each token of the rows that are `expanded`, or are not.
    fn tokens(&self, expanded: bool) -> Vec<(Row, usize, usize)> {
        let rows = self.step.rows.iter().filter(|row| row.expanded == expanded);
        rows.flat_map(|&row| (0..row.len).map(move |i| (row, row.first + i, row.kv_len - row.len + i + 1)))
            .collect()
    }

    fn mlp(gate_up: &PlainMatrices, down: &PlainMatrices, i: usize, x: &[f32]) -> Vec<f32> {
        let both = gate_up.mul(i, x);
        let (gate, up) = both.split_at(both.len() / 2);
        let middle: Vec<f32> = gate.iter().zip(up).map(|(&g, u)| silu(g) * u).collect();
        down.mul(i, &middle)
    }
}

fn row<'a>(view: &View<'a, Reference>, t: usize, width: usize) -> &'a [f32] {
    &view.buffer[view.offset + t * view.stride..][..width]
}

impl Backend for Reference {
    type Buffer = Vec<f32>;
    type Indices = Vec<u32>;
    type Weight = PlainMatrices;
    type Arena = PlainArena;
    const KEEPS_FP8: bool = false;
    const STEPS_AHEAD: usize = 0;

    fn buffer(&mut self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn upload(&mut self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn indices(&mut self, len: usize) -> Result<Vec<u32>> {
        Ok(vec![0; len])
    }

    fn pack(&mut self, stack: &[Parts<'_>], precision: Precision) -> Result<PlainMatrices> {
        let [rows, cols] = stack.first().map_or(Ok([0, 0]), Parts::shape)?;
        let mut values = Vec::with_capacity(stack.len() * rows * cols);
        for parts in stack {
            if parts.shape()? != [rows, cols] {
                return Err(KernelError::Shape { op: "pack", what: "shapes differ in a stack".into() });
            }
            match parts {
                Parts::Rows(parts) => parts.iter().for_each(|m| values.extend(m.to_f32())),
                Parts::GateUp { gate, up } => [gate, up].iter().for_each(|m| values.extend(m.to_f32())),
            }
        }
        values.iter_mut().for_each(|v| *v = precision.round(*v));
        Ok(PlainMatrices { values, shape: [stack.len(), rows, cols], precision })
    }

    fn arena(&mut self, layers: usize, limits: &StepLimits, dims: &MlaDims) -> Result<PlainArena> {
        let shape = [layers, limits.slots(), dims.latent_width()];
        let values = vec![0.0; shape.iter().product()];
        Ok(PlainArena { values, shape, precision: self.precision, format: self.cache })
    }

    fn reserve(&mut self, workspace: Workspace) -> Result<()> {
        self.step = StepState::new(&workspace.limits);
        self.reserved = Some((workspace.limits, workspace.rope));
        Ok(())
    }

    fn buffer_len(buffer: &Vec<f32>) -> usize {
        buffer.len()
    }

    fn indices_len(indices: &Vec<u32>) -> usize {
        indices.len()
    }

    fn weight_shape(weight: &PlainMatrices) -> [usize; 3] {
        weight.shape
    }

    fn arena_shape(arena: &PlainArena) -> [usize; 3] {
        arena.shape
    }

    fn arena_bytes(arena: &PlainArena) -> usize {
        arena.values.len() * 4
    }

    fn weight_bytes(weight: &PlainMatrices) -> usize {
        weight.values.len() * 4
    }

    fn scratch_bytes(&self) -> usize {
        0 // what an op needs, it allocates
    }

    fn read(&self, buffer: &Vec<f32>, len: usize) -> Vec<f32> {
        buffer[..len].to_vec()
    }

    fn read_indices(&self, indices: &Vec<u32>, len: usize) -> Vec<u32> {
        indices[..len].to_vec()
    }

    fn begin_step(&mut self, step: &Step<'_>) -> Result<()> {
        let Some((limits, rope)) = &self.reserved else {
            return Err(KernelError::Shape { op: "begin_step", what: "nothing reserved".into() });
        };
        self.step.load(step, limits, self.logits.drawn().len())?;
        self.step.resolve(self.logits.drawn());
        self.cos_sin.clear();
        for &position in &self.step.positions {
            for freq in &rope.inv_freq {
                let angle = position as f32 * freq;
                self.cos_sin.extend([angle.cos() * rope.scale, angle.sin() * rope.scale]);
            }
        }
        Ok(())
    }

    fn step_tokens(&self) -> usize {
        self.step.n_tokens()
    }

    fn copy_blocks(&mut self, op: CopyBlocks<'_, Self>) -> Result<()> {
        op.check(self.step.arena_slots)?;
        let [_, slots, row] = op.arena.shape;
        for layer in op.arena.values.chunks_exact_mut(slots * row) {
            copy_blocks_reference(layer, self.step.block_len * row, &self.step.copies);
        }
        Ok(())
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let hidden = op.check(self.step.n_tokens())?;
        for (&id, out) in self.step.tokens.iter().zip(op.out.chunks_exact_mut(hidden)) {
            out.copy_from_slice(&op.table.values[id as usize * hidden..][..hidden]);
        }
        Ok(())
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let width = op.check(tokens)?;
        for t in 0..tokens {
            rms_norm_reference(row(&op.x, t, width), op.weight, op.eps, &mut op.out[t * width..][..width]);
        }
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let [rows, cols] = op.check(tokens)?;
        for t in 0..tokens {
            let y = op.weight.mul(0, row(&op.x, t, cols));
            for (o, y) in op.out[t * rows..].iter_mut().zip(y) {
                *o = if op.accumulate { *o + y } else { y };
            }
        }
        Ok(())
    }

    fn latent_write(&mut self, op: LatentWrite<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        let (rank, width) = (op.dims.kv_lora_rank, op.dims.latent_width());
        let [_, slots, _] = op.arena.shape;
        for (t, &slot) in self.step.slots.iter().enumerate() {
            let kv = row(&op.kv, t, width);
            let mut latent = kv.to_vec();
            rms_norm_reference(&kv[..rank], op.norm, op.eps, &mut latent[..rank]);
            rotate_pairs(&mut latent[rank..], self.angles(t));
            op.arena.format.round(op.arena.precision, &op.dims, &mut latent);
            op.arena.values[(op.layer * slots + slot as usize) * width..][..width].copy_from_slice(&latent);
        }
        Ok(())
    }

    fn absorb_query(&mut self, op: AbsorbQuery<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        let d = &op.dims;
        for (_, t, _) in self.tokens(false) {
            for h in 0..d.n_heads {
                let q = &row(&op.q, t, d.n_heads * d.qk_head_dim())[h * d.qk_head_dim()..][..d.qk_head_dim()];
                let (nope, rope) = q.split_at(d.qk_nope_head_dim);
                let mut latent = op.w_uk.mul(h, nope);
                latent.extend(rope);
                rotate_pairs(&mut latent[d.kv_lora_rank..], self.angles(t));
                op.out[(t * d.n_heads + h) * d.latent_width()..][..d.latent_width()].copy_from_slice(&latent);
            }
        }
        Ok(())
    }

    fn attend_latent(&mut self, op: AttendLatent<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        let d = &op.dims;
        let width = d.latent_width();
        for (r, t, n) in self.tokens(false) {
            let keys: Vec<&[f32]> =
                (0..n).map(|p| op.arena.row(op.layer, self.step.slot(r.index, p))).collect();
            let values: Vec<&[f32]> = keys.iter().map(|k| &k[..d.kv_lora_rank]).collect();
            for h in 0..d.n_heads {
                let q = &op.q[(t * d.n_heads + h) * width..][..width];
                let q: Vec<f32> = q.iter().map(|&v| op.arena.precision.round(v)).collect();
                let out = attend_reference(&q, &keys, &values, d.softmax_scale);
                op.out[(t * d.n_heads + h) * d.kv_lora_rank..][..d.kv_lora_rank].copy_from_slice(&out);
            }
        }
        Ok(())
    }

    fn absorb_output(&mut self, op: AbsorbOutput<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        let d = &op.dims;
        for (_, t, _) in self.tokens(false) {
            for h in 0..d.n_heads {
                let i = t * d.n_heads + h;
                let out = op.w_uv.mul(h, &op.latent[i * d.kv_lora_rank..][..d.kv_lora_rank]);
                op.out[i * d.v_head_dim..][..d.v_head_dim].copy_from_slice(&out);
            }
        }
        Ok(())
    }

    fn attend_expanded(&mut self, op: AttendExpanded<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        let d = &op.dims;
        let round =
            |v: Vec<f32>| -> Vec<f32> { v.into_iter().map(|x| op.arena.precision.round(x)).collect() };
        for (r, t, n) in self.tokens(true) {
            let latents: Vec<&[f32]> =
                (0..n).map(|p| op.arena.row(op.layer, self.step.slot(r.index, p))).collect();
            for h in 0..d.n_heads {
                let keys: Vec<Vec<f32>> = latents
                    .iter()
                    .map(|c| [&round(op.w_k.mul(h, &c[..d.kv_lora_rank]))[..], &c[d.kv_lora_rank..]].concat())
                    .collect();
                let values: Vec<Vec<f32>> =
                    latents.iter().map(|c| round(op.w_uv.mul(h, &c[..d.kv_lora_rank]))).collect();
                let q = row(&op.q, t, d.n_heads * d.qk_head_dim());
                let mut q = q[h * d.qk_head_dim()..][..d.qk_head_dim()].to_vec();
                rotate_pairs(&mut q[d.qk_nope_head_dim..], self.angles(t));
                let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
                let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
                let out = attend_reference(&round(q), &keys, &values, d.softmax_scale);
                op.out[(t * d.n_heads + h) * d.v_head_dim..][..d.v_head_dim].copy_from_slice(&out);
            }
        }
        Ok(())
    }

    fn gated_mlp(&mut self, op: GatedMlp<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let [hidden, _] = op.check(tokens)?;
        for t in 0..tokens {
            let y = Self::mlp(op.gate_up, op.down, 0, row(&op.x, t, hidden));
            op.out[t * hidden..].iter_mut().zip(y).for_each(|(o, y)| *o += y);
        }
        Ok(())
    }

    fn route(&mut self, op: Route<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let hidden = op.check(tokens)?;
        let k = op.rule.top_k;
        for t in 0..tokens {
            let mut logits = op.weight.mul(0, row(&op.x, t, hidden));
            let (ids, weights) = (&mut op.ids[t * k..][..k], &mut op.weights[t * k..][..k]);
            let bias = op.bias.map(Vec::as_slice);
            route_reference(&mut logits, bias, &op.rule, &mut RouteScratch::default(), ids, weights);
        }
        Ok(())
    }

    fn experts(&mut self, op: Experts<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let [_, hidden, _] = op.check(tokens)?;
        for t in 0..tokens {
            let chosen = t * op.top_k..(t + 1) * op.top_k;
            let mut pairs: Vec<(u32, f32)> =
                op.ids[chosen.clone()].iter().copied().zip(op.weights[chosen].iter().copied()).collect();
            pairs.sort_by_key(|&(id, _)| id);
            for (id, weight) in pairs {
                let y = Self::mlp(op.gate_up, op.down, id as usize, row(&op.x, t, hidden));
                op.out[t * hidden..].iter_mut().zip(y).for_each(|(o, y)| *o += weight * y);
            }
        }
        Ok(())
    }

    fn lm_head(&mut self, op: LmHead<'_, Self>) -> Result<()> {
        let [vocab, hidden] = op.check(self.step.n_tokens())?;
        let logits = self.logits.make(self.step.outputs.len(), vocab);
        for (&t, out) in self.step.outputs.iter().zip(logits.chunks_exact_mut(vocab)) {
            let mut normed = vec![0.0; hidden];
            rms_norm_reference(&op.x[t as usize * hidden..][..hidden], op.norm, op.eps, &mut normed);
            out.copy_from_slice(&op.weight.mul(0, &normed));
        }
        Ok(())
    }

    fn sample(&mut self, draws: &Draws) -> Result<()> {
        self.logits.check(draws)?;
        self.logits.end(|logits, drawn| {
            let rows = draws.draws.iter().map(|draw| logits.row(draw.output)).enumerate();
            drawn.extend(rows.map(|(at, row)| sampler::reference(draws, at, row, logits.drawn())));
        });
        Ok(())
    }

    fn collect(&mut self, drawn: &mut Vec<Drawn>) -> Result<()> {
        self.logits.collect(drawn);
        Ok(())
    }

    fn read_logits(&mut self, outputs: &[u32], logits: &mut Vec<f32>) -> Result<()> {
        self.logits.read(outputs, logits)
    }
}
