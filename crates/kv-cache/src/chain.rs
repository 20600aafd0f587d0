//! What a block of latent rows depends on, as a name.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

/// Names a full block by all that its rows depend on: the model, the salt, every token up to its
/// end, and how they were computed. 256 bits of SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockName([u8; 32]);

/// Which tokens of a sequence are computed in whole units, by another kernel than all others; the two differ
/// by rounding, so that one's rows do not stand for the other's. Units are aligned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    len: usize,
    /// Is the unit from `index * len` on computed as one? Beyond the last, none is.
    whole: Vec<bool>,
}

impl Units {
    /// Those of `len` tokens that lie within the prompt and hold none of the tokens that past answers drew:
    /// these were computed one by one, and shall be found again.
    ///
    /// # Panics
    /// If `len` is 0.
    pub fn new(len: usize, prompt_len: usize, drawn: &[Range<usize>]) -> Self {
        let mut whole = vec![true; prompt_len / len];
        for range in drawn.iter().filter(|range| !range.is_empty()) {
            let touched = range.start / len..range.end.div_ceil(len);
            let touched = touched.start.min(whole.len())..touched.end.min(whole.len());
            whole[touched].fill(false);
        }
        Self { len, whole }
    }

    /// All tokens are computed alike.
    pub fn none() -> Self {
        Self { len: usize::MAX, whole: Vec::new() }
    }

    /// Does the token at `position` belong to a unit that is computed as one?
    pub fn hold(&self, position: usize) -> bool {
        self.is_whole(position / self.len)
    }

    /// Tokens from `position` to the end of its unit.
    pub fn left(&self, position: usize) -> usize {
        self.len - position % self.len
    }

    /// Tokens from `position` on of which all, or none, belong to units that are computed as one.
    pub fn alike_from(&self, position: usize) -> usize {
        let (index, whole) = (position / self.len, self.hold(position));
        let other = (index..self.whole.len() + 1).find(|&index| self.is_whole(index) != whole);
        other.map_or(usize::MAX, |index| index * self.len - position)
    }

    fn is_whole(&self, index: usize) -> bool {
        self.whole.get(index).copied().unwrap_or(false)
    }

    /// For each unit that tokens `from..to` reach into, whether it is computed as one.
    fn within(&self, from: usize, to: usize) -> impl Iterator<Item = bool> + '_ {
        (from / self.len..to.div_ceil(self.len)).map(|index| self.is_whole(index))
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
    /// Sequences of different `model`, `salt` or length of units never share a block.
    pub fn new(model: &[u8], salt: &[u8], block_len: usize, units: Units) -> Self {
        let mut hash = Sha256::new();
        let unit = (units.len as u64).to_le_bytes();
        for part in [b"latent KV block".as_slice(), model, salt, &unit] {
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
            for in_unit in self.units_in(block) {
                hash.update([u8::from(in_unit)]);
            }
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

    pub fn units(&self) -> &Units {
        &self.units
    }

    /// For each unit that `block` reaches into, whether it is computed as one.
    pub(crate) fn units_in(&self, block: usize) -> impl Iterator<Item = bool> + '_ {
        self.units.within(block * self.block_len, (block + 1) * self.block_len)
    }

    /// Of the first `same` tokens of `block`, those before the first unit that `others`, of another sequence's
    /// block in the same place, has otherwise.
    pub(crate) fn alike(&self, block: usize, others: &[bool], same: usize) -> usize {
        let first = block * self.block_len;
        match self.units_in(block).zip(others).position(|(own, other)| own != *other) {
            Some(index) => {
                same.min(((first / self.units.len + index) * self.units.len).saturating_sub(first))
            }
            None => same,
        }
    }

    /// Names that say nothing, as no hash should make them.
    #[cfg(test)]
    pub(crate) fn colliding(blocks: usize, block_len: usize) -> Self {
        let name = |byte| BlockName([byte; 32]);
        let names = (1..=blocks as u8).map(name).collect();
        Self { root: name(0), block_len, units: Units::none(), names }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    fn names(model: &str, salt: &str, units: Units, tokens: &[u32]) -> Vec<BlockName> {
        let mut chain = Chain::new(model.as_bytes(), salt.as_bytes(), 2, units);
        chain.extend(tokens);
        chain.names
    }

    #[test]
    fn a_name_depends_on_all_before_it_and_on_nothing_else() {
        let base = names("m", "s", Units::none(), &[1, 2, 3, 4, 5]);
        assert_eq!(base.len(), 2);
        assert_eq!(base, names("m", "s", Units::none(), &[1, 2, 3, 4]));
        let changed = [
            names("m", "s", Units::none(), &[9, 2, 3, 4]),
            names("m", "", Units::none(), &[1, 2, 3, 4]),
            names("ms", "", Units::none(), &[1, 2, 3, 4]), // not the parts' joined text
            names("m2", "s", Units::none(), &[1, 2, 3, 4]),
            names("m", "s", Units::new(1, 1, &[]), &[1, 2, 3, 4]),
        ];
        for (i, other) in changed.iter().enumerate() {
            assert!(base.iter().all(|name| !other.contains(name)), "change {i}");
        }
        let [none, one, two] = [1, 2, 4].map(|len| names("m", "s", Units::new(2, len, &[]), &[1, 2, 3, 4]));
        assert!(none[0] != one[0] && one[0] == two[0] && one[1] != two[1]);
        assert_eq!(names("m", "s", Units::none(), &[1, 2, 3, 9])[0], base[0]);
    }

    #[test]
    fn extending_in_pieces_names_the_same() {
        let tokens: Vec<u32> = (0..11).collect();
        let whole = names("m", "s", Units::new(3, 7, &[]), &tokens);
        let mut chain = Chain::new(b"m", b"s", 2, Units::new(3, 7, &[]));
        (0..=tokens.len()).for_each(|len| chain.extend(&tokens[..len]));
        assert_eq!(chain.names(), whole);
    }

    #[test]
    fn units_lie_within_the_prompt_and_hold_nothing_drawn() {
        let check = |prompt_len: usize, drawn: &[Range<usize>], expected: &[usize]| {
            let units = Units::new(4, prompt_len, drawn);
            let begun: Vec<usize> = (0..40).step_by(4).filter(|&position| units.hold(position)).collect();
            assert_eq!(begun, expected, "{prompt_len} tokens, {drawn:?} drawn");
        };
        check(3, &[], &[]);
        check(9, &[], &[0, 4]);
        check(16, &[5..6], &[0, 8, 12]);
        check(16, &[3..5, 12..13], &[8]);
        check(16, &[4..8, 9..9, 15..99], &[0, 8]);
        check(16, &[0..16], &[]);
    }

    #[test]
    fn tokens_are_alike_up_to_the_next_change() {
        let units = Units::new(4, 14, &[5..6]); // units from 0 and from 8
        let alike = [0, 3, 4, 7, 8, 11, 12, 30].map(|position| units.alike_from(position));
        assert_eq!(alike, [4, 1, 4, 1, 4, 1, usize::MAX, usize::MAX]);
        assert_eq!(Units::new(4, 14, &[]).alike_from(1), 11);
        assert_eq!([0, 3, 9].map(|position| units.left(position)), [4, 1, 3]);
        assert_eq!(Units::none().alike_from(7), usize::MAX);
    }

    #[test]
    fn blocks_are_alike_up_to_the_first_unit_that_differs() {
        let chain = |drawn: &[Range<usize>]| Chain::new(b"m", b"s", 8, Units::new(4, 24, drawn));
        let check = |drawn: &[Range<usize>], block: usize, same: usize, expected: usize| {
            let others: Vec<bool> = chain(drawn).units_in(block).collect();
            assert_eq!(chain(&[]).alike(block, &others, same), expected, "{drawn:?}, block {block}");
        };
        check(&[], 1, 7, 7);
        check(&[8..9], 1, 7, 0);
        check(&[12..13], 1, 7, 4);
        check(&[12..13], 1, 3, 3);
        let wide = |drawn: &[Range<usize>]| Chain::new(b"m", b"s", 3, Units::new(4, 24, drawn));
        let others: Vec<bool> = wide(&[4..5]).units_in(1).collect();
        assert_eq!(wide(&[]).alike(1, &others, 3), 1, "of tokens 3, 4 and 5 the first is in another unit");
    }
}
