//! What is done row by row: embedding, norms, the latent rows, the router.

use super::{CudaBackend, Device};
use crate::error::{KernelError, Result};
use crate::ops::{AbsorbQuery, CopyBlocks, Embed, LatentWrite, RmsNorm, Route};

fn absent(op: &'static str) -> KernelError {
    KernelError::Device { op, what: "no kernel yet".into() }
}

pub(super) fn copy_blocks<D: Device>(_: &CudaBackend<D>, _: &CopyBlocks<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("copy_blocks"))
}

pub(super) fn embed<D: Device>(_: &CudaBackend<D>, _: &Embed<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("embed"))
}

pub(super) fn rms_norm<D: Device>(_: &CudaBackend<D>, _: &RmsNorm<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("rms_norm"))
}

pub(super) fn latent_write<D: Device>(_: &CudaBackend<D>, _: &LatentWrite<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("latent_write"))
}

/// The rotary part of the latent query: `q_latent[.., kv_lora_rank..] = rope(q_pe)`.
pub(super) fn rotate_query<D: Device>(_: &CudaBackend<D>, _: &AbsorbQuery<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("absorb_query"))
}

pub(super) fn route<D: Device>(_: &CudaBackend<D>, _: &Route<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("route"))
}
