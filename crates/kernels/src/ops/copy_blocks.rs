use crate::backend::Backend;
use crate::error::{Result, require};

/// Copies the latent rows of whole blocks in every layer, as `Step::copies` lists them and in that order,
/// so that a sequence goes on in a block of its own where it shared one. Before the step's rows are
/// written: what they add to a block that is copied from stays out of the copy.
///
/// GPU: one launch, captured, grid (layers, parts of a block); a thread owns its place within a block
/// and walks the list, so copies of copies need no barrier. Moves 2 · block_len · row · e · layers a copy.
pub struct CopyBlocks<'a, B: Backend> {
    pub arena: &'a mut B::Arena,
}

impl<B: Backend> CopyBlocks<'_, B> {
    /// `slots`: those of the limits that the step's blocks were checked against.
    pub(crate) fn check(&self, slots: usize) -> Result<()> {
        let shape = B::arena_shape(self.arena);
        require(shape[1] == slots, "copy_blocks", || {
            format!("an arena {shape:?}, but the step's blocks are of {slots} slots")
        })
    }
}

/// `layer`: `[n_blocks, width]`
pub(crate) fn reference(layer: &mut [f32], width: usize, copies: &[(u32, u32)]) {
    for &(from, to) in copies {
        for i in 0..width {
            layer[to as usize * width + i] = layer[from as usize * width + i];
        }
    }
}
