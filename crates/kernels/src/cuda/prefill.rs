//! Attention with keys and values expanded from the latent rows, for rows with many new tokens: a chunk of a row's context
//! at a time. Its launches carry the row's own numbers, so a step that has any is not captured.

use super::device::params;
use super::gemm::Kind;
use super::rows::first_row;
use super::{CudaBackend, Device, Held, Kernel, Ptr};
use crate::backend::{MlaDims, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{Result, require};
use crate::ops::AttendExpanded;
use crate::step::Row;

/// Keys that are expanded at a time are at most so many, fewer where steps are small or the memory for them is spent; whole
/// pages of 64.
const CHUNK_KEYS: usize = 4096;
const CHUNK_BYTES: usize = 256 << 20;
const PAGE: usize = 64;
/// Keys of a block of expand_any.
const ANY_EXPANDED: usize = 8;
/// Numbers of shared memory of prefill_any beside the query and the sum.
const ANY_SCORES: usize = 2 * 64;
/// Columns that an output block of expand_any has threads for, and blocks that share a key's columns.
const ANY_COLUMNS: usize = 128;
const ANY_BLOCKS: usize = 64;
const SHARED_MAX: usize = 98_304;

const fn kernel(file: &'static str, name: &'static str, threads: u32, shared_bytes_max: usize) -> Kernel {
    Kernel { name, file, threads, shared_bytes_max: shared_bytes_max as u32 }
}

const EXPAND_ANY_BF16: Kernel = kernel("prefill_any", "smxx_bf16_expand_any", 128, SHARED_MAX);
const EXPAND_ANY_F32: Kernel = kernel("prefill_any", "smxx_f32_expand_any", 128, SHARED_MAX);
const EXPAND_ANY_BF16_FP8: Kernel = kernel("prefill_any", "smxx_bf16_expand_any_fp8", 128, SHARED_MAX);
const EXPAND_ANY_F32_FP8: Kernel = kernel("prefill_any", "smxx_f32_expand_any_fp8", 128, SHARED_MAX);
const ANY_BF16: Kernel = kernel("prefill_any", "smxx_bf16_prefill_any", 128, SHARED_MAX);
const ANY_F32: Kernel = kernel("prefill_any", "smxx_f32_prefill_any", 128, SHARED_MAX);
const EXPAND_BF16: Kernel = kernel("prefill_expand", "smxx_bf16_expand", 256, SHARED_MAX);
const EXPAND_FP8: Kernel = kernel("prefill_expand", "smxx_fp8_expand", 256, SHARED_MAX);
const EXPAND_BF16_FP8: Kernel = kernel("prefill_expand", "smxx_bf16_expand_fp8", 256, SHARED_MAX);
const EXPAND_FP8_FP8: Kernel = kernel("prefill_expand", "smxx_fp8_expand_fp8", 256, SHARED_MAX);
const PREFILL_128_128: Kernel = kernel("prefill", "smxx_bf16_prefill_128_128", 256, 90_112);
const PREFILL_192_256: Kernel = kernel("prefill", "smxx_bf16_prefill_192_256", 256, 131_072);
const PREFILL_192_256_SMALL: Kernel = kernel("prefill", "smxx_bf16_prefill_192_256_small", 128, 98_304);

pub(super) const KERNELS: &[&Kernel] = &[
    &EXPAND_ANY_BF16,
    &EXPAND_ANY_F32,
    &EXPAND_ANY_BF16_FP8,
    &EXPAND_ANY_F32_FP8,
    &ANY_BF16,
    &ANY_F32,
    &EXPAND_BF16,
    &EXPAND_FP8,
    &EXPAND_BF16_FP8,
    &EXPAND_FP8_FP8,
    &PREFILL_128_128,
    &PREFILL_192_256,
    &PREFILL_192_256_SMALL,
];

params! {
    struct ExpandParams {
        w_k: Ptr,
        k_scales: Ptr,
        w_uv: Ptr,
        v_scales: Ptr,
        layer: Ptr,
        step: Ptr,
        expanded: Ptr,
        ropes: Ptr,
        k_bytes: u64,
        v_bytes: u64,
        k_kind: i32,
        v_kind: i32,
        row: i32,
        first: i32,
        keys: i32,
        heads: i32,
        nope: i32,
        rope: i32,
        v: i32,
        rank: i32,
        block_len: i32,
        tiled: i32,
        tiles: i32,
    }

    struct AttendParams {
        q: Ptr,
        angles: Ptr,
        expanded: Ptr,
        ropes: Ptr,
        out: Ptr,
        stats: Ptr,
        stride: u64,
        token: i32,
        len: i32,
        position: i32,
        first: i32,
        keys: i32,
        heads: i32,
        nope: i32,
        rope: i32,
        v: i32,
        tiles: i32,
        scale: f32,
    }
}

pub(super) struct Scratch<D: Device> {
    /// Keys and values of a chunk, then its rotary keys
    expanded: Held<D>,
    /// f32 `[tokens, heads, 2]`
    stats: Held<D>,
    /// Keys of a chunk
    keys: usize,
}

/// Numbers of a key when expanded, the rotary ones aside.
fn expanded_width(d: &MlaDims) -> usize {
    d.n_heads * (d.qk_nope_head_dim + d.v_head_dim)
}

fn chunk_keys(tokens: usize, key_bytes: usize) -> usize {
    let affordable = CHUNK_BYTES / key_bytes.max(1) / PAGE * PAGE;
    (2 * tokens).next_multiple_of(PAGE).clamp(2 * PAGE, CHUNK_KEYS).min(affordable.max(PAGE))
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(b: &CudaBackend<D>, workspace: &Workspace) -> Result<Self> {
        let Workspace { limits, mla, .. } = workspace;
        let key_bytes = b.precision.size() * (expanded_width(mla) + mla.qk_rope_head_dim);
        let keys = chunk_keys(limits.tokens, key_bytes);
        Ok(Self {
            expanded: b.hold(keys * key_bytes, "expanded keys and values")?,
            stats: b.hold(8 * limits.tokens * mla.n_heads, "the sums of attention")?,
            keys,
        })
    }
}

/// Kernels for these sizes and how their work is cut.
struct Plan {
    expand: &'static Kernel,
    expand_grid: fn(&MlaDims, usize) -> [usize; 3],
    expand_shared: usize,
    attend: &'static Kernel,
    /// Queries of a block; none: a block a query.
    rows: Option<usize>,
    attend_shared: usize,
}

impl Plan {
    fn any(precision: Precision, cache: CacheFormat, d: &MlaDims) -> Self {
        let (expand, attend) = match (precision, cache) {
            (Precision::Bf16, CacheFormat::Plain) => (&EXPAND_ANY_BF16, &ANY_BF16),
            (Precision::F32, CacheFormat::Plain) => (&EXPAND_ANY_F32, &ANY_F32),
            (Precision::Bf16, CacheFormat::Fp8) => (&EXPAND_ANY_BF16_FP8, &ANY_BF16),
            (Precision::F32, CacheFormat::Fp8) => (&EXPAND_ANY_F32_FP8, &ANY_F32),
        };
        Self {
            expand,
            expand_grid: |d, keys| {
                let blocks = (expanded_width(d) + d.qk_rope_head_dim).div_ceil(ANY_COLUMNS);
                [keys.div_ceil(ANY_EXPANDED), blocks.min(ANY_BLOCKS), 1]
            },
            expand_shared: 4 * ANY_EXPANDED * d.latent_width(),
            attend,
            rows: None,
            attend_shared: 4 * (d.qk_head_dim() + d.v_head_dim + ANY_SCORES),
        }
    }

    /// On tensor cores, where these sizes have a kernel and memory is as it wants it.
    fn fast<D: Device>(b: &CudaBackend<D>, op: &AttendExpanded<'_, CudaBackend<D>>) -> Option<Self> {
        let d = &op.dims;
        let expand = match (op.w_k.kind(), op.w_uv.kind(), op.arena.format) {
            (Kind::Bf16, Kind::Bf16, CacheFormat::Plain) => &EXPAND_BF16,
            (Kind::Fp8, Kind::Fp8, CacheFormat::Plain) => &EXPAND_FP8,
            (Kind::Bf16, Kind::Bf16, CacheFormat::Fp8) => &EXPAND_BF16_FP8,
            (Kind::Fp8, Kind::Fp8, CacheFormat::Fp8) => &EXPAND_FP8_FP8,
            _ => return None,
        };
        let room = |kernel: &&Kernel| kernel.shared_bytes_max <= b.device.about().shared_bytes_max;
        let attend = match (d.qk_nope_head_dim, d.v_head_dim) {
            (128, 128) => [&PREFILL_128_128].into_iter().find(room)?,
            (192, 256) => [&PREFILL_192_256, &PREFILL_192_256_SMALL].into_iter().find(room)?,
            _ => return None,
        };
        let expand_shared = 2 * PAGE * d.kv_lora_rank;
        let fits = op.arena.tiled
            && op.arena.precision == Precision::Bf16
            && d.qk_rope_head_dim == 64
            && d.kv_lora_rank.is_multiple_of(64)
            && expand_shared <= expand.shared_bytes_max as usize
            && op.q.offset.is_multiple_of(4)
            && op.q.stride.is_multiple_of(4);
        fits.then_some(Self {
            expand,
            expand_grid: |d, keys| [keys.div_ceil(PAGE), d.n_heads, 1],
            expand_shared,
            attend,
            rows: Some(attend.threads as usize / 2),
            attend_shared: attend.shared_bytes_max as usize,
        })
    }
}

pub(super) fn attend_expanded<D: Device>(
    b: &CudaBackend<D>,
    op: &AttendExpanded<'_, CudaBackend<D>>,
) -> Result<()> {
    let reserved = b.reserved("attend_expanded")?;
    let plan = Plan::fast(b, op).unwrap_or_else(|| Plan::any(op.arena.precision, op.arena.format, &op.dims));
    let fits = |kernel: &Kernel, bytes: usize| bytes <= kernel.shared_bytes_max as usize;
    require(
        fits(plan.expand, plan.expand_shared) && fits(plan.attend, plan.attend_shared),
        "attend_expanded",
        || format!("no kernel for {:?}", op.dims),
    )?;
    for row in &reserved.step.expanded {
        for first in (0..row.kv_len).step_by(reserved.prefill.keys) {
            let keys = reserved.prefill.keys.min(row.kv_len - first);
            attend_chunk(b, op, &plan, row, first, keys)?;
        }
    }
    Ok(())
}

fn attend_chunk<D: Device>(
    b: &CudaBackend<D>,
    op: &AttendExpanded<'_, CudaBackend<D>>,
    plan: &Plan,
    row: &Row,
    first: usize,
    keys: usize,
) -> Result<()> {
    let reserved = b.reserved("attend_expanded")?;
    let scratch = &reserved.prefill;
    let d = &op.dims;
    let expanded = scratch.expanded.ptr();
    let ropes = expanded.offset(scratch.keys * expanded_width(d) * op.arena.precision.size());
    let expand = ExpandParams {
        w_k: op.w_k.ptr(),
        k_scales: op.w_k.scales(),
        w_uv: op.w_uv.ptr(),
        v_scales: op.w_uv.scales(),
        layer: op.arena.layer(op.layer),
        step: reserved.step.header(),
        expanded,
        ropes,
        k_bytes: op.w_k.matrix_bytes() as u64,
        v_bytes: op.w_uv.matrix_bytes() as u64,
        k_kind: op.w_k.kind() as i32,
        v_kind: op.w_uv.kind() as i32,
        row: row.index as i32,
        first: first as i32,
        keys: keys as i32,
        heads: d.n_heads as i32,
        nope: d.qk_nope_head_dim as i32,
        rope: d.qk_rope_head_dim as i32,
        v: d.v_head_dim as i32,
        rank: d.kv_lora_rank as i32,
        block_len: b.state.block_len as i32,
        tiled: op.arena.tiled.into(),
        tiles: (scratch.keys / PAGE) as i32,
    };
    b.launch(plan.expand, (plan.expand_grid)(d, keys), plan.expand_shared, &expand);
    let attend = AttendParams {
        q: first_row(&op.q),
        angles: b.angles_ptr("attend_expanded")?,
        expanded,
        ropes,
        out: op.out.ptr(),
        stats: scratch.stats.ptr(),
        stride: op.q.stride as u64,
        token: row.first as i32,
        len: row.len as i32,
        position: (row.kv_len - row.len) as i32,
        first: first as i32,
        keys: keys as i32,
        heads: d.n_heads as i32,
        nope: d.qk_nope_head_dim as i32,
        rope: d.qk_rope_head_dim as i32,
        v: d.v_head_dim as i32,
        tiles: (scratch.keys / PAGE) as i32,
        scale: d.softmax_scale * std::f32::consts::LOG2_E,
    };
    let grid = match plan.rows {
        Some(rows) => [d.n_heads, row.len.div_ceil(rows), 1],
        None => [row.len, d.n_heads, 1],
    };
    b.launch(plan.attend, grid, plan.attend_shared, &attend);
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests;
