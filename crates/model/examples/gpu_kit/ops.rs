//! Step `ops`: each op of the backend, over a step of several rows: at small and odd sizes against the scalar reference, at
//! real ones against the CPU backend. Each twice, which must give the same bits.

use crate::every_op::Attention::{Expanded, Latent};
use crate::every_op::{ODD, Row, Sizes, StepData, run as every_op};
use crate::report::{self, Found, Outcome};
use crate::{Open, Options};
use kernels::cuda::{CudaBackend, Device};
use kernels::{Cpu, MlaDims, Precision, Reference};

const STEP: &str = "ops";

struct Case {
    name: &'static str,
    sizes: Sizes,
    rows: &'static [Row],
    block_len: usize,
    precision: Precision,
    /// Of the largest expected number.
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
/// and then, 2^-8 away.
const BF16: f32 = 1.5e-2;

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
        tolerance: if precision == Precision::Bf16 { BF16 } else { 5e-5 },
        real: false,
    };
    let real = |name, mla, hidden, intermediate, n_experts, top_k| Case {
        name,
        sizes: Sizes { mla, hidden, intermediate, n_experts, top_k },
        rows: REAL,
        block_len: 64,
        precision: Precision::Bf16,
        tolerance: BF16,
        real: true,
    };
    vec![
        small("odd f32", ODD, FEW, 5, Precision::F32),
        small("odd bf16", ODD, FEW, 5, Precision::Bf16),
        small("odd f32, many rows", ODD, MIXED, 5, Precision::F32),
        small("odd bf16, many rows", ODD, MIXED, 16, Precision::Bf16),
        small("odd f32, keys split", ODD, SPLIT, 64, Precision::F32),
        small("heads of V2, pages", narrow(2, 128, 128), FEW, 64, Precision::Bf16),
        small("heads of GLM, pages", narrow(2, 192, 256), FEW, 64, Precision::Bf16),
        small("16 heads, keys split", narrow(16, 128, 128), SPLIT, 64, Precision::Bf16),
        real("DeepSeek-V2-Lite", heads(16, 128, 128), 2048, 1408, 64, 6),
        real("GLM-4.7-Flash", heads(20, 192, 256), 2048, 1536, 64, 4),
        real("128 heads of V3, 16 experts", heads(128, 128, 128), 7168, 2048, 16, 8),
    ]
}

pub(crate) fn cases(options: &Options) -> Vec<String> {
    let small = options.sim || options.quick;
    all().iter().filter(|c| !(c.real && small)).map(|c| c.name.to_owned()).collect()
}

/// Those that a tool runs again, many times slower.
pub(crate) fn sanitized() -> [&'static str; 3] {
    ["odd bf16", "heads of V2, pages", "heads of GLM, pages"]
}

pub(crate) fn run<D: Device>(name: &str, _: &Options, open: Open<'_, D>) -> Result<(), String> {
    let all = all();
    let case = all.iter().find(|c| c.name == name).ok_or(format!("no case {name}"))?;
    report::case(STEP, name, Outcome::Passed, || check(case, open));
    Ok(())
}

fn check<D: Device>(case: &Case, open: Open<'_, D>) -> Result<Found, String> {
    let Case { sizes, precision, .. } = *case;
    let data = StepData::new(case.rows, case.block_len);
    let want = if case.real {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        every_op(&mut Cpu::new(threads, precision), sizes, &data, precision)
    } else {
        every_op(&mut Reference::new(precision), sizes, &data, precision)
    };
    let got = every_op(&mut CudaBackend::new(open()?, precision), sizes, &data, precision);
    let again = every_op(&mut CudaBackend::new(open()?, precision), sizes, &data, precision);
    let (mut worst, mut wrong) = ((0.0, ""), Vec::new());
    for (i, (op, want)) in want.iter().enumerate() {
        let (got, again) = (&got[i].1, &again[i].1);
        let (error, complaint) = compare(got, want, case.tolerance);
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

/// The largest error, as a share of the largest number; and the first that is too large.
fn compare(got: &[f32], want: &[f32], tolerance: f32) -> (f32, Option<String>) {
    if got.len() != want.len() {
        return (f32::INFINITY, Some(format!(": {} numbers, want {}", got.len(), want.len())));
    }
    let largest = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    let errors: Vec<f32> = got
        .iter()
        .zip(want)
        .map(|(g, w)| if (g - w).is_nan() { f32::INFINITY } else { (g - w).abs() / largest })
        .collect();
    let complaint = errors.iter().position(|e| *e > tolerance).map(|i| {
        let many = errors.iter().filter(|e| **e > tolerance).count();
        format!(" [{i}]: want {}, got {} ({many} of {} are wrong)", want[i], got[i], want.len())
    });
    (errors.iter().copied().fold(0.0, f32::max), complaint)
}
