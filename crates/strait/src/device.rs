//! Where to compute: what was asked for, and what this machine has.

use std::fmt;
use std::str::FromStr;

use anyhow::anyhow;
#[cfg(feature = "sim")]
use kernels::cuda::sim::{Emulator, Mode};
use kernels::cuda::{self, About, CudaBackend, Device as _, Driver, Gpu, NoGpu};
use kernels::{Backend, CacheFormat, Cpu, KernelError, Precision};
use serde::Serialize;

use crate::machine;
use crate::memory::Defaults;

/// Why `auto` takes no GPU yet, whatever the machine has.
const UNTRIED: Option<&str> =
    Some("this version's kernels have not run on hardware yet; --device cuda tries them");

/// `--device`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// A GPU if one can be used, else the CPU.
    Auto,
    Cpu,
    /// By the driver's number.
    Cuda(usize),
    /// The emulator that runs the CUDA kernels on the host.
    #[cfg(feature = "sim")]
    Sim,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("{text:?} is no device; use auto, cpu, cuda or, for one of several GPUs, cuda:1");
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            #[cfg(feature = "sim")]
            "sim" => Ok(Self::Sim),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(refused)?;
                let digits = number.bytes().all(|byte| byte.is_ascii_digit());
                number.parse().ok().filter(|_| digits).map(Self::Cuda).ok_or_else(refused)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            #[cfg(feature = "sim")]
            Self::Sim => f.write_str("sim"),
        }
    }
}

/// What a choice comes to on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    /// By the driver's number; there, and with code for it.
    Gpu(usize),
    #[cfg(feature = "sim")]
    Emulator,
}

/// A device and why it is that one: `the CPU: no NVIDIA driver is found (…)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub device: Device,
    pub why: String,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Device::Cpu => write!(f, "the CPU: {}", self.why),
            Device::Gpu(ordinal) => write!(f, "GPU {ordinal}: {}", self.why),
            #[cfg(feature = "sim")]
            Device::Emulator => write!(f, "the emulator: {}", self.why),
        }
    }
}

impl DeviceChoice {
    /// Looks at the machine, unless the CPU was asked for.
    pub(crate) fn resolve(self) -> anyhow::Result<Chosen> {
        match self {
            Self::Cpu => Ok(Chosen { device: Device::Cpu, why: "asked for".into() }),
            _ => self.among(&cuda::driver()),
        }
    }

    /// A GPU that was asked for and cannot be had is an error; for `auto` it is the reason for the CPU.
    pub(crate) fn among(self, found: &Result<Driver, NoGpu>) -> anyhow::Result<Chosen> {
        let cpu = |why: String| Ok(Chosen { device: Device::Cpu, why });
        match self {
            Self::Cpu => cpu("asked for".into()),
            #[cfg(feature = "sim")]
            Self::Sim => Ok(Chosen { device: Device::Emulator, why: "asked for".into() }),
            Self::Auto => match first_usable(found).and_then(tried) {
                Ok((ordinal, name)) => Ok(Chosen { device: Device::Gpu(ordinal), why: name }),
                Err(why) => cpu(why),
            },
            Self::Cuda(ordinal) => {
                let (ordinal, why) = usable(found, ordinal).map_err(|why| anyhow!("device {self}: {why}"))?;
                Ok(Chosen { device: Device::Gpu(ordinal), why })
            }
        }
    }
}

/// A device ready to take a model.
pub(crate) enum Opened {
    Cpu(Box<Cpu>),
    Gpu(Box<CudaBackend<Gpu>>),
    #[cfg(feature = "sim")]
    Emulator(Box<CudaBackend<Emulator>>),
}

/// Goes on with the backend that is open, whatever its type.
macro_rules! on_device {
    ($opened:expr, |$($backend:ident)+| $body:expr) => {
        match $opened {
            $crate::device::Opened::Cpu(boxed) => {
                let $($backend)+ = *boxed;
                $body
            }
            $crate::device::Opened::Gpu(boxed) => {
                let $($backend)+ = *boxed;
                $body
            }
            #[cfg(feature = "sim")]
            $crate::device::Opened::Emulator(boxed) => {
                let $($backend)+ = *boxed;
                $body
            }
        }
    };
}

pub(crate) use on_device;

impl Device {
    /// `threads` are the CPU's; `precision` is that of products.
    pub(crate) fn open(&self, threads: usize, precision: Precision) -> anyhow::Result<Opened> {
        match *self {
            Self::Cpu => Ok(Opened::Cpu(Box::new(Cpu::new(threads, precision)))),
            #[cfg(feature = "sim")]
            Self::Emulator => {
                Ok(Opened::Emulator(Box::new(CudaBackend::new(Emulator::new(Mode::FAST, 90), precision))))
            }
            Self::Gpu(ordinal) => {
                let gpu = Gpu::open(ordinal, &cuda::kernels(), &machine::code_paths())?;
                tracing::warn!(
                    "this version's CUDA kernels have not run on hardware yet, only in an emulator: compare answers with \
                     --device cpu before you trust them"
                );
                Ok(Opened::Gpu(Box::new(CudaBackend::new(gpu, precision))))
            }
        }
    }
}

impl Opened {
    /// The same, with a cache that stores its rows so.
    pub(crate) fn with_cache(self, cache: CacheFormat) -> Self {
        match self {
            Self::Cpu(cpu) => Self::Cpu(Box::new(cpu.with_cache(cache))),
            Self::Gpu(backend) => Self::Gpu(Box::new(backend.with_cache(cache))),
            #[cfg(feature = "sim")]
            Self::Emulator(backend) => Self::Emulator(Box::new(backend.with_cache(cache))),
        }
    }

    /// `cpu (avx512-bf16)`
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("cpu ({})", cpu.isa().name()),
            Self::Gpu(backend) => cuda_name(backend),
            #[cfg(feature = "sim")]
            Self::Emulator(backend) => cuda_name(backend),
        }
    }

    /// A GPU's memory is its own, and it must compute many tokens together to pay for reading its weights.
    pub(crate) fn defaults(&self) -> Defaults {
        match self {
            Self::Gpu(_) => Defaults { share: 0.9, step_tokens: 2048 },
            _ => Defaults { share: 0.7, step_tokens: 512 },
        }
    }

    /// How prompts are read beside answers. On the CPU the engine's own values. A GPU reads nearly all experts in any step
    /// with a few tens of sequences, some 30 GB of DeepSeek-V2-Lite's or 10 ms, in which it could compute a thousand tokens:
    /// by arithmetic, not by measurement.
    pub(crate) fn policy(&self) -> engine::Policy {
        match self {
            Self::Gpu(_) => engine::Policy {
                prompt_tokens_beside_answers: 1024,
                prompt_pairs_beside_answers: 1 << 24,
                ..engine::Policy::default()
            },
            _ => engine::Policy::default(),
        }
    }

    /// Memory that can be taken; `None` where nobody tells.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        match self {
            Self::Gpu(backend) => backend.device().free_bytes().ok(),
            _ => machine::available_memory(),
        }
    }
}

/// `cuda (NVIDIA H100 80GB HBM3, sm_90)`
fn cuda_name<D: cuda::Device>(backend: &CudaBackend<D>) -> String {
    let about = backend.device().about();
    format!("cuda ({}, sm_{})", about.name, about.arch)
}

/// What a device reaches at most.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Limits {
    pub threads: usize,
    /// Bytes a second, measured by reading memory far larger than the caches.
    pub read_bandwidth: f64,
    /// Operations a second of a product whose operands stay in cache.
    pub peak_flops: f64,
}

/// A backend that may tell what it reaches at most.
pub(crate) trait Measured: Backend {
    fn limits(&mut self) -> Result<Option<Limits>, KernelError>;
}

impl Measured for Cpu {
    fn limits(&mut self) -> Result<Option<Limits>, KernelError> {
        let (read_bandwidth, peak_flops) = (self.read_bandwidth(1 << 30)?, self.peak_flops()?);
        Ok(Some(Limits { threads: self.threads(), read_bandwidth, peak_flops }))
    }
}

/// `scripts/gpu` measures a GPU's.
impl<D: cuda::Device> Measured for CudaBackend<D> {
    fn limits(&mut self) -> Result<Option<Limits>, KernelError> {
        Ok(None)
    }
}

/// A backend that may know better than by arithmetic what its weights have left.
pub(crate) trait FreeMemory: Backend {
    /// `None`: ask nobody, go by the plan.
    fn free_beside_weights(&self) -> Option<u64> {
        None
    }
}

/// The system's figure counts pages of the checkpoint that can go.
impl FreeMemory for Cpu {}

impl<D: cuda::Device> FreeMemory for CudaBackend<D> {
    fn free_beside_weights(&self) -> Option<u64> {
        self.device().free_bytes().ok()
    }
}

/// Its number and name, or why it cannot be computed on.
pub(crate) fn usable(found: &Result<Driver, NoGpu>, ordinal: usize) -> Result<(usize, String), String> {
    let driver = found.as_ref().map_err(NoGpu::to_string)?;
    let count = driver.gpus.len();
    let about: &About =
        driver.gpus.get(ordinal).ok_or_else(|| NoGpu::Ordinal { ordinal, count }.to_string())?;
    cuda::is_supported(ordinal, about).map_err(|error| error.to_string())?;
    cuda::can_make_code(about.arch, driver.version, &machine::code_paths())
        .map_err(|error| error.to_string())?;
    Ok((ordinal, about.name.clone()))
}

/// The driver numbers the fastest first.
fn first_usable(found: &Result<Driver, NoGpu>) -> Result<(usize, String), String> {
    let count = found.as_ref().map_or(1, |driver| driver.gpus.len());
    let mut tried: Vec<_> = (0..count).map(|ordinal| usable(found, ordinal)).collect();
    match tried.iter().position(Result::is_ok) {
        Some(first) => tried.swap_remove(first),
        None => Err(tried.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; ")),
    }
}

fn tried(gpu: (usize, String)) -> Result<(usize, String), String> {
    match UNTRIED {
        None => Ok(gpu),
        Some(why) => Err(format!("GPU {} ({}) is there, but {why}", gpu.0, gpu.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<DeviceChoice>) {
        let parsed = text.parse::<DeviceChoice>();
        assert_eq!(parsed.as_ref().ok(), expected.as_ref(), "{text}");
        if let Err(error) = parsed {
            assert!(error.contains("use auto, cpu, cuda"), "{error}");
        }
    }

    #[test]
    fn devices_are_told_apart() {
        check("auto", Some(DeviceChoice::Auto));
        check("cpu", Some(DeviceChoice::Cpu));
        check("cuda", Some(DeviceChoice::Cuda(0)));
        check("cuda:0", Some(DeviceChoice::Cuda(0)));
        check("cuda:12", Some(DeviceChoice::Cuda(12)));
        for text in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:0x1",
            "cuda:1,2",
            "cuda 1",
            "cuda:99999999999999999999",
        ] {
            check(text, None);
        }
    }

    fn gpu(name: &str, arch: u32) -> About {
        let name = name.into();
        About { name, arch, multiprocessors: 1, shared_bytes_max: 99 << 10, memory_bytes: 1 << 30 }
    }

    /// What is chosen, or the error.
    fn among(choice: DeviceChoice, found: &Result<Driver, NoGpu>) -> String {
        choice.among(found).map_or_else(|error| format!("error: {error}"), |chosen| chosen.to_string())
    }

    #[test]
    fn auto_falls_back_and_cuda_does_not() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        let version = cuda::Version { major: 13, minor: 0 };
        let old = Ok(Driver { version, gpus: vec![gpu("Tesla V100", 70)] });
        for (choice, found, expected) in [
            (Cpu, &Err(NoGpu::NoDriver), "the CPU: asked for"),
            (Auto, &Err(NoGpu::NoDriver), "the CPU: no NVIDIA driver is found"),
            (Auto, &Err(NoGpu::NoDevice), "the CPU: the NVIDIA driver shows no GPU"),
            (Auto, &old, "the CPU: GPU 0 (Tesla V100) has compute capability 7.0"),
            (Cuda(0), &Err(NoGpu::NoDriver), "error: device cuda:0: no NVIDIA driver is found"),
            (Cuda(0), &old, "error: device cuda:0: GPU 0 (Tesla V100) has compute capability 7.0"),
            (Cuda(1), &old, "error: device cuda:1: there is no GPU 1: the NVIDIA driver shows 1"),
        ] {
            let said = among(choice, found);
            assert!(said.starts_with(expected), "{choice}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
