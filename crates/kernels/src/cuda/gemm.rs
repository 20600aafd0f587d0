//! Products of weights with activations: dense, gated, by expert, by head.

use super::{CudaBackend, Device, Held};
use crate::backend::Workspace;
use crate::error::{KernelError, Result};
use crate::ops::{AbsorbOutput, AbsorbQuery, Experts, GatedMlp, Linear, LmHead};

mod pack;

pub use pack::CudaWeight;
pub(crate) use pack::Kind;
pub(super) use pack::pack;

pub(super) struct Scratch<D: Device> {
    _middle: Option<Held<D>>,
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(_: &CudaBackend<D>, _: &Workspace) -> Result<Self> {
        Ok(Self { _middle: None })
    }
}

fn absent(op: &'static str) -> KernelError {
    KernelError::Device { op, what: "no kernel yet".into() }
}

pub(super) fn linear<D: Device>(_: &CudaBackend<D>, _: &Linear<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("linear"))
}

pub(super) fn absorb_query<D: Device>(_: &CudaBackend<D>, _: &AbsorbQuery<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("absorb_query"))
}

pub(super) fn absorb_output<D: Device>(
    _: &CudaBackend<D>,
    _: &AbsorbOutput<'_, CudaBackend<D>>,
) -> Result<()> {
    Err(absent("absorb_output"))
}

pub(super) fn gated_mlp<D: Device>(_: &CudaBackend<D>, _: &GatedMlp<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("gated_mlp"))
}

pub(super) fn experts<D: Device>(_: &CudaBackend<D>, _: &Experts<'_, CudaBackend<D>>) -> Result<()> {
    Err(absent("experts"))
}

/// Ends the step: runs its launches and brings the logits.
pub(super) fn lm_head<D: Device>(b: &mut CudaBackend<D>, _: LmHead<'_, CudaBackend<D>>) -> Result<()> {
    b.finish()?;
    Err(absent("lm_head"))
}

pub(super) const KERNELS: &[&super::Kernel] = &[];
