//! Which tokens an answer may use: `allowed_token_ids` and `bad_words`.
//!
//! They are a mask over the next token, as grammars are: one kind of mask holds on every device, and a grammar and
//! these hold together. A step with masks is waited for before the next is launched, so that a device idles a little
//! beside such a request; words of several tokens need that anyway.

use std::sync::Arc;

use engine::grammar::{Constraint, Grammar, Matcher};
use openai::{Error, Generation};

use crate::app::ServedModel;
use crate::tokenize::encode_text;

/// What may be drawn, whatever an answer's grammar says.
pub(crate) struct Restriction {
    /// Bit `id % 32` of word `id / 32`: the token may be drawn.
    allowed: Vec<u32>,
    /// Two tokens or more, the last of which is not drawn after the others.
    sequences: Vec<Vec<u32>>,
}

impl Restriction {
    /// `None` where all may be drawn.
    pub(crate) fn of(model: &ServedModel, generation: &Generation) -> Result<Option<Self>, Error> {
        let Generation { allowed_token_ids, bad_words, .. } = generation;
        if allowed_token_ids.is_none() && bad_words.is_empty() {
            return Ok(None);
        }
        let drawable = model.drawable();
        let mut restriction = match allowed_token_ids {
            Some(ids) => Self::to(ids.iter().copied().filter(|&id| (id as usize) < drawable), drawable),
            None => Self::to(0..drawable as u32, drawable),
        };
        for (at, word) in bad_words.iter().enumerate() {
            restriction.ban(model, word, &format!("bad_words[{at}]"))?;
        }
        Ok(Some(restriction))
    }

    fn to(ids: impl Iterator<Item = u32>, drawable: usize) -> Self {
        let mut allowed = vec![0; drawable.div_ceil(32)];
        ids.for_each(|id| allowed[id as usize / 32] |= bit(id));
        Self { allowed, sequences: Vec::new() }
    }

    /// Bans what spells `word` at the beginning of a text and, behind a space, within it. `path`: the field that errors
    /// name.
    fn ban(&mut self, model: &ServedModel, word: &str, path: &str) -> Result<(), Error> {
        let bare = word.trim_start();
        let spellings =
            if bare.is_empty() { vec![word.into()] } else { vec![bare.into(), format!(" {bare}")] };
        let mut spelt = false;
        for spelling in spellings {
            let ids = encode_text(model, &spelling, false)?;
            spelt |= !ids.is_empty();
            match ids[..] {
                [] => {}
                [id] => clear(&mut self.allowed, id),
                _ if self.sequences.contains(&ids) => {}
                _ => self.sequences.push(ids),
            }
        }
        let unspelt = || Error::value(path, format!("`{path}` has no tokens in this model. Leave it out."));
        if spelt { Ok(()) } else { Err(unspelt()) }
    }

    /// Whether an answer may begin with the token.
    pub(crate) fn allows(&self, id: u32) -> bool {
        self.allowed.get(id as usize / 32).is_some_and(|word| word & bit(id) != 0)
    }

    /// Holds together with a grammar, if there is one.
    pub(crate) fn with(self, grammar: Option<Constraint>) -> Constraint {
        Constraint(Arc::new(Restricted { restriction: Arc::new(self), grammar }))
    }
}

fn bit(id: u32) -> u32 {
    1 << (id % 32)
}

fn clear(words: &mut [u32], id: u32) {
    if let Some(word) = words.get_mut(id as usize / 32) {
        *word &= !bit(id);
    }
}

struct Restricted {
    restriction: Arc<Restriction>,
    grammar: Option<Constraint>,
}

impl Grammar for Restricted {
    fn begin(&self) -> Box<dyn Matcher> {
        let grammar = self.grammar.as_ref().map(|constraint| constraint.0.begin());
        Box::new(Answer { restriction: self.restriction.clone(), drawn: Vec::new(), grammar })
    }
}

/// One answer on its way.
struct Answer {
    restriction: Arc<Restriction>,
    drawn: Vec<u32>,
    grammar: Option<Box<dyn Matcher>>,
}

impl Matcher for Answer {
    fn advance(&mut self, id: u32) -> Result<(), String> {
        self.drawn.push(id);
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.advance(id))
    }

    fn mask(&mut self, words: &mut [u32]) -> Result<(), String> {
        match &mut self.grammar {
            Some(grammar) => grammar.mask(words)?,
            None => words.fill(u32::MAX),
        }
        let allowed = self.restriction.allowed.iter().copied().chain(std::iter::repeat(0));
        words.iter_mut().zip(allowed).for_each(|(word, allowed)| *word &= allowed);
        for sequence in &self.restriction.sequences {
            if let Some((&last, before)) = sequence.split_last()
                && self.drawn.ends_with(before)
            {
                clear(words, last);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grammar that allows one set, whatever was drawn.
    struct Only(Vec<u32>);

    impl Grammar for Only {
        fn begin(&self) -> Box<dyn Matcher> {
            Box::new(Self(self.0.clone()))
        }
    }

    impl Matcher for Only {
        fn advance(&mut self, id: u32) -> Result<(), String> {
            if self.0.contains(&id) { Ok(()) } else { Err(format!("{id} was not allowed")) }
        }

        fn mask(&mut self, words: &mut [u32]) -> Result<(), String> {
            self.0.iter().for_each(|id| words[*id as usize / 32] |= bit(*id));
            Ok(())
        }
    }

    fn check(allowed: &[u32], grammar: Option<&[u32]>, drawn: &[u32], expected: &[u32]) {
        let mut restriction = Restriction::to(allowed.iter().copied(), 70);
        restriction.sequences = vec![vec![5, 6], vec![5, 6, 40]];
        let grammar = grammar.map(|ids| Constraint(Arc::new(Only(ids.to_vec()))));
        let mut answer = restriction.with(grammar).0.begin();
        drawn.iter().for_each(|&id| answer.advance(id).unwrap());
        let mut words = vec![0; 4];
        answer.mask(&mut words).unwrap();
        let ids: Vec<u32> = (0..128).filter(|id| words[*id as usize / 32] & bit(*id) != 0).collect();
        assert_eq!(ids, expected, "{allowed:?} {drawn:?}");
    }

    #[test]
    fn a_sequence_s_last_token_is_banned_after_the_others() {
        let allowed = [5, 6, 40, 69];
        check(&allowed, None, &[], &allowed);
        check(&allowed, None, &[6, 5], &[5, 40, 69]);
        check(&allowed, None, &[5, 6], &[5, 6, 69]);
        check(&allowed, None, &[5, 6, 5], &[5, 40, 69]);
        check(&allowed, None, &[5, 40], &allowed);
    }

    #[test]
    fn a_grammar_holds_beside_it() {
        check(&[5, 6, 40], Some(&[5, 6, 69]), &[], &[5, 6]);
        check(&[5, 6, 40], Some(&[5, 6, 69]), &[5], &[5]);
        check(&[5, 6], Some(&[40]), &[], &[]);
    }
}
