//! Experts: lists of who goes where, the two products, and the weighted sum.

use super::super::device::{Kernel, Ptr, params};
use super::super::{CudaBackend, Device};
use super::pack::Kind;
use super::product::{Finish, Operand, Over, Product, Rows, Tiles, operand};
use crate::error::{Result, require};
use crate::ops::Experts;

/// Shared memory of the lists' kernel for each expert.
const LISTS_EXPERT_BYTES: usize = 144;
/// Its counts must fit: no model has so many.
const EXPERTS_MAX: usize = 640;

pub(super) static LISTS: Kernel = Kernel {
    name: "smxx_u32_expert_lists",
    file: "experts",
    threads: 1024,
    shared_bytes_max: (LISTS_EXPERT_BYTES * EXPERTS_MAX) as u32,
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
        experts: i32,
    }
}

pub(crate) fn experts<D: Device>(b: &CudaBackend<D>, op: &Experts<'_, CudaBackend<D>>) -> Result<()> {
    let [n, hidden, _] = op.down.shape();
    require(n <= EXPERTS_MAX && op.top_k <= TOP_K_MAX, "experts", || format!("top {} of {n}", op.top_k))?;
    let x = Rows { at: op.x.buffer.ptr().offset(4 * op.x.offset), stride: op.x.stride, group: 0 };
    let x = operand(b, "experts", op.gate_up, x, Over::Tokens)?;
    let (y, room) = b.reserved("experts")?.gemm.experts("experts", n, hidden, op.top_k)?;
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
    let pairs = tokens * op.top_k;
    let down_rounded = op.down.kind() != Kind::F32;
    let lists = if b.token_bucket() == 1 {
        Lists {
            tiles: op.ids.ptr(),
            direct: true,
            tokens: Ptr::NONE,
            places: Ptr::NONE,
            most: pairs,
            rows: 1,
        }
    } else {
        lists(b, op, x.rounded, first, tokens)?
    };
    let over = |tokens| {
        let Lists { tiles, direct, most, rows, .. } = lists;
        Over::Experts(Tiles { tiles, direct, tokens, most, rows })
    };
    let stride = if down_rounded { op.down.units() * 32 } else { intermediate };
    let size = if down_rounded { 2 } else { 4 };
    let middle = reserved.gemm.middle("experts", pairs * stride * size)?;
    let middle = Rows { at: middle, stride, group: 0 };
    // A row for each place, which for one token is the same.
    let x = if lists.direct { Operand { rows: Rows { stride: 0, ..x.rows }, ..x } } else { x };
    let (weight, finish) = (op.gate_up, Finish::Gated);
    Product { weight, x, out: middle, finish, over: over(lists.tokens) }.launch(b, "experts")?;
    let x = Operand { rows: middle, rounded: down_rounded };
    let out = Rows { at: y, stride: hidden, group: 0 };
    Product { weight: op.down, x, out, finish: Finish::Store, over: over(Ptr::NONE) }.launch(b, "experts")?;

    let sum = SumExpertsParams {
        y,
        ids: op.ids.ptr(),
        weights: op.weights.ptr(),
        places: lists.places,
        out: op.out.ptr(),
        step: reserved.step.header(),
        first_token: first as i32,
        top_k: op.top_k as i32,
        hidden: hidden as i32,
        experts: n as i32,
    };
    b.launch(&SUM, [hidden.div_ceil(256), tokens, 1], 8 * op.top_k, &sum);
    Ok(())
}

/// Who goes where, on the device.
struct Lists {
    tiles: Ptr,
    direct: bool,
    tokens: Ptr,
    places: Ptr,
    most: usize,
    rows: usize,
}

fn lists<D: Device>(
    b: &CudaBackend<D>,
    op: &Experts<'_, CudaBackend<D>>,
    x_rounded: bool,
    first: usize,
    tokens: usize,
) -> Result<Lists> {
    let [n, ..] = op.down.shape();
    let reserved = b.reserved("experts")?;
    let pairs = tokens * op.top_k;
    // Tiles that both products can take.
    let rows = pairs.div_ceil(n);
    let of = |kind, rounded| Product::<D>::tile_rows(kind, rounded, rows);
    let tile_rows = of(op.gate_up.kind(), x_rounded).min(of(op.down.kind(), op.down.kind() != Kind::F32));
    let most = n.min(pairs) + pairs / tile_rows;
    let [tiles, token_of, places] = reserved.gemm.lists("experts", pairs, most)?;
    let params = ListsParams {
        ids: op.ids.ptr(),
        tiles,
        tokens: token_of,
        places,
        step: reserved.step.header(),
        first_token: first as i32,
        most: tokens as i32,
        top_k: op.top_k as i32,
        experts: n as i32,
        tile_rows: tile_rows as i32,
    };
    b.launch(&LISTS, [1, 1, 1], LISTS_EXPERT_BYTES * n, &params);
    Ok(Lists { tiles, direct: false, tokens: token_of, places, most, rows: rows.min(tile_rows) })
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::backend::{Backend, MlaDims, Rope, View, Workspace};
    use crate::cuda::sim::{Emulator, Mode};
    use crate::dtype::{DType, Precision};
    use crate::matrix::{Matrix, Parts};
    use crate::step::{Step, StepLimits};

    /// Reserves for experts on so many tokens, each a row of its own, and begins their step.
    fn begin(b: &mut CudaBackend<Emulator>, tokens: usize, hidden: usize, n_experts: usize, top_k: usize) {
        let mla = MlaDims {
            n_heads: 1,
            kv_lora_rank: 8,
            qk_nope_head_dim: 8,
            qk_rope_head_dim: 2,
            v_head_dim: 8,
            softmax_scale: 1.0,
        };
        let limits = StepLimits {
            tokens,
            rows: tokens,
            outputs: 0,
            vocab_size: 1,
            context_len: 1,
            block_len: 1,
            n_blocks: 2,
        };
        let rope = Rope { inv_freq: vec![1.0], scale: 1.0 };
        let (widest, widest_mlp) = (32, top_k * 32);
        b.reserve(Workspace { limits, mla, rope, hidden, widest, widest_mlp, n_experts, top_k }).unwrap();
        let (zeros, ones) = (vec![0; tokens], vec![1; tokens]);
        let step = Step {
            copies: &[],
            tokens: &zeros,
            positions: &zeros,
            slots: &ones,
            row_start: &Vec::from_iter(0..=tokens as u32),
            kv_len: &ones,
            expanded: &vec![false; tokens],
            tables: &ones,
            outputs: &[],
        };
        b.begin_step(&step).unwrap();
    }

    /// A prefill whose results do not fit into memory at once.
    #[test]
    fn tokens_in_turns_compute_the_same_bits() {
        const TOKENS: usize = 5;
        let mut b = CudaBackend::new(Emulator::new(Mode { races: true, ..Mode::FAST }, 90), Precision::Bf16);
        begin(&mut b, TOKENS, 32, 3, 2);
        let numbers = |n: usize, factor: usize| -> Vec<f32> {
            (0..n).map(|i| (i * factor % 97) as f32 / 97.0 - 0.5).collect()
        };
        let stored: Vec<u8> = numbers(9 * 1024, 31).iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = |i: usize| Matrix::new(DType::F32, &stored[i * 4096..][..4096], [32, 32], None).unwrap();
        let gate_up = [0, 2, 4].map(|i| Parts::GateUp { gate: matrix(i), up: matrix(i + 1) });
        let down = [6, 7, 8].map(|i| Parts::from(matrix(i)));
        let (gate_up, down) = (b.pack(&gate_up, Precision::Bf16), b.pack(&down, Precision::Bf16));
        let (gate_up, down) = (gate_up.unwrap(), down.unwrap());
        let x = b.upload(&numbers(32 * TOKENS, 53)).unwrap();
        let weights = b.upload(&numbers(2 * TOKENS, 7)).unwrap();
        let ids = [0, 1, 2, 0, 1, 2, 2, 1, 0, 2].map(f32::from_bits);
        let ids = b.upload(&ids).unwrap();
        let in_turns = |b: &mut CudaBackend<Emulator>, turns: &[usize]| {
            let mut out = b.upload(&numbers(32 * TOKENS, 11)).unwrap();
            let op = Experts {
                gate_up: &gate_up,
                down: &down,
                x: View::dense(&x, 32),
                ids: &ids,
                weights: &weights,
                top_k: 2,
                out: &mut out,
            };
            let rows = Rows { at: x.ptr(), stride: 32, group: 0 };
            let x = operand(b, "experts", &gate_up, rows, Over::Tokens).unwrap();
            let (y, _) = b.reserved("experts").unwrap().gemm.experts("experts", 3, 32, 2).unwrap();
            let mut first = 0;
            for &tokens in turns {
                some(b, &op, x, y, first, tokens).unwrap();
                first += tokens;
            }
            b.read(&out, 32 * TOKENS)
        };
        let whole = in_turns(&mut b, &[8]);
        assert_eq!(whole, in_turns(&mut b, &[2, 6]));
        assert_ne!(whole, in_turns(&mut b, &[2]));
    }

    /// A tiny model's results fit at once where the tiles of a grid do not.
    #[test]
    fn tokens_in_turns_have_grids_that_fit() {
        const TOKENS: usize = 33_000;
        let mut b = CudaBackend::new(Emulator::new(Mode::FAST, 90), Precision::F32);
        begin(&mut b, TOKENS, 8, 16, 16);
        let stored = [0; 8 * 8 * 4];
        let matrix = || Matrix::new(DType::F32, &stored, [8, 8], None).unwrap();
        let gate_up = [(); 16].map(|()| Parts::GateUp { gate: matrix(), up: matrix() });
        let down = [(); 16].map(|()| Parts::from(matrix()));
        let gate_up = b.pack(&gate_up, Precision::F32).unwrap();
        let down = b.pack(&down, Precision::F32).unwrap();
        let (x, mut out) = (b.buffer(8 * TOKENS).unwrap(), b.buffer(8 * TOKENS).unwrap());
        let (ids, weights) = (b.indices(16 * TOKENS).unwrap(), b.buffer(16 * TOKENS).unwrap());
        let op = Experts {
            gate_up: &gate_up,
            down: &down,
            x: View::dense(&x, 8),
            ids: &ids,
            weights: &weights,
            top_k: 16,
            out: &mut out,
        };
        b.experts(op).unwrap();
        let launches = b.take_launches();
        assert!(launches.iter().all(|launch| launch.grid_fits()), "{launches:?}");
        let sums = launches.iter().filter(|launch| *launch.kernel == SUM);
        let summed: u32 = sums.map(|launch| launch.grid[1]).sum();
        assert_eq!(summed as usize, b.token_bucket());
    }
}
