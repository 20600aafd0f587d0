//! The driver, if there is one, and the GPUs that it shows.
//!
//! cudarc panics where the library is missing or lacks a function. So each way to it begins with [`driver`], which asks
//! first: whether the library loads, and whether its version is one that has all that we call.

use super::NoGpu;
use crate::cuda::{About, Version};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{CudaContext, CudaStream};
use std::ffi::c_int;
use std::sync::Arc;

/// The first with `cuFuncGetParamInfo` and `cuFuncLoad`.
const OLDEST: Version = Version { major: 12, minor: 4 };
/// Compute capability from which `cp.async` and bf16 tensor cores are there.
const LEAST_ARCH: u32 = 80;

/// The driver and what it shows, in the driver's order, which `CUDA_VISIBLE_DEVICES` changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    pub version: Version,
    pub gpus: Vec<About>,
}

/// What the driver shows; takes no memory on a GPU. Where there is a driver, the first call takes a while.
pub fn driver() -> Result<Driver, NoGpu> {
    // SAFETY: loads the library and lets go of it; it may be loaded at any time.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoGpu::NoDriver);
    }
    let mut number: c_int = 0;
    // SAFETY: the library is there, `number` lives on, and this function needs no initialization.
    unsafe { sys::cuDriverGetVersion(&raw mut number) }.result().map_err(driver_failed)?;
    let number = u32::try_from(number).unwrap_or(0);
    let version = Version { major: number / 1000, minor: number % 1000 / 10 };
    if version < OLDEST {
        return Err(NoGpu::OldDriver { driver: version, needed: OLDEST });
    }
    let count = match CudaContext::device_count() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) | Ok(0) => return Err(NoGpu::NoDevice),
        count => count.map_err(driver_failed)?,
    };
    let gpus = (0..count).map(about).collect::<Result<_, _>>().map_err(driver_failed)?;
    Ok(Driver { version, gpus })
}

/// Whether our kernels can run there at all.
pub fn is_supported(ordinal: usize, about: &About) -> Result<(), NoGpu> {
    if about.arch >= LEAST_ARCH {
        return Ok(());
    }
    Err(NoGpu::TooOld { ordinal, name: about.name.clone(), major: about.arch / 10, minor: about.arch % 10 })
}

/// A GPU ready for work: its driver's version, and a stream of our own.
pub(super) fn open(ordinal: usize) -> Result<(Version, About, Arc<CudaStream>), NoGpu> {
    let Driver { version, gpus } = driver()?;
    let about = gpus.get(ordinal).cloned().ok_or(NoGpu::Ordinal { ordinal, count: gpus.len() })?;
    is_supported(ordinal, &about)?;
    let failed = |error| NoGpu::Failed { ordinal, name: about.name.clone(), what: said(error) };
    let context = CudaContext::new(ordinal).map_err(failed)?;
    // SAFETY: all work goes to one stream, so that no two uses of memory need an event between them.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().map_err(failed)?;
    Ok((version, about, stream))
}

/// The driver's own words for an error.
pub(super) fn said(error: DriverError) -> String {
    let words = error.error_string().ok().and_then(|words| words.to_str().ok());
    format!("{} ({:?})", words.unwrap_or("no words for it"), error.0)
}

fn driver_failed(error: DriverError) -> NoGpu {
    NoGpu::Driver(said(error))
}

fn about(ordinal: i32) -> Result<About, DriverError> {
    let device = result::device::get(ordinal)?;
    let number = |attribute| {
        // SAFETY: the device is one that the driver has just named.
        let value = unsafe { result::device::get_attribute(device, attribute) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(About {
        name: result::device::get_name(device)?,
        arch: 10 * major + minor,
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
    })
}
