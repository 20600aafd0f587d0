//! The latent cache, and what may be stored in it and in weights.

use super::packed::{Elements, Huge, PackedMatrices, Panels, SendPtr};
use super::scratch::{Operands, Scratch};
use super::tile::Elem;
use super::{Cpu, Isa, fp8};
use crate::backend::MlaDims;
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::Result;
use crate::step::StepState;
use half::bf16;
use std::slice::from_raw_parts_mut;

/// The latent cache: `[layers, n_blocks, block_len, row]`, rows in order.
pub struct LatentArena {
    elements: ArenaElements,
    /// `[layers, slots, latent_width]`
    pub(super) shape: [usize; 3],
    /// Elements from one row to the next: `latent_width` rounded up to whole tile steps; bytes of FP8.
    row: usize,
    /// Of the latent part.
    rank: usize,
    /// What attention reads it in.
    pub(super) precision: Precision,
}

enum ArenaElements {
    F32(Huge<f32>),
    Bf16(Huge<bf16>),
    Fp8(Huge<u8>),
}

impl LatentArena {
    /// Memory that is not touched before rows are written.
    pub(super) fn new(
        [layers, slots]: [usize; 2],
        dims: &MlaDims,
        precision: Precision,
        format: CacheFormat,
    ) -> Result<Self> {
        let width = dims.latent_width();
        let row = match (format, precision) {
            (CacheFormat::Fp8, _) => format.row_bytes(precision, dims),
            (CacheFormat::Plain, Precision::F32) => width.next_multiple_of(f32::PAIR),
            (CacheFormat::Plain, Precision::Bf16) => width.next_multiple_of(bf16::PAIR),
        };
        let len = layers.checked_mul(slots).and_then(|n| n.checked_mul(row)).unwrap_or(usize::MAX);
        let what = "the latent cache";
        let elements = match (format, precision) {
            (CacheFormat::Fp8, _) => ArenaElements::Fp8(Huge::zeroed(len, what)?),
            (CacheFormat::Plain, Precision::F32) => ArenaElements::F32(Huge::zeroed(len, what)?),
            (CacheFormat::Plain, Precision::Bf16) => ArenaElements::Bf16(Huge::zeroed(len, what)?),
        };
        Ok(Self { elements, shape: [layers, slots, width], row, rank: dims.kv_lora_rank, precision })
    }

    pub(super) fn format(&self) -> CacheFormat {
        if let ArenaElements::Fp8(_) = &self.elements { CacheFormat::Fp8 } else { CacheFormat::Plain }
    }

    pub(super) fn bytes(&self) -> usize {
        let [layers, slots, _] = self.shape;
        layers * slots * self.row_bytes()
    }

    /// From one row to the next.
    pub(super) fn row_bytes(&self) -> usize {
        match &self.elements {
            ArenaElements::F32(_) => 4 * self.row,
            ArenaElements::Bf16(_) => 2 * self.row,
            ArenaElements::Fp8(_) => self.row,
        }
    }

    fn as_bytes(&mut self) -> *mut u8 {
        match &mut self.elements {
            ArenaElements::F32(p) => p.as_mut_ptr().cast(),
            ArenaElements::Bf16(p) => p.as_mut_ptr().cast(),
            ArenaElements::Fp8(p) => p.as_mut_ptr(),
        }
    }

    /// Stores a row of `latent_width` numbers.
    pub(super) fn store(&mut self, isa: Isa, layer: usize, slot: usize, latent: &[f32]) {
        let [layers, slots, width] = self.shape;
        assert!(layer < layers && slot < slots && latent.len() == width);
        let at = (layer * slots + slot) * self.row;
        // SAFETY: the row lies within the arena, which is borrowed for writing.
        unsafe {
            match &mut self.elements {
                ArenaElements::F32(p) => {
                    f32::convert(isa, latent, from_raw_parts_mut(p.as_mut_ptr().add(at), width))
                }
                ArenaElements::Bf16(p) => {
                    bf16::convert(isa, latent, from_raw_parts_mut(p.as_mut_ptr().add(at), width))
                }
                ArenaElements::Fp8(p) => {
                    fp8::store(isa, latent, self.rank, from_raw_parts_mut(p.as_mut_ptr().add(at), self.row));
                }
            }
        }
    }

    /// Where the rows of keys `keys.first..` lie, as they are stored.
    pub(super) fn stored<T>(&self, keys: KeysOf<'_>, out: &mut [*const T]) {
        let [_, slots, _] = self.shape;
        let base: *const u8 = match &self.elements {
            ArenaElements::F32(p) => p.as_ptr().cast(),
            ArenaElements::Bf16(p) => p.as_ptr().cast(),
            ArenaElements::Fp8(p) => p.as_ptr(),
        };
        let row_bytes = self.row_bytes();
        for (i, o) in out.iter_mut().enumerate() {
            let slot = keys.step.slot(keys.row, keys.first + i);
            // The step's tables were checked against the limits, and `check_reserved` ties the arena to them.
            debug_assert!(slot < slots);
            *o = base.wrapping_add((keys.layer * slots + slot) * row_bytes).cast();
        }
    }

    /// Pointers to the numbers of keys `keys.first..`, readable for `latent_width` rounded up to whole steps, in the arena
    /// or, where they must be widened, in `widened`: `[out.len(), latent_width, rounded up]`.
    ///
    /// # Panics
    /// If the arena is not read in `E`.
    pub(super) fn rows<E: Stored>(
        &self,
        isa: Isa,
        keys: KeysOf<'_>,
        widened: &mut [E],
        out: &mut [*const E],
    ) {
        assert!(E::PRECISION == self.precision);
        self.stored(keys, out);
        let ArenaElements::Fp8(_) = &self.elements else { return };
        let width = self.shape[2];
        let stride = width.next_multiple_of(E::PAIR);
        let places = widened.chunks_exact_mut(stride);
        assert!(places.len() >= out.len());
        for (o, place) in out.iter_mut().zip(places) {
            // SAFETY: a row of the arena.
            let row = unsafe { std::slice::from_raw_parts(o.cast::<u8>(), self.row) };
            fp8::widen(isa, row, self.rank, &mut place[..width]);
            *o = place.as_ptr();
        }
    }
}

/// Keys `first..` of row `row` of a step, in one layer.
#[derive(Clone, Copy)]
pub(super) struct KeysOf<'a> {
    pub layer: usize,
    pub step: &'a StepState,
    pub row: usize,
    pub first: usize,
}

/// An element type that weights can hold and attention reads the arena in, and where their memory is.
pub(super) trait Stored: Elem {
    const PRECISION: Precision;

    fn panels(weight: &PackedMatrices) -> Option<&Panels<Self>>;
    fn operands(scratch: &mut Scratch) -> &mut Operands<Self>;
    /// e4m3 numbers times their scale.
    fn widen(isa: Isa, codes: &[u8], scale: f32, out: &mut [Self]);
    fn from_bf16(x: bf16) -> Self;
}

impl Stored for f32 {
    const PRECISION: Precision = Precision::F32;

    fn panels(weight: &PackedMatrices) -> Option<&Panels<Self>> {
        if let Elements::F32(p) = &weight.elements { Some(p) } else { None }
    }

    fn operands(scratch: &mut Scratch) -> &mut Operands<Self> {
        &mut scratch.f32
    }

    fn widen(isa: Isa, codes: &[u8], scale: f32, out: &mut [Self]) {
        fp8::widen_f32(isa, codes, scale, out);
    }

    fn from_bf16(x: bf16) -> Self {
        x.to_f32()
    }
}

impl Stored for bf16 {
    const PRECISION: Precision = Precision::Bf16;

    fn panels(weight: &PackedMatrices) -> Option<&Panels<Self>> {
        if let Elements::Bf16(p) = &weight.elements { Some(p) } else { None }
    }

    fn operands(scratch: &mut Scratch) -> &mut Operands<Self> {
        &mut scratch.bf16
    }

    fn widen(isa: Isa, codes: &[u8], scale: f32, out: &mut [Self]) {
        fp8::widen_bf16(isa, codes, scale, out);
    }

    fn from_bf16(x: bf16) -> Self {
        x
    }
}

impl Cpu {
    /// The threads share the layers, each of which copies in the order of the list.
    pub(super) fn copy_blocks_in(&mut self, arena: &mut LatentArena) {
        let [layers, slots, _] = arena.shape;
        let row = arena.row_bytes();
        let (layer_len, block) = (slots * row, self.step.block_len * row);
        let arena = SendPtr::new(arena.as_bytes());
        let copies = &self.step.copies;
        self.pool.run(layers, &|_, layer| {
            // SAFETY: layers do not overlap, each is one item, and the arena is borrowed for writing.
            let layer = unsafe { from_raw_parts_mut(arena.at(layer * layer_len), layer_len) };
            for &(from, to) in copies {
                let from = from as usize * block;
                layer.copy_within(from..from + block, to as usize * block);
            }
        });
    }
}
