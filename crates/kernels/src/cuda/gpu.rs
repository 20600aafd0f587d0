//! A GPU under NVIDIA's driver. Not run on hardware yet: what is known of it comes from tests under a driver without a GPU
//! (`tests/fake_driver.cpp`), and from how it refuses where there is none.

mod driver;
mod loaded;
mod staging;
#[cfg(all(test, feature = "sim"))]
mod tests;

pub use driver::{Driver, driver, is_supported};

use super::compile::{self, Code, CodePaths, NoCode, Origin, Version};
use super::device::{About, Device, Kernel, Launch, Ptr};
use crate::error::{KernelError, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};
use driver::said;
use loaded::{Loaded, sizes};
use staging::{Reading, Readings, Staging};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a GPU cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpu {
    #[error(
        "no NVIDIA driver is found (libcuda.so.1 does not load): install it, or give the container GPUs (docker: \
         --gpus all)"
    )]
    NoDriver,
    #[error("the NVIDIA driver is of CUDA {driver}, and {needed} or later is needed: update the driver")]
    OldDriver { driver: Version, needed: Version },
    #[error(
        "the NVIDIA driver shows no GPU: see whether nvidia-smi lists one, and what CUDA_VISIBLE_DEVICES says"
    )]
    NoDevice,
    #[error("the NVIDIA driver fails: {0}")]
    Driver(String),
    #[error("there is no GPU {ordinal}: the NVIDIA driver shows {count}, numbered from 0")]
    Ordinal { ordinal: usize, count: usize },
    #[error(
        "GPU {ordinal} ({name}) has compute capability {major}.{minor}, and 8.0 (A100, RTX 30) or later is needed"
    )]
    TooOld { ordinal: usize, name: String, major: u32, minor: u32 },
    #[error("GPU {ordinal} ({name}) cannot be opened: {what}")]
    Failed { ordinal: usize, name: String, what: String },
    #[error(transparent)]
    NoCode(#[from] NoCode),
    /// Driver and sources disagree about a kernel: a mistake of ours.
    #[error("the kernels do not load on {name}: {what}")]
    Kernels { name: String, what: String },
}

/// One GPU, with our kernels on it and a stream for all that it does.
pub struct Gpu {
    about: About,
    driver: Version,
    stream: Arc<CudaStream>,
    loaded: Arc<Loaded>,
    staging: RefCell<Staging>,
    readings: RefCell<Readings>,
    code: Vec<(&'static str, Origin)>,
    /// Wait after each launch.
    stepwise: bool,
}

/// A piece of a GPU's memory.
pub struct Memory {
    address: sys::CUdeviceptr,
    bytes: usize,
    stream: Arc<CudaStream>,
}

/// Launches to be run again as they are.
pub struct Graph {
    graph: CudaGraph,
    /// Whose functions it names.
    _loaded: Arc<Loaded>,
}

// SAFETY: a graph belongs to a context and not to a thread, and nobody else has its handles. Each call binds the context.
unsafe impl Send for Graph {}

impl Gpu {
    /// Finds `kernels` on the GPU `ordinal`, so that a missing one fails now. Compiles them if need be.
    pub fn open(
        ordinal: usize,
        kernels: &[&'static Kernel],
        paths: &CodePaths,
    ) -> std::result::Result<Self, NoGpu> {
        let (driver, about, stream) = driver::open(ordinal)?;
        let files: BTreeSet<&str> = kernels.iter().map(|kernel| kernel.file).collect();
        let code = compile::code(about.arch, driver, &Vec::from_iter(files), paths)?;
        let loaded = Loaded::new(stream.context(), &about, &code, kernels)?;
        let staging = Staging::new(stream.context());
        let staging = staging.map_err(|error| NoGpu::Failed {
            ordinal,
            name: about.name.clone(),
            what: said(error),
        })?;
        Ok(Self {
            about,
            driver,
            stream,
            loaded: Arc::new(loaded),
            staging: RefCell::new(staging),
            readings: RefCell::default(),
            code: code.iter().map(|Code { file, origin, .. }| (*file, *origin)).collect(),
            stepwise: false,
        })
    }

    /// Waits after each launch, so that a kernel that fails is named: for finding faults.
    pub fn stepwise(mut self) -> Self {
        self.stepwise = true;
        self
    }

    /// The driver's version of CUDA.
    pub fn driver(&self) -> Version {
        self.driver
    }

    /// Where the code of each module came from.
    pub fn code(&self) -> &[(&'static str, Origin)] {
        &self.code
    }

    fn bind(&self, op: &'static str) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(|error| failed(op, "", error))
    }

    fn launch(&self, launches: &[Launch]) -> Result<()> {
        launches.iter().try_for_each(|launch| self.loaded.launch(launch, &self.stream))
    }

    /// What was captured is known when capturing ends, as it must in any case.
    fn captured(&self, launches: &[Launch]) -> Result<CudaGraph> {
        let failed = |error| failed("capture", &format!("{} launches: ", launches.len()), error);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed)?;
        let launched = self.launch(launches);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        launched?;
        graph.map_err(failed)?.ok_or_else(|| refused("capture", "no graph came of it".into()))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Copies and launches under way use the slots and modules that go next.
        let _ = self.stream.synchronize();
    }
}

impl Device for Gpu {
    type Memory = Memory;
    type Graph = Graph;
    type Reading = Reading;

    fn about(&self) -> &About {
        &self.about
    }

    fn free_bytes(&self) -> Result<u64> {
        let free = self.stream.context().mem_get_info();
        free.map(|(free, _)| free as u64).map_err(|error| failed("free_bytes", "", error))
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Memory> {
        self.bind("allocate")?;
        let failed = |error: DriverError| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => KernelError::Memory { what, bytes },
            _ => self::failed("allocate", &format!("{bytes} B for {what}: "), error),
        };
        // SAFETY: the context is bound; what the memory holds is set next. None has no address, so at least 1.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(failed)?;
        let memory = Memory { address, bytes, stream: self.stream.clone() };
        // SAFETY: the memory is that long, and is freed only once the stream has come past this.
        unsafe { result::memset_d8_async(address, 0, bytes.max(1), self.stream.cu_stream()) }
            .map_err(failed)?;
        Ok(memory)
    }

    fn address(memory: &Memory) -> Ptr {
        Ptr(memory.address)
    }

    fn bytes(memory: &Memory) -> usize {
        memory.bytes
    }

    fn write(&self, to: &Memory, at: usize, bytes: &[u8]) -> Result<()> {
        to.check("write", at, bytes.len())?;
        self.bind("write")?;
        // SAFETY: within memory, as checked, which is freed only once the stream has come past this.
        let written = unsafe { self.staging.borrow_mut().write(&self.stream, to.address + at as u64, bytes) };
        written.map_err(|error| failed("write", &format!("{} B: ", bytes.len()), error))
    }

    fn read(&self, from: &Memory, at: usize, out: &mut [u8]) -> Result<()> {
        from.check("read", at, out.len())?;
        self.bind("read")?;
        let len = out.len();
        // SAFETY: within memory, as checked, which is borrowed through the call.
        let read = unsafe { self.staging.borrow_mut().read(&self.stream, from.address + at as u64, out) };
        // The first that waits hears what kernels before it did wrong.
        read.map_err(|error| failed("read", &format!("{len} B, or a kernel before: "), error))
    }

    fn read_later(&self, from: &Memory, at: usize, len: usize) -> Result<Reading> {
        from.check("read_later", at, len)?;
        self.bind("read_later")?;
        // SAFETY: within memory, as checked, which is freed only once the stream has come past this.
        let begun = unsafe { self.readings.borrow_mut().begin(&self.stream, from.address + at as u64, len) };
        begun.map_err(|error| failed("read_later", &format!("{len} B: "), error))
    }

    fn finish_reading(&self, reading: Reading, out: &mut [u8]) -> Result<()> {
        self.bind("finish_reading")?;
        let read = self.readings.borrow_mut().finish(reading, out);
        // The first that waits hears what kernels before it did wrong.
        read.map_err(|error| failed("finish_reading", "a kernel of the step: ", error))
    }

    fn run(&self, launches: &[Launch]) -> Result<()> {
        self.bind("run")?;
        if !self.stepwise {
            return self.launch(launches);
        }
        launches.iter().try_for_each(|launch| {
            self.loaded.launch(launch, &self.stream)?;
            let failed = |error| failed(launch.kernel.name, &format!("{}: ", sizes(launch)), error);
            self.stream.synchronize().map_err(failed)
        })
    }

    fn capture(&self, launches: &[Launch]) -> Result<Graph> {
        self.bind("capture")?;
        let graph = self.captured(launches)?;
        graph.upload().map_err(|error| failed("capture", "", error))?;
        Ok(Graph { graph, _loaded: self.loaded.clone() })
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        graph.graph.launch().map_err(|error| failed("replay", "", error))
    }
}

impl Memory {
    fn check(&self, op: &'static str, at: usize, len: usize) -> Result<()> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.bytes);
        crate::error::require(fits, op, || format!("{len} B at {at} of {} B", self.bytes))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Launches that name it are over first; a GPU that has failed keeps it, and the process ends anyway.
        if self.stream.synchronize().is_ok() {
            // SAFETY: allocated once, freed once; synchronizing has bound the context.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// The driver's errors after which each call of this process returns an error: those that its documentation says so of,
/// and those of hardware that is gone (999 is what is seen of a GPU that fell off its bus).
fn is_lost(error: DriverError) -> bool {
    use sys::CUresult as E;
    matches!(
        error.0,
        E::CUDA_ERROR_DEINITIALIZED
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_CONTAINED
            | E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | E::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | E::CUDA_ERROR_UNKNOWN
    )
}

/// The driver returned an error. `about`: what was done, with a colon behind it.
fn failed(op: &'static str, about: &str, error: DriverError) -> KernelError {
    let what = format!("{about}{}", said(error));
    if is_lost(error) { KernelError::Lost { op, what } } else { KernelError::Device { op, what } }
}

/// Not the driver: we refuse it.
fn refused(op: &'static str, what: String) -> KernelError {
    KernelError::Device { op, what }
}

#[cfg(test)]
mod without_a_gpu {
    use super::*;

    /// A machine with a GPU says something else than one without, and none panics.
    #[test]
    fn a_gpu_that_is_not_there_is_refused_with_the_remedy() {
        let error = Gpu::open(1000, &[], &CodePaths::default()).err().expect("no machine has 1001 GPUs");
        let expected = match &error {
            NoGpu::NoDriver => "install it",
            NoGpu::NoDevice => "nvidia-smi",
            NoGpu::OldDriver { .. } => "update the driver",
            NoGpu::Ordinal { ordinal: 1000, .. } => "numbered from 0",
            other => panic!("{other}"),
        };
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn gpus_before_ampere_are_refused_by_name() {
        let about = |arch| About {
            name: "Tesla V100".into(),
            arch,
            multiprocessors: 80,
            shared_bytes_max: 96 << 10,
            memory_bytes: 16 << 30,
        };
        let error = is_supported(2, &about(70)).unwrap_err().to_string();
        assert!(error.contains("GPU 2 (Tesla V100) has compute capability 7.0"), "{error}");
        assert_eq!(is_supported(0, &about(80)), Ok(()));
    }
}
