//! One product: by which kernel, in which grid. `csrc/gemm.h` says how they work.

use super::super::device::{Kernel, Ptr, params};
use super::super::{CudaBackend, Device};
use super::pack::{CudaWeight, Kind};
use crate::error::{Result, require};

const THREADS: u32 = 256;
/// The rings of eight warps, or the stages of the wide kernel: what a block may have on any GPU since sm_80.
const RINGS: u32 = 8 * 12_288;

const fn product(name: &'static str, file: &'static str, shared_bytes_max: u32) -> Kernel {
    Kernel { name, file, threads: THREADS, shared_bytes_max }
}

static F32: Kernel = product("smxx_f32_product", "gemm_f32", 0);
static ROUND: Kernel = product("smxx_bf16_round", "gemm_rows", 0);
static WIDE: Kernel = product("smxx_bf16_product_wide", "gemm_wide", RINGS);
/// `[x in operand order, four panels a warp instead of one]`
static BF16: [[Kernel; 2]; 2] = [
    [product("smxx_bf16_product_few", "gemm", RINGS), product("smxx_bf16_product_few_tall", "gemm", RINGS)],
    [product("smxx_bf16_product", "gemm", RINGS), product("smxx_bf16_product_tall", "gemm", RINGS)],
];
static FP8: [[Kernel; 2]; 2] = [
    [
        product("smxx_fp8_product_few", "gemm_fp8", RINGS),
        product("smxx_fp8_product_few_tall", "gemm_fp8", RINGS),
    ],
    [product("smxx_fp8_product", "gemm_fp8", RINGS), product("smxx_fp8_product_tall", "gemm_fp8", RINGS)],
];

pub(super) const KERNELS: [&Kernel; 11] = [
    &F32,
    &ROUND,
    &WIDE,
    &BF16[0][0],
    &BF16[0][1],
    &BF16[1][0],
    &BF16[1][1],
    &FP8[0][0],
    &FP8[0][1],
    &FP8[1][0],
    &FP8[1][1],
];

params! {
    struct ProductParams {
        w: Ptr,
        scales: Ptr,
        x: Ptr,
        out: Ptr,
        step: Ptr,
        row_of: Ptr,
        tiles: Ptr,
        tokens: Ptr,
        w_bytes: u64,
        count: i32,
        exact: i32,
        panels: i32,
        units: i32,
        segments: i32,
        rows: i32,
        cols: i32,
        x_stride: i32,
        x_group: i32,
        out_stride: i32,
        out_group: i32,
        eights: i32,
        finish: i32,
        direct: i32,
        experts: i32,
    }

    struct RoundParams {
        x: Ptr,
        out: Ptr,
        step: Ptr,
        row_of: Ptr,
        stride: i32,
        group: i32,
        heads: i32,
        cols: i32,
        units: i32,
    }
}

/// Rows of activations, of a head `group` numbers on.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub at: Ptr,
    pub stride: usize,
    pub group: usize,
}

/// What a product reads.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub rows: Rows,
    /// bf16 in operand order, not f32.
    pub rounded: bool,
}

/// What becomes of a result: `FINISH_*` of `csrc/gemm.h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Store = 0,
    Add = 1,
    Gated = 2,
}

/// Work lists of the experts, on the device.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub tiles: Ptr,
    /// `tiles` are the ids of the only token.
    pub direct: bool,
    /// Token of each place, where x has a row a token.
    pub tokens: Ptr,
    /// The most that there may be.
    pub most: usize,
    /// About how many rows each has.
    pub rows: usize,
}

/// Which rows of x are computed.
#[derive(Clone, Copy)]
pub(super) enum Over {
    Tokens,
    /// Tokens of rows that take attend_latent, for each head.
    LatentTokens,
    Outputs,
    Experts(Tiles),
}

pub(super) struct Product<'a, D: Device> {
    pub weight: &'a CudaWeight<D>,
    pub x: Operand,
    pub out: Rows,
    pub finish: Finish,
    pub over: Over,
}

/// Parts into which columns are cut for the order of their sum: by the shape alone. At least four units a part (one
/// cell of scales of fp8), at most a part a warp.
fn segments(kind: Kind, units: usize) -> usize {
    let parts = match kind {
        Kind::F32 => 1,
        Kind::Bf16 => units / 4,
        Kind::Fp8 => units.div_ceil(4),
    };
    match parts {
        8.. => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Rows that a kernel takes at once which reads f32 rows as they are. More tokens are rounded once, by a launch of its own,
/// as every block reads them all. The same for both, bit by bit.
const FEW_ROWS: usize = 16;
/// Of heads, each with its own small matrix, that launch would take longer than reading the weights a few times.
const FEW_ROWS_OF_HEADS: usize = 64;
/// Rows from which on a tile of 128 pays.
const WIDE_FROM: usize = 65;
/// Blocks from which on each warp takes four panels. Of rows that are read as they are, when there are two for each of 132
/// multiprocessors; of rounded ones, which are more and would be most of what is read, much earlier.
const TALL_FROM: usize = 264;
const TALL_FROM_ROUNDED: usize = 64;

struct Choice {
    kernel: &'static Kernel,
    /// Rows of x a block.
    tile: usize,
    /// Panels a block, or in f32 rows of the result.
    high: usize,
}

impl<D: Device> Product<'_, D> {
    fn choose(&self, rows: usize, high: usize, groups: usize) -> Choice {
        let kind = self.weight.kind();
        let rounded = self.x.rounded;
        if kind == Kind::F32 {
            return Choice {
                kernel: &F32,
                tile: 8,
                high: if self.finish == Finish::Gated { 16 } else { 32 },
            };
        }
        if kind == Kind::Bf16 && rounded && rows >= WIDE_FROM {
            return Choice { kernel: &WIDE, tile: 128, high: 8 };
        }
        let tile = if rounded { 32 } else { FEW_ROWS };
        let groups_of_warps = 8 / segments(kind, self.weight.units());
        let tall_blocks = high.div_ceil(4 * groups_of_warps) * groups * rows.div_ceil(tile);
        let tall = tall_blocks >= if rounded { TALL_FROM_ROUNDED } else { TALL_FROM };
        let kernels = if kind == Kind::Fp8 { &FP8 } else { &BF16 };
        let kernel = &kernels[usize::from(rounded)][usize::from(tall)];
        Choice { kernel, tile, high: groups_of_warps * if tall { 4 } else { 1 } }
    }

    /// Rows of a tile of experts' work that this product can take, if there are about `rows` for an expert.
    pub(super) fn tile_rows(kind: Kind, rounded: bool, rows: usize) -> usize {
        match kind {
            Kind::F32 => 8,
            Kind::Bf16 if rounded && rows >= WIDE_FROM => 128,
            _ if rounded => 32,
            _ => FEW_ROWS,
        }
    }

    pub(super) fn launch(&self, b: &CudaBackend<D>, op: &'static str) -> Result<()> {
        let Self { weight, x, out, finish, over } = self;
        let step = &b.reserved(op)?.step;
        let [stack, packed_rows, cols] = weight.shape();
        let gated = *finish == Finish::Gated;
        require(weight.gated() == gated, op, || {
            "gate and up are packed as such, and nothing else is".into()
        })?;
        require(!(x.rounded && weight.kind() == Kind::F32), op, || "weights of different precisions".into())?;
        let rows = if gated { packed_rows / 2 } else { packed_rows };
        // Gated results go on to the end of their last unit.
        let high = match weight.kind() {
            Kind::F32 => rows,
            _ if gated => weight.panels().max(out.stride / 8),
            _ => weight.panels(),
        };
        let mut params = ProductParams {
            w: weight.ptr(),
            scales: weight.scales(),
            x: x.rows.at,
            out: out.at,
            step: step.header(),
            row_of: if let Over::LatentTokens = over { step.row_of() } else { Ptr::NONE },
            tiles: Ptr::NONE,
            tokens: Ptr::NONE,
            w_bytes: weight.matrix_bytes() as u64,
            count: if let Over::Outputs = over { 2 } else { 0 },
            exact: 0,
            panels: weight.panels() as i32,
            units: weight.units() as i32,
            segments: segments(weight.kind(), weight.units()) as i32,
            rows: rows as i32,
            cols: cols as i32,
            x_stride: x.rows.stride as i32,
            x_group: x.rows.group as i32,
            out_stride: out.stride as i32,
            out_group: out.group as i32,
            eights: 0,
            finish: *finish as i32,
            direct: 0,
            experts: stack as i32,
        };
        let mut dense = |rows: usize, groups: usize| {
            let choice = self.choose(rows, high, groups);
            // A bucket of one or two is full.
            params.exact = if rows <= 2 { rows as i32 } else { 0 };
            params.eights = rows.min(choice.tile).div_ceil(8) as i32;
            (choice.kernel, [rows.div_ceil(choice.tile), high.div_ceil(choice.high), groups])
        };
        let (kernel, grid) = match over {
            Over::Tokens => dense(b.token_bucket(), 1),
            Over::LatentTokens => dense(b.token_bucket(), stack),
            Over::Outputs => dense(super::output_bucket(step), 1),
            Over::Experts(tiles) => {
                (params.tiles, params.tokens) = (tiles.tiles, tiles.tokens);
                params.direct = i32::from(tiles.direct);
                let choice = self.choose(tiles.rows, high, tiles.most);
                (choice.kernel, [high.div_ceil(choice.high), tiles.most, 1])
            }
        };
        b.launch(kernel, grid, kernel.shared_bytes_max as usize, &params);
        Ok(())
    }
}

/// `x` as a product with `weight` takes it: rounded first for many tokens, and where it does not lie on 16 bytes.
pub(super) fn operand<D: Device>(
    b: &CudaBackend<D>,
    op: &'static str,
    weight: &CudaWeight<D>,
    x: Rows,
    over: Over,
) -> Result<Operand> {
    let [stack, _, cols] = weight.shape();
    let aligned = x.at.0.is_multiple_of(16) && [x.stride, x.group, cols].iter().all(|n| n.is_multiple_of(4));
    let tokens = b.token_bucket();
    let few = if let Over::LatentTokens = over { FEW_ROWS_OF_HEADS } else { FEW_ROWS };
    if weight.kind() == Kind::F32 || (aligned && tokens <= few) {
        return Ok(Operand { rows: x, rounded: false });
    }
    let reserved = b.reserved(op)?;
    let (heads, row_of) = match over {
        Over::LatentTokens => (stack, reserved.step.row_of()),
        _ => (1, Ptr::NONE),
    };
    let group = weight.units() * 32;
    let out = reserved.gemm.rounded(op, 2 * tokens * heads * group)?;
    let params = RoundParams {
        x: x.at,
        out,
        step: reserved.step.header(),
        row_of,
        stride: x.stride as i32,
        group: x.group as i32,
        heads: heads as i32,
        cols: cols as i32,
        units: weight.units() as i32,
    };
    b.launch(&ROUND, [(heads * weight.units() * 4).div_ceil(256), tokens, 1], 0, &params);
    Ok(Operand { rows: Rows { at: out, stride: heads * group, group }, rounded: true })
}
