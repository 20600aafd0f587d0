//! Copies between the host and the GPU, through memory that the GPU reaches by itself.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice};
use std::sync::Arc;

/// Large enough for full speed over PCIe, and for a step's indices in one piece.
const SLOT_BYTES: usize = 4 << 20;
/// The host fills or empties one while the GPU copies the other.
const SLOTS: usize = 2;

pub(super) struct Staging {
    slots: [Slot; SLOTS],
    next: usize,
}

struct Slot {
    host: PinnedHostSlice<u8>,
    /// Its last copy is over.
    done: CudaEvent,
}

/// Small reads that wait for nobody: each has pinned memory of its own until it is finished.
#[derive(Default)]
pub(super) struct Readings {
    spare: Vec<Slot>,
}

/// A read under way.
pub struct Reading(Slot);

impl Readings {
    /// # Safety
    /// `len` bytes of the GPU's memory begin at `from`, and live until the stream has come past this copy.
    pub(super) unsafe fn begin(
        &mut self,
        stream: &CudaStream,
        from: u64,
        len: usize,
    ) -> Result<Reading, DriverError> {
        let large_enough = |slot: &Slot| slot.host.len() >= len;
        let mut slot = match self.spare.iter().position(large_enough) {
            Some(at) => self.spare.swap_remove(at),
            None => Slot::new(stream.context(), len.next_power_of_two())?,
        };
        // The slot's event is past, or was never recorded.
        let host = &mut slot.host.as_mut_slice()?[..len];
        // SAFETY: the source is as the caller promises; the slot is not touched before its event.
        unsafe { result::memcpy_dtoh_async(host, from, stream.cu_stream()) }?;
        slot.done.record(stream)?;
        Ok(Reading(slot))
    }

    /// Waits. `out` is as long as what is read.
    pub(super) fn finish(&mut self, reading: Reading, out: &mut [u8]) -> Result<(), DriverError> {
        let Reading(slot) = reading;
        slot.done.synchronize()?;
        out.copy_from_slice(&slot.host.as_slice()?[..out.len()]);
        self.spare.push(slot);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A copy that nobody has waited for may still write to it.
        let _ = self.done.synchronize();
    }
}

impl Slot {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        // SAFETY: bytes of any value are bytes, and each is written before it is read.
        let host = unsafe { context.alloc_pinned_with_flags::<u8>(bytes, 0) }?;
        Ok(Self { host, done: context.new_event(None)? })
    }
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let slot = || Slot::new(context, SLOT_BYTES);
        Ok(Self { slots: [slot()?, slot()?], next: 0 })
    }

    /// A slot that no copy uses any more.
    fn free_slot(&mut self) -> Result<&mut Slot, DriverError> {
        self.next = (self.next + 1) % SLOTS;
        let slot = &mut self.slots[self.next];
        slot.done.synchronize()?;
        Ok(slot)
    }

    /// # Safety
    /// `bytes.len()` bytes of the GPU's memory begin at `to`, and live until the stream has come past this copy.
    pub(super) unsafe fn write(
        &mut self,
        stream: &CudaStream,
        to: u64,
        bytes: &[u8],
    ) -> Result<(), DriverError> {
        for (i, piece) in bytes.chunks(SLOT_BYTES).enumerate() {
            let slot = self.free_slot()?;
            let host = &mut slot.host.as_mut_slice()?[..piece.len()];
            host.copy_from_slice(piece);
            let at = to + (i * SLOT_BYTES) as u64;
            // SAFETY: the target is as the caller promises; the slot is not touched before its event.
            unsafe { result::memcpy_htod_async(at, host, stream.cu_stream()) }?;
            slot.done.record(stream)?;
        }
        Ok(())
    }

    /// # Safety
    /// `out.len()` bytes of the GPU's memory begin at `from` and live through the call.
    pub(super) unsafe fn read(
        &mut self,
        stream: &CudaStream,
        from: u64,
        out: &mut [u8],
    ) -> Result<(), DriverError> {
        let pieces = out.len().div_ceil(SLOT_BYTES);
        // One more round than pieces: in round i the GPU copies piece i, and the host takes piece i - 1.
        for round in 0..=pieces {
            if round < pieces {
                let at = round * SLOT_BYTES;
                let len = SLOT_BYTES.min(out.len() - at);
                let slot = &mut self.slots[round % SLOTS];
                let host = &mut slot.host.as_mut_slice()?[..len];
                // SAFETY: the source is as the caller promises; the slot is not touched before its event, and what was
                // copied from it before is past by then: one stream does both.
                unsafe { result::memcpy_dtoh_async(host, from + at as u64, stream.cu_stream()) }?;
                slot.done.record(stream)?;
            }
            if let Some(piece) = round.checked_sub(1) {
                let slot = &self.slots[piece % SLOTS];
                slot.done.synchronize()?;
                let out = out.chunks_mut(SLOT_BYTES).nth(piece).unwrap_or_default();
                out.copy_from_slice(&slot.host.as_slice()?[..out.len()]);
            }
        }
        Ok(())
    }
}
