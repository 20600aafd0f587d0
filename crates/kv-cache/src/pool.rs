//! The pool: a handle on the ledger that tables share.

use std::cell::RefCell;
use std::rc::Rc;

use crate::ledger::Ledger;
use crate::{BlockId, BlockTable, Chain, PoolFault, PoolStats};

/// A handle on the pool; clones share it. Neither `Send` nor `Sync`: a pool stays on the thread
/// that made it.
#[derive(Debug, Clone)]
pub struct BlockPool {
    ledger: Rc<RefCell<Ledger>>,
    block_len: usize,
    caching: bool,
}

impl BlockPool {
    /// A pool of `n_blocks` blocks of `block_len` tokens. Block 0 is padding, never lent. Without
    /// `caching` nothing is published, and nothing found.
    ///
    /// # Panics
    /// If either is 0, or if a slot number would not fit in 32 bits.
    pub fn new(n_blocks: usize, block_len: usize, caching: bool) -> Self {
        assert!(n_blocks > 0 && block_len > 0, "a pool of {n_blocks} blocks of {block_len} tokens");
        let slots = n_blocks.checked_mul(block_len);
        assert!(slots.is_some_and(|n| u32::try_from(n).is_ok()), "slots must fit in 32 bits");
        Self { ledger: Rc::new(RefCell::new(Ledger::new(n_blocks))), block_len, caching }
    }

    /// Tokens in a block.
    pub fn block_len(&self) -> usize {
        self.block_len
    }

    /// A table that begins with what is cached of `tokens`, `limit` tokens at most. `chain` names the full
    /// blocks of `tokens`. More room is taken by [`BlockTable::reserve`].
    pub fn open(&self, chain: &Chain, tokens: &[u32], limit: usize) -> BlockTable {
        let cached = self.cached(chain, tokens, limit);
        let len = cached.len() * self.block_len;
        // The block after the last whole one may begin alike, or stand beyond the limit.
        let next = &tokens[len.min(tokens.len())..];
        let next = &next[..next.len().min(self.block_len)];
        let alike = self.ledger.borrow().begins_like(chain, cached.len(), next);
        let (source, more) = alike.map_or((None, 0), |(id, same)| (Some(id), same));
        let len = (len + more).min(limit);
        let (whole, rest) = (len / self.block_len, len % self.block_len);
        let source = if whole < cached.len() { Some(cached[whole]) } else { source };
        // A copy pays for more than a few tokens; its source is held beside all blocks of the table.
        let room = tokens.len().div_ceil(self.block_len) < self.stats().available();
        let source = source.filter(|_| room && rest > 0 && rest * COPY_PAYS >= self.block_len);
        let len = if source.is_some() { len } else { whole * self.block_len };
        BlockTable::new(self.clone(), &cached[..whole], source, len)
    }

    /// Blocks of `chain` that are published, from the first on; at most those that `limit` tokens reach into.
    fn cached(&self, chain: &Chain, tokens: &[u32], limit: usize) -> Vec<BlockId> {
        let ledger = self.ledger.borrow();
        let mut ids: Vec<BlockId> = Vec::new();
        let reached = limit.div_ceil(self.block_len).min(chain.names().len());
        for (block, tokens) in tokens.chunks_exact(self.block_len).take(reached).enumerate() {
            match ledger.find(chain, block, tokens, ids.last().copied()) {
                Some(id) => ids.push(id),
                None => break,
            }
        }
        ids
    }

    /// How many of `chain`'s blocks are published, from the first on.
    pub fn n_cached(&self, chain: &Chain, tokens: &[u32]) -> usize {
        self.cached(chain, tokens, tokens.len()).len()
    }

    pub fn stats(&self) -> PoolStats {
        self.ledger.borrow().stats()
    }

    /// Recounts everything, given all tables that live. Run when nothing else does, and after each
    /// operation in tests.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), PoolFault> {
        let mut holders = vec![0; self.stats().total + 1];
        for table in tables {
            table.held().for_each(|id| holders[id as usize] += 1);
        }
        self.ledger.borrow().check(&holders).map_err(PoolFault)
    }

    pub(crate) fn caches(&self) -> bool {
        self.caching
    }

    pub(crate) fn with_ledger<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        work(&mut self.ledger.borrow_mut())
    }
}

/// A block is copied for at least this fraction of its tokens: a copy moves a whole block through all
/// layers, which costs about as much as computing a few tokens.
const COPY_PAYS: usize = 8;
