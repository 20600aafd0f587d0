//! Attention in latent space over paged rows: split over keys, then combined. Items, splits and passes are `step.rs`'s.

use super::device::params;
use super::{CudaArena, CudaBackend, Device, Held, Kernel, Ptr};
use crate::backend::{MlaDims, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{Result, require};
use crate::ops::AttendLatent;
use std::f32::consts::LOG2_E;

params! {
    /// See `csrc/mla.h`.
    struct MlaParams {
        q: Ptr,
        layer: Ptr,
        out: Ptr,
        partial: Ptr,
        lse: Ptr,
        step: Ptr,
        items: Ptr,
        first_item: Ptr,
        pass: i32,
        heads: i32,
        rank: i32,
        width: i32,
        block_len: i32,
        tiled: i32,
        scale: f32,
    }
}

/// Keys of a tile of the kernels for any sizes.
const ANY_KEYS: usize = 64;
/// Query and sums of an item and head lie in shared memory there.
const ANY_SHARED_MAX: u32 = 64 << 10;

const ANY_BF16: Kernel =
    Kernel { name: "smxx_bf16_mla_any", file: "mla_any", threads: 128, shared_bytes_max: ANY_SHARED_MAX };
const ANY_F32: Kernel = Kernel { name: "smxx_f32_mla_any", ..ANY_BF16 };
const ANY_BF16_FP8: Kernel = Kernel { name: "smxx_bf16_mla_any_fp8", ..ANY_BF16 };
const ANY_F32_FP8: Kernel = Kernel { name: "smxx_f32_mla_any_fp8", ..ANY_BF16 };
const COMBINE: Kernel = Kernel { name: "smxx_f32_mla_combine", shared_bytes_max: 0, ..ANY_BF16 };

/// A kernel on tensor cores, for latent rows of 512 + 64 numbers in tiled pages; see `csrc/mla_bf16.cu`.
struct Tensor {
    kernel: Kernel,
    shared_bytes: usize,
}

/// Latent rows that [`Tensor`] kernels are made for.
const TENSOR_RANK: usize = 512;
const TENSOR_WIDTH: usize = 576;
const TENSOR_FP8_ROW: usize = 656;

impl Tensor {
    const fn new(name: &'static str, heads: usize, keys: usize, stages: usize) -> Self {
        Self::of_stages(name, heads, keys, stages * keys * TENSOR_WIDTH * 2)
    }

    /// Of a cache in FP8: stages as they are stored, and one tile as wide as above.
    const fn fp8(name: &'static str, heads: usize, keys: usize, stages: usize) -> Self {
        Self::of_stages(name, heads, keys, keys * (stages * TENSOR_FP8_ROW + TENSOR_WIDTH * 2))
    }

    const fn of_stages(name: &'static str, heads: usize, keys: usize, stage_bytes: usize) -> Self {
        // The query stays in registers where one tile of 16 heads is all.
        let query = if heads == 16 { 0 } else { heads * TENSOR_WIDTH * 2 };
        let weights = heads * (keys * 2 + 16);
        let maxima_and_sums = 2 * (keys / 8) * heads * 4;
        let shared_bytes = stage_bytes + query + weights + maxima_and_sums;
        let kernel = Kernel { name, file: "mla_bf16", threads: 256, shared_bytes_max: shared_bytes as u32 };
        Self { kernel, shared_bytes }
    }

    /// The first that has room on the device: more heads together read the keys fewer times, larger tiles and more of them
    /// keep more bytes under way.
    fn of(heads: usize, cache: CacheFormat, shared_bytes_max: u32) -> Option<&'static Self> {
        let order: [&'static Self; 3] = match (cache, heads <= 16) {
            (CacheFormat::Plain, true) => [&M16_K64_S3, &M16_K64_S2, &M16_K32_S2],
            (CacheFormat::Plain, false) => [&M32_K64_S2, &M32_K32_S3, &M16_K32_S2],
            (CacheFormat::Fp8, true) => [&M16_K64_S3_FP8, &M16_K64_S2_FP8, &M16_K32_S2_FP8],
            (CacheFormat::Fp8, false) => [&M32_K64_S2_FP8, &M32_K32_S3_FP8, &M16_K32_S2_FP8],
        };
        order.into_iter().find(|tensor| tensor.shared_bytes <= shared_bytes_max as usize)
    }
}

static M16_K64_S3: Tensor = Tensor::new("smxx_bf16_mla_m16_k64_s3", 16, 64, 3);
static M16_K64_S2: Tensor = Tensor::new("smxx_bf16_mla_m16_k64_s2", 16, 64, 2);
static M16_K32_S2: Tensor = Tensor::new("smxx_bf16_mla_m16_k32_s2", 16, 32, 2);
static M32_K64_S2: Tensor = Tensor::new("smxx_bf16_mla_m32_k64_s2", 32, 64, 2);
static M32_K32_S3: Tensor = Tensor::new("smxx_bf16_mla_m32_k32_s3", 32, 32, 3);
static M16_K64_S3_FP8: Tensor = Tensor::fp8("smxx_bf16_mla_m16_k64_s3_fp8", 16, 64, 3);
static M16_K64_S2_FP8: Tensor = Tensor::fp8("smxx_bf16_mla_m16_k64_s2_fp8", 16, 64, 2);
static M16_K32_S2_FP8: Tensor = Tensor::fp8("smxx_bf16_mla_m16_k32_s2_fp8", 16, 32, 2);
static M32_K64_S2_FP8: Tensor = Tensor::fp8("smxx_bf16_mla_m32_k64_s2_fp8", 32, 64, 2);
static M32_K32_S3_FP8: Tensor = Tensor::fp8("smxx_bf16_mla_m32_k32_s3_fp8", 32, 32, 3);

pub(super) const KERNELS: &[&Kernel] = &[
    &ANY_BF16,
    &ANY_F32,
    &ANY_BF16_FP8,
    &ANY_F32_FP8,
    &COMBINE,
    &M16_K64_S3.kernel,
    &M16_K64_S2.kernel,
    &M16_K32_S2.kernel,
    &M32_K64_S2.kernel,
    &M32_K32_S3.kernel,
    &M16_K64_S3_FP8.kernel,
    &M16_K64_S2_FP8.kernel,
    &M16_K32_S2_FP8.kernel,
    &M32_K64_S2_FP8.kernel,
    &M32_K32_S3_FP8.kernel,
];

/// Of partial results, unless the smallest pass needs more.
const PARTIAL_BYTES: usize = 256 << 20;

/// Results of the items of one pass.
pub(super) struct Scratch<D: Device> {
    /// `[items, heads, kv_lora_rank]` and `[items, heads]`
    partial: Held<D>,
    lse: Held<D>,
    items: usize,
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(b: &CudaBackend<D>, workspace: &Workspace) -> Result<Self> {
        let (limits, mla) = (&workspace.limits, &workspace.mla);
        let splits = super::step::splits(limits.context_len);
        // As many as fit, no more than there can be, and one token's at least.
        let fit = PARTIAL_BYTES / Self::item_bytes(mla);
        Self::of(b, mla, fit.min(limits.tokens * splits).max(splits))
    }

    fn item_bytes(mla: &MlaDims) -> usize {
        4 * mla.n_heads * mla.kv_lora_rank
    }

    fn of(b: &CudaBackend<D>, mla: &MlaDims, items: usize) -> Result<Self> {
        Ok(Self {
            partial: b.hold(items * Self::item_bytes(mla), "partial sums of attention")?,
            lse: b.hold(4 * items * mla.n_heads, "partial sums of attention")?,
            items,
        })
    }

    /// Items that the partial results of one pass have room for.
    pub(super) fn pass_items(&self) -> usize {
        self.items
    }
}

/// How attention in latent space is launched.
struct Plan {
    kernel: &'static Kernel,
    shared_bytes: usize,
    /// Blocks that loop over the items.
    blocks: usize,
}

impl Plan {
    fn new<D: Device>(b: &CudaBackend<D>, arena: &CudaArena<D>, dims: &MlaDims) -> Self {
        let about = b.device.about();
        let multiprocessors = about.multiprocessors as usize;
        let known = arena.tiled
            && arena.precision == Precision::Bf16
            && (dims.kv_lora_rank, dims.latent_width()) == (TENSOR_RANK, TENSOR_WIDTH);
        if known && let Some(tensor) = Tensor::of(dims.n_heads, arena.format, about.shared_bytes_max) {
            let Tensor { kernel, shared_bytes } = tensor;
            return Self { kernel, shared_bytes: *shared_bytes, blocks: multiprocessors };
        }
        let kernel = match (arena.precision, arena.format) {
            (Precision::Bf16, CacheFormat::Plain) => &ANY_BF16,
            (Precision::F32, CacheFormat::Plain) => &ANY_F32,
            (Precision::Bf16, CacheFormat::Fp8) => &ANY_BF16_FP8,
            (Precision::F32, CacheFormat::Fp8) => &ANY_F32_FP8,
        };
        let shared_bytes = 4 * (dims.latent_width() + dims.kv_lora_rank + 3 * ANY_KEYS);
        Self { kernel, shared_bytes, blocks: 8 * multiprocessors }
    }
}

pub(super) fn attend_latent<D: Device>(
    b: &CudaBackend<D>,
    op: &AttendLatent<'_, CudaBackend<D>>,
) -> Result<()> {
    let reserved = b.reserved("attend_latent")?;
    let (step, scratch, d) = (&reserved.step, &reserved.mla_scratch, &op.dims);
    let plan = Plan::new(b, op.arena, d);
    require(plan.shared_bytes <= plan.kernel.shared_bytes_max as usize, "attend_latent", || {
        format!("no kernel for latent rows as wide as {d:?}")
    })?;
    for pass in 0..step.passes {
        let params = MlaParams {
            q: op.q.ptr(),
            layer: op.arena.layer(op.layer),
            out: op.out.ptr(),
            partial: scratch.partial.ptr(),
            lse: scratch.lse.ptr(),
            step: step.header(),
            items: step.items(),
            first_item: step.first_item(),
            pass: pass as i32,
            heads: d.n_heads as i32,
            rank: d.kv_lora_rank as i32,
            width: d.latent_width() as i32,
            block_len: reserved.limits.block_len as i32,
            tiled: i32::from(op.arena.tiled),
            scale: d.softmax_scale * LOG2_E,
        };
        b.launch(plan.kernel, [plan.blocks, 1, 1], plan.shared_bytes, &params);
        b.launch(&COMBINE, [b.token_bucket(), d.n_heads, 1], 0, &params);
    }
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::super::rows::tests::{Cuda, ODD, Steps, noise, workspace};
    use super::super::sim::{Emulator, Mode};
    use super::super::step::DeviceStep;
    use super::*;
    use crate::backend::{Backend, MlaDims};

    /// What attention gives for rows of several parts, with memory for the partial results of `pass_items` items.
    fn attended(dims: MlaDims, block_len: usize, pass_items: Option<usize>) -> (usize, Vec<f32>) {
        let rows = [(1030, 2, false), (0, 3, false), (599, 1, false), (63, 1, true), (512, 1, false)];
        let steps = Steps::new(&rows, block_len);
        let mut b: Cuda = CudaBackend::new(Emulator::new(Mode::FAST, 90), Precision::Bf16);
        b.reserve(workspace(&steps.limits, dims)).unwrap();
        if let Some(items) = pass_items {
            let scratch = Scratch::of(&b, &dims, items).unwrap();
            let step = DeviceStep::new(&b.device, &steps.limits, items).unwrap();
            let reserved = b.reserved.as_mut().unwrap();
            (reserved.mla_scratch, reserved.step) = (scratch, step);
        }
        let arena = b.arena(1, &steps.limits, &dims).unwrap();
        let numbers = noise(steps.limits.slots() * dims.latent_width(), 3);
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| half::bf16::from_f32(*v).to_ne_bytes()).collect();
        b.device.write(arena.held.get(), 0, &bytes).unwrap();
        b.begin_step(&steps.step()).unwrap();
        let n = steps.positions.len() * dims.n_heads;
        let q = b.upload(&noise(n * dims.latent_width(), 4)).unwrap();
        let mut out = b.buffer(n * dims.kv_lora_rank).unwrap();
        b.attend_latent(AttendLatent { q: &q, arena: &arena, layer: 0, out: &mut out, dims }).unwrap();
        let passes = b.reserved.as_ref().unwrap().step.passes;
        (passes, b.read(&out, n * dims.kv_lora_rank))
    }

    /// Passes are about memory alone: the same bits in one as in many. Three items are a token's most here.
    #[test]
    fn passes_change_no_bit() {
        let real = MlaDims { kv_lora_rank: TENSOR_RANK, qk_rope_head_dim: TENSOR_WIDTH - TENSOR_RANK, ..ODD };
        for (dims, block_len) in [(ODD, 16), (real, 64)] {
            let (one, whole) = attended(dims, block_len, None);
            let (many, parted) = attended(dims, block_len, Some(3));
            assert!(one == 1 && many >= 4, "{one} and {many} passes");
            assert!(whole == parted, "{dims:?}");
        }
    }

    /// The most that a block's shared memory holds of a row: 16,192 numbers of query and sum; and one more.
    #[test]
    fn rows_too_wide_are_refused() {
        for (kv_lora_rank, served) in [(8093, true), (8094, false)] {
            let dims = MlaDims { kv_lora_rank, ..ODD };
            let steps = Steps::new(&[(0, 1, false)], 16);
            let mut b: Cuda = CudaBackend::new(Emulator::new(Mode::FAST, 90), Precision::F32);
            b.reserve(workspace(&steps.limits, dims)).unwrap();
            let arena = b.arena(1, &steps.limits, &dims).unwrap();
            b.begin_step(&steps.step()).unwrap();
            let q = b.upload(&vec![0.0; dims.n_heads * dims.latent_width()]).unwrap();
            let mut out = b.buffer(dims.n_heads * kv_lora_rank).unwrap();
            let ran = b.attend_latent(AttendLatent { q: &q, arena: &arena, layer: 0, out: &mut out, dims });
            assert_eq!(ran.is_ok(), served, "{kv_lora_rank}: {ran:?}");
            if served {
                b.read(&out, 1); // runs it, with all the shared memory that it asks for
            }
        }
    }
}
