//! Experts: lists of who goes where, the two products, and the weighted sum.

use super::super::device::{Kernel, Ptr, params};
use super::super::{CudaBackend, Device};
use super::pack::Kind;
use super::product::{Finish, Operand, Over, Product, Rows, Tiles, operand};
use crate::error::{Result, require};
use crate::ops::Experts;

/// Of the lists' kernel: more shared memory would want another way to count.
const EXPERTS_MAX: usize = 4096;

pub(super) static LISTS: Kernel = Kernel {
    name: "smxx_u32_expert_lists",
    file: "experts",
    threads: 1024,
    shared_bytes_max: 12 * EXPERTS_MAX as u32,
};
const TOP_K_MAX: usize = 1024;
pub(super) static SUM: Kernel = Kernel {
    name: "smxx_f32_sum_experts",
    file: "experts",
    threads: 256,
    shared_bytes_max: 8 * TOP_K_MAX as u32,
};

params! {
    struct ListsParams {
        ids: Ptr,
        tiles: Ptr,
        tokens: Ptr,
        places: Ptr,
        step: Ptr,
        first_token: i32,
        most: i32,
        top_k: i32,
        experts: i32,
        tile_rows: i32,
    }

    struct SumExpertsParams {
        y: Ptr,
        ids: Ptr,
        weights: Ptr,
        places: Ptr,
        out: Ptr,
        step: Ptr,
        first_token: i32,
        top_k: i32,
        hidden: i32,
    }
}

pub(crate) fn experts<D: Device>(b: &CudaBackend<D>, op: &Experts<'_, CudaBackend<D>>) -> Result<()> {
    let [n, hidden, _] = op.down.shape();
    require(n <= EXPERTS_MAX && op.top_k <= TOP_K_MAX, "experts", || format!("top {} of {n}", op.top_k))?;
    let x = Rows { at: op.x.buffer.ptr().offset(4 * op.x.offset), stride: op.x.stride, group: 0 };
    let x = operand(b, "experts", op.gate_up, x, Over::Tokens)?;
    let (y, room) = b.reserved("experts")?.gemm.experts("experts", 4 * hidden * op.top_k)?;
    let tokens = b.token_bucket();
    for first in (0..tokens).step_by(room) {
        some(b, op, x, y, first, room.min(tokens - first))?;
    }
    Ok(())
}

/// Of `tokens` tokens from the `first` on.
fn some<D: Device>(
    b: &CudaBackend<D>,
    op: &Experts<'_, CudaBackend<D>>,
    x: Operand,
    y: Ptr,
    first: usize,
    tokens: usize,
) -> Result<()> {
    let [n, hidden, intermediate] = op.down.shape();
    let reserved = b.reserved("experts")?;
    let (step, scratch) = (&reserved.step, &reserved.gemm);
    let pairs = tokens * op.top_k;
    // Tiles that both products can take.
    let rows = pairs.div_ceil(n);
    let of = |kind, rounded| Product::<D>::tile_rows(kind, rounded, rows);
    let down_rounded = op.down.kind() != Kind::F32;
    let tile_rows = of(op.gate_up.kind(), x.rounded).min(of(op.down.kind(), down_rounded));
    let most = n.min(pairs) + pairs / tile_rows;
    let [tiles, token_of, places] = scratch.lists("experts", pairs, most)?;
    let lists = ListsParams {
        ids: op.ids.ptr(),
        tiles,
        tokens: token_of,
        places,
        step: step.header(),
        first_token: first as i32,
        most: tokens as i32,
        top_k: op.top_k as i32,
        experts: n as i32,
        tile_rows: tile_rows as i32,
    };
    b.launch(&LISTS, [1, 1, 1], 12 * n, &lists);

    let over = |tokens| Over::Experts(Tiles { tiles, tokens, most, rows: rows.min(tile_rows) });
    let stride = if down_rounded { op.down.units() * 32 } else { intermediate };
    let middle = scratch.middle("experts", pairs * stride * if down_rounded { 2 } else { 4 })?;
    let middle = Rows { at: middle, stride, group: 0 };
    let (weight, finish) = (op.gate_up, Finish::Gated);
    Product { weight, x, out: middle, finish, over: over(token_of) }.launch(b, "experts")?;
    let x = Operand { rows: middle, rounded: down_rounded };
    let out = Rows { at: y, stride: hidden, group: 0 };
    Product { weight: op.down, x, out, finish: Finish::Store, over: over(Ptr::NONE) }.launch(b, "experts")?;

    let sum = SumExpertsParams {
        y,
        ids: op.ids.ptr(),
        weights: op.weights.ptr(),
        places,
        out: op.out.ptr(),
        step: step.header(),
        first_token: first as i32,
        top_k: op.top_k as i32,
        hidden: hidden as i32,
    };
    b.launch(&SUM, [hidden.div_ceil(256), tokens, 1], 8 * op.top_k, &sum);
    Ok(())
}
