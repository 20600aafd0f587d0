//! Step `environment`: what machine this is, and whether every kernel loads.

use crate::report::{self, Found, Outcome};
use crate::{Open, Options};
use kernels::cuda::{self, Device, Gpu};
use std::any::Any;
use std::process::Command;

const STEP: &str = "environment";

pub(crate) fn cases(_: &Options) -> Vec<String> {
    ["binary", "device", "nvidia-smi"].map(str::to_owned).to_vec()
}

pub(crate) fn run<D: Device>(case: &str, options: &Options, open: Open<'_, D>) -> Result<(), String> {
    match case {
        "binary" => report::case(STEP, case, Outcome::Measured, || Ok(binary())),
        "device" => report::case(STEP, case, Outcome::Passed, || device(open)),
        _ => nvidia_smi(options),
    }
    Ok(())
}

fn binary() -> Found {
    let holdings = cuda::holdings();
    let nvcc = holdings.nvcc.map_or("no nvcc".into(), |nvcc| format!("nvcc of CUDA {nvcc}"));
    let code = match holdings.targets.is_empty() {
        true => "no machine code".to_owned(),
        false => holdings.targets.join(" "),
    };
    let detail = format!("{} modules, {code}, {nvcc}", holdings.modules.len());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Found::says(detail).with("host threads", cpus as f64)
}

/// All kernels of steps and of this kit must load.
fn device<D: Device>(open: Open<'_, D>) -> Result<Found, String> {
    let device = open()?;
    let about = device.about();
    let kernels = cuda::kernels().len() + cuda::peaks::kernels().len();
    let loaded = match (&device as &dyn Any).downcast_ref::<Gpu>() {
        Some(gpu) => {
            let mut origins: Vec<String> =
                gpu.code().iter().map(|(file, origin)| format!("{file} {origin:?}")).collect();
            origins.sort();
            format!("driver of CUDA {}; {}", gpu.driver(), origins.join(", "))
        }
        None => "kernels by the emulator".into(),
    };
    let free = device.free_bytes().map_err(|e| e.to_string())?;
    Ok(Found::says(format!("{}, sm_{}; {loaded}", about.name, about.arch))
        .with("kernels", kernels as f64)
        .with("multiprocessors", f64::from(about.multiprocessors))
        .with("shared KiB", f64::from(about.shared_bytes_max) / 1024.0)
        .with("memory GB", about.memory_bytes as f64 / 1e9)
        .with("free GB", free as f64 / 1e9))
}

fn nvidia_smi(options: &Options) {
    const ASKED: &str = "name,driver_version,vbios_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,\
                         power.draw,power.limit,temperature.gpu,ecc.mode.current,mig.mode.current,memory.used";
    let mut command = Command::new("nvidia-smi");
    command.arg(format!("--query-gpu={ASKED}")).arg("--format=csv,noheader");
    let said = match command.output() {
        Ok(output) if output.status.success() && !options.sim => output,
        _ => return report::emit(STEP, "nvidia-smi", Outcome::Absent, Found::default()),
    };
    let said = String::from_utf8_lossy(&said.stdout);
    let first = said.lines().next().unwrap_or_default();
    let pairs = ASKED.split(',').zip(first.split(", ")).map(|(name, value)| format!("{name} {value}"));
    report::emit(STEP, "nvidia-smi", Outcome::Measured, Found::says(pairs.collect::<Vec<_>>().join("; ")));
}
