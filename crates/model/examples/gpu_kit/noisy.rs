//! A device whose large memory begins as noise, made there: weights that say nothing need not travel.

use kernels::Result;
use kernels::cuda::{About, Device, Launch, Ptr, peaks};
use std::cell::Cell;

pub(crate) struct Noisy<D: Device> {
    device: D,
    on: Cell<bool>,
    /// Bytes from which memory is large.
    least: usize,
    seed: Cell<i32>,
}

impl<D: Device> Noisy<D> {
    pub(crate) fn new(device: D, least: usize) -> Self {
        Self { device, on: Cell::new(false), least, seed: Cell::new(0) }
    }

    /// While it is on, large memory is filled when it is made, and what is written to it is left out. Memory that must
    /// begin as zeros is to be made while it is off.
    pub(crate) fn set(&self, on: bool) {
        self.on.set(on);
    }

    fn is_filled(&self, bytes: usize) -> bool {
        self.on.get() && bytes >= self.least
    }
}

impl<D: Device> Device for Noisy<D> {
    type Memory = D::Memory;
    type Reading = D::Reading;
    type Graph = D::Graph;

    fn about(&self) -> &About {
        self.device.about()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.device.free_bytes()
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<D::Memory> {
        let memory = self.device.allocate(bytes, what)?;
        if self.is_filled(bytes) {
            self.seed.set(self.seed.get().wrapping_add(1));
            self.device.run(&[peaks::fill::<D>(&memory, self.seed.get())])?;
        }
        Ok(memory)
    }

    fn address(memory: &D::Memory) -> Ptr {
        D::address(memory)
    }

    fn bytes(memory: &D::Memory) -> usize {
        D::bytes(memory)
    }

    fn write(&self, to: &D::Memory, at: usize, bytes: &[u8]) -> Result<()> {
        if self.is_filled(D::bytes(to)) {
            return Ok(());
        }
        self.device.write(to, at, bytes)
    }

    fn read(&self, from: &D::Memory, at: usize, out: &mut [u8]) -> Result<()> {
        self.device.read(from, at, out)
    }

    fn read_later(&self, from: &D::Memory, at: usize, len: usize) -> Result<D::Reading> {
        self.device.read_later(from, at, len)
    }

    fn finish_reading(&self, reading: D::Reading, out: &mut [u8]) -> Result<()> {
        self.device.finish_reading(reading, out)
    }

    fn run(&self, launches: &[Launch]) -> Result<()> {
        self.device.run(launches)
    }

    fn capture(&self, launches: &[Launch]) -> Result<D::Graph> {
        self.device.capture(launches)
    }

    fn replay(&self, graph: &D::Graph) -> Result<()> {
        self.device.replay(graph)
    }
}
