//! The pool: a free list, and a mark on each block that is lent.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::BlockTable;

/// Index of a block in the KV arena. 0 is padding.
pub type BlockId = u32;

/// A handle on the pool; clones share it. Neither `Send` nor `Sync`: a pool stays on the thread
/// that made it.
#[derive(Debug, Clone)]
pub struct BlockPool {
    ledger: Rc<RefCell<Ledger>>,
    block_len: usize,
}

/// Who has what. Each block but the padding is in `free` or marked in `lent`, never both.
#[derive(Debug)]
struct Ledger {
    /// A stack: the block returned last goes out first, since its rows may still be in a cache.
    free: Vec<BlockId>,
    /// `[n_blocks]`
    lent: Vec<bool>,
}

/// Blocks by state; padding is counted in none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    pub free: usize,
    pub used: usize,
    /// `free + used`, one less than the blocks the pool was made with.
    pub total: usize,
}

/// Too few free blocks; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFull {
    /// Blocks asked for.
    pub wanted: usize,
    /// Blocks that were free.
    pub free: usize,
}

impl fmt::Display for PoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KV blocks wanted, {} free", self.wanted, self.free)
    }
}

impl std::error::Error for PoolFull {}

/// The ledger contradicts itself: a bug in this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFault(String);

impl fmt::Display for PoolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the block pool is inconsistent: {}", self.0)
    }
}

impl std::error::Error for PoolFault {}

impl BlockPool {
    /// A pool of `n_blocks` blocks of `block_len` tokens. Block 0 is padding, never lent.
    ///
    /// # Panics
    /// If either is 0, or if a slot number would not fit in 32 bits.
    pub fn new(n_blocks: usize, block_len: usize) -> Self {
        assert!(n_blocks > 0 && block_len > 0, "a pool of {n_blocks} blocks of {block_len} tokens");
        let slots = n_blocks.checked_mul(block_len);
        assert!(slots.is_some_and(|n| u32::try_from(n).is_ok()), "slots must fit in 32 bits");
        let free = (1..n_blocks as BlockId).rev().collect();
        Self { ledger: Rc::new(RefCell::new(Ledger { free, lent: vec![false; n_blocks] })), block_len }
    }

    /// Tokens in a block.
    pub fn block_len(&self) -> usize {
        self.block_len
    }

    /// An empty table, which grows by [`BlockTable::reserve`].
    pub fn open(&self) -> BlockTable {
        BlockTable::new(self.clone())
    }

    pub fn stats(&self) -> PoolStats {
        let ledger = self.ledger.borrow();
        let (free, total) = (ledger.free.len(), ledger.lent.len() - 1);
        PoolStats { free, used: total - free, total }
    }

    /// Recounts everything. Run when nothing else does, and after each operation in tests.
    pub fn check(&self) -> Result<(), PoolFault> {
        let ledger = self.ledger.borrow();
        let mut seen = ledger.lent.clone();
        if seen[0] {
            return Err(PoolFault("the padding block is lent".into()));
        }
        for &id in &ledger.free {
            match seen.get_mut(id as usize) {
                Some(seen) if id != 0 && !*seen => *seen = true,
                _ => return Err(PoolFault(format!("block {id} is in the free list wrongly or twice"))),
            }
        }
        match seen.iter().skip(1).position(|&seen| !seen) {
            Some(lost) => Err(PoolFault(format!("block {} is neither free nor lent", lost + 1))),
            None => Ok(()),
        }
    }

    /// Moves `n` blocks to the end of `ids`, or none.
    pub(crate) fn lend(&self, n: usize, ids: &mut Vec<BlockId>) -> Result<(), PoolFull> {
        let ledger = &mut *self.ledger.borrow_mut();
        let Some(rest) = ledger.free.len().checked_sub(n) else {
            return Err(PoolFull { wanted: n, free: ledger.free.len() });
        };
        for id in ledger.free.drain(rest..).rev() {
            ledger.lent[id as usize] = true;
            ids.push(id);
        }
        Ok(())
    }

    /// Takes blocks back, so that lending again hands them out in the same order.
    pub(crate) fn take_back(&self, ids: &[BlockId]) {
        let ledger = &mut *self.ledger.borrow_mut();
        for &id in ids.iter().rev() {
            ledger.lent[id as usize] = false;
            ledger.free.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_sees_each_kind_of_damage() {
        type Harm = fn(&mut Ledger);
        let damage: [(&str, Harm); 5] = [
            ("block 3 is neither", |l| l.free.retain(|&id| id != 3)),
            ("block 2 is in the free list", |l| l.free.push(2)),
            ("block 1 is in the free list", |l| l.lent[1] = true),
            ("block 0 is in the free list", |l| l.free.push(0)),
            ("padding block is lent", |l| l.lent[0] = true),
        ];
        for (expected, harm) in damage {
            let pool = BlockPool::new(5, 4);
            pool.check().unwrap();
            harm(&mut pool.ledger.borrow_mut());
            let text = pool.check().unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
