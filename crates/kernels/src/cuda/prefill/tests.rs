//! On the emulator, against the reference.

use super::super::CudaBackend;
use super::super::rows::tests::{Cuda, ODD, Steps, error, noise, workspace};
use super::super::sim::mutants::{Module, Mutant, all_are_found};
use super::super::sim::{Counters, Emulator, Mode};
use crate::backend::{Backend, MlaDims, View};
use crate::cache::CacheFormat;
use crate::dtype::{DType, Precision};
use crate::matrix::{BlockScales, Matrix, Parts};
use crate::ops::{AttendExpanded, LatentWrite};
use crate::reference::Reference;
use crate::step::Step;

/// `(tokens already cached, new tokens, whether the row takes attend_expanded)`
type Row = (usize, usize, bool);

#[derive(Clone, Copy)]
struct Case<'a> {
    dims: MlaDims,
    precision: Precision,
    block_len: usize,
    /// Of the limits: half the keys of a chunk, and 64 at least.
    tokens: usize,
    fp8: bool,
    cache: CacheFormat,
    /// Steps one after another, of as many rows each.
    steps: &'a [&'a [Row]],
}

/// DeepSeek-V2's head, GLM's head.
const V2: MlaDims = MlaDims {
    n_heads: 2,
    kv_lora_rank: 64,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
    softmax_scale: 0.1,
};
const GLM: MlaDims = MlaDims { n_heads: 1, qk_nope_head_dim: 192, v_head_dim: 256, ..V2 };

const CASE: Case<'_> = Case {
    dims: V2,
    precision: Precision::Bf16,
    block_len: 64,
    tokens: 64,
    fp8: false,
    cache: CacheFormat::Plain,
    steps: &[],
};
/// A latent of which FP8 lies in pages, as V2's does.
const FP8_CACHE: Case<'_> =
    Case { dims: MlaDims { kv_lora_rank: 256, ..V2 }, cache: CacheFormat::Fp8, ..CASE };

/// Numbers that tokens of latent rows keep.
const UNTOUCHED: f32 = 0.25;

fn pack<B: Backend>(b: &mut B, case: &Case<'_>, rows: usize, seed: u64) -> B::Weight {
    let (heads, cols) = (case.dims.n_heads, case.dims.kv_lora_rank);
    let values = noise(heads * rows * cols, seed);
    let codes: Vec<u8> = values.iter().map(|x| (x * 50.0) as i8 as u8 & 0xb7).collect();
    let floats: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let scales = noise(rows.div_ceil(8) * cols.div_ceil(128), seed + 1);
    let scales: Vec<u8> = scales.iter().flat_map(|v| (0.5 + 0.2 * v).to_le_bytes()).collect();
    let scales = BlockScales { bytes: &scales, block_rows: 8, block_cols: 128 };
    let head = |h: usize| -> Parts<'_> {
        let at = h * rows * cols..(h + 1) * rows * cols;
        if case.fp8 {
            return Matrix::new(DType::F8E4M3, &codes[at], [rows, cols], Some(scales)).unwrap().into();
        }
        Matrix::new(DType::F32, &floats[4 * at.start..4 * at.end], [rows, cols], None).unwrap().into()
    };
    b.pack(&(0..heads).map(head).collect::<Vec<_>>(), case.precision).unwrap()
}

/// Writes latents of positions `from..` of row `r`, a step at a time.
fn write<B: Backend>(
    b: &mut B,
    arena: &mut B::Arena,
    case: &Case<'_>,
    (blocks, r): (&Steps, usize),
    from: usize,
    latents: &[f32],
) {
    let (d, limits) = (case.dims, &blocks.limits);
    let width = d.latent_width();
    let table = &blocks.step().tables[r * limits.table_width()..][..limits.table_width()];
    let norm = b.upload(&noise(d.kv_lora_rank, 7)).unwrap();
    for (i, latents) in latents.chunks(limits.tokens * width).enumerate() {
        let (from, n) = (from + i * limits.tokens, latents.len() / width);
        let positions: Vec<u32> = (from..from + n).map(|p| p as u32).collect();
        let slot = |p: &u32| {
            let len = limits.block_len as u32;
            table[(p / len) as usize] * len + p % len
        };
        let step = Step {
            copies: &[],
            tokens: &vec![0; n],
            positions: &positions,
            slots: &positions.iter().map(slot).collect::<Vec<_>>(),
            row_start: &[0, n as u32],
            kv_len: &[(from + n) as u32],
            expanded: &[false],
            tables: table,
            outputs: &[],
        };
        b.begin_step(&step).unwrap();
        let kv = b.upload(latents).unwrap();
        let kv = View::dense(&kv, width);
        b.latent_write(LatentWrite { kv, norm: &norm, eps: 1e-6, dims: d, layer: 1, arena }).unwrap();
    }
}

/// Outputs of each step's tokens, `[tokens, heads, v]`. Slots that no token has are NaN.
fn run<B: Backend>(b: &mut B, case: &Case<'_>) -> Vec<Vec<f32>> {
    let d = case.dims;
    let last = case.steps.last().expect("a step");
    let mut blocks = Steps::new(last, case.block_len);
    let limits = &mut blocks.limits;
    limits.tokens = case.tokens;
    limits.context_len = limits.table_width() * limits.block_len;
    let context_len = limits.context_len;
    b.reserve(workspace(limits, d)).unwrap();
    let mut arena = b.arena(2, limits, &d).unwrap();
    let latents = |r: usize| noise(context_len * d.latent_width(), 100 + r as u64);
    for (r, &(cached, _, _)) in case.steps[0].iter().enumerate() {
        let nan = vec![f32::NAN; context_len * d.latent_width()];
        write(b, &mut arena, case, (&blocks, r), 0, &nan);
        write(b, &mut arena, case, (&blocks, r), 0, &latents(r)[..cached * d.latent_width()]);
    }
    let w_k = pack(b, case, d.qk_nope_head_dim, 12);
    let w_uv = pack(b, case, d.v_head_dim, 13);
    let (q_width, gap) = (d.n_heads * d.qk_head_dim(), 4);
    let step = |rows: &&[Row]| {
        let steps = blocks.with(rows);
        let mut q = vec![f32::NAN; gap];
        for (r, &(cached, new, _)) in rows.iter().enumerate() {
            let width = d.latent_width();
            let kv = &latents(r)[cached * width..(cached + new) * width];
            write(b, &mut arena, case, (&blocks, r), cached, kv);
            let queries = noise(context_len * q_width, 200 + r as u64);
            for query in queries.chunks(q_width).skip(cached).take(new) {
                q.extend(query);
                q.extend([f32::NAN; 4]);
            }
        }
        q.truncate(q.len() - gap);
        b.begin_step(&steps.step()).unwrap();
        let q = b.upload(&q).unwrap();
        let n = steps.tokens.len() * d.n_heads * d.v_head_dim;
        let mut out = b.upload(&vec![UNTOUCHED; n]).unwrap();
        let q = View::columns(&q, gap, q_width + gap);
        let op =
            AttendExpanded { q, w_k: &w_k, w_uv: &w_uv, arena: &arena, layer: 1, out: &mut out, dims: d };
        b.attend_expanded(op).unwrap();
        b.read(&out, n)
    };
    case.steps.iter().map(step).collect()
}

impl Case<'_> {
    fn emulated(
        &self,
        mode: Mode,
        arch: u32,
        module: Option<&Module>,
    ) -> Result<(Vec<Vec<f32>>, Cuda), String> {
        let emulator = Emulator::new(mode, arch);
        module.into_iter().for_each(|module| emulator.replace(module));
        let mut b = CudaBackend::new(emulator, self.precision).with_cache(self.cache);
        // Reading panics where a launch fails.
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut b, self)));
        ran.map(|out| (out, b)).map_err(|e| e.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    fn reference(&self) -> Vec<f32> {
        run(&mut Reference::new(self.precision).with_cache(self.cache), self).concat()
    }

    fn meets(&self, want: &[f32], mode: Mode, module: Option<&Module>) -> Result<(), String> {
        let (got, _) = self.emulated(mode, 90, module)?;
        let error = error(&got.concat(), want);
        // The reference rounds what fp8 stands for to bf16.
        let tolerance = match (self.precision, self.fp8) {
            // A latent number between two of e4m3 goes either way, as the norm was rounded.
            _ if self.cache == CacheFormat::Fp8 => 1e-2,
            (Precision::F32, _) => 2e-6,
            (Precision::Bf16, true) => 1e-2,
            (Precision::Bf16, false) => 2e-3,
        };
        if error <= tolerance { Ok(()) } else { Err(format!("off by {error} in {mode:?}")) }
    }

    fn check(&self) {
        let what = || format!("{:?} {:?}", self.dims, self.steps);
        self.meets(&self.reference(), Mode::FAST, None).unwrap_or_else(|e| panic!("{}: {e}", what()));
    }
}

#[test]
fn any_sizes() {
    let rows: &[Row] = &[(70, 9, true), (3, 2, false), (130, 1, true), (0, 1, true), (3, 12, true)];
    let steps = &[rows];
    for precision in [Precision::F32, Precision::Bf16] {
        for block_len in [5, 64] {
            Case { dims: ODD, precision, block_len, steps, ..CASE }.check();
        }
    }
    // FP8 with a group in part, and in pages where only the heads are of other sizes, or products in f32.
    for precision in [Precision::F32, Precision::Bf16] {
        Case { dims: ODD, precision, block_len: 5, steps, ..FP8_CACHE }.check();
        let dims = MlaDims { kv_lora_rank: 130, ..ODD };
        Case { dims, precision, steps, ..FP8_CACHE }.check();
        let dims = MlaDims { kv_lora_rank: 128, qk_rope_head_dim: 64, softmax_scale: 0.05, ..ODD };
        Case { dims, precision, steps, ..FP8_CACHE }.check();
    }
    // In tiles, but of sizes that the fast kernels are not for.
    Case { dims: MlaDims { kv_lora_rank: 58, ..ODD }, steps, ..CASE }.check();
    let case = Case { dims: ODD, block_len: 5, steps: &[&[(60, 9, true), (126, 3, true)]], ..CASE };
    let want = case.reference();
    Mode::all().into_iter().for_each(|mode| case.meets(&want, mode, None).unwrap());
}

#[test]
fn fast_sizes() {
    // Tails of 1, 63, 64 and 65 keys and queries; more than one chunk, and queries on both sides of its end.
    let rows: &[Row] = &[(0, 65, true), (5, 2, false), (64, 63, true), (0, 1, true), (63, 64, true)];
    Case { tokens: 195, steps: &[rows], ..CASE }.check();
    Case { tokens: 195, steps: &[rows], ..FP8_CACHE }.check();
    let long: &[Row] = &[(100, 60, true), (320, 4, true)];
    for block_len in [64, 128] {
        Case { block_len, steps: &[long], ..CASE }.check();
        Case { dims: GLM, block_len, steps: &[long], ..CASE }.check();
        Case { block_len, steps: &[long], ..FP8_CACHE }.check();
    }
    Case { dims: MlaDims { n_heads: 1, kv_lora_rank: 512, ..V2 }, steps: &[&[(60, 6, true)]], ..CASE }
        .check();
    Case { dims: MlaDims { n_heads: 1, ..V2 }, tokens: 140, steps: &[&[(0, 140, true)]], ..CASE }.check();
}

#[test]
fn weights_in_fp8() {
    for kv_lora_rank in [64, 192, 256] {
        let dims = MlaDims { kv_lora_rank, ..V2 };
        let case = Case { dims, fp8: true, steps: &[&[(60, 7, true)]], ..CASE };
        case.check();
        if kv_lora_rank == 256 {
            Case { cache: CacheFormat::Fp8, ..case }.check();
        }
        let mode = Mode { lanes: true, ..Mode::FAST };
        assert!(case.emulated(mode, 90, None).unwrap().1.device.counters().mma > 0, "not the fast kernels");
    }
}

/// Bits are the same however the prompt is cut, whoever is beside, and on a device with less shared memory.
fn cut(dims: MlaDims, tokens: usize, all: Row, cuts: &[usize]) {
    let (cached, new, expanded) = all;
    let whole: &[&[Row]] = &[&[all]];
    let case = Case { dims, tokens, steps: whole, ..CASE };
    let (whole, _) = case.emulated(Mode::FAST, 90, None).unwrap();
    let mut from = cached;
    let mut parts: Vec<Vec<Row>> = Vec::new();
    for end in cuts.iter().map(|n| cached + n).chain([cached + new]) {
        parts.push(vec![(from, end - from, expanded)]);
        from = end;
    }
    let steps: Vec<&[Row]> = parts.iter().map(Vec::as_slice).collect();
    for arch in [80, 86] {
        let (got, _) = Case { steps: &steps, ..case }.emulated(Mode::FAST, arch, None).unwrap();
        assert!(got.concat() == whole[0], "{all:?} cut at {cuts:?}: other bits");
    }
    let beside: &[Row] = &[all, (9, 3, true)];
    let case = Case { tokens: tokens + 3, steps: &[beside], ..case };
    let (got, _) = case.emulated(Mode::FAST, 90, None).unwrap();
    assert!(got[0][..whole[0].len()] == whole[0], "a neighbour changes bits");
}

#[test]
fn cuts_change_nothing() {
    // Chunks of 256 keys: the end of the first is among the new tokens. Of 320 with the neighbour: not met.
    cut(MlaDims { n_heads: 1, ..V2 }, 100, (200, 100, true), &[37]);
    cut(GLM, 80, (130, 80, true), &[64, 65]);
    cut(MlaDims { n_heads: 1, ..ODD }, 64, (100, 40, true), &[7]);
}

// ---- one block of many tiles

const LONG: Case<'_> =
    Case { dims: MlaDims { n_heads: 1, ..V2 }, tokens: 160, steps: &[&[(300, 20, true)]], ..CASE };

#[test]
fn whatever_order_threads_and_copies_take() {
    for case in
        [LONG, Case { dims: GLM, ..LONG }, Case { steps: LONG.steps, tokens: LONG.tokens, ..FP8_CACHE }]
    {
        let want = case.reference();
        Mode::all().into_iter().for_each(|mode| case.meets(&want, mode, None).unwrap());
    }
}

#[test]
fn work_is_as_much_as_it_should_be() {
    let mode = Mode { lanes: true, ..Mode::FAST };
    for (dims, keys) in [(LONG.dims, 64), (GLM, 32)] {
        let (_, b) = Case { dims, ..LONG }.emulated(mode, 90, None).unwrap();
        let counters @ Counters { mma, .. } = b.device.counters();
        assert_eq!(counters.ldsm_wavefronts, counters.ldsm_ideal);
        assert_eq!(counters.shared_wavefronts, counters.shared_ideal);
        assert_eq!(counters.store_sectors, counters.store_sectors_ideal);
        let (qk, v) = (dims.qk_head_dim(), dims.v_head_dim);
        let expand = 5 * (dims.qk_nope_head_dim + v) / 8 * (64 / 16) * (dims.kv_lora_rank / 16);
        // Two warps have queries: 320 keys are whole tiles, but of the last 32 the first warp sees 16.
        let tile = keys / 8 * (qk / 16) + keys / 16 * (v / 8);
        assert_eq!(mma, (expand + 2 * 320 / keys * tile) as u64);
    }
}

// ---- mistakes

fn are_found(mutants: &[Mutant], cases: &[Case<'_>]) {
    let wants: Vec<Vec<f32>> = cases.iter().map(Case::reference).collect();
    all_are_found(mutants, |module| {
        cases.iter().zip(&wants).try_for_each(|(case, want)| {
            let modes = [Mode::all()[4], Mode::all()[0]];
            modes.into_iter().try_for_each(|mode| case.meets(want, mode, module))
        })
    });
}

#[test]
fn mistakes_in_attention_are_found() {
    const fn mutant(from: &'static str, to: &'static str) -> Mutant {
        Mutant { file: "prefill.cu", from, to }
    }
    let mutants = [
        mutant("        cp_wait<0>();\n        bar_sync();\n", "        cp_wait<0>();\n"),
        mutant("        cp_wait<0>();\n        bar_sync();\n", "        bar_sync();\n"),
        mutant("    if (S::HELD) {\n        bar_sync();", "    if (S::HELD) {"),
        mutant("(tile & 1 ? 0 : S::Q_BYTES)", "(tile & 1 ? S::Q_BYTES : 0)"),
        mutant("tile + 1 < tiles) load_tile<S>(p, head, tile + 1)", "true) load_tile<S>(p, head, tile + 1)"),
        mutant("if (first + row < p.len) x", "x"),
        mutant("key >= seen[r]", "key > seen[r]"),
        mutant("min_i(seen[0], seen[1]) < S::KEYS", "false"),
        mutant("(lane() & 3) == 0 ? bits_f(stats.y) : 0.0f", "bits_f(stats.y)"),
        mutant("p.first > 0) resume", "p.first > 128) resume"),
        mutant("|| position < p.first) continue", ") continue"),
        mutant("bool done = position < p.first + p.keys", "bool done = true"),
        mutant("token >= p.len || ", ""),
        mutant("min_i(last + 1 - p.first, p.keys)", "last - p.first"),
        mutant("seen + 15 <= 0 ||", "seen - 1 <= 0 ||"),
        mutant("(ncta_y() - 1 - cta_y()) * S::ROWS", "cta_y() * S::ROWS + 1"),
    ];
    let straddles = Case { dims: LONG.dims, steps: &[&[(100, 45, true)]], ..CASE };
    are_found(&mutants, &[LONG, straddles]);
}

#[test]
fn mistakes_in_expansion_are_found() {
    const fn mutant(from: &'static str, to: &'static str) -> Mutant {
        Mutant { file: "prefill_expand.cu", from, to }
    }
    let mutants = [
        mutant("    cp_wait<0>();\n    bar_sync();", "    bar_sync();"),
        mutant("    cp_wait<0>();\n    bar_sync();", "    cp_wait<0>();"),
        mutant("(PAGE_ROWS - 1)) < n", "(PAGE_ROWS - 1)) < PAGE_ROWS"),
        mutant("(unit & 1) * 4", "(unit & 1) * 2"),
        mutant("n & 1 ? x.w : x.z", "n & 1 ? x.z : x.w"),
        mutant("(u32)(unit >> 1) * TILE_BYTES", "0"),
        mutant("first : first - p.nope", "first : first"),
        mutant("odd ? own[0] : own[1]", "odd ? own[1] : own[0]"),
        mutant("slot / PAGE_ROWS", "slot / 128"),
        mutant("unit + 1 < units) load", "unit < units) load"),
        mutant("head * p.k_bytes", "0"),
        mutant("unit % SCALE_UNITS == SCALE_UNITS - 1 ||", ""),
        mutant("starts && half == 0", "half == 0"),
        mutant("n * scale_cols + unit / SCALE_UNITS", "n * scale_cols"),
        mutant("in_matrix / 8) * scale_cols", "in_matrix / 16) * scale_cols"),
    ];
    let dims = MlaDims { kv_lora_rank: 192, ..V2 };
    let case = Case { dims, steps: &[&[(60, 7, true)]], ..CASE };
    are_found(&mutants, &[case, Case { fp8: true, ..case }]);
    let mutants = [
        mutant("if (row < n) {", "{"),
        mutant("row * (p.rank / GROUP_COLS) * 4", "row * 4"),
        mutant("(GROUP_COLS / 16) * 4", "(GROUP_COLS / 8) * 4"),
        mutant("(i * PAGE_ROWS + row) * 16", "(i * PAGE_ROWS + (row ^ 1)) * 16"),
        mutant("page_chunk(row, 2 * i + 1), hi", "page_chunk(row, 2 * i + 1), lo"),
        mutant("p.rank * (CACHE8 ? 1 : 2)", "p.rank * 2"),
        mutant("    cp_wait<0>();\n    bar_sync();", "    cp_wait<0>();"),
    ];
    are_found(&mutants, &[Case { steps: &[&[(60, 7, true)]], ..FP8_CACHE }]);
}

#[test]
fn mistakes_for_any_sizes_are_found() {
    const fn mutant(from: &'static str, to: &'static str) -> Mutant {
        Mutant { file: "prefill_any.cu", from, to }
    }
    let mutants = [
        mutant(
            "        sts_f(smem_base() + 4 * i, x);\n    }\n    bar_sync();",
            "        sts_f(smem_base() + 4 * i, x);\n    }",
        ),
        mutant("if (n <= 0) return;", "if (n < 0) return;"),
        mutant("col & 1 ? y : -y", "y"),
        mutant("fresh ? 0.0f : ldg_f(out + col)", "0.0f"),
        mutant("fresh ? MINUS_INFINITY : ldg_f(stats)", "MINUS_INFINITY"),
        Mutant { file: "online.h", from: "fma_f(total, shrink, ", to: "fma_f(total, 1.0f, " },
        mutant("lds_f(sum + 4 * col) * shrink", "lds_f(sum + 4 * col)"),
        mutant("bool done = position < p.first + p.keys", "bool done = position <= p.first + p.keys"),
        mutant("head == p.heads", "head > p.heads"),
    ];
    let case = Case { dims: ODD, block_len: 5, steps: &[&[(60, 9, true), (126, 3, true)]], ..CASE };
    are_found(&mutants, &[case, Case { precision: Precision::F32, ..case }]);
}
