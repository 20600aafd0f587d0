use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::normalizer::Range::Normalized;
use tokenizers::{
    Model, NormalizedString, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token,
    Tokenizer as Encoder,
};

use crate::TextError;
use crate::chat::StandIn;
use crate::control::ControlTokens;
use crate::detokenizer::Utf8Decoder;
use crate::length::token_bytes_max;
use crate::token_table::{Spelling, TokenTable};

/// What templates call the special tokens (`bos_token`, `eos_token`, ...) → their text.
pub type SpecialTokens = BTreeMap<String, String>;

/// A checkpoint's tokenizer: text to ids, and ids to text. Encoding follows the `tokenizers` crate; decoding is our
/// own, byte by byte, so that streamed and whole text are the same.
pub struct Tokenizer {
    encoder: Encoder,
    table: TokenTable,
    strips_first_space: bool,
    special_tokens: SpecialTokens,
    bos: Bos,
    control: ControlTokens,
    token_bytes_max: Option<usize>,
}

/// Who puts BOS in front of text.
#[derive(Debug, Clone, Copy)]
struct Bos {
    id: Option<u32>,
    wanted: bool,
    /// tokenizer.json's post-processor does so itself.
    by_encoder: bool,
}

/// What is read here of tokenizer.json, beside what `tokenizers` reads.
#[derive(Deserialize)]
pub(crate) struct TokenizerFile {
    #[serde(default)]
    pub(crate) added_tokens: Vec<AddedTokenEntry>,
    #[serde(default)]
    pub(crate) normalizer: Value,
    #[serde(default)]
    pub(crate) pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    pub(crate) model: ModelEntry,
}

#[derive(Deserialize, Default)]
pub(crate) struct ModelEntry {
    #[serde(default)]
    pub(crate) r#type: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
}

#[derive(Deserialize)]
pub(crate) struct AddedTokenEntry {
    id: u32,
    content: String,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
}

impl Tokenizer {
    /// From `tokenizer.json` and, where the checkpoint has it, `tokenizer_config.json`.
    pub fn from_bytes(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
    ) -> Result<Self, TextError> {
        let broken = |why: String| TextError::Tokenizer(why);
        let file: TokenizerFile =
            serde_json::from_slice(tokenizer_json).map_err(|error| broken(error.to_string()))?;
        if file.model.dropout.is_some_and(|share| share != 0.0) {
            return Err(broken("`model.dropout` makes ids random. Set it to null.".to_owned()));
        }
        // `tokenizers` indexes without looking, so files that contradict themselves make it panic.
        let encoder = catch_unwind(AssertUnwindSafe(|| read_encoder(tokenizer_json)));
        let encoder = encoder.unwrap_or_else(|_| {
            Err(broken(
                "merges, vocabulary and post-processor contradict each other. Fetch it again.".to_owned(),
            ))
        })?;
        check_added_ids(&file.added_tokens, &encoder)?;

        let spelling = Spelling::of(&file.decoder)?;
        let vocab = encoder.get_vocab(false);
        let added = encoder.get_added_tokens_decoder();
        let table = TokenTable::new(
            spelling,
            vocab.iter().map(|(token, &id)| (token.as_str(), id)),
            added.iter().map(|(&id, token)| (id, token.content.as_str(), token.special)),
        )?;
        let control = ControlTokens::new(added.iter().map(|(&id, token)| (id, token)))?;
        let config = read_config(tokenizer_config_json)?;
        let special_tokens = special_tokens(&config);
        let bos = Bos::find(&config, &special_tokens, &encoder)?;
        let strips_first_space = spelling == Spelling::SentencePiece { strips_first_space: true };
        let token_bytes_max = token_bytes_max(&file, &table);
        Ok(Self { encoder, table, strips_first_space, special_tokens, bos, control, token_bytes_max })
    }

    /// No text of so many bytes has fewer tokens. 0 where the length of a text tells nothing.
    pub fn tokens_min(&self, n_bytes: usize) -> usize {
        self.token_bytes_max.map_or(0, |longest| n_bytes.div_ceil(longest))
    }

    /// Ids of a text, in which added tokens' texts become these tokens. With `add_special_tokens`, what the
    /// tokenizer puts around a text is added: one BOS where it has one.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = ids_of(&self.encoder, text, add_special_tokens)?;
        if let Some(bos) = self.bos.id.filter(|_| add_special_tokens) {
            match (self.bos.wanted, self.bos.by_encoder) {
                (true, false) => ids.insert(0, bos),
                (false, true) => drop(ids.remove(0)),
                _ => {}
            }
        }
        Ok(ids)
    }

    /// Ids of a rendered conversation. It is split at added tokens as it is, stand-ins included, and these give way
    /// to their letters before anything else looks at the text. Beside them, which tokens have a byte in each of the
    /// rising `spans` of `masked`; a token in two is counted to the first, and a span without one is left out.
    pub(crate) fn encode_masked(
        &self,
        masked: &str,
        letters: &[StandIn],
        spans: &[Range<usize>],
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), TextError> {
        let encode = || -> tokenizers::Result<_> {
            let added = self.encoder.get_added_vocabulary();
            let mut text = added.extract_and_normalize(self.encoder.get_normalizer(), masked);
            for &(stand_in, letter) in letters {
                text.normalize(|part| part.replace(stand_in, letter.encode_utf8(&mut [0; 4])))?;
            }
            if let Some(pre_tokenizer) = self.encoder.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut text)?;
            }
            text.tokenize(|part| {
                let mut tokens = self.words(part.get())?;
                place_tokens(&mut tokens, part, spans);
                Ok(tokens)
            })?;
            Ok(ids_and_spans(&text, spans))
        };
        encode().map_err(|error| TextError::Encode(error.to_string()))
    }

    /// Tokens of text that holds no added token. The model's own vocabulary may spell one, too: its letters do not
    /// make it.
    fn words(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.encoder.get_model();
        let tokens = model.tokenize(text)?;
        if !tokens.iter().any(|token| self.control.contains(token.id)) {
            return Ok(tokens);
        }
        let mut letters = [0; 4];
        let each = text.char_indices().map(|(at, letter)| {
            let mut tokens = model.tokenize(letter.encode_utf8(&mut letters))?;
            tokens.iter_mut().for_each(|token| token.offsets = (at + token.offsets.0, at + token.offsets.1));
            Ok(tokens)
        });
        Ok(each.collect::<tokenizers::Result<Vec<_>>>()?.concat())
    }

    /// Text of ids. Ids outside the vocabulary give nothing; bytes that are not UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoder = Utf8Decoder::new(self.strips_first_space);
        let mut text = String::new();
        for &id in ids.iter().filter(|&&id| !(skip_special && self.is_special(id))) {
            decoder.push(self.bytes(id), &mut text);
        }
        decoder.finish(&mut text);
        text
    }

    /// The token's own bytes, perhaps a part of a character; none outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes(id).to_vec()
    }

    /// The token's own text; a part of a character shows as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }

    /// The token that is written like this in tokenizer.json.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.encoder.token_to_id(token)
    }

    /// One more than the largest id. A model may have more, for padding.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Whether the token is left out of text when special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// Whether its text means something to the model that no typed text does; special tokens are among them.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.contains(id) || self.table.is_special(id)
    }

    /// The token that begins a text, if the checkpoint names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos.id
    }

    /// The token that ends a text, if the checkpoint names one.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id(self.special_tokens.get("eos_token")?)
    }

    /// For [`ChatTemplate`](crate::ChatTemplate): the texts of the special tokens by their names.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.table.bytes(id)
    }

    pub(crate) fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }

    pub(crate) fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// BOS, if text gets one.
    pub(crate) fn bos_of_text(&self) -> Option<u32> {
        self.bos.id.filter(|_| self.bos.wanted)
    }
}

impl Bos {
    fn find(
        config: &Map<String, Value>,
        special_tokens: &SpecialTokens,
        encoder: &Encoder,
    ) -> Result<Self, TextError> {
        let asked = config.get("add_bos_token").and_then(Value::as_bool);
        let text = special_tokens.get("bos_token");
        let id = text.and_then(|text| encoder.token_to_id(text));
        if asked == Some(true) && id.is_none() {
            let name = text.map_or("null", String::as_str);
            return Err(TextError::Config(format!(
                "`add_bos_token` is true, but `bos_token` ({name}) is no token of tokenizer.json. Name one that is."
            )));
        }
        let by_encoder = id.is_some() && ids_of(encoder, "", true)?.first().copied() == id;
        Ok(Self { id, wanted: asked.unwrap_or(by_encoder), by_encoder })
    }
}

/// Reads the file, and tries what it does to a text.
fn read_encoder(tokenizer_json: &[u8]) -> Result<Encoder, TextError> {
    let broken = |error: tokenizers::Error| TextError::Tokenizer(error.to_string());
    let mut encoder = Encoder::from_bytes(tokenizer_json).map_err(broken)?;
    encoder.with_padding(None);
    encoder.with_truncation(None).map_err(broken)?;
    // Added tokens match what was sent, not what a normalizer makes of it: else other letters could spell them.
    if encoder.get_normalizer().is_some() {
        let normalized = encoder.get_added_tokens_decoder().into_values().filter(|token| token.normalized);
        let as_written: Vec<_> = normalized.map(|token| token.normalized(false)).collect();
        encoder.add_tokens(as_written).map_err(broken)?;
    }
    ids_of(&encoder, "a", true).map_err(|error| TextError::Tokenizer(error.to_string()))?;
    Ok(encoder)
}

/// Exchanges offsets in a part for offsets in the whole text. Exact ones cost time and are only wanted where a span
/// begins or ends within the part.
fn place_tokens(tokens: &mut [Token], part: &NormalizedString, spans: &[Range<usize>]) {
    let (start, end) = part.offsets_original();
    let is_within = |border: usize| start < border && border < end;
    let next = spans.partition_point(|span| span.end <= start);
    let is_cut = spans.get(next).is_some_and(|span| is_within(span.start) || is_within(span.end));
    for token in tokens {
        let own = Some(token.offsets.0..token.offsets.1).filter(|_| is_cut);
        let exact = own.and_then(|own| part.convert_offsets(Normalized(own)));
        token.offsets = exact.map_or((start, end), |own| (start + own.start, start + own.end));
    }
}

fn ids_and_spans(text: &PreTokenizedString, spans: &[Range<usize>]) -> (Vec<u32>, Vec<Range<usize>>) {
    let mut ids = Vec::new();
    let mut found: Vec<Range<usize>> = Vec::new();
    let (mut next, mut last) = (0, None);
    for (_, part, tokens) in text.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        let tokens = tokens.as_deref().unwrap_or_default();
        for token in tokens {
            // Added tokens stand alone and know no offsets in the whole.
            let (start, end) = if tokens.len() == 1 { part } else { token.offsets };
            while spans.get(next).is_some_and(|span| span.end <= start) {
                next += 1;
            }
            if spans.get(next).is_some_and(|span| span.start < end) {
                match found.last_mut().filter(|_| last == Some(next)) {
                    Some(range) => range.end = ids.len() + 1,
                    None => found.push(ids.len()..ids.len() + 1),
                }
                last = Some(next);
            }
            ids.push(token.id);
        }
    }
    (ids, found)
}

/// `tokenizers` gives its own ids to added tokens that do not follow on the vocabulary.
fn check_added_ids(entries: &[AddedTokenEntry], encoder: &Encoder) -> Result<(), TextError> {
    let moved = entries.iter().find(|entry| encoder.token_to_id(&entry.content) != Some(entry.id));
    moved.map_or(Ok(()), |entry| {
        Err(TextError::Tokenizer(format!(
            "added token `{}` has id {}, which does not follow on the ids before it. Number added tokens without gaps.",
            entry.content, entry.id
        )))
    })
}

fn ids_of(encoder: &Encoder, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
    let encoding = encoder.encode_fast(text, add_special_tokens);
    encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|error| TextError::Encode(error.to_string()))
}

pub(crate) fn read_config(bytes: Option<&[u8]>) -> Result<Map<String, Value>, TextError> {
    let Some(bytes) = bytes else { return Ok(Map::new()) };
    serde_json::from_slice(bytes).map_err(|error| TextError::Config(error.to_string()))
}

/// Each is a string, or an object with the string as `content`.
pub(crate) fn special_tokens(config: &Map<String, Value>) -> SpecialTokens {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let text = |name: &str| {
        let token = config.get(name)?;
        token.get("content").unwrap_or(token).as_str().map(|text| (name.to_owned(), text.to_owned()))
    };
    NAMES.into_iter().filter_map(text).collect()
}
