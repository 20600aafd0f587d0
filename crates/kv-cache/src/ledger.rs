//! Who holds which block, which blocks have a name, and which may be taken back first.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::{BlockName, Chain};

/// Index of a block in the KV arena. 0 is padding.
pub type BlockId = u32;

/// Blocks by state; padding is counted in none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Empty.
    pub free: usize,
    /// Held by nobody and kept for whoever comes with the same tokens; lent when nothing is free.
    pub cached: usize,
    /// Held by at least one table.
    pub used: usize,
    /// `free + cached + used`, one less than the blocks the pool was made with.
    pub total: usize,
}

impl PoolStats {
    /// Blocks that could be lent now.
    pub fn available(&self) -> usize {
        self.free + self.cached
    }
}

/// Too few blocks that could be lent; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFull {
    /// Blocks asked for.
    pub wanted: usize,
    /// Blocks that were free, or cached and held by nobody.
    pub available: usize,
}

impl fmt::Display for PoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KV blocks wanted, {} available", self.wanted, self.available)
    }
}

impl std::error::Error for PoolFull {}

/// The ledger contradicts itself: a bug in this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFault(pub(crate) String);

impl fmt::Display for PoolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the block pool is inconsistent: {}", self.0)
    }
}

impl std::error::Error for PoolFault {}

/// Each block but the padding is in exactly one state: in `free`; held; or idle, that is published and
/// held by nobody. A published block's ancestors are published, and whoever holds it holds them: so
/// whatever is idle can be taken back, children first.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// `[n_blocks]`
    blocks: Vec<Block>,
    /// A stack: the block returned last goes out first, since its rows may still be in a cache.
    free: Vec<BlockId>,
    /// Published blocks by name.
    index: HashMap<BlockName, BlockId>,
    /// Published blocks by the name before theirs.
    children: BTreeSet<(BlockName, BlockId)>,
    /// Idle blocks without children, those first that have been idle longest.
    leaves: BTreeSet<(u64, BlockId)>,
    n_idle: usize,
    /// Counts releases; tells who has been idle longest.
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Tables that list it or still copy from it.
    holders: u32,
    /// Time of the last release.
    released: u64,
    published: Option<Published>,
}

/// What is known of a full block; with the ancestors, all that its rows depend on.
#[derive(Debug, Clone)]
struct Published {
    name: BlockName,
    parent: BlockName,
    /// `[block_len]`
    tokens: Box<[u32]>,
    /// For each unit that the block reaches into, whether it was computed as one.
    units: Box<[bool]>,
}

/// Of a block's children, how many are looked at for one that begins like a prompt.
const SIBLINGS_MAX: usize = 64;

impl Ledger {
    pub(crate) fn new(n_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); n_blocks],
            free: (1..n_blocks as BlockId).rev().collect(),
            index: HashMap::new(),
            children: BTreeSet::new(),
            leaves: BTreeSet::new(),
            n_idle: 0,
            clock: 0,
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let (free, cached, total) = (self.free.len(), self.n_idle, self.blocks.len() - 1);
        PoolStats { free, cached, used: total - free - cached, total }
    }

    /// The block published as `chain`'s `block`th, if it holds exactly `tokens` after `before`. The
    /// comparison makes a collision of names a miss.
    pub(crate) fn find(
        &self,
        chain: &Chain,
        block: usize,
        tokens: &[u32],
        before: Option<BlockId>,
    ) -> Option<BlockId> {
        let id = *self.index.get(&chain.names()[block])?;
        let known = self.published(id);
        let parent = before.map_or(chain.parent(0), |id| self.published(id).name);
        let same = known.parent == parent
            && *known.tokens == *tokens
            && chain.units_in(block).eq(known.units.iter().copied());
        same.then_some(id)
    }

    /// The published child of `chain`'s name before `block` that begins most like `tokens`, and for how many.
    pub(crate) fn begins_like(
        &self,
        chain: &Chain,
        block: usize,
        tokens: &[u32],
    ) -> Option<(BlockId, usize)> {
        let parent = chain.parent(block);
        let siblings = self.children.range((parent, 0)..=(parent, BlockId::MAX)).take(SIBLINGS_MAX);
        let alike = siblings.map(|&(_, id)| {
            let known = self.published(id);
            let same = known.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (id, chain.alike(block, &known.units, same))
        });
        alike.max_by_key(|&(_, same)| same).filter(|&(_, same)| same > 0)
    }

    /// Makes a full block that its table alone holds findable; or, where an equal one is, returns that
    /// one's id, held, in exchange. `None`: the name belongs to other tokens, and this block stays private.
    pub(crate) fn publish(
        &mut self,
        id: BlockId,
        chain: &Chain,
        block: usize,
        tokens: &[u32],
        before: Option<BlockId>,
    ) -> Option<BlockId> {
        let name = chain.names()[block];
        if self.index.contains_key(&name) {
            let known = self.find(chain, block, tokens, before)?;
            if known != id {
                self.hold(known);
                self.release(id);
            }
            return Some(known);
        }
        let parent = chain.parent(block);
        self.index.insert(name, id);
        self.children.insert((parent, id));
        let (tokens, units) = (tokens.into(), chain.units_in(block).collect());
        self.blocks[id as usize].published = Some(Published { name, parent, tokens, units });
        Some(id)
    }

    /// Moves `n` blocks to the end of `ids`, or none.
    pub(crate) fn lend(&mut self, n: usize, ids: &mut Vec<BlockId>) -> Result<(), PoolFull> {
        let available = self.free.len() + self.n_idle;
        if n > available {
            return Err(PoolFull { wanted: n, available });
        }
        while self.free.len() < n {
            self.evict();
        }
        for id in self.free.drain(self.free.len() - n..).rev() {
            self.blocks[id as usize].holders = 1;
            ids.push(id);
        }
        Ok(())
    }

    pub(crate) fn hold(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.holders += 1;
        if block.holders == 1 {
            self.n_idle -= 1;
            self.leaves.remove(&(block.released, id));
        }
    }

    pub(crate) fn release(&mut self, id: BlockId) {
        self.clock += 1;
        let block = &mut self.blocks[id as usize];
        block.holders -= 1;
        if block.holders > 0 {
            return;
        }
        if block.published.is_some() {
            block.released = self.clock;
            self.n_idle += 1;
            self.note_leaf(id);
        } else {
            self.free.push(id);
        }
    }

    fn published(&self, id: BlockId) -> &Published {
        self.blocks[id as usize].published.as_ref().expect("an indexed block is published")
    }

    fn has_children(&self, id: BlockId) -> bool {
        let name = self.published(id).name;
        self.children.range((name, 0)..=(name, BlockId::MAX)).next().is_some()
    }

    /// An idle block may be taken back once it has no children.
    fn note_leaf(&mut self, id: BlockId) {
        if !self.has_children(id) {
            self.leaves.insert((self.blocks[id as usize].released, id));
        }
    }

    /// Frees the leaf that has been idle longest. There is one: something is idle.
    fn evict(&mut self) {
        let (_, id) = self.leaves.pop_first().expect("whatever is idle has an idle leaf below it");
        let Published { name, parent, .. } =
            self.blocks[id as usize].published.take().expect("an idle block is published");
        self.index.remove(&name);
        self.children.remove(&(parent, id));
        self.n_idle -= 1;
        self.free.push(id);
        if let Some(&above) = self.index.get(&parent)
            && self.blocks[above as usize].holders == 0
        {
            self.note_leaf(above);
        }
    }

    /// Recounts everything against `holders`, `[n_blocks]`: how many tables hold each block.
    pub(crate) fn check(&self, holders: &[u32]) -> Result<(), String> {
        let mut free = vec![false; self.blocks.len()];
        for &id in &self.free {
            match free.get_mut(id as usize) {
                Some(seen) if id != 0 && !*seen => *seen = true,
                _ => return Err(format!("block {id} is in the free list wrongly or twice")),
            }
        }
        let (mut n_published, mut n_idle, mut n_leaves) = (0, 0, 0);
        for (block, id) in self.blocks.iter().zip(0..).skip(1) {
            let held = holders.get(id as usize).copied().unwrap_or(0);
            if block.holders != held {
                return Err(format!("block {id} counts {} holders and has {held}", block.holders));
            }
            let idle = block.holders == 0 && block.published.is_some();
            if usize::from(free[id as usize]) + usize::from(held > 0) + usize::from(idle) != 1 {
                return Err(format!("block {id} is not in exactly one of free, held and idle"));
            }
            n_idle += usize::from(idle);
            let Some(published) = &block.published else { continue };
            n_published += 1;
            if self.index.get(&published.name) != Some(&id)
                || !self.children.contains(&(published.parent, id))
            {
                return Err(format!("block {id} is published and cannot be found"));
            }
            let above = self.index.get(&published.parent);
            if held > 0 && above.is_some_and(|&above| self.blocks[above as usize].holders == 0) {
                return Err(format!("block {id} is held and the one before it is not"));
            }
            let leaf = idle && !self.has_children(id);
            if leaf != self.leaves.contains(&(block.released, id)) {
                return Err(format!("block {id} is wrongly among the leaves, or not"));
            }
            n_leaves += usize::from(leaf);
        }
        let counted = [self.n_idle, self.leaves.len(), self.index.len(), self.children.len()];
        let found = [n_idle, n_leaves, n_published, n_published];
        if counted != found {
            return Err(format!("idle, leaves, names, children are {found:?}, counted {counted:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockPool, BlockTable, Units};

    /// Eight blocks of two: one table holds three, two of them published; two more are idle.
    fn pool() -> (BlockPool, BlockTable) {
        let pool = BlockPool::new(9, 2, true);
        let published = |tokens: &[u32], extra| {
            let mut chain = Chain::new(b"m", b"", 2, Units::none());
            chain.extend(tokens);
            let mut table = pool.open(&chain, tokens, 0);
            table.reserve(tokens.len() + extra).unwrap();
            table.publish(&mut chain, tokens);
            table
        };
        drop(published(&[9, 9, 8, 8], 0));
        let table = published(&[1, 2, 3, 4], 1);
        (pool, table)
    }

    #[test]
    fn check_sees_each_kind_of_damage() {
        type Harm = fn(&mut Ledger);
        let damage: [(&str, Harm); 9] = [
            ("not in exactly one", |l| l.free.truncate(1)),
            ("in the free list wrongly", |l| l.free.push(l.free[0])),
            ("in the free list wrongly", |l| l.free.push(0)),
            ("counts 2 holders and has 1", |l| l.blocks[3].holders += 1),
            ("not in exactly one", |l| l.free.push(3)),
            ("cannot be found", |l| l.index.clear()),
            ("among the leaves", |l| l.leaves.clear()),
            ("counted", |l| l.n_idle += 1),
            ("not in exactly one", |l| {
                let (_, leaf) = l.leaves.pop_first().unwrap();
                l.blocks[leaf as usize].published = None;
            }),
        ];
        for (expected, harm) in damage {
            let (pool, table) = pool();
            assert_eq!(table.ids(), [3, 4, 5]);
            pool.check([&table]).unwrap();
            pool.with_ledger(harm);
            let text = pool.check([&table]).unwrap_err().to_string();
            assert!(text.contains(expected), "{text} without {expected:?}");
            std::mem::forget(table); // its ledger is beyond repair
        }
    }

    #[test]
    fn a_collision_of_names_serves_nobody_else_s_rows() {
        let pool = BlockPool::new(9, 2, true);
        let open = |tokens: &[u32]| {
            let mut chain = Chain::colliding(tokens.len() / 2, 2);
            let mut table = pool.open(&chain, tokens, tokens.len());
            let cached = table.len_cached();
            table.reserve(tokens.len()).unwrap();
            table.publish(&mut chain, tokens);
            pool.check([&table]).unwrap();
            cached
        };
        assert_eq!(open(&[1, 2]), 0);
        assert_eq!(open(&[1, 2]), 2, "the same tokens are the same block");
        assert_eq!(open(&[3, 4]), 0, "others of the same name are not");
        assert_eq!(open(&[1, 2]), 2, "and do not push out the first");
    }
}
