//! The GPU kit: whether all of the CUDA backend works on a machine, and how fast it is. `scripts/gpu/README.md` says how it
//! is built, run and read. With `--device sim` it runs to its end on a machine without a GPU, by the emulator.
//!
//! Each case runs in a process of its own, with a limit: a fault poisons the process that it happens in, and a kernel that
//! hangs ends no other case.

mod children;
mod decode;
mod environment;
mod noisy;
mod ops;
mod peaks;
mod random_model;
mod report;
mod sizes;
mod timing;
mod tools;
mod whole_model;
mod wrappers;

#[path = "../../../kernels/tests/every_op/mod.rs"]
mod every_op;
#[path = "../../tests/golden/mod.rs"]
mod golden;

use children::Limits;
use kernels::cuda::sim::{Emulator, Mode};
use kernels::cuda::{self, CodePaths, Device, Gpu};
use report::{Outcome, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "gpu_kit [--device cuda|sim] [--quick] [--out kit.json] [--only STEP,…] [--torch FILE]";

/// How a device is opened, once more for each backend.
type Open<'a, D> = &'a dyn Fn() -> Result<D, String>;

#[derive(Debug, Clone)]
struct Options {
    /// The emulator instead of a GPU.
    sim: bool,
    /// Small shapes, few cases.
    quick: bool,
    out: PathBuf,
    /// Empty: all steps.
    only: Vec<String>,
    /// `torch_peaks.py`
    torch: Option<String>,
    /// Step and case, in the process of a case.
    case: Option<(String, String)>,
    /// What an earlier step measured: bytes and operations a second. 0: nothing.
    bandwidth: f64,
    flops: f64,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut o = Self {
            sim: false,
            quick: false,
            out: "kit.json".into(),
            only: Vec::new(),
            torch: None,
            case: None,
            bandwidth: 0.0,
            flops: 0.0,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} wants a value: {USAGE}"));
            let number = |text: String| text.parse().map_err(|_| format!("{arg} {text}: not a number"));
            match arg.as_str() {
                "--device" => match value()?.as_str() {
                    "sim" => o.sim = true,
                    "cuda" => o.sim = false,
                    other => return Err(format!("--device {other}: cuda or sim")),
                },
                "--quick" => o.quick = true,
                "--out" => o.out = value()?.into(),
                "--only" => o.only = value()?.split(',').map(str::to_owned).collect(),
                "--torch" => o.torch = Some(value()?),
                "--case" => o.case = Some((value()?, value()?)),
                "--bandwidth" => o.bandwidth = number(value()?)?,
                "--flops" => o.flops = number(value()?)?,
                _ => return Err(format!("{arg} is not known: {USAGE}")),
            }
        }
        for step in &o.only {
            if !STEPS.iter().any(|s| s.name == step) {
                let known: Vec<&str> = STEPS.iter().map(|s| s.name).collect();
                return Err(format!("--only {step}: no such step, there are {}", known.join(", ")));
            }
        }
        Ok(o)
    }
}

struct Step {
    name: &'static str,
    /// For all of its cases.
    limit: Duration,
    cases: fn(&Options) -> Vec<String>,
}

const fn step(name: &'static str, seconds: u64, cases: fn(&Options) -> Vec<String>) -> Step {
    Step { name, limit: Duration::from_secs(seconds), cases }
}

/// What matters most comes first; the tools that are slow, and may be missing, come last.
const STEPS: &[Step] = &[
    step("environment", 60, environment::cases),
    step("peaks", 60, peaks::cases),
    step("wrappers", 30, |_| vec!["all".into()]),
    step("ops", 180, ops::cases),
    step("model", 90, whole_model::cases),
    step("timing", 150, timing::cases),
    step("decode", 150, decode::cases),
    step("sanitizer", 150, tools::sanitizer_cases),
    step("profile", 60, tools::profile_cases),
];

/// All steps together.
const TOTAL: Duration = Duration::from_secs(590);

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(101);
        }
    };
    if let Some((step, case)) = &options.case {
        let done = match options.sim {
            true => in_child(step, case, &options, &|| Ok(Emulator::new(Mode::FAST, 90))),
            false => in_child(step, case, &options, &open_gpu),
        };
        if let Err(what) = done {
            report::emit(step, case, Outcome::Failed, report::Found::says(what));
        }
        return ExitCode::SUCCESS;
    }
    ExitCode::from(all(&options).min(100) as u8)
}

fn open_gpu() -> Result<Gpu, String> {
    let kernels = [cuda::kernels(), cuda::peaks::kernels()].concat();
    // Of use only where the binary holds no code.
    let cache = Some(std::env::temp_dir().join("strait-gpu-kit"));
    let paths = CodePaths { cache, toolkits: vec!["/usr/local/cuda".into()] };
    Gpu::open(0, &kernels, &paths).map_err(|e| e.to_string())
}

fn in_child<D: Device>(step: &str, case: &str, options: &Options, open: Open<'_, D>) -> Result<(), String> {
    match step {
        "environment" => environment::run(case, options, open),
        "peaks" => peaks::run(case, options, open),
        "wrappers" => wrappers::run(open),
        "ops" => ops::run(case, options, open),
        "model" => whole_model::run(case, options, open),
        "timing" => timing::run(case, options, open),
        "decode" => decode::run(case, options, open),
        "sanitizer" => tools::sanitize(case, options),
        "profile" => tools::profile(case, options),
        other => Err(format!("no step {other}")),
    }
}

/// Number of failed cases.
fn all(options: &Options) -> usize {
    let device = if options.sim { "sim" } else { "cuda" };
    let mut report = Report::new(options.out.clone(), device, options.quick);
    let clock = Instant::now();
    // Of an emulator nothing is to be learnt from time.
    let patience = if options.sim { 10 } else { 1 };
    for step in STEPS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == step.name) {
            continue;
        }
        report.begin(step.name);
        let begun = Instant::now();
        for case in (step.cases)(options) {
            let limits = Limits { ends: begun + patience * step.limit, all_end: clock + patience * TOTAL };
            let peak = |case, name| report.number("peaks", case, name).unwrap_or(0.0);
            let measured = Options {
                bandwidth: 1e9 * peak("read", "GB/s"),
                flops: 1e12 * peak("products", "TFLOP/s"),
                ..options.clone()
            };
            children::run(step.name, &case, &measured, &limits, |record| report.add(record));
        }
        report.end(step.name, begun.elapsed().as_secs_f64());
    }
    report.conclude();
    report.failed()
}
