//! The bytes of each token, read from the decoder that `tokenizer.json` names.

use serde_json::Value;

use crate::TextError;

/// Ids from here on are taken for a damaged file: tables are indexed by id.
const IDS_MAX: usize = 1 << 24;

/// How the vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Spelling {
    /// One letter for each byte, as GPT-2 has it.
    ByteLevel,
    /// `▁` for a space, `<0xAB>` for a byte that has no token.
    SentencePiece {
        /// The text's first space is not part of it.
        strips_first_space: bool,
    },
}

impl Spelling {
    /// From the `decoder` of tokenizer.json.
    pub(crate) fn of(decoder: &Value) -> Result<Self, TextError> {
        let steps = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) => steps.iter().collect(),
            None => vec![decoder],
        };
        let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
        let kinds: Vec<_> = steps.iter().map(|step| kind(step)).collect();
        if let Some(odd) = kinds.iter().find(|kind| !KNOWN_STEPS.contains(&kind.as_str())) {
            return Err(TextError::Tokenizer(format!(
                "decoder `{odd}` is not supported. Supported are ByteLevel, and SentencePiece's \
                 Replace, ByteFallback, Fuse, Strip and Metaspace."
            )));
        }
        if kinds.iter().any(|kind| kind == "ByteLevel") {
            return Ok(Self::ByteLevel);
        }
        let strips = |step: &&Value| match step.get("type").and_then(Value::as_str) {
            Some("Strip") => step.get("start").and_then(Value::as_u64).is_some_and(|n| n > 0),
            Some("Metaspace") => {
                let scheme = step.get("prepend_scheme").and_then(Value::as_str);
                let prefix = step.get("add_prefix_space").and_then(Value::as_bool);
                scheme.map_or(prefix.unwrap_or(true), |scheme| scheme != "never")
            }
            _ => false,
        };
        Ok(Self::SentencePiece { strips_first_space: steps.iter().any(strips) })
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(letter_byte).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::SentencePiece { .. } => match fallback_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }
}

const KNOWN_STEPS: [&str; 6] = ["ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];

/// The byte that a letter of GPT-2's alphabet stands for: printable Latin-1 stands for itself, the other 68 bytes
/// follow in order from U+0100.
fn letter_byte(letter: char) -> Option<u8> {
    let own = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&byte| own(byte)),
        code => (0..=u8::MAX).filter(|&byte| !own(byte)).nth(code as usize - 0x100),
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Bytes of all tokens in one piece of memory; what has no token has no bytes.
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    /// `[vocab_size + 1]`: token i owns `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    special: Vec<bool>,
}

impl TokenTable {
    /// From the model's vocabulary and the added tokens, whose text is their own.
    pub(crate) fn new<'a>(
        spelling: Spelling,
        vocab: impl Iterator<Item = (&'a str, u32)>,
        added: impl Iterator<Item = (u32, &'a str, bool)>,
    ) -> Result<Self, TextError> {
        let mut tokens: Vec<(u32, Vec<u8>, bool)> =
            vocab.map(|(token, id)| (id, spelling.bytes(token), false)).collect();
        tokens.extend(added.map(|(id, text, special)| (id, text.as_bytes().to_vec(), special)));
        let size = tokens.iter().map(|token| token.0 as usize + 1).max().unwrap_or(0);
        if size == 0 || size > IDS_MAX {
            let why = format!("the vocabulary has {size} ids. Between 1 and {IDS_MAX} can be used.");
            return Err(TextError::Tokenizer(why));
        }
        let mut own = vec![(Vec::new(), false); size];
        for (id, bytes, special) in tokens {
            own[id as usize] = (bytes, special);
        }
        let mut table = Self { bytes: Vec::new(), starts: vec![0], special: Vec::with_capacity(size) };
        for (bytes, special) in own {
            table.bytes.extend(bytes);
            table.starts.push(table.bytes.len());
            table.special.push(special);
        }
        Ok(table)
    }

    pub(crate) fn len(&self) -> usize {
        self.special.len()
    }

    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        if id < self.len() { &self.bytes[self.starts[id]..self.starts[id + 1]] } else { &[] }
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn letters_stand_for_bytes() {
        for (letter, byte) in [
            ('!', 0x21),
            ('~', 0x7e),
            ('Ā', 0),
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('ġ', 0x7f),
            ('Ń', 0xad),
            ('ÿ', 0xff),
        ] {
            assert_eq!(letter_byte(letter), Some(byte), "{letter}");
        }
        for letter in [' ', '\u{ad}', '｜', 'ń'] {
            assert_eq!(letter_byte(letter), None, "{letter}");
        }
        let mut all: Vec<u8> = ('\0'..='\u{200}').filter_map(letter_byte).collect();
        all.sort_unstable();
        assert_eq!(all, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn sentencepiece_spells_spaces_and_bytes() {
        let spelling = Spelling::of(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}));
        assert_eq!(spelling, Ok(Spelling::SentencePiece { strips_first_space: true }));
        let spelling = spelling.unwrap();
        for (token, bytes) in
            [("▁a▁b", &b" a b"[..]), ("<0xE4>", &[0xe4]), ("<0xE4", b"<0xE4"), ("<0x+1>", b"<0x+1>")]
        {
            assert_eq!(spelling.bytes(token), bytes, "{token}");
        }
    }

    #[test]
    fn other_decoders_are_refused_by_name() {
        let error = Spelling::of(&json!({"type": "WordPiece"})).unwrap_err().to_string();
        assert!(error.contains("`WordPiece`"), "{error}");
        assert!(Spelling::of(&Value::Null).is_err());
    }

    #[test]
    fn an_enormous_id_is_refused() {
        let vocab = [("a", u32::MAX)].into_iter();
        assert!(TokenTable::new(Spelling::ByteLevel, vocab, std::iter::empty()).is_err());
    }
}
