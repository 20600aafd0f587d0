//! Attention in latent space over paged rows: split over keys, then combined.

use super::{CudaBackend, Device, Held};
use crate::backend::Workspace;
use crate::error::{KernelError, Result};
use crate::ops::AttendLatent;

pub(super) struct Scratch<D: Device> {
    _partials: Option<Held<D>>,
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(_: &CudaBackend<D>, _: &Workspace) -> Result<Self> {
        Ok(Self { _partials: None })
    }

    /// Items that the partial results of one pass have room for.
    pub(super) fn pass_items(&self) -> usize {
        1
    }
}

pub(super) fn attend_latent<D: Device>(
    _: &CudaBackend<D>,
    _: &AttendLatent<'_, CudaBackend<D>>,
) -> Result<()> {
    Err(KernelError::Device { op: "attend_latent", what: "no kernel yet".into() })
}

pub(super) const KERNELS: &[&super::Kernel] = &[];
