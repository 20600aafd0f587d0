//! What a block of latent rows depends on, as a name.

use sha2::{Digest as _, Sha256};

/// Names a full block by all that its rows depend on: the model, the salt, every token up to its
/// end, and how they were computed. 256 bits of SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockName([u8; 32]);

/// A prompt's first `border` tokens are computed in whole units of `len` tokens by another kernel than
/// what follows; the two differ by rounding, so that one's rows do not stand for the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// At least 1.
    pub len: usize,
    /// A multiple of `len`.
    pub border: usize,
}

impl Units {
    /// All tokens are computed alike.
    pub const NONE: Self = Self { len: 1, border: 0 };

    /// Where a computation that has `len` tokens may go on: anywhere beyond the border, before it
    /// where a unit begins.
    pub(crate) fn resumes_at(self, len: usize) -> usize {
        if len >= self.border { len } else { len - len % self.len }
    }

    /// How many tokens of `block` belong to units.
    fn share(self, block: usize, block_len: usize) -> usize {
        self.border.saturating_sub(block * block_len).min(block_len)
    }
}

/// The names of a sequence's full blocks, each over the one before it, from a root over model and salt.
#[derive(Debug, Clone)]
pub struct Chain {
    root: BlockName,
    block_len: usize,
    units: Units,
    names: Vec<BlockName>,
}

impl Chain {
    /// Sequences of different `model` or `salt` never share a block.
    pub fn new(model: &[u8], salt: &[u8], block_len: usize, units: Units) -> Self {
        let mut hash = Sha256::new();
        for part in [b"latent KV block".as_slice(), model, salt] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { root: BlockName(hash.finalize().into()), block_len, units, names: Vec::new() }
    }

    /// Names the full blocks of `tokens`, which begin with all tokens named before.
    pub fn extend(&mut self, tokens: &[u32]) {
        for block in self.names.len()..tokens.len() / self.block_len {
            let mut hash = Sha256::new();
            hash.update(self.parent(block).0);
            hash.update((self.units_in(block) as u64).to_le_bytes());
            for token in &tokens[block * self.block_len..][..self.block_len] {
                hash.update(token.to_le_bytes());
            }
            self.names.push(BlockName(hash.finalize().into()));
        }
    }

    /// One for each full block.
    pub fn names(&self) -> &[BlockName] {
        &self.names
    }

    /// The name before `block`'s: another block's, or the root.
    pub(crate) fn parent(&self, block: usize) -> BlockName {
        if block == 0 { self.root } else { self.names[block - 1] }
    }

    /// Tokens of `block` that are computed in units; they are its first.
    pub(crate) fn units_in(&self, block: usize) -> usize {
        self.units.share(block, self.block_len)
    }

    pub(crate) fn resumes_at(&self, len: usize) -> usize {
        self.units.resumes_at(len)
    }

    /// Names that say nothing, as no hash should make them.
    #[cfg(test)]
    pub(crate) fn colliding(blocks: usize, block_len: usize) -> Self {
        let name = |byte| BlockName([byte; 32]);
        let names = (1..=blocks as u8).map(name).collect();
        Self { root: name(0), block_len, units: Units::NONE, names }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(model: &str, salt: &str, units: Units, tokens: &[u32]) -> Vec<BlockName> {
        let mut chain = Chain::new(model.as_bytes(), salt.as_bytes(), 2, units);
        chain.extend(tokens);
        chain.names
    }

    #[test]
    fn a_name_depends_on_all_before_it_and_on_nothing_else() {
        let base = names("m", "s", Units::NONE, &[1, 2, 3, 4, 5]);
        assert_eq!(base.len(), 2);
        assert_eq!(base, names("m", "s", Units::NONE, &[1, 2, 3, 4]));
        let changed = [
            names("m", "s", Units::NONE, &[9, 2, 3, 4]),
            names("m", "", Units::NONE, &[1, 2, 3, 4]),
            names("ms", "", Units::NONE, &[1, 2, 3, 4]), // not the parts' joined text
            names("m2", "s", Units::NONE, &[1, 2, 3, 4]),
            names("m", "s", Units { len: 1, border: 1 }, &[1, 2, 3, 4]),
        ];
        for (i, other) in changed.iter().enumerate() {
            assert!(base.iter().all(|name| !other.contains(name)), "change {i}");
        }
        let tail = names("m", "s", Units { len: 3, border: 3 }, &[1, 2, 3, 4]);
        assert_ne!(base[0], tail[0], "both tokens are in the unit");
        assert_ne!(base[1], tail[1]);
        assert_eq!(names("m", "s", Units::NONE, &[1, 2, 3, 9])[0], base[0]);
    }

    #[test]
    fn extending_in_pieces_names_the_same() {
        let tokens: Vec<u32> = (0..11).collect();
        let whole = names("m", "s", Units { len: 3, border: 6 }, &tokens);
        let mut chain = Chain::new(b"m", b"s", 2, Units { len: 3, border: 6 });
        (0..=tokens.len()).for_each(|len| chain.extend(&tokens[..len]));
        assert_eq!(chain.names(), whole);
    }

    #[test]
    fn a_computation_resumes_at_units_before_the_border() {
        let units = Units { len: 4, border: 8 };
        let at = [0, 3, 4, 7, 8, 9, 13].map(|len| units.resumes_at(len));
        assert_eq!(at, [0, 0, 4, 4, 8, 9, 13]);
    }
}
