//! A small vocabulary, and texts tried against grammars.

#![allow(dead_code)] // each test takes what it needs

use std::sync::Arc;

use engine::grammar::Grammar;
use grammar::{Compiler, Limits, Piece, Refused, Vocabulary};

pub(crate) const EOS: u32 = 256;
pub(crate) const THINK_END: &str = "</think>";
pub(crate) const CALL: &str = "<|call|>";

/// All bytes, EOS, two control tokens, and words of several letters.
pub(crate) fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.push(b"<eos>".to_vec());
    tokens.push(THINK_END.as_bytes().to_vec());
    tokens.push(CALL.as_bytes().to_vec());
    let words = [
        "{\"", "\":", "\", \"", "true", "false", "null", "12", "007", "</", "think", "></", "abc", "\n\n",
        "}}", "]}", "ä", "e\"", ", ",
    ];
    tokens.extend(words.map(|word| word.as_bytes().to_vec()));
    Vocabulary { tokens, control: vec![EOS, 257, 258], eos: vec![EOS] }
}

pub(crate) fn compiler() -> Arc<Compiler> {
    Arc::new(Compiler::new(vocabulary, Limits::default(), |_| ()))
}

pub(crate) fn compile(piece: &Piece) -> Result<Arc<dyn Grammar>, Refused> {
    compiler().compile(piece)
}

pub(crate) fn mask_of(matcher: &mut dyn engine::grammar::Matcher) -> Vec<u32> {
    let n = vocabulary().tokens.len();
    let mut words = vec![0; n.div_ceil(32)];
    matcher.mask(&mut words).unwrap();
    (0..n as u32).filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// Ids of a text: the control tokens, and letter by letter.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let control = [(THINK_END, 257), (CALL, 258)].into_iter().find(|(tag, _)| rest.starts_with(tag));
        match control {
            Some((tag, id)) => {
                ids.push(id);
                rest = &rest[tag.len()..];
            }
            None => {
                ids.push(u32::from(rest.as_bytes()[0]));
                let (_, behind) = rest.as_bytes().split_at(1);
                match std::str::from_utf8(behind) {
                    Ok(text) => rest = text,
                    Err(_) => {
                        let len = rest.chars().next().unwrap().len_utf8();
                        ids.extend(rest.as_bytes()[1..len].iter().map(|byte| u32::from(*byte)));
                        rest = &rest[len..];
                    }
                }
            }
        }
    }
    ids
}

/// How many tokens of the text are allowed, and whether it may end there.
pub(crate) fn follow(grammar: &dyn Grammar, ids: &[u32]) -> (usize, bool) {
    let mut matcher = grammar.begin();
    for (at, id) in ids.iter().enumerate() {
        if !mask_of(&mut *matcher).contains(id) {
            return (at, false);
        }
        matcher.advance(*id).unwrap();
    }
    (ids.len(), mask_of(&mut *matcher).contains(&EOS))
}

/// Texts that satisfy the piece, whole, and texts that do not.
pub(crate) fn check(piece: &Piece, good: &[&str], bad: &[&str]) {
    let grammar = compile(piece).unwrap();
    for text in good {
        let ids = ids(text);
        assert_eq!(follow(&*grammar, &ids), (ids.len(), true), "{text:?} of {piece:?}");
    }
    for text in bad {
        let ids = ids(text);
        assert_ne!(follow(&*grammar, &ids), (ids.len(), true), "{text:?} of {piece:?}");
    }
}
