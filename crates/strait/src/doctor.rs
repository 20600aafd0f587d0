//! `strait doctor`: what this machine has to compute with, and what keeps strait from using it.

use std::fmt::Write as _;
use std::thread::available_parallelism;

use anyhow::anyhow;
use clap::Args;
use kernels::Isa;
use kernels::cuda::{self, Driver, NoGpu};

use crate::device::{self, DeviceChoice};
use crate::failure::Failure;
use crate::size::show;
use crate::{machine, print};

/// Tell what this machine can compute on, and what is missing
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// End with an error if this device cannot be used
    #[arg(long, env = "STRAIT_DEVICE", value_name = "auto|cpu|cuda|cuda:N")]
    device: Option<String>,
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    let asked = flags.device.as_deref().map(str::parse::<DeviceChoice>).transpose();
    let asked = asked.map_err(|what| Failure::Usage(format!("device: {what}")))?;
    let found = cuda::driver();
    print(&report(&found))?;
    let Some(choice) = asked else { return Ok(()) };
    let chosen = choice.among(&found).map_err(|error| anyhow!("{error}"))?;
    print(&format!("--device {choice} is {chosen}\n"))
}

fn report(found: &Result<Driver, NoGpu>) -> String {
    let mut text = format!("strait {}\n", env!("CARGO_PKG_VERSION"));
    let mut row = |what: &str, said: String| {
        writeln!(text, "  {what:<14}{said}").expect("a string grows");
    };
    let threads = available_parallelism().map_or(1, usize::from);
    row("cores", format!("{}, of {threads} threads that this process may use", machine::default_threads()));
    row("instructions", Isa::detect().name().into());
    row(
        "memory",
        machine::available_memory().map_or("not known".into(), |bytes| format!("{} available", show(bytes))),
    );
    let held = cuda::holdings();
    let code = match held.nvcc {
        Some(nvcc) => format!("machine code for {} (by nvcc {nvcc})", held.targets.join(", ")),
        None => "no machine code (built without --features cuda-aot)".into(),
    };
    row("CUDA kernels", format!("{} as source, {code}", held.modules.join(", ")));
    let paths = machine::code_paths();
    row(
        "NVRTC",
        match cuda::nvrtc_version(&paths) {
            Some(version) => format!("of CUDA {version}"),
            None => "not found; needed only where a GPU is, and there is no machine code for it".into(),
        },
    );
    row(
        "kept code",
        match &paths.cache {
            Some(folder) => folder.display().to_string(),
            None => "nowhere: neither XDG_CACHE_HOME nor HOME is set".into(),
        },
    );
    match found {
        Err(why) => row("NVIDIA driver", why.to_string()),
        Ok(driver) => {
            row("NVIDIA driver", format!("of CUDA {}", driver.version));
            for (ordinal, about) in driver.gpus.iter().enumerate() {
                let (major, minor) = (about.arch / 10, about.arch % 10);
                let memory = show(about.memory_bytes);
                let usable = device::usable(found, ordinal).map_or_else(|why| why, |_| "can be used".into());
                row(
                    &format!("GPU {ordinal}"),
                    format!("{}, {memory}, compute capability {major}.{minor}", about.name),
                );
                row("", usable);
            }
        }
    }
    let auto = DeviceChoice::Auto.among(found);
    row("--device auto", auto.map_or_else(|error| error.to_string(), |chosen| chosen.to_string()));
    text
}
