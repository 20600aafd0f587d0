//! A sequence's blocks, in the order of its positions.

use crate::{BlockId, BlockPool, Chain, PoolFull};

/// Holds its blocks: dropping it lets go of them.
#[derive(Debug)]
pub struct BlockTable {
    ids: Vec<BlockId>,
    /// Blocks at the beginning that are published, and so never written again.
    n_published: usize,
    /// A block that collided stays private, and all after it.
    private: bool,
    /// Whose first rows the block after the cached ones begins with, once copied.
    source: Option<BlockId>,
    /// Tokens that need not be computed.
    len_cached: usize,
    pool: BlockPool,
}

impl BlockTable {
    pub(crate) fn new(pool: BlockPool, ids: &[BlockId], source: Option<BlockId>, len_cached: usize) -> Self {
        pool.with_ledger(|ledger| ids.iter().chain(&source).for_each(|&id| ledger.hold(id)));
        Self { ids: ids.to_vec(), n_published: ids.len(), private: false, source, len_cached, pool }
    }

    /// Block `i` holds positions `i * block_len..(i + 1) * block_len`.
    pub fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    /// Tokens whose rows were there when the table was opened or forked: in whole blocks, and at the
    /// beginning of one more if there is something to [copy](Self::copy).
    pub fn len_cached(&self) -> usize {
        self.len_cached
    }

    /// Makes room for `len` tokens in all, or changes nothing. Never shrinks.
    pub fn reserve(&mut self, len: usize) -> Result<(), PoolFull> {
        let wanted = len.div_ceil(self.pool.block_len()).saturating_sub(self.ids.len());
        self.pool.with_ledger(|ledger| ledger.lend(wanted, &mut self.ids))
    }

    /// Row of the KV arena that belongs to `position`: `block_id * block_len + offset`.
    ///
    /// # Panics
    /// If the position was not reserved.
    pub fn slot(&self, position: usize) -> u32 {
        let block_len = self.pool.block_len();
        self.ids[position / block_len] * block_len as u32 + (position % block_len) as u32
    }

    /// `(from, to)`: what must be copied before the table's rows are read or written. `from` is held
    /// until it [is done](Self::copied). `None` too where there is no room to copy to yet.
    pub fn copy(&self) -> Option<(BlockId, BlockId)> {
        let to = self.ids.get(self.len_cached / self.pool.block_len());
        self.source.zip(to.copied())
    }

    /// The copy is done.
    pub fn copied(&mut self) {
        if let Some(source) = self.source.take() {
            self.pool.with_ledger(|ledger| ledger.release(source));
        }
    }

    /// All `tokens` are computed: the full blocks among them are named and become findable. Where an equal block
    /// already is, it takes the place of this table's own.
    pub fn publish(&mut self, chain: &mut Chain, tokens: &[u32]) {
        if !self.pool.caches() || self.private {
            return;
        }
        chain.extend(tokens);
        let blocks = tokens.chunks_exact(self.pool.block_len()).enumerate();
        for (block, tokens) in blocks.skip(self.n_published) {
            let before = block.checked_sub(1).map(|before| self.ids[before]);
            let id = self.ids[block];
            match self.pool.with_ledger(|ledger| ledger.publish(id, chain, block, tokens, before)) {
                Some(id) => self.ids[block] = id,
                None => {
                    self.private = true;
                    return;
                }
            }
            self.n_published += 1;
        }
    }

    /// Another table that begins with this one's first `len` tokens, all of them computed and
    /// [published](Self::publish): whole blocks are shared, the rest is to be [copied](Self::copy).
    ///
    /// # Panics
    /// If they are not published. Publishing may exchange blocks: a fork made before would hold the source of
    /// its copy without the blocks that come before it.
    pub fn fork(&self, len: usize) -> Result<Self, PoolFull> {
        let whole = len / self.pool.block_len();
        let published = whole <= self.n_published || self.private || !self.pool.caches();
        assert!(published, "{} of {whole} blocks are published", self.n_published);
        let source = (!len.is_multiple_of(self.pool.block_len())).then(|| self.ids[whole]);
        let mut fork = Self::new(self.pool.clone(), &self.ids[..whole], source, len);
        fork.n_published = whole.min(self.n_published);
        fork.private = self.private;
        fork.reserve(len)?;
        Ok(fork)
    }

    /// Ids of blocks that rows from `position` on would be written to.
    pub fn writable(&self, position: usize) -> &[BlockId] {
        &self.ids[(position / self.pool.block_len()).min(self.ids.len())..]
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.ids.iter().chain(&self.source).copied()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        // Last first, so that what is lent again comes in the same order, and a chain's end idles longest.
        self.pool.with_ledger(|ledger| {
            self.ids.iter().rev().chain(&self.source).for_each(|&id| ledger.release(id));
        });
    }
}
