//! Memory on the device, kept while launches on the list may touch it.

use super::CudaBackend;
use super::device::{Device, Ptr};
use crate::backend::{MlaDims, Rope};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{KernelError, Result};
use crate::step::StepLimits;
use std::sync::{Arc, Mutex, PoisonError};

/// Memory that launches on the list may still touch goes here when its owner lets go; emptied when the list has run.
pub(super) type Bin<D> = Arc<Mutex<Vec<<D as Device>::Memory>>>;

/// Memory on the device that outlives the launches that name it.
pub struct Held<D: Device> {
    memory: Option<D::Memory>,
    bin: Bin<D>,
}

impl<D: Device> Held<D> {
    pub(super) fn get(&self) -> &D::Memory {
        self.memory.as_ref().expect("present until dropped")
    }

    pub(super) fn ptr(&self) -> Ptr {
        D::address(self.get())
    }
}

impl<D: Device> Drop for Held<D> {
    fn drop(&mut self) {
        let mut bin = self.bin.lock().unwrap_or_else(PoisonError::into_inner);
        bin.extend(self.memory.take());
    }
}

/// `len` numbers of 4 bytes: f32 activations, or expert ids.
pub struct CudaBuffer<D: Device> {
    pub(super) held: Held<D>,
    pub(super) len: usize,
}

impl<D: Device> CudaBuffer<D> {
    pub(super) fn ptr(&self) -> Ptr {
        self.held.ptr()
    }
}

/// `[layers, slots, latent_width]`; how rows lie in it, `csrc/page.h` says.
pub struct CudaArena<D: Device> {
    pub(super) held: Held<D>,
    pub(super) shape: [usize; 3],
    /// What attention computes in.
    pub(super) precision: Precision,
    pub(super) format: CacheFormat,
    pub(super) row_bytes: usize,
    /// Pages of 64 rows as `ldmatrix` or the widening to it reads them; else rows one after another.
    pub(super) tiled: bool,
}

impl<D: Device> CudaArena<D> {
    pub(super) fn new(
        b: &CudaBackend<D>,
        layers: usize,
        limits: &StepLimits,
        dims: &MlaDims,
    ) -> Result<Self> {
        limits.check()?;
        let shape = [layers, limits.slots(), dims.latent_width()];
        let (precision, format) = (b.precision, b.cache);
        let tiled = format.fills_pages(precision, dims) && limits.block_len.is_multiple_of(64);
        let row_bytes = format.row_bytes(precision, dims);
        let what = "the latent cache";
        let bytes = layers.checked_mul(shape[1]).and_then(|n| n.checked_mul(row_bytes));
        let held = b.hold(bytes.ok_or(KernelError::Memory { what, bytes: usize::MAX })?, what)?;
        Ok(Self { held, shape, precision, format, row_bytes, tiled })
    }

    pub(super) fn layer_bytes(&self) -> usize {
        self.shape[1] * self.row_bytes
    }

    pub(super) fn layer(&self, layer: usize) -> Ptr {
        self.held.ptr().offset(layer * self.layer_bytes())
    }
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn hold(&self, bytes: usize, what: &'static str) -> Result<Held<D>> {
        let memory = self.device.allocate(bytes.max(4), what)?;
        self.taken.set(self.taken.get() + D::bytes(&memory));
        Ok(Held { memory: Some(memory), bin: self.bin.clone() })
    }

    pub(super) fn empty_bin(&self) {
        self.bin.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn buffer_of(&self, len: usize) -> Result<CudaBuffer<D>> {
        Ok(CudaBuffer { held: self.hold(4 * len, "a buffer")?, len })
    }

    /// The first `N`-byte numbers of a buffer, after all that is on the list.
    pub(super) fn download<const N: usize, T>(
        &self,
        buffer: &CudaBuffer<D>,
        len: usize,
        from: fn([u8; N]) -> T,
    ) -> Vec<T> {
        assert!(len <= buffer.len, "{len} numbers of a buffer of {}", buffer.len);
        let mut bytes = vec![0; len * N];
        self.flush()
            .and_then(|()| self.device.read(buffer.held.get(), 0, &mut bytes))
            .expect("a readable device");
        bytes.as_chunks::<N>().0.iter().map(|b| from(*b)).collect()
    }

    /// cos and sin of the positions below `context_len`.
    pub(super) fn angles(&self, rope: &Rope, context_len: usize) -> Result<Held<D>> {
        let angle = |position: usize| {
            let cos_sin = move |freq: &f32| {
                let angle = position as f32 * freq;
                [angle.cos() * rope.scale, angle.sin() * rope.scale]
            };
            rope.inv_freq.iter().flat_map(cos_sin)
        };
        let bytes: Vec<u8> = (0..context_len).flat_map(angle).flat_map(f32::to_ne_bytes).collect();
        let angles = self.hold(bytes.len(), "rotary angles")?;
        self.device.write(angles.get(), 0, &bytes)?;
        Ok(angles)
    }
}
