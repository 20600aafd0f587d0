//! What a pool of blocks must do, told plainly: keys instead of hashes, searches instead of indices.

use std::collections::{BTreeMap, BTreeSet};

use kv_cache::{BlockId, PoolStats};

/// What a sequence's rows depend on beside its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) salt: u8,
    /// For each token of the prompt.
    pub(crate) in_unit: Vec<bool>,
}

/// All that a block's rows depend on: the salt, and each token up to its end with how it was computed.
pub(crate) type Key = (u8, Vec<(u32, bool)>);

impl Kind {
    pub(crate) fn in_unit(&self, position: usize) -> bool {
        self.in_unit.get(position).copied().unwrap_or(false)
    }

    pub(crate) fn key(&self, tokens: &[u32]) -> Key {
        (self.salt, (0..).zip(tokens).map(|(at, &token)| (token, self.in_unit(at))).collect())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    block_len: usize,
    caching: bool,
    free: BTreeSet<BlockId>,
    holders: BTreeMap<BlockId, usize>,
    published: BTreeMap<BlockId, Key>,
    /// When the last holder let go.
    released: BTreeMap<BlockId, u64>,
    clock: u64,
    pub(crate) n_evicted: usize,
    pub(crate) n_swapped: usize,
}

impl Model {
    pub(crate) fn new(n_blocks: usize, block_len: usize, caching: bool) -> Self {
        Self { block_len, caching, free: (1..n_blocks as BlockId).collect(), ..Self::default() }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let idle = self.idle().count();
        let (free, used) = (self.free.len(), self.holders.len());
        PoolStats { free, cached: idle, used, total: free + idle + used }
    }

    fn idle(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.published.keys().copied().filter(|id| !self.holders.contains_key(id))
    }

    fn find(&self, key: &Key) -> Option<BlockId> {
        self.published.iter().find(|(_, published)| *published == key).map(|(&id, _)| id)
    }

    /// The published blocks that `tokens` begin with.
    pub(crate) fn cached(&self, kind: &Kind, tokens: &[u32]) -> Vec<BlockId> {
        let ends = (1..=tokens.len() / self.block_len).map(|n| n * self.block_len);
        ends.map_while(|end| self.find(&kind.key(&tokens[..end]))).collect()
    }

    pub(crate) fn hold(&mut self, id: BlockId) {
        assert!(!self.free.contains(&id), "block {id} is held and free");
        *self.holders.entry(id).or_default() += 1;
    }

    pub(crate) fn release(&mut self, id: BlockId) {
        self.clock += 1;
        let holders = self.holders.get_mut(&id).expect("only a held block is released");
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        self.holders.remove(&id);
        if self.published.contains_key(&id) {
            self.released.insert(id, self.clock);
        } else {
            self.free.insert(id);
        }
    }

    /// The pool lent `ids`: they were free, or are once the blocks idle longest are given up, each
    /// after all that continue it.
    pub(crate) fn lend(&mut self, ids: &[BlockId]) {
        while self.free.len() < ids.len() {
            let before = |(salt, tokens): &Key| (*salt, tokens[..tokens.len() - self.block_len].to_vec());
            let continued: BTreeSet<Key> = self.published.values().map(before).collect();
            let leaves = self.idle().filter(|id| !continued.contains(&self.published[id]));
            let oldest = leaves.min_by_key(|id| self.released[id]).expect("no more is lent than there is");
            self.published.remove(&oldest);
            self.free.insert(oldest);
            self.n_evicted += 1;
        }
        for id in ids {
            assert!(self.free.remove(id), "block {id} is lent and was not free, or not idle longest");
            self.hold(*id);
        }
    }

    /// `id`, held by one table alone, is full. Returns the block that stands for it from now on.
    pub(crate) fn publish(&mut self, id: BlockId, key: Key) -> BlockId {
        if !self.caching {
            return id;
        }
        match self.find(&key) {
            Some(known) if known == id => id,
            Some(known) => {
                self.hold(known);
                self.release(id);
                self.n_swapped += 1;
                known
            }
            None => {
                self.published.insert(id, key);
                id
            }
        }
    }
}
