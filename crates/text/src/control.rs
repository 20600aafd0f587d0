//! Control tokens: where a text spells one, or a part that could become one beside other text.

use std::collections::{BTreeSet, HashSet};

use aho_corasick::AhoCorasick;
use tokenizers::AddedToken;

use crate::TextError;

/// Longer control tokens are taken for a damaged file: every beginning and end is kept.
const BYTES_MAX: usize = 256;

/// Added tokens whose text means something to the model, and may not be typed.
pub(crate) struct ControlTokens {
    ids: HashSet<u32>,
    texts: Vec<String>,
    /// Finds all of them, overlapping ones too; the pattern's number is the index in `texts`.
    finder: AhoCorasick,
    /// Proper beginnings and ends that hold punctuation.
    heads: HashSet<String>,
    tails: HashSet<String>,
    bytes_max: usize,
}

impl ControlTokens {
    pub(crate) fn new<'a>(added: impl Iterator<Item = (u32, &'a AddedToken)>) -> Result<Self, TextError> {
        let broken = |why: String| TextError::Tokenizer(format!("added tokens: {why}"));
        let (ids, texts): (HashSet<u32>, Vec<String>) = added
            .filter(|(_, token)| is_control(token))
            .map(|(id, token)| (id, token.content.clone()))
            .unzip();
        let bytes_max = texts.iter().map(String::len).max().unwrap_or(0);
        if bytes_max > BYTES_MAX {
            return Err(broken(format!("one has {bytes_max} bytes. At most {BYTES_MAX} can be used.")));
        }
        let finder = AhoCorasick::new(&texts).map_err(|error| broken(error.to_string()))?;
        let mut this =
            Self { ids, texts: Vec::new(), finder, heads: HashSet::new(), tails: HashSet::new(), bytes_max };
        for text in &texts {
            for (cut, _) in text.char_indices().skip(1) {
                let (head, tail) = text.split_at(cut);
                this.heads.extend(mark(head).map(|_| head.to_owned()));
                this.tails.extend(mark(tail).map(|_| tail.to_owned()));
            }
        }
        this.texts = texts;
        Ok(this)
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    /// Byte offsets of letters without which `text` could have no part in a control token.
    pub(crate) fn places(&self, text: &str) -> BTreeSet<usize> {
        let mut places = BTreeSet::new();
        for found in self.finder.find_overlapping_iter(text) {
            places.insert(found.start() + mark(&text[found.range()]).unwrap_or(0));
        }
        let near_end = text.char_indices().rev().map(|(at, _)| at);
        for start in near_end.take_while(|at| text.len() - at < self.bytes_max) {
            if self.heads.contains(&text[start..]) {
                places.extend(mark(&text[start..]).map(|at| start + at));
            }
        }
        let near_start = text.char_indices().skip(1).map(|(at, _)| at).chain([text.len()]);
        for end in near_start.take_while(|&at| at < self.bytes_max) {
            if self.tails.contains(&text[..end]) {
                places.extend(mark(&text[..end]));
            }
        }
        places
    }
}

/// The letter that is exchanged: the first that is neither part of a word, which templates compare, nor something
/// that JSON escapes.
fn mark(part: &str) -> Option<usize> {
    let is_mark = |letter: char| {
        !(letter.is_alphanumeric()
            || letter.is_whitespace()
            || letter.is_control()
            || matches!(letter, '"' | '\\'))
    };
    part.find(is_mark)
}

/// Some vocabularies hold letters or runs of spaces as added tokens, for want of another place. Those are text.
fn is_control(token: &AddedToken) -> bool {
    let is_text = |letter: char| letter.is_alphanumeric() || letter.is_whitespace();
    let is_one_letter = token.content.chars().nth(1).is_none();
    !token.content.is_empty() && (token.special || !(is_one_letter || token.content.chars().all(is_text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_at_the_borders_count() {
        let tokens =
            [AddedToken::from("<|a|>", true), AddedToken::from("</t>", false), AddedToken::from("é", false)];
        let control = ControlTokens::new((0..).zip(&tokens)).unwrap();
        let check = |text: &str, places: &[usize]| {
            assert_eq!(control.places(text).into_iter().collect::<Vec<_>>(), places, "{text}");
        };
        check("", &[]);
        check("plain é", &[]);
        check("x<|a|>y</t>", &[1, 7]);
        check("<|a|><|a|>", &[0, 5]);
        check("1 < 2", &[]);
        check("x<|", &[1]);
        check("x<<", &[2]);
        check("a|>x", &[1]);
        check("> quote", &[0]);
        check("a", &[]);
    }
}
