use std::sync::Arc;

use crate::Tokenizer;

/// Decodes token by token, in whole characters. All pieces together are [`Tokenizer::decode`] of all ids.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Special tokens that are not skipped.
    shown: Arc<[u32]>,
    decoder: Utf8Decoder,
}

impl Detokenizer {
    /// With `skip_special`, special tokens decode to nothing.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let decoder = Utf8Decoder::new(tokenizer.strips_first_space());
        Self { tokenizer, skip_special, shown: Arc::default(), decoder }
    }

    /// Does not skip these.
    pub fn showing(self, shown: Arc<[u32]>) -> Self {
        Self { shown, ..self }
    }

    /// The text that became certain with this token; perhaps none.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        if !(self.skip_special && self.tokenizer.is_special(id)) || self.shown.contains(&id) {
            self.decoder.push(self.tokenizer.bytes(id), &mut text);
        }
        text
    }

    /// What is left when no token follows: a character that was cut shows as U+FFFD.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        text
    }
}

/// Bytes to text, replacing as [`String::from_utf8_lossy`] does, wherever the bytes are cut.
pub(crate) struct Utf8Decoder {
    /// The beginning of a character: at most three bytes between pushes.
    pending: Vec<u8>,
    strip_space: bool,
}

impl Utf8Decoder {
    pub(crate) fn new(strips_first_space: bool) -> Self {
        Self { pending: Vec::new(), strip_space: strips_first_space }
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8], text: &mut String) {
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let broken = chunk.invalid();
            if broken.is_empty() || may_continue(broken, used + broken.len() == self.pending.len()) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += broken.len();
        }
        self.pending.drain(..used);
    }

    pub(crate) fn finish(&mut self, text: &mut String) {
        if !std::mem::take(&mut self.pending).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Whether further bytes could make a character of these.
fn may_continue(broken: &[u8], last: bool) -> bool {
    last && std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Wherever bytes are cut, the text is that of the whole.
        #[test]
        fn cuts_do_not_matter(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..4),
                    any::<char>().prop_map(|c| c.to_string().into_bytes()),
                    any::<char>().prop_map(|c| c.to_string().into_bytes()[..1].to_vec()),
                    (0x80u8..0xc0).prop_map(|byte| vec![byte]),
                ],
                0..24,
            ),
            cut in 1usize..4,
        ) {
            let whole: Vec<u8> = parts.concat();
            let mut decoder = Utf8Decoder::new(false);
            let mut text = String::new();
            for piece in whole.chunks(cut) {
                decoder.push(piece, &mut text);
                prop_assert!(decoder.pending.len() < 4);
            }
            decoder.finish(&mut text);
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
