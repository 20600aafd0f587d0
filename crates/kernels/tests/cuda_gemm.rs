//! The products of the CUDA backend, in the emulator, against the scalar reference: any shape, any number of tokens, and
//! each token's bits whatever its neighbours.
#![cfg(feature = "sim")]

use kernels::cuda::CudaBackend;
use kernels::cuda::sim::mutants::{Module, Mutant, all_are_found};
use kernels::cuda::sim::{Emulator, Mode};
use kernels::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Deterministic numbers in [-1, 1).
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
    /// e4m3 with scales of 128 x 128, as DeepSeek-V3 has it.
    Fp8,
}

impl Format {
    fn precision(self) -> Precision {
        if self == Self::F32 { Precision::F32 } else { Precision::Bf16 }
    }
}

/// A stored matrix of random numbers.
struct Stored {
    format: Format,
    shape: [usize; 2],
    bytes: Vec<u8>,
    scales: Vec<u8>,
}

impl Stored {
    fn new(format: Format, shape: [usize; 2], seed: u64) -> Self {
        let [rows, cols] = shape;
        let values = noise(rows * cols, seed);
        let (bytes, scales) = match format {
            Format::Fp8 => {
                // All values but NaN: 0x7f and 0xff.
                let byte = |v: &f32| (v.to_bits() >> 7) as u8;
                let bytes = values.iter().map(byte).map(|b| if b & 0x7f == 0x7f { b - 0x40 } else { b });
                let scales = noise(rows.div_ceil(128) * cols.div_ceil(128), seed + 1);
                (bytes.collect(), scales.iter().flat_map(|s| (s / 256.0).to_le_bytes()).collect())
            }
            _ => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), vec![]),
        };
        Self { format, shape, bytes, scales }
    }

    fn matrix(&self) -> Matrix<'_> {
        let (dtype, scales) = match self.format {
            Format::Fp8 => {
                let scales = BlockScales { bytes: &self.scales, block_rows: 128, block_cols: 128 };
                (DType::F8E4M3, Some(scales))
            }
            _ => (DType::F32, None),
        };
        Matrix::new(dtype, &self.bytes, self.shape, scales).unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    /// Of the plain product.
    rows: usize,
    intermediate: usize,
    n_experts: usize,
    top_k: usize,
    heads: usize,
    rank: usize,
    nope: usize,
    v: usize,
    vocab: usize,
}

const ROPE: usize = 6;

impl Sizes {
    fn mla(&self) -> MlaDims {
        MlaDims {
            n_heads: self.heads,
            kv_lora_rank: self.rank,
            qk_nope_head_dim: self.nope,
            qk_rope_head_dim: ROPE,
            v_head_dim: self.v,
            softmax_scale: 1.0,
        }
    }
}

/// Nothing here is a multiple of anything.
const ODD: Sizes = Sizes {
    hidden: 43,
    rows: 37,
    intermediate: 27,
    n_experts: 7,
    top_k: 3,
    heads: 3,
    rank: 22,
    nope: 10,
    v: 18,
    vocab: 50,
};
/// Rows that lie on 16 bytes, of more units than a ring has stages; the last one is not full.
const EVEN: Sizes = Sizes {
    hidden: 652,
    rows: 72,
    intermediate: 48,
    n_experts: 5,
    top_k: 2,
    heads: 2,
    rank: 64,
    nope: 128,
    v: 32,
    vocab: 80,
};
/// A slice of a real layer: all columns, few rows.
const LONG: Sizes = Sizes {
    hidden: 2048,
    rows: 24,
    intermediate: 1408,
    n_experts: 3,
    top_k: 2,
    heads: 2,
    rank: 512,
    nope: 128,
    v: 16,
    vocab: 20,
};

/// Different experts of token `t`: the first is everybody's, the others come in an order that is not theirs.
fn chosen(t: usize, n_experts: usize, top_k: usize) -> Vec<u32> {
    (0..top_k)
        .map(|j| if j == 0 { 1 } else { (2 + (t * 3 + j * (n_experts - 2)) % (n_experts - 1)) % n_experts })
        .map(|e| e as u32)
        .collect()
}

/// A backend that a test can hand expert ids to.
trait Ids: Backend {
    fn ids(&mut self, ids: &[u32]) -> Self::Indices;
}

impl Ids for Reference {
    fn ids(&mut self, ids: &[u32]) -> Vec<u32> {
        ids.to_vec()
    }
}

impl Ids for CudaBackend<Emulator> {
    fn ids(&mut self, ids: &[u32]) -> Self::Indices {
        self.upload(&ids.iter().map(|&id| f32::from_bits(id)).collect::<Vec<_>>()).unwrap()
    }
}

/// The ops under test.
const OPS: [&str; 7] =
    ["linear", "linear added", "absorb_query", "absorb_output", "gated_mlp", "experts", "lm_head"];

/// What `op` makes of the tokens `which`; every third token's row takes attend_expanded. Token t's inputs depend on t
/// alone.
fn run<B: Ids>(b: &mut B, op: &str, s: Sizes, format: Format, which: &[usize]) -> Vec<f32> {
    let n = which.len();
    let d = s.mla();
    let limits = StepLimits {
        tokens: n,
        rows: n,
        outputs: n,
        vocab_size: s.vocab,
        context_len: 1,
        block_len: 1,
        n_blocks: n + 1,
    };
    let widest = [s.hidden, s.intermediate, s.heads * (s.nope + ROPE), s.heads * s.rank, s.heads * s.v];
    b.reserve(Workspace {
        limits,
        mla: d,
        widest: widest.into_iter().max().unwrap(),
        widest_mlp: s.top_k * s.intermediate.next_multiple_of(16),
        n_experts: s.n_experts,
        top_k: s.top_k,
    })
    .unwrap();
    let count = |from: u32| (from..from + n as u32).collect::<Vec<u32>>();
    // Of the outputs, all tokens but the second.
    let outputs: Vec<u32> = count(0).into_iter().filter(|&t| t != 1).collect();
    let step = Step {
        copies: &[],
        tokens: &vec![0; n],
        positions: &vec![0; n],
        slots: &count(1),
        row_start: &[count(0), vec![n as u32]].concat(),
        kv_len: &vec![1; n],
        expanded: &which.iter().map(|t| t % 3 == 2).collect::<Vec<_>>(),
        tables: &count(1),
        outputs: &outputs,
    };
    let rope = Rope { inv_freq: vec![1.0; ROPE / 2], scale: 1.0 };
    b.begin_step(&step, &rope).unwrap();
    let input = |b: &mut B, width: usize, seed: u64| {
        let rows = which.iter().flat_map(|&t| noise(width, seed + 1000 * t as u64));
        b.upload(&rows.collect::<Vec<_>>()).unwrap()
    };
    let weight = |b: &mut B, stack: usize, rows: usize, cols: usize, seed: u64| {
        let stored: Vec<Stored> =
            (0..stack).map(|i| Stored::new(format, [rows, cols], seed + 100 * i as u64)).collect();
        let parts: Vec<Parts<'_>> = stored.iter().map(|m| m.matrix().into()).collect();
        b.pack(&parts, format.precision()).unwrap()
    };
    let gate_up = |b: &mut B, stack: usize, seed: u64| {
        let shape = [s.intermediate, s.hidden];
        let stored: Vec<Stored> =
            (0..2 * stack).map(|i| Stored::new(format, shape, seed + 100 * i as u64)).collect();
        let pairs = stored.as_chunks::<2>().0;
        let parts: Vec<Parts<'_>> =
            pairs.iter().map(|[g, u]| Parts::GateUp { gate: g.matrix(), up: u.matrix() }).collect();
        b.pack(&parts, format.precision()).unwrap()
    };
    match op {
        "linear" => {
            // Columns of wider rows; the odd shape begins where 16 bytes do not.
            let w = weight(b, 1, s.rows, s.hidden, 1);
            let (offset, stride) = (if s.hidden % 4 == 0 { 8 } else { 11 }, s.hidden + 16);
            let x = input(b, stride, 2);
            let mut y = b.buffer(n * s.rows).unwrap();
            let x = View::columns(&x, offset, stride);
            b.linear(Linear { weight: &w, x, out: &mut y, accumulate: false }).unwrap();
            b.read(&y, n * s.rows)
        }
        "linear added" => {
            // Two parts, one below the other.
            let parts = [9, s.rows - 9].map(|rows| Stored::new(format, [rows, s.hidden], rows as u64));
            let w = [Parts::Rows(parts.iter().map(Stored::matrix).collect())];
            let w = b.pack(&w, format.precision()).unwrap();
            let (x, mut y) = (input(b, s.hidden, 2), input(b, s.rows, 3));
            let x = View::dense(&x, s.hidden);
            b.linear(Linear { weight: &w, x, out: &mut y, accumulate: true }).unwrap();
            b.read(&y, n * s.rows)
        }
        "absorb_query" => {
            let stored = [0, 1, 2].map(|h| Stored::new(format, [s.nope, s.rank], 4 + h));
            let parts: Vec<Parts<'_>> =
                stored[..s.heads].iter().map(|m| m.matrix().transposed().into()).collect();
            let w = b.pack(&parts, format.precision()).unwrap();
            let width = s.heads * d.qk_head_dim();
            let q = input(b, width + 8, 5);
            let out_width = s.heads * d.latent_width();
            let mut y = input(b, out_width, 6);
            let q = View::columns(&q, 4, width + 8);
            b.absorb_query(AbsorbQuery { q, w_uk: &w, out: &mut y, dims: d }).unwrap();
            // The rotated rest of a head is another kernel's.
            let y = b.read(&y, n * out_width);
            y.chunks(d.latent_width()).flat_map(|row| row[..s.rank].to_vec()).collect()
        }
        "absorb_output" => {
            let w = weight(b, s.heads, s.v, s.rank, 7);
            let latent = input(b, s.heads * s.rank, 8);
            let mut y = input(b, s.heads * s.v, 9);
            b.absorb_output(AbsorbOutput { latent: &latent, w_uv: &w, out: &mut y, dims: d }).unwrap();
            b.read(&y, n * s.heads * s.v)
        }
        "gated_mlp" => {
            let (gate_up, down) = (gate_up(b, 1, 10), weight(b, 1, s.hidden, s.intermediate, 11));
            let (x, mut y) = (input(b, s.hidden, 12), input(b, s.hidden, 13));
            let x = View::dense(&x, s.hidden);
            b.gated_mlp(GatedMlp { gate_up: &gate_up, down: &down, x, out: &mut y }).unwrap();
            b.read(&y, n * s.hidden)
        }
        "experts" => {
            let stack = s.n_experts;
            let (gate_up, down) = (gate_up(b, stack, 14), weight(b, stack, s.hidden, s.intermediate, 15));
            let (x, mut y) = (input(b, s.hidden, 16), input(b, s.hidden, 17));
            let ids: Vec<u32> = which.iter().flat_map(|&t| chosen(t, stack, s.top_k)).collect();
            let (ids, weights) = (b.ids(&ids), input(b, s.top_k, 18));
            let x = View::dense(&x, s.hidden);
            let (ids, weights, top_k) = (&ids, &weights, s.top_k);
            b.experts(Experts { gate_up: &gate_up, down: &down, x, ids, weights, top_k, out: &mut y })
                .unwrap();
            b.read(&y, n * s.hidden)
        }
        "lm_head" => {
            let w = weight(b, 1, s.vocab, s.hidden, 19);
            let (x, norm) = (input(b, s.hidden, 20), b.upload(&noise(s.hidden, 21)).unwrap());
            let mut logits = vec![0.0; outputs.len() * s.vocab];
            b.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &w, logits: &mut logits }).unwrap();
            logits
        }
        _ => panic!("{op}"),
    }
}

fn device(mode: Mode, format: Format) -> CudaBackend<Emulator> {
    CudaBackend::new(Emulator::new(mode, 90), format.precision())
}

const CAREFUL: Mode = Mode { races: true, unwritten: true, ..Mode::FAST };

/// Of the largest number: sums in another order; a middle that is rounded to a neighbour; weights of fp8, whose
/// products with the scales are exact here and rounded to bf16 in the reference.
fn tolerance(op: &str, format: Format) -> f32 {
    match (format, op) {
        (Format::F32, _) => 2e-5,
        (Format::Bf16, "gated_mlp" | "experts") => 5e-3,
        (Format::Bf16, _) => 5e-5,
        (Format::Fp8, _) => 8e-3,
    }
}

fn check(op: &str, sizes: Sizes, format: Format, tokens: usize, mode: Mode) {
    check_with(None, op, sizes, format, tokens, mode);
}

/// With kernels of `module` in the place of ours.
fn check_with(module: Option<&Module>, op: &str, sizes: Sizes, format: Format, tokens: usize, mode: Mode) {
    let which: Vec<usize> = (0..tokens).collect();
    let want = run(&mut Reference::new(format.precision()), op, sizes, format, &which);
    let mut b = device(mode, format);
    module.into_iter().for_each(|module| b.device().replace(module));
    let got = run(&mut b, op, sizes, format, &which);
    let largest = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let close = (g - w).abs() <= tolerance(op, format) * largest;
        assert!(close, "{op} {format:?} {tokens} tokens, {sizes:?} [{i}]: {g}, expected {w} ({mode:?})");
    }
}

fn check_all(sizes: Sizes, format: Format, tokens: &[usize]) {
    for op in OPS {
        for &n in tokens {
            check(op, sizes, format, n, CAREFUL);
        }
    }
}

#[test]
fn odd_sizes() {
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        check_all(ODD, format, &[1, 2, 5, 9, 33, 65]);
    }
    // So many that a warp of the lists' kernel counts twice 32 of them.
    check("experts", ODD, Format::Bf16, 400, CAREFUL);
}

#[test]
fn even_sizes() {
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        check_all(EVEN, format, &[1, 8, 16, 17, 64, 130]);
    }
}

#[test]
fn long_sums() {
    for format in [Format::Bf16, Format::Fp8] {
        for (op, tokens) in [("linear", 1), ("linear", 65), ("absorb_output", 9), ("gated_mlp", 9)] {
            check(op, LONG, format, tokens, CAREFUL);
        }
    }
    check("experts", LONG, Format::Bf16, 1, CAREFUL);
}

/// What the GPU's time goes to: the bytes of the weights, read once for all tokens of a tile.
#[test]
fn weights_are_read_once_and_without_conflicts() {
    let sizes = Sizes { hidden: 2048, rows: 160, ..EVEN };
    let unit = |format| if format == Format::Fp8 { 512 } else { 1024 };
    for (format, op, tokens, tiles) in [
        (Format::Bf16, "linear", 1, 1),
        (Format::Bf16, "linear", 8, 1),
        (Format::Fp8, "linear", 16, 1),
        (Format::Bf16, "linear", 17, 1),
        (Format::Fp8, "linear", 33, 2),
        (Format::Bf16, "linear", 128, 1),
        (Format::Bf16, "experts", 8, 1),
    ] {
        let mut b = device(Mode { lanes: true, ..CAREFUL }, format);
        run(&mut b, op, sizes, format, &(0..tokens).collect::<Vec<_>>());
        let counted = b.device().counters();
        // Panels of 16 rows of W, units of 32 columns; each panel has a block of its own (of the wide kernel, eight),
        // which reads x besides: in f32, or rounded by a launch before.
        let (weights, x) = if op == "experts" {
            let (gate_up, down) = (48 / 8 * 64, 2048 / 16 * 2);
            let hit = (0..tokens).flat_map(|t| chosen(t, 5, 2)).collect::<std::collections::HashSet<_>>();
            (
                hit.len() * (gate_up + down) * unit(format),
                2 * tokens * (6 * 2048 * 4 + 128 * 64 * 2 + 2048 * 4),
            )
        } else {
            let blocks = if tokens > 64 { 2 } else { 10 };
            let x = tokens * 2048 * if tokens > 16 { 2 * blocks + 4 } else { 4 * blocks };
            (tiles * 10 * 64 * unit(format), x)
        };
        let more = counted.loaded_bytes as f64 / (weights + x) as f64;
        let say = || format!("{op} {format:?} {tokens} tokens: {more:.3} of the bytes; {counted:?}");
        // The rest is what each thread asks of the step and of the lists.
        let most = if op == "experts" { 1.3 } else { 1.08 };
        assert!((1.0..most).contains(&more), "{}", say());
        assert_eq!(counted.shared_wavefronts, counted.shared_ideal, "{}", say());
        assert!(counted.load_sectors as f64 <= 1.02 * counted.load_sectors_ideal as f64, "{}", say());
    }
}

/// Ids that name no expert add nothing, and nothing is read for them; the others are summed by rising id.
#[test]
fn experts_are_summed_by_id_and_unknown_ones_left_out() {
    for tokens in [1, 3] {
        let step = |b: &mut CudaBackend<Emulator>, ids: &[u32]| {
            let limits = StepLimits {
                tokens,
                rows: tokens,
                outputs: 0,
                vocab_size: 1,
                context_len: 1,
                block_len: 1,
                n_blocks: 4,
            };
            let mla = ODD.mla();
            let (widest, widest_mlp) = (64, 96);
            b.reserve(Workspace { limits, mla, widest, widest_mlp, n_experts: 2, top_k: 2 }).unwrap();
            let zeros = vec![0; tokens];
            let step = Step {
                copies: &[],
                tokens: &zeros,
                positions: &zeros,
                slots: &zeros,
                row_start: &(0..=tokens as u32).collect::<Vec<_>>(),
                kv_len: &vec![1; tokens],
                expanded: &vec![false; tokens],
                tables: &zeros,
                outputs: &[],
            };
            b.begin_step(&step, &Rope { inv_freq: vec![1.0; ROPE / 2], scale: 1.0 }).unwrap();
            let stored = [0, 1, 2, 3].map(|i| Stored::new(Format::Bf16, [32, 32], i));
            let pairs = stored.as_chunks::<2>().0;
            let gate_up: Vec<Parts<'_>> =
                pairs.iter().map(|[g, u]| Parts::GateUp { gate: g.matrix(), up: u.matrix() }).collect();
            let down: Vec<Parts<'_>> = stored[..2].iter().map(|m| m.matrix().into()).collect();
            let (gate_up, down) = (b.pack(&gate_up, Precision::Bf16), b.pack(&down, Precision::Bf16));
            let x = b.upload(&noise(32 * tokens, 5)).unwrap();
            let mut y = b.upload(&noise(32 * tokens, 6)).unwrap();
            let (ids, weights) = (b.ids(ids), b.upload(&vec![1.0; 2 * tokens]).unwrap());
            b.experts(Experts {
                gate_up: &gate_up.unwrap(),
                down: &down.unwrap(),
                x: View::dense(&x, 32),
                ids: &ids,
                weights: &weights,
                top_k: 2,
                out: &mut y,
            })
            .unwrap();
            b.read(&y, 32 * tokens)
        };
        let b = &mut device(CAREFUL, Format::Bf16);
        assert_eq!(step(b, &vec![u32::MAX; 2 * tokens]), noise(32 * tokens, 6));
        let one = step(b, &[2, 1].repeat(tokens));
        assert_ne!(one, noise(32 * tokens, 6));
        assert_eq!(one, step(b, &[1, u32::MAX].repeat(tokens)));
        // To the last bit, and another order has others.
        assert_eq!(step(b, &[1, 0].repeat(tokens)), step(b, &[0, 1].repeat(tokens)));
    }
}

const fn mutant(file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { file, from, to }
}

/// Compiles the kernels once for each mistake: minutes.
#[test]
#[ignore = "minutes of compiling; run after a change of these kernels"]
fn mistakes_are_found() {
    let skinny = |from, to| mutant("gemm_skinny.h", from, to);
    let wide = |from, to| mutant("gemm_wide.cu", from, to);
    let shared = |from, to| mutant("gemm.h", from, to);
    let lists = |from, to| mutant("experts.cu", from, to);
    let mutants = [
        skinny("            warp_sync(); // all", "            // all"),
        skinny("cp_wait<STAGES - 2>", "cp_wait<STAGES - 1>"),
        skinny(
            "copy_weights(unit + STAGES - 1, ring + refill",
            "copy_weights(unit + STAGES - 1, ring + stage",
        ),
        skinny(
            "copy_rows(p, unit + STAGES - 1, ring + refill",
            "copy_rows(p, unit + STAGES - 1, ring + stage",
        ),
        skinny("                cp_wait<0>();\n", ""),
        skinny("if (p.tiles) {\n        grid", "if (false) {\n        grid"),
        skinny(
            "        bar_sync();
",
            "",
        ),
        skinny(
            "        warp_sync();
#pragma",
            "#pragma",
        ),
        skinny(" && u * UNIT_COLS + chunk * 4 < p.cols", ""),
        skinny("(c >> 1)) ^ ((row & 3) * 2)", "(c >> 1)) ^ ((row & 3) * 4)"),
        skinny("(unit & 3) == 3 || ", ""),
        skinny("fma_f(s[j >> 1]", "fma_f(s[j & 1]"),
        skinny(
            "FP8 ? 4 : 1);
        for",
            "1);
        for",
        ),
        skinny("i < panels ? ldg_f(at + blocks)", "true ? ldg_f(at + blocks)"),
        wide("        bar_sync(); // all", "        // all"),
        wide("cp_wait<WIDE_STAGES - 2>", "cp_wait<WIDE_STAGES - 1>"),
        wide("end = product_segment(segment + 1", "end = product_segment(segment + 2"),
        wide("panel < p.panels ? matrix", "true ? matrix"),
        wide("if (unit + 1 < end) continue;", "if (unit + 2 < end) continue;"),
        wide("(warp() >> 2) * 64 < tile.n", "(warp() >> 2) * 64 + 8 < tile.n"),
        shared("if (i >= tile.n) return false;", ""),
        shared("    return !p.row_of || !row", "    return true || !row"),
        shared("p.finish == FINISH_ADD ? ldg_f(out) + x : x", "x"),
        shared("row + 8 < p.rows", "row < p.rows"),
        shared("if (middle < p.out_stride) ", ""),
        lists("(1u << lane()) - 1", "(2u << lane()) - 1"),
        lists("sts_u(count, sum - own)", "sts_u(count, sum)"),
        lists("        warp_sync(); // all have read", "        // all have read"),
        lists("        warp_sync(); // the counts", "        // the counts"),
        lists("sts_u(count, at + (u32)popc(same))", "sts_u(count, at)"),
        lists("tile = lists_running(own_tiles)", "tile = own_tiles"),
        lists(
            "    if (warp() == 0) lists_firsts(p, s);\n    bar_sync();",
            "    if (warp() == 0) lists_firsts(p, s);",
        ),
    ];
    let same_bits = |module: Option<&Module>| {
        for (op, format, tokens) in [
            ("linear", Format::Bf16, 3),
            ("linear", Format::Bf16, 21),
            ("linear added", Format::Bf16, 66),
            ("linear", Format::Fp8, 9),
            ("absorb_output", Format::Bf16, 33),
            ("gated_mlp", Format::Bf16, 18),
            ("gated_mlp", Format::Bf16, 70),
            ("experts", Format::Bf16, 40),
            ("experts", Format::Bf16, 400),
            ("experts", Format::Fp8, 2),
        ] {
            for sizes in [EVEN, ODD] {
                for mode in [0, 4, 8].map(|i| Mode::all()[i]) {
                    let case = || check_with(module, op, sizes, format, tokens, mode);
                    catch_unwind(AssertUnwindSafe(case)).map_err(|_| format!("{op} {format:?} {mode:?}"))?;
                }
            }
        }
        // A token alone, and among those for which the wide kernel is there.
        let bits = |which: &[usize]| {
            let mut b = device(Mode::FAST, Format::Bf16);
            module.into_iter().for_each(|module| b.device().replace(module));
            run(&mut b, "linear", EVEN, Format::Bf16, which)
        };
        let all = catch_unwind(AssertUnwindSafe(|| bits(&(0..70).collect::<Vec<_>>())));
        let all = all.map_err(|_| "refused")?;
        let alone = catch_unwind(AssertUnwindSafe(|| bits(&[5]))).map_err(|_| "refused")?;
        if rows_of(&all, 70, 5) == alone { Ok(()) } else { Err("other bits".into()) }
    };
    all_are_found(&mutants, same_bits);
}

#[test]
fn every_order_of_events() {
    for mode in Mode::all() {
        for op in ["linear", "experts"] {
            for tokens in [3, 18, 66] {
                check(op, EVEN, Format::Bf16, tokens, mode);
            }
            check(op, EVEN, Format::Fp8, 3, mode);
        }
    }
}

/// Rows of `which` tokens.
fn rows_of(values: &[f32], tokens: usize, t: usize) -> &[f32] {
    let width = values.len() / tokens;
    &values[t * width..][..width]
}

#[test]
fn a_token_computes_the_same_bits_alone() {
    const TOKENS: usize = 130;
    let all: Vec<usize> = (0..TOKENS).collect();
    for sizes in [ODD, EVEN] {
        for format in [Format::F32, Format::Bf16, Format::Fp8] {
            for op in OPS.into_iter().filter(|op| *op != "lm_head") {
                let batch = run(&mut device(Mode::FAST, format), op, sizes, format, &all);
                for some in [&[0][..], &[77], &[129], &[3, 64, 127, 128], &all[40..57], &all[50..90]] {
                    let few = run(&mut device(Mode::FAST, format), op, sizes, format, some);
                    for (i, &t) in some.iter().enumerate() {
                        let (alone, among) = (rows_of(&few, some.len(), i), rows_of(&batch, TOKENS, t));
                        let same = alone.iter().zip(among).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{op} {format:?}: token {t} of {} differs", some.len());
                    }
                }
            }
        }
    }
}
