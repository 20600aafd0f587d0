//! Prompts drawn by number: the same seed, the same prompts, on any machine.

use serde::Serialize;

use super::answer::Answer;

/// What a request asks to be continued.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// What prompts are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Token ids below it.
    Ids { vocab_size: u32 },
    /// Words, of about a token each.
    Words,
}

const WORDS: [&str; 16] = [
    " time", " year", " people", " way", " day", " man", " thing", " woman", " life", " child", " world",
    " school", " state", " family", " hand", " part",
];

impl Prompt {
    pub(crate) fn empty(kind: Kind) -> Self {
        match kind {
            Kind::Ids { .. } => Self::Ids(Vec::new()),
            Kind::Words => Self::Text(String::new()),
        }
    }

    /// The answer becomes part of what comes next.
    pub(crate) fn append(&mut self, answer: &Answer) -> Result<(), String> {
        match self {
            Self::Text(text) => text.push_str(&answer.text),
            Self::Ids(ids) => {
                let heard = answer.ids.as_ref();
                ids.extend(heard.ok_or("the server does not tell its answers' token ids; give --text")?);
            }
        }
        Ok(())
    }
}

/// A stream of prompts; streams of different numbers share nothing.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    kind: Kind,
    state: u64,
}

impl Draw {
    pub(crate) fn new(kind: Kind, seed: u64, stream: u64) -> Self {
        Self { kind, state: scrambled(seed) ^ scrambled(!stream) }
    }

    pub(crate) fn prompt(&mut self, len: usize) -> Prompt {
        let mut prompt = Prompt::empty(self.kind);
        self.extend(&mut prompt, len);
        prompt
    }

    /// `len` tokens, or words, more.
    pub(crate) fn extend(&mut self, prompt: &mut Prompt, len: usize) {
        for _ in 0..len {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let number = scrambled(self.state) >> 32;
            match (&mut *prompt, self.kind) {
                (Prompt::Ids(ids), Kind::Ids { vocab_size }) => {
                    ids.push(((number * u64::from(vocab_size)) >> 32) as u32)
                }
                (Prompt::Text(text), _) => text.push_str(WORDS[number as usize % WORDS.len()]),
                (Prompt::Ids(_), Kind::Words) => unreachable!("a prompt is of its draw's kind"),
            }
        }
    }
}

/// The finalizer of SplitMix64.
fn scrambled(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_as_their_numbers_say() {
        let ids = Kind::Ids { vocab_size: 300 };
        let prompt = |seed, stream| Draw::new(ids, seed, stream).prompt(64);
        assert_eq!(prompt(1, 2), prompt(1, 2));
        assert!(prompt(1, 2) != prompt(1, 3) && prompt(1, 2) != prompt(2, 2) && prompt(1, 2) != prompt(2, 1));
        let Prompt::Ids(drawn) = prompt(1, 2) else { panic!("no ids") };
        let distinct: std::collections::BTreeSet<u32> = drawn.iter().copied().collect();
        assert!(drawn.len() == 64 && drawn.iter().all(|&id| id < 300) && distinct.len() > 32, "{drawn:?}");
        let json = serde_json::to_string(&Draw::new(Kind::Words, 1, 2).prompt(3)).unwrap();
        assert_eq!(json.split(' ').count(), 4, "{json}");
    }
}
