//! What is done row by row: embedding, norms, the latent rows, the rotary part of the query; and copies of blocks.

use super::device::params;
use super::{CudaBackend, Device, Kernel, Ptr};
use crate::backend::View;
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::Result;
use crate::ops::{AbsorbQuery, CopyBlocks, Embed, LatentWrite, RmsNorm};

mod route;

pub(super) use route::{Scratch, route};

const THREADS: usize = 128;

const fn kernel(name: &'static str, shared_bytes_max: u32) -> Kernel {
    Kernel { name, file: "rows", threads: THREADS as u32, shared_bytes_max }
}

/// Of a block's sum, a number a warp.
const SUM_BYTES: usize = 4 * THREADS / 32;

const EMBED: Kernel = kernel("smxx_f32_embed", 0);
const RMS_NORM: Kernel = kernel("smxx_f32_rms_norm", SUM_BYTES as u32);
const LATENT_WRITE_BF16: Kernel = kernel("smxx_bf16_latent_write", SUM_BYTES as u32);
const LATENT_WRITE_F32: Kernel = kernel("smxx_f32_latent_write", SUM_BYTES as u32);
const LATENT_WRITE_FP8: Kernel = kernel("smxx_fp8_latent_write", SUM_BYTES as u32);
const ROTATE_QUERY: Kernel = kernel("smxx_f32_rotate_query", 0);
const COPY_BLOCKS: Kernel = kernel("smxx_u32_copy_blocks", 0);

pub(super) const KERNELS: &[&Kernel] = &[
    &EMBED,
    &RMS_NORM,
    &LATENT_WRITE_BF16,
    &LATENT_WRITE_F32,
    &LATENT_WRITE_FP8,
    &ROTATE_QUERY,
    &COPY_BLOCKS,
    &route::LOGITS,
    &route::LOGITS_MANY,
    &route::CHOOSE,
];

params! {
    struct EmbedParams {
        table: Ptr,
        scales: Ptr,
        out: Ptr,
        step: Ptr,
        tokens: Ptr,
        ids: Ptr,
        most: i32,
        vocab: i32,
        kind: i32,
        cols: i32,
        units: i32,
    }

    struct RmsNormParams {
        x: Ptr,
        weight: Ptr,
        out: Ptr,
        step: Ptr,
        stride: u64,
        width: i32,
        aligned: i32,
        eps: f32,
    }

    struct LatentWriteParams {
        kv: Ptr,
        norm: Ptr,
        angles: Ptr,
        layer: Ptr,
        step: Ptr,
        positions: Ptr,
        slots: Ptr,
        stride: u64,
        rank: i32,
        rope: i32,
        tiled: i32,
        aligned: i32,
        eps: f32,
    }

    struct RotateQueryParams {
        q: Ptr,
        angles: Ptr,
        out: Ptr,
        step: Ptr,
        positions: Ptr,
        row_of: Ptr,
        stride: u64,
        heads: i32,
        nope: i32,
        rope: i32,
        rank: i32,
    }

    struct CopyBlocksParams {
        arena: Ptr,
        step: Ptr,
        copies: Ptr,
        layer_bytes: u64,
        block_bytes: u64,
        piece: i32,
    }
}

/// Address of a view's first row.
pub(super) fn first_row<D: Device>(view: &View<'_, CudaBackend<D>>) -> Ptr {
    view.buffer.ptr().offset(4 * view.offset)
}

/// Whether each of a view's rows begins at 16 bytes and its first `width` numbers are whole fours.
fn aligned<D: Device>(view: &View<'_, CudaBackend<D>>, width: usize) -> i32 {
    [view.offset, view.stride, width].iter().all(|n| n.is_multiple_of(4)).into()
}

pub(super) fn embed<D: Device>(b: &CudaBackend<D>, op: &Embed<'_, CudaBackend<D>>) -> Result<()> {
    let reserved = b.reserved("embed")?;
    let (step, (ids, most)) = (&reserved.step, reserved.sample.ids());
    let [_, vocab, cols] = op.table.shape();
    let params = EmbedParams {
        table: op.table.ptr(),
        scales: op.table.scales(),
        out: op.out.ptr(),
        step: step.header(),
        tokens: step.token_ids(),
        ids,
        most,
        vocab: vocab as i32,
        kind: op.table.kind() as i32,
        cols: cols as i32,
        units: op.table.units() as i32,
    };
    b.launch(&EMBED, [b.token_bucket(), 1, 1], 0, &params);
    Ok(())
}

pub(super) fn rms_norm<D: Device>(b: &CudaBackend<D>, op: &RmsNorm<'_, CudaBackend<D>>) -> Result<()> {
    let width = op.weight.len;
    let params = RmsNormParams {
        x: first_row(&op.x),
        weight: op.weight.ptr(),
        out: op.out.ptr(),
        step: b.reserved("rms_norm")?.step.header(),
        stride: op.x.stride as u64,
        width: width as i32,
        aligned: aligned(&op.x, width),
        eps: op.eps,
    };
    b.launch(&RMS_NORM, [b.token_bucket(), 1, 1], SUM_BYTES, &params);
    Ok(())
}

pub(super) fn latent_write<D: Device>(
    b: &CudaBackend<D>,
    op: &LatentWrite<'_, CudaBackend<D>>,
) -> Result<()> {
    let step = &b.reserved("latent_write")?.step;
    let rank = op.dims.kv_lora_rank;
    let params = LatentWriteParams {
        kv: first_row(&op.kv),
        norm: op.norm.ptr(),
        angles: b.angles_ptr("latent_write")?,
        layer: op.arena.layer(op.layer),
        step: step.header(),
        positions: step.positions(),
        slots: step.slots(),
        stride: op.kv.stride as u64,
        rank: rank as i32,
        rope: op.dims.qk_rope_head_dim as i32,
        tiled: op.arena.tiled.into(),
        aligned: aligned(&op.kv, rank),
        eps: op.eps,
    };
    let kernel = match (op.arena.format, op.arena.precision) {
        (CacheFormat::Fp8, _) => &LATENT_WRITE_FP8,
        (CacheFormat::Plain, Precision::Bf16) => &LATENT_WRITE_BF16,
        (CacheFormat::Plain, Precision::F32) => &LATENT_WRITE_F32,
    };
    b.launch(kernel, [b.token_bucket(), 1, 1], SUM_BYTES, &params);
    Ok(())
}

/// The rotary part of the latent query: `q_latent[.., kv_lora_rank..] = rope(q_pe)`.
pub(super) fn rotate_query<D: Device>(
    b: &CudaBackend<D>,
    op: &AbsorbQuery<'_, CudaBackend<D>>,
) -> Result<()> {
    let step = &b.reserved("absorb_query")?.step;
    let d = &op.dims;
    let params = RotateQueryParams {
        q: first_row(&op.q),
        angles: b.angles_ptr("absorb_query")?,
        out: op.out.ptr(),
        step: step.header(),
        positions: step.positions(),
        row_of: step.row_of(),
        stride: op.q.stride as u64,
        heads: d.n_heads as i32,
        nope: d.qk_nope_head_dim as i32,
        rope: d.qk_rope_head_dim as i32,
        rank: d.kv_lora_rank as i32,
    };
    b.launch(&ROTATE_QUERY, [b.token_bucket(), 1, 1], 0, &params);
    Ok(())
}

pub(super) fn copy_blocks<D: Device>(b: &CudaBackend<D>, op: &CopyBlocks<'_, CudaBackend<D>>) -> Result<()> {
    let step = &b.reserved("copy_blocks")?.step;
    if step.copies == 0 {
        return Ok(());
    }
    let layers = op.arena.shape[0];
    // In tiles too: a block is whole pages.
    let block_bytes = b.state.block_len * op.arena.row_bytes;
    let piece = [16, 4, 2].into_iter().find(|&n| block_bytes.is_multiple_of(n)).unwrap_or(2);
    let params = CopyBlocksParams {
        arena: op.arena.layer(0),
        step: step.header(),
        copies: step.copy_pairs(),
        layer_bytes: op.arena.layer_bytes() as u64,
        block_bytes: block_bytes as u64,
        piece: piece as i32,
    };
    b.launch(&COPY_BLOCKS, [block_bytes.div_ceil(piece * THREADS), layers, 1], 0, &params);
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
pub(super) mod tests;
