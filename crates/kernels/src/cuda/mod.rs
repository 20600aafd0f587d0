//! The CUDA backend: our own kernels (`csrc/*.cu`), launched on a [`Device`].
//!
//! An op checks its arguments and puts launches on a list; nothing runs before the step's end (or before somebody reads a
//! buffer). No launch of a step without expanded rows depends on the step but by its bucket of tokens: what changes from
//! step to step is in the step's indices on the device ([`step`]). So a list that was met before is replayed as a graph.
//!
//! Activations are f32; they are rounded to bf16 where they meet bf16 weights, as on the CPU. A token's numbers do not
//! depend on its neighbours: the order of each sum is fixed by the weight's shape and the token's position.

mod compile;
mod device;
mod gemm;
mod gpu;
mod graphs;
mod memory;
mod mla;
pub mod peaks;
mod prefill;
mod rows;
mod sample;
#[cfg(feature = "sim")]
pub mod sim;
mod step;

pub use compile::{
    Code, CodePaths, Holdings, NoCode, Origin, Version, can_make_code, code, holdings, nvrtc_version,
};
pub use device::{About, Device, Field, Kernel, Launch, ParamBytes, Params, Ptr};
pub use gpu::{Driver, Gpu, Graph, Memory, NoGpu, driver, is_supported};
pub use memory::{CudaArena, CudaBuffer, Held};

use crate::backend::{Backend, MlaDims, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{KernelError, Result, require};
use crate::matrix::Parts;
use crate::ops::{
    AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, CopyBlocks, Embed, Experts, GatedMlp,
    LatentWrite, Linear, LmHead, RmsNorm, Route,
};
use crate::step::{Step, StepLimits, StepState};
use graphs::{Graphs, LAUNCHES_MAX};
use memory::Bin;
use sampler::{Drawn, Draws};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use step::DeviceStep;

/// Every kernel that a step may launch.
pub fn kernels() -> Vec<&'static Kernel> {
    [gemm::KERNELS, mla::KERNELS, prefill::KERNELS, rows::KERNELS, sample::KERNELS].concat()
}

/// Made for the largest step.
struct Reserved<D: Device> {
    limits: StepLimits,
    mla: MlaDims,
    step: DeviceStep<D>,
    /// f32 `[context_len, rope / 2, 2]`: cos and sin of each position
    angles: Held<D>,
    gemm: gemm::Scratch<D>,
    mla_scratch: mla::Scratch<D>,
    prefill: prefill::Scratch<D>,
    rows: rows::Scratch<D>,
    sample: sample::Scratch<D>,
    /// Of all that.
    bytes: usize,
}

pub struct CudaBackend<D: Device> {
    device: D,
    /// What attention computes in.
    precision: Precision,
    cache: CacheFormat,
    state: StepState,
    reserved: Option<Reserved<D>>,
    /// Launches that have not run yet.
    list: RefCell<Vec<Launch>>,
    bin: Bin<D>,
    graphs: Graphs<D>,
    /// Replay lists that were met before.
    use_graphs: bool,
    /// Bytes allocated so far, whether they still live or not.
    taken: Cell<usize>,
    /// Width of the logits of the step.
    vocab: usize,
    /// Draws of the step launched last, and the half of their ids that the next one writes.
    n_drawn: usize,
    ids_half: u32,
    /// Steps that were not collected, the oldest first: the ids that they draw, and how many.
    under_way: VecDeque<(D::Reading, usize)>,
}

impl<D: Device> CudaBackend<D> {
    /// `precision` is what attention computes in; weights name theirs when they are packed.
    pub fn new(device: D, precision: Precision) -> Self {
        Self {
            device,
            precision,
            cache: CacheFormat::Plain,
            state: StepState::default(),
            reserved: None,
            list: RefCell::new(Vec::with_capacity(LAUNCHES_MAX)),
            bin: Arc::default(),
            graphs: Graphs::new(),
            use_graphs: true,
            taken: Cell::new(0),
            vocab: 0,
            n_drawn: 0,
            ids_half: 0,
            under_way: VecDeque::new(),
        }
    }

    /// Runs each launch by itself: for measurements and for finding faults.
    pub fn without_graphs(self) -> Self {
        Self { use_graphs: false, ..self }
    }

    /// How arenas made from now on store their rows.
    pub fn with_cache(self, cache: CacheFormat) -> Self {
        Self { cache, ..self }
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn cache(&self) -> CacheFormat {
        self.cache
    }

    fn reserved(&self, op: &'static str) -> Result<&Reserved<D>> {
        self.reserved.as_ref().ok_or_else(|| KernelError::Shape { op, what: "nothing reserved".into() })
    }

    /// Puts a launch on the list. Launches without blocks are left out.
    fn launch(&self, kernel: &'static Kernel, grid: [usize; 3], shared_bytes: usize, params: &impl Params) {
        if grid.contains(&0) {
            return;
        }
        let launch = Launch {
            kernel,
            grid: grid.map(|n| n as u32),
            shared_bytes: shared_bytes as u32,
            params: params.bytes(),
        };
        self.list.borrow_mut().push(launch);
    }

    /// Runs what is on the list, then frees what was only waiting for that.
    fn flush(&self) -> Result<()> {
        let mut list = self.list.borrow_mut();
        let ran = self.device.run(&list);
        list.clear();
        self.empty_bin();
        ran
    }

    /// What ops have put on the list, taken off it before it ran: to be run, captured and timed by the caller, while all
    /// that the ops named lives.
    pub fn take_launches(&mut self) -> Vec<Launch> {
        std::mem::take(self.list.get_mut())
    }

    /// Writes a step's draws and puts what makes them on the list: all of [`Backend::sample`] but the step's end.
    pub fn list_draws(&mut self, draws: &Draws) -> Result<()> {
        let Self { device, reserved: Some(reserved), .. } = self else {
            return Err(KernelError::Shape { op: "sample", what: "nothing reserved".into() });
        };
        let outputs = reserved.step.outputs;
        let checked = draws.check(outputs, self.vocab, self.n_drawn);
        checked.map_err(|what| KernelError::Shape { op: "sample", what: what.into() })?;
        reserved.sample.load(device, draws)?;
        let logits = reserved.gemm.logits("sample", outputs * self.vocab)?.ptr();
        sample::sample(self, logits, self.vocab)
    }

    /// Runs the list, as a graph if it was met before.
    fn finish(&mut self) -> Result<()> {
        let captured = self.reserved("finish")?.step.expanded.is_empty() && self.use_graphs;
        if !captured {
            return self.flush();
        }
        let list = self.list.get_mut();
        let ran = self.graphs.run(&self.device, list);
        list.clear();
        self.empty_bin();
        ran
    }

    /// `dims` and the arena are those that scratch memory was made for and the step was checked against.
    fn check_reserved(&self, op: &'static str, dims: &MlaDims, arena: Option<&CudaArena<D>>) -> Result<()> {
        let Reserved { limits, mla, .. } = self.reserved(op)?;
        require(mla == dims, op, || format!("{dims:?}, reserved for {mla:?}"))?;
        let Some(arena) = arena else { return Ok(()) };
        let same = (arena.precision, arena.format) == (self.precision, self.cache);
        require(arena.shape[1] == limits.slots() && same, op, || {
            format!("an arena {:?} in {}", arena.shape, arena.format.name(arena.precision))
        })
    }

    /// Tokens that launches of this step are made for; kernels stop at the step's own count.
    fn token_bucket(&self) -> usize {
        step::bucket(self.step_tokens())
    }

    /// Address of the rotary angles.
    fn angles_ptr(&self, op: &'static str) -> Result<Ptr> {
        Ok(self.reserved(op)?.angles.ptr())
    }
}

impl<D: Device> Backend for CudaBackend<D> {
    type Buffer = CudaBuffer<D>;
    type Indices = CudaBuffer<D>;
    type Weight = gemm::CudaWeight<D>;
    type Arena = CudaArena<D>;
    const KEEPS_FP8: bool = true;
    const STEPS_AHEAD: usize = 1;

    fn buffer(&mut self, len: usize) -> Result<CudaBuffer<D>> {
        self.buffer_of(len)
    }

    fn upload(&mut self, values: &[f32]) -> Result<CudaBuffer<D>> {
        let buffer = self.buffer_of(values.len())?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.device.write(buffer.held.get(), 0, &bytes)?;
        Ok(buffer)
    }

    fn indices(&mut self, len: usize) -> Result<CudaBuffer<D>> {
        self.buffer_of(len)
    }

    fn pack(&mut self, stack: &[Parts<'_>], precision: Precision) -> Result<gemm::CudaWeight<D>> {
        gemm::pack(self, stack, precision)
    }

    fn arena(&mut self, layers: usize, limits: &StepLimits, dims: &MlaDims) -> Result<CudaArena<D>> {
        CudaArena::new(self, layers, limits, dims)
    }

    fn reserve(&mut self, workspace: Workspace) -> Result<()> {
        workspace.check()?;
        self.flush()?;
        self.graphs.clear();
        self.reserved = None;
        self.under_way.clear();
        self.n_drawn = 0;
        self.empty_bin();
        self.state = StepState::new(&workspace.limits);
        let before = self.taken.get();
        let mla_scratch = mla::Scratch::new(self, &workspace)?;
        let step = DeviceStep::new(&self.device, &workspace.limits, mla_scratch.pass_items())?;
        let gemm = gemm::Scratch::new(self, &workspace)?;
        let prefill = prefill::Scratch::new(self, &workspace)?;
        let rows = rows::Scratch::new(self, &workspace)?;
        let sample = sample::Scratch::new(self, &workspace)?;
        let angles = self.angles(&workspace.rope, workspace.limits.context_len)?;
        let bytes = self.taken.get() - before + step.bytes();
        self.reserved = Some(Reserved {
            step,
            angles,
            gemm,
            prefill,
            rows,
            sample,
            mla_scratch,
            bytes,
            limits: workspace.limits,
            mla: workspace.mla,
        });
        Ok(())
    }

    fn buffer_len(buffer: &CudaBuffer<D>) -> usize {
        buffer.len
    }

    fn indices_len(indices: &CudaBuffer<D>) -> usize {
        indices.len
    }

    fn weight_shape(weight: &gemm::CudaWeight<D>) -> [usize; 3] {
        weight.shape()
    }

    fn arena_shape(arena: &CudaArena<D>) -> [usize; 3] {
        arena.shape
    }

    fn arena_bytes(arena: &CudaArena<D>) -> usize {
        D::bytes(arena.held.get())
    }

    fn weight_bytes(weight: &gemm::CudaWeight<D>) -> usize {
        weight.bytes()
    }

    fn scratch_bytes(&self) -> usize {
        self.reserved.as_ref().map_or(0, |reserved| reserved.bytes)
    }

    fn read(&self, buffer: &CudaBuffer<D>, len: usize) -> Vec<f32> {
        self.download(buffer, len, f32::from_ne_bytes)
    }

    fn read_indices(&self, indices: &CudaBuffer<D>, len: usize) -> Vec<u32> {
        self.download(indices, len, u32::from_ne_bytes)
    }

    fn begin_step(&mut self, step: &Step<'_>) -> Result<()> {
        self.flush()?;
        let Some(Reserved { limits, .. }) = &self.reserved else {
            return Err(KernelError::Shape { op: "begin_step", what: "nothing reserved".into() });
        };
        self.state.load(step, limits, self.n_drawn)?;
        let Self { device, reserved: Some(reserved), state, ids_half, .. } = self else { return Ok(()) };
        reserved.step.load(device, state, *ids_half)
    }

    fn step_tokens(&self) -> usize {
        self.state.n_tokens()
    }

    fn copy_blocks(&mut self, op: CopyBlocks<'_, Self>) -> Result<()> {
        op.check(self.state.arena_slots)?;
        rows::copy_blocks(self, &op)
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        rows::embed(self, &op)
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        rows::rms_norm(self, &op)
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        gemm::linear(self, &op)
    }

    fn latent_write(&mut self, op: LatentWrite<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        self.check_reserved("latent_write", &op.dims, Some(op.arena))?;
        rows::latent_write(self, &op)
    }

    fn absorb_query(&mut self, op: AbsorbQuery<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        self.check_reserved("absorb_query", &op.dims, None)?;
        gemm::absorb_query(self, &op)?;
        rows::rotate_query(self, &op)
    }

    fn attend_latent(&mut self, op: AttendLatent<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        self.check_reserved("attend_latent", &op.dims, Some(op.arena))?;
        mla::attend_latent(self, &op)
    }

    fn absorb_output(&mut self, op: AbsorbOutput<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        self.check_reserved("absorb_output", &op.dims, None)?;
        gemm::absorb_output(self, &op)
    }

    fn attend_expanded(&mut self, op: AttendExpanded<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        self.check_reserved("attend_expanded", &op.dims, Some(op.arena))?;
        prefill::attend_expanded(self, &op)
    }

    fn gated_mlp(&mut self, op: GatedMlp<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        gemm::gated_mlp(self, &op)
    }

    fn route(&mut self, op: Route<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        rows::route(self, &op)
    }

    fn experts(&mut self, op: Experts<'_, Self>) -> Result<()> {
        op.check(self.step_tokens())?;
        gemm::experts(self, &op)
    }

    fn lm_head(&mut self, op: LmHead<'_, Self>) -> Result<()> {
        let [vocab, _] = op.check(self.step_tokens())?;
        self.vocab = vocab;
        gemm::lm_head(self, &op)
    }

    fn start(&mut self) -> Result<()> {
        self.finish()
    }

    fn sample(&mut self, draws: &Draws) -> Result<()> {
        self.list_draws(draws)?;
        self.finish()?;
        let (ids, at) = self.reserved("sample")?.sample.ids_of(self.ids_half);
        // Of a step that draws nothing too: whoever collects it waits for it.
        let reading = self.device.read_later(ids, at, 4 * draws.len().max(1))?;
        (self.ids_half, self.n_drawn) = (1 - self.ids_half, draws.len());
        self.under_way.push_back((reading, draws.len()));
        Ok(())
    }

    fn collect(&mut self, drawn: &mut Vec<Drawn>) -> Result<()> {
        drawn.clear();
        let under_way = self.under_way.pop_front();
        let Some((reading, n)) = under_way else {
            return Err(KernelError::Shape { op: "collect", what: "no step is under way".into() });
        };
        let mut bytes = vec![0; 4 * n.max(1)];
        self.device.finish_reading(reading, &mut bytes)?;
        drawn.extend(bytes.as_chunks::<4>().0[..n].iter().map(|id| sample::drawn(u32::from_ne_bytes(*id))));
        Ok(())
    }

    fn read_logits(&mut self, outputs: &[u32], logits: &mut Vec<f32>) -> Result<()> {
        self.flush()?;
        gemm::read_logits(self, outputs, self.vocab, logits)
    }
}
