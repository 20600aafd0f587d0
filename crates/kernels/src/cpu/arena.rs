//! The latent cache, and what may be stored in it and in weights.

use super::packed::{Elements, Huge, PackedMatrices, Panels, SendPtr};
use super::scratch::{Operands, Scratch};
use super::tile::Elem;
use super::{Cpu, same_precision};
use crate::dtype::Precision;
use crate::error::Result;
use crate::ops::CopyBlocks;
use crate::step::StepState;
use half::bf16;

/// The latent cache: `[layers, n_blocks, block_len, row]`, plain rows in order.
pub struct LatentArena {
    pub(super) elements: ArenaElements,
    /// `[layers, slots, latent_width]`
    pub(super) shape: [usize; 3],
    /// Elements from one row to the next: `latent_width` rounded up to whole tile steps.
    pub(super) row: usize,
}

impl LatentArena {
    /// Memory that is not touched before rows are written.
    pub(super) fn new(shape: [usize; 3], precision: Precision) -> Result<Self> {
        let [layers, slots, width] = shape;
        let pair = if precision == Precision::F32 { f32::PAIR } else { bf16::PAIR };
        let row = width.next_multiple_of(pair);
        let len = layers.checked_mul(slots).and_then(|n| n.checked_mul(row)).unwrap_or(usize::MAX);
        let elements = match precision {
            Precision::F32 => ArenaElements::F32(Huge::zeroed(len, "the latent cache")?),
            Precision::Bf16 => ArenaElements::Bf16(Huge::zeroed(len, "the latent cache")?),
        };
        Ok(Self { elements, shape, row })
    }

    pub(super) fn precision(&self) -> Precision {
        match &self.elements {
            ArenaElements::F32(_) => Precision::F32,
            ArenaElements::Bf16(_) => Precision::Bf16,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.elements {
            ArenaElements::F32(p) => p.len() * 4,
            ArenaElements::Bf16(p) => p.len() * 2,
        }
    }
}

pub(super) enum ArenaElements {
    F32(Huge<f32>),
    Bf16(Huge<bf16>),
}

/// An element type that an arena and a stack of weights can hold, and where their memory is.
pub(super) trait Stored: Elem {
    fn panels(weight: &PackedMatrices) -> Option<&Panels<Self>>;
    fn arena(arena: &LatentArena) -> Option<*const Self>;
    fn arena_mut(arena: &mut LatentArena) -> Option<*mut Self>;
    fn operands(scratch: &mut Scratch) -> &mut Operands<Self>;
}

impl Stored for f32 {
    fn panels(weight: &PackedMatrices) -> Option<&Panels<Self>> {
        if let Elements::F32(p) = &weight.elements { Some(p) } else { None }
    }

    fn arena(arena: &LatentArena) -> Option<*const Self> {
        if let ArenaElements::F32(p) = &arena.elements { Some(p.as_ptr()) } else { None }
    }

    fn arena_mut(arena: &mut LatentArena) -> Option<*mut Self> {
        if let ArenaElements::F32(p) = &mut arena.elements { Some(p.as_mut_ptr()) } else { None }
    }

    fn operands(scratch: &mut Scratch) -> &mut Operands<Self> {
        &mut scratch.f32
    }
}

impl Stored for bf16 {
    fn panels(weight: &PackedMatrices) -> Option<&Panels<Self>> {
        if let Elements::Bf16(p) = &weight.elements { Some(p) } else { None }
    }

    fn arena(arena: &LatentArena) -> Option<*const Self> {
        if let ArenaElements::Bf16(p) = &arena.elements { Some(p.as_ptr()) } else { None }
    }

    fn arena_mut(arena: &mut LatentArena) -> Option<*mut Self> {
        if let ArenaElements::Bf16(p) = &mut arena.elements { Some(p.as_mut_ptr()) } else { None }
    }

    fn operands(scratch: &mut Scratch) -> &mut Operands<Self> {
        &mut scratch.bf16
    }
}

impl Cpu {
    /// The threads share the layers, each of which copies in the order of the list.
    pub(super) fn copy_blocks_of<E: Stored>(&mut self, op: CopyBlocks<'_, Self>) -> Result<()> {
        let [layers, slots, _] = op.arena.shape;
        let (layer_len, block) = (slots * op.arena.row, self.step.block_len * op.arena.row);
        let arena = SendPtr::new(same_precision(E::arena_mut(op.arena), "copy_blocks")?);
        let copies = &self.step.copies;
        self.pool.run(layers, &|_, layer| {
            // SAFETY: layers do not overlap, each is one item, and the arena is borrowed for writing.
            let layer = unsafe { std::slice::from_raw_parts_mut(arena.at(layer * layer_len), layer_len) };
            for &(from, to) in copies {
                let from = from as usize * block;
                layer.copy_within(from..from + block, to as usize * block);
            }
        });
        Ok(())
    }
}

/// Pointers to the latent rows of keys `first..first + out.len()` of a row.
pub(super) fn latent_rows<E: Stored>(
    arena: *const E,
    shape: &LatentArena,
    layer: usize,
    step: &StepState,
    row: usize,
    first: usize,
    out: &mut [*const E],
) {
    let [_, slots, _] = shape.shape;
    for (i, o) in out.iter_mut().enumerate() {
        let slot = step.slot(row, first + i);
        // The step's tables were checked against the limits, and `check_reserved` ties the arena to them.
        debug_assert!(slot < slots);
        *o = arena.wrapping_add((layer * slots + slot) * shape.row);
    }
}
