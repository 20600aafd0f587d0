//! The CPU backend: vector instructions chosen at run time, a pool of threads, panels of weights.
//!
//! Everything heavy is a product of packed panels with vectors ([`tile`]); [`matmul`] shares products
//! out over threads, [`attend`] uses the same tiles for attention.

mod absorb;
mod arena;
mod attend;
mod attend_expanded;
mod attend_latent;
mod fp8;
pub(crate) mod isa;
mod lanes;
mod linear;
mod matmul;
mod moe;
mod packed;
mod pool;
mod probe;
mod sample;
mod scratch;
mod tile;

pub use arena::LatentArena;
pub use isa::Isa;
pub use packed::PackedMatrices;

use crate::backend::{Backend, MlaDims, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{KernelError, Result, require};
use crate::logits::HostLogits;
use crate::matrix::Parts;
use crate::ops::{
    AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, CopyBlocks, Embed, Experts, GatedMlp,
    LatentWrite, Linear, LmHead, RmsNorm, Route, rotate_pairs,
};
use crate::step::{Step, StepLimits, StepState};
use arena::Stored;
use half::bf16;
use packed::SendPtr;
use pool::Pool;
use sampler::{Drawn, Draws};
use scratch::Scratch;

/// Rows below which a row-wise op is not worth waking a thread for.
const FEW_ROWS: usize = 8;

pub struct Cpu {
    pool: Pool,
    isa: Isa,
    precision: Precision,
    cache: CacheFormat,
    step: StepState,
    /// The sizes that scratch memory was made for.
    reserved: Option<Workspace>,
    /// `[tokens, rope / 2, 2]` cos and sin of the step's positions
    cos_sin: Vec<f32>,
    /// Tokens of rows that take `attend_latent`.
    absorbed: Vec<u32>,
    scratch: Scratch,
    logits: HostLogits,
    samplers: sample::Samplers,
}

impl Cpu {
    /// `precision` is what attention computes in; weights name theirs when they are packed, and the two
    /// must agree where they meet.
    pub fn new(threads: usize, precision: Precision) -> Self {
        Self::with_isa(threads, precision, Isa::detect())
    }

    /// With a plainer instruction set than the machine has: for tests and measurements.
    ///
    /// # Panics
    /// If the machine lacks `isa`.
    pub fn with_isa(threads: usize, precision: Precision, isa: Isa) -> Self {
        assert!(Isa::all().contains(&isa), "this machine has no {}", isa.name());
        Self {
            pool: Pool::new(threads.max(1)),
            isa,
            precision,
            cache: CacheFormat::Plain,
            step: StepState::default(),
            reserved: None,
            cos_sin: Vec::new(),
            absorbed: Vec::new(),
            scratch: Scratch::default(),
            logits: HostLogits::default(),
            samplers: sample::Samplers::new(threads.max(1)),
        }
    }

    /// How arenas made from now on store their rows.
    pub fn with_cache(self, cache: CacheFormat) -> Self {
        Self { cache, reserved: None, ..self }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// `task(worker, item)` for each item, on all threads if there are more than a few.
    fn rows(&mut self, items: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if items < FEW_ROWS {
            (0..items).for_each(|item| task(0, item));
        } else {
            self.pool.run(items, task);
        }
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn cache(&self) -> CacheFormat {
        self.cache
    }

    /// `dims` and the arena are those that scratch memory was made for and the step was checked against.
    fn check_reserved(&self, op: &'static str, dims: &MlaDims, arena: Option<&LatentArena>) -> Result<()> {
        let Some(Workspace { limits, mla, .. }) = &self.reserved else {
            return Err(KernelError::Shape { op, what: "nothing reserved".into() });
        };
        require(mla == dims, op, || format!("{dims:?}, reserved for {mla:?}"))?;
        let Some(arena) = arena else { return Ok(()) };
        let same = (arena.precision, arena.format()) == (self.precision, self.cache);
        require(arena.shape[1] == limits.slots() && same, op, || {
            format!("an arena {:?} in {}", arena.shape, arena.format().name(arena.precision))
        })
    }
}

/// Runs `$body` with `$E` as the element type of `$weight`.
macro_rules! by_element {
    ($weight:expr, $E:ident => $body:expr) => {
        match &$weight.elements {
            $crate::cpu::packed::Elements::F32(_) => {
                type $E = f32;
                $body
            }
            $crate::cpu::packed::Elements::Bf16(_) => {
                type $E = half::bf16;
                $body
            }
        }
    };
}

use by_element;

/// `weight`'s panels must hold the element type that attention computes in.
fn same_precision<T>(found: Option<T>, op: &'static str) -> Result<T> {
    found.ok_or_else(|| KernelError::Shape { op, what: "weights and cache differ in precision".into() })
}

impl Backend for Cpu {
    type Buffer = Vec<f32>;
    type Indices = Vec<u32>;
    type Weight = PackedMatrices;
    type Arena = LatentArena;
    const KEEPS_FP8: bool = false;
    const STEPS_AHEAD: usize = 0;

    fn buffer(&mut self, len: usize) -> Result<Vec<f32>> {
        zeros(len)
    }

    fn upload(&mut self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn indices(&mut self, len: usize) -> Result<Vec<u32>> {
        zeros(len)
    }

    fn pack(&mut self, stack: &[Parts<'_>], precision: Precision) -> Result<PackedMatrices> {
        PackedMatrices::pack(&mut self.pool, stack, precision)
    }

    fn arena(&mut self, layers: usize, limits: &StepLimits, dims: &MlaDims) -> Result<LatentArena> {
        limits.check()?;
        LatentArena::new([layers, limits.slots()], dims, self.precision, self.cache)
    }

    fn reserve(&mut self, workspace: Workspace) -> Result<()> {
        workspace.check()?;
        let Workspace { limits, mla, .. } = &workspace;
        self.reserved = None;
        self.step = StepState::new(limits);
        self.cos_sin = zeros(limits.tokens * mla.qk_rope_head_dim)?;
        self.absorbed = Vec::with_capacity(limits.tokens);
        self.logits = HostLogits::new(limits)?;
        self.samplers.reserve(limits.rows);
        self.scratch = Scratch::new(&workspace, self.pool.threads(), self.precision, self.cache)?;
        self.reserved = Some(workspace);
        Ok(())
    }

    fn buffer_len(buffer: &Vec<f32>) -> usize {
        buffer.len()
    }

    fn indices_len(indices: &Vec<u32>) -> usize {
        indices.len()
    }

    fn weight_shape(weight: &PackedMatrices) -> [usize; 3] {
        weight.shape
    }

    fn arena_shape(arena: &LatentArena) -> [usize; 3] {
        arena.shape
    }

    fn arena_bytes(arena: &LatentArena) -> usize {
        arena.bytes()
    }

    fn weight_bytes(weight: &PackedMatrices) -> usize {
        weight.bytes()
    }

    fn scratch_bytes(&self) -> usize {
        self.scratch.bytes() + self.logits.bytes()
    }

    fn read(&self, buffer: &Vec<f32>, len: usize) -> Vec<f32> {
        buffer[..len].to_vec()
    }

    fn read_indices(&self, indices: &Vec<u32>, len: usize) -> Vec<u32> {
        indices[..len].to_vec()
    }

    fn begin_step(&mut self, step: &Step<'_>) -> Result<()> {
        let Some(Workspace { limits, rope, .. }) = &self.reserved else {
            return Err(KernelError::Shape { op: "begin_step", what: "nothing reserved".into() });
        };
        self.step.load(step, limits, self.logits.drawn().len())?;
        self.step.resolve(self.logits.drawn());
        for (&position, out) in
            self.step.positions.iter().zip(self.cos_sin.chunks_exact_mut(2 * rope.inv_freq.len()))
        {
            for (pair, freq) in out.chunks_exact_mut(2).zip(&rope.inv_freq) {
                let (sin, cos) = (position as f32 * freq).sin_cos();
                (pair[0], pair[1]) = (cos * rope.scale, sin * rope.scale);
            }
        }
        self.absorbed.clear();
        for row in self.step.rows.iter().filter(|row| !row.expanded) {
            self.absorbed.extend((row.first..row.first + row.len).map(|t| t as u32));
        }
        Ok(())
    }

    fn step_tokens(&self) -> usize {
        self.step.n_tokens()
    }

    fn copy_blocks(&mut self, op: CopyBlocks<'_, Self>) -> Result<()> {
        op.check(self.step.arena_slots)?;
        self.copy_blocks_in(op.arena);
        Ok(())
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let hidden = op.check(tokens)?;
        let ids = &self.step.tokens;
        let vocab = op.table.shape[1];
        require(ids.iter().all(|&id| (id as usize) < vocab), "embed", || {
            "a token is outside the table".into()
        })?;
        let out = SendPtr::new(op.out.as_mut_ptr());
        by_element!(op.table, E => {
            let panels = same_precision(E::panels(op.table), "embed")?;
            self.pool.run(tokens, &|_, t| {
                // SAFETY: rows do not overlap and lie within `out`, as checked.
                let row = unsafe { std::slice::from_raw_parts_mut(out.at(t * hidden), hidden) };
                panels.read_row(ids[t] as usize, row);
            });
        });
        Ok(())
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let width = op.check(tokens)?;
        let (isa, out) = (self.isa, SendPtr::new(op.out.as_mut_ptr()));
        self.rows(tokens, &|_, t| {
            let x = &op.x.buffer[op.x.offset + t * op.x.stride..][..width];
            // SAFETY: rows do not overlap and lie within `out`, as checked.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(t * width), width) };
            lanes::rms_norm(isa, x, op.weight, op.eps, out);
        });
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let [rows, cols] = op.check(tokens)?;
        by_element!(op.weight, E => self.linear_of::<E>(op, tokens, rows, cols))
    }

    fn latent_write(&mut self, op: LatentWrite<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        self.check_reserved("latent_write", &op.dims, Some(op.arena))?;
        self.write_latents(op)
    }

    fn absorb_query(&mut self, op: AbsorbQuery<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        self.check_reserved("absorb_query", &op.dims, None)?;
        by_element!(op.w_uk, E => self.absorb_query_of::<E>(op))
    }

    fn attend_latent(&mut self, op: AttendLatent<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        self.check_reserved("attend_latent", &op.dims, Some(op.arena))?;
        match self.precision {
            Precision::F32 => self.attend_latent_of::<f32>(op),
            Precision::Bf16 => self.attend_latent_of::<bf16>(op),
        }
    }

    fn absorb_output(&mut self, op: AbsorbOutput<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        self.check_reserved("absorb_output", &op.dims, None)?;
        by_element!(op.w_uv, E => self.absorb_output_of::<E>(op))
    }

    fn attend_expanded(&mut self, op: AttendExpanded<'_, Self>) -> Result<()> {
        op.check(self.step.n_tokens())?;
        self.check_reserved("attend_expanded", &op.dims, Some(op.arena))?;
        by_element!(op.w_k, E => self.attend_expanded_of::<E>(op))
    }

    fn gated_mlp(&mut self, op: GatedMlp<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let [hidden, _] = op.check(tokens)?;
        by_element!(op.down, E => self.gated_mlp_of::<E>(op, tokens, hidden))
    }

    fn route(&mut self, op: Route<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let hidden = op.check(tokens)?;
        self.route_f32(op, tokens, hidden)
    }

    fn experts(&mut self, op: Experts<'_, Self>) -> Result<()> {
        let tokens = self.step.n_tokens();
        let [n, hidden, _] = op.check(tokens)?;
        by_element!(op.down, E => self.experts_of::<E>(op, tokens, n, hidden))
    }

    fn lm_head(&mut self, op: LmHead<'_, Self>) -> Result<()> {
        let outputs = self.step.outputs.len();
        let [vocab, hidden] = op.check(self.step.n_tokens())?;
        let mut logits = std::mem::take(&mut self.logits);
        let out = logits.make(outputs, vocab);
        let done = if outputs == 0 {
            Ok(())
        } else {
            by_element!(op.weight, E => self.lm_head_of::<E>(op, out, vocab, hidden))
        };
        self.logits = logits;
        done
    }

    fn sample(&mut self, draws: &Draws) -> Result<()> {
        self.logits.check(draws)?;
        let Self { samplers, pool, logits, .. } = self;
        logits.end(|logits, drawn| samplers.draw(pool, draws, logits, drawn));
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

fn zeros<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    v.try_reserve_exact(len).map_err(|_| KernelError::Memory { what: "a buffer", bytes })?;
    v.resize(len, T::default());
    Ok(v)
}

impl Cpu {
    fn write_latents(&mut self, op: LatentWrite<'_, Self>) -> Result<()> {
        let d = op.dims;
        let (rank, width) = (d.kv_lora_rank, d.latent_width());
        let slots = op.arena.shape[1];
        let isa = self.isa;
        for (t, &slot) in self.step.slots.iter().enumerate() {
            require((slot as usize) < slots, "latent_write", || format!("slot {slot}"))?;
            let latent = &mut self.scratch.latent_row[..width];
            let kv = &op.kv.buffer[op.kv.offset + t * op.kv.stride..][..width];
            lanes::rms_norm(isa, &kv[..rank], op.norm, op.eps, &mut latent[..rank]);
            latent[rank..].copy_from_slice(&kv[rank..]);
            rotate_pairs(&mut latent[rank..], &self.cos_sin[t * d.qk_rope_head_dim..][..d.qk_rope_head_dim]);
            op.arena.store(isa, op.layer, slot as usize, latent);
        }
        Ok(())
    }
}
