//! A sequence's blocks, in the order of its positions.

use crate::{BlockId, BlockPool, PoolFull};

/// Owns its blocks: dropping it returns them.
#[derive(Debug)]
pub struct BlockTable {
    ids: Vec<BlockId>,
    pool: BlockPool,
}

impl BlockTable {
    pub(crate) fn new(pool: BlockPool) -> Self {
        Self { ids: Vec::new(), pool }
    }

    /// Block `i` holds positions `i * block_len..(i + 1) * block_len`.
    pub fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    /// Makes room for `len` tokens in all, or changes nothing. Never shrinks.
    pub fn reserve(&mut self, len: usize) -> Result<(), PoolFull> {
        let wanted = len.div_ceil(self.pool.block_len()).saturating_sub(self.ids.len());
        self.pool.lend(wanted, &mut self.ids)
    }

    /// Row of the KV arena that belongs to `position`: `block_id * block_len + offset`.
    ///
    /// # Panics
    /// If the position was not reserved.
    pub fn slot(&self, position: usize) -> u32 {
        let block_len = self.pool.block_len();
        self.ids[position / block_len] * block_len as u32 + (position % block_len) as u32
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.pool.take_back(&self.ids);
    }
}
