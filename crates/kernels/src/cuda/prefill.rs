//! Attention with keys and values expanded from the latent rows, for rows with many new tokens.

use super::{CudaBackend, Device, Held};
use crate::backend::Workspace;
use crate::error::{KernelError, Result};
use crate::ops::AttendExpanded;

pub(super) struct Scratch<D: Device> {
    _expanded: Option<Held<D>>,
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(_: &CudaBackend<D>, _: &Workspace) -> Result<Self> {
        Ok(Self { _expanded: None })
    }
}

pub(super) fn attend_expanded<D: Device>(
    b: &CudaBackend<D>,
    _: &AttendExpanded<'_, CudaBackend<D>>,
) -> Result<()> {
    match b.reserved("attend_expanded")?.step.expanded.is_empty() {
        true => Ok(()),
        false => Err(KernelError::Device { op: "attend_expanded", what: "no kernel yet".into() }),
    }
}

pub(super) const KERNELS: &[&super::Kernel] = &[];
