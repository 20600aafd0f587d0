//! Step `ops`: each op of the backend, over a step of several rows: at small and odd sizes against the scalar reference, at
//! real ones against the CPU backend. Each twice, which must give the same bits.

use crate::every_op::Attention::{Expanded, Latent};
use crate::every_op::{ODD, Row, Sizes, StepData, check_draws, run as every_op};
use crate::report::{self, Found, Outcome};
use crate::{Open, Options};
use kernels::cuda::{CudaBackend, Device};
use kernels::{CacheFormat, Cpu, MlaDims, Precision, Reference};

const STEP: &str = "ops";

struct Case {
    name: &'static str,
    sizes: Sizes,
    rows: &'static [Row],
    block_len: usize,
    precision: Precision,
    cache: CacheFormat,
    /// Of the size of a row: see [`compare`].
    tolerance: f32,
    /// Compared with the CPU backend, and too large for the emulator.
    real: bool,
}

const MIXED: &[Row] = &[
    (70, 9, Expanded),
    (130, 1, Latent),
    (0, 5, Latent),
    (130, 1, Expanded),
    (0, 1, Latent),
    (0, 1, Expanded),
    (3, 26, Latent),
    (3, 12, Expanded),
];
const FEW: &[Row] = &[(30, 3, Latent), (64, 1, Latent), (7, 9, Expanded)];
const SPLIT: &[Row] = &[(1100, 1, Latent), (600, 2, Latent)];
const REAL: &[Row] =
    &[(1000, 1, Latent), (70, 1, Latent), (63, 2, Latent), (0, 130, Expanded), (200, 70, Expanded)];

/// In bf16 the softmax weights are rounded too, and sums in another order round an intermediate to its neighbour now
/// and then, 2^-8 away: on the emulator a row is 2.6e-3 off at most, and 1.1e-6 in f32.
const BF16: f32 = 5e-3;
/// Of long sums, against the CPU: a key left out of a thousand is 3 % still.
const REAL_SIZES: f32 = 1e-2;
/// A latent number between two of e4m3 goes either way, as the norm before it was rounded: 6 % of one of 512.
const FP8: f32 = 1.5e-2;
const F32: f32 = 1e-5;
const ROUTE: f32 = 1e-4;

fn all() -> Vec<Case> {
    let heads = |n_heads, nope, v| MlaDims {
        n_heads,
        kv_lora_rank: 512,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: 64,
        v_head_dim: v,
        // Of sums of so many products, so that softmax is neither flat nor a single key.
        softmax_scale: 0.02,
    };
    let narrow = |n_heads, nope, v| Sizes {
        mla: heads(n_heads, nope, v),
        hidden: 256,
        intermediate: 128,
        n_experts: 8,
        top_k: 3,
    };
    let small = |name, sizes, rows, block_len, precision: Precision| Case {
        name,
        sizes,
        rows,
        block_len,
        precision,
        cache: CacheFormat::Plain,
        tolerance: if precision == Precision::Bf16 { BF16 } else { F32 },
        real: false,
    };
    let real = |name, mla, hidden, intermediate, n_experts, top_k| Case {
        name,
        sizes: Sizes { mla, hidden, intermediate, n_experts, top_k },
        rows: REAL,
        block_len: 64,
        precision: Precision::Bf16,
        cache: CacheFormat::Plain,
        tolerance: REAL_SIZES,
        real: true,
    };
    let in_fp8 = |name, case: Case| Case { name, cache: CacheFormat::Fp8, tolerance: FP8, ..case };
    vec![
        small("odd f32", ODD, FEW, 5, Precision::F32),
        small("odd bf16", ODD, FEW, 5, Precision::Bf16),
        small("odd f32, many rows", ODD, MIXED, 5, Precision::F32),
        small("odd bf16, many rows", ODD, MIXED, 16, Precision::Bf16),
        small("odd f32, keys split", ODD, SPLIT, 64, Precision::F32),
        small("heads of V2, pages", narrow(2, 128, 128), FEW, 64, Precision::Bf16),
        small("heads of GLM, pages", narrow(2, 192, 256), FEW, 64, Precision::Bf16),
        small("16 heads, keys split", narrow(16, 128, 128), SPLIT, 64, Precision::Bf16),
        in_fp8("odd f32, FP8 cache", small("", ODD, MIXED, 5, Precision::F32)),
        in_fp8("odd bf16, FP8 cache", small("", ODD, MIXED, 5, Precision::Bf16)),
        in_fp8("heads of V2, FP8 cache", small("", narrow(2, 128, 128), FEW, 64, Precision::Bf16)),
        in_fp8("heads of GLM, FP8 cache", small("", narrow(2, 192, 256), FEW, 64, Precision::Bf16)),
        in_fp8("16 heads, FP8 cache", small("", narrow(16, 128, 128), SPLIT, 64, Precision::Bf16)),
        in_fp8("V2-Lite, FP8 cache", real("", heads(16, 128, 128), 2048, 1408, 64, 6)),
        in_fp8("128 heads, FP8 cache", real("", heads(128, 128, 128), 7168, 2048, 16, 8)),
        real("DeepSeek-V2-Lite", heads(16, 128, 128), 2048, 1408, 64, 6),
        real("GLM-4.7-Flash", heads(20, 192, 256), 2048, 1536, 64, 4),
        real("128 heads of V3, 16 experts", heads(128, 128, 128), 7168, 2048, 16, 8),
    ]
}

pub(crate) fn cases(options: &Options) -> Vec<String> {
    let small = options.sim || options.quick;
    let cases = all().into_iter().filter(|c| !(c.real && small)).map(|c| c.name.to_owned());
    let drawn = DRAWN_FROM.into_iter().filter(|&(_, vocab)| !(vocab > 10_000 && small));
    cases.chain(drawn.map(|(name, _)| name.to_owned())).collect()
}

/// Vocabularies that tokens are drawn from.
const DRAWN_FROM: [(&str, usize); 3] =
    [("draws, 900 logits", 900), ("draws, 102,400 logits", 102_400), ("draws, 163,840 logits", 163_840)];

/// Those that a tool runs again, many times slower.
pub(crate) fn sanitized() -> [&'static str; 5] {
    ["odd bf16", "heads of V2, FP8 cache", "heads of V2, pages", "heads of GLM, pages", "draws, 900 logits"]
}

pub(crate) fn run<D: Device>(name: &str, _: &Options, open: Open<'_, D>) -> Result<(), String> {
    if let Some(&(_, vocab)) = DRAWN_FROM.iter().find(|(of, _)| *of == name) {
        let drawn = || {
            let n = check_draws(&mut CudaBackend::new(open()?, Precision::F32), vocab)?;
            Ok(Found::says("tokens are the host's").with("draws", n as f64))
        };
        report::case(STEP, name, Outcome::Passed, drawn);
        return Ok(());
    }
    let all = all();
    let case = all.iter().find(|c| c.name == name).ok_or(format!("no case {name}"))?;
    report::case(STEP, name, Outcome::Passed, || check(case, open));
    Ok(())
}

fn check<D: Device>(case: &Case, open: Open<'_, D>) -> Result<Found, String> {
    let Case { sizes, precision, cache, .. } = *case;
    let data = StepData::new(case.rows, case.block_len);
    let want = if case.real {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        every_op(&mut Cpu::new(threads, precision).with_cache(cache), sizes, &data, precision)
    } else {
        every_op(&mut Reference::new(precision).with_cache(cache), sizes, &data, precision)
    };
    let cuda = || Ok::<_, String>(CudaBackend::new(open()?, precision).with_cache(cache));
    let got = every_op(&mut cuda()?, sizes, &data, precision);
    let again = every_op(&mut cuda()?, sizes, &data, precision);
    let (mut worst, mut wrong) = ((0.0, ""), Vec::new());
    for (i, (op, want)) in want.iter().enumerate() {
        let (got, again) = (&got[i].1, &again[i].1);
        // Of each output a row of logits, of each token a row of anything else.
        let width = if *op == "lm_head" { data.limits.vocab_size } else { want.len() / data.limits.tokens };
        // Expert ids are whole numbers, and their weights are computed in f32.
        let tolerance = if *op == "route" { ROUTE } else { case.tolerance };
        let (error, complaint) = compare(got, want, width, tolerance);
        if error > worst.0 {
            worst = (error, op);
        }
        wrong.extend(complaint.map(|what| format!("{op}{what}")));
        let differs = got.iter().zip(again).position(|(g, a)| g.to_bits() != a.to_bits());
        wrong.extend(differs.map(|at| format!("{op} [{at}]: {} and then {}", got[at], again[at])));
    }
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let (error, op) = worst;
    Ok(Found::says(format!("worst: {op}")).with("results", want.len() as f64).with("error", f64::from(error)))
}

/// The largest error of a row, as a share of its size, both as root mean squares: a key that is left out of a thousand is
/// 3 % of what they give together, and nothing beside a row of few keys. And the first row that is too far off.
fn compare(got: &[f32], want: &[f32], width: usize, tolerance: f32) -> (f32, Option<String>) {
    if got.len() != want.len() {
        return (f32::INFINITY, Some(format!(": {} numbers, want {}", got.len(), want.len())));
    }
    let square = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
    let rows = got.chunks(width).zip(want.chunks(width));
    let errors: Vec<f32> = rows
        .map(|(got, want)| {
            let off: Vec<f32> = got.iter().zip(want).map(|(g, w)| g - w).collect();
            let error = (square(&off) / square(want).max(f32::MIN_POSITIVE)).sqrt();
            if error.is_nan() { f32::INFINITY } else { error }
        })
        .collect();
    let complaint = errors.iter().position(|e| *e > tolerance).map(|row| {
        let off = |i: &usize| (got[*i] - want[*i]).abs();
        let numbers = row * width..(row + 1) * width;
        let i = numbers.max_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or_default();
        let (many, rows) = (errors.iter().filter(|e| **e > tolerance).count(), errors.len());
        let (want, got) = (want[i], got[i]);
        format!(
            " [{i}]: want {want}, got {got} ({many} of {rows} rows are wrong, row {row} by {})",
            errors[row]
        )
    });
    (errors.iter().copied().fold(0.0, f32::max), complaint)
}
