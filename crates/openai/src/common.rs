//! Fields that chat and completions share.

use serde_json::Value;

use crate::constraint::Constrained;
use crate::error::{Error, Result};
use crate::fields::{Bounds, Fields, to_ids, to_number, to_string, wrong_type};

/// Most sequences that one request may ask for, prompts times choices.
pub(crate) const SEQUENCES_MAX: usize = 256;
const CHOICES_MAX: i64 = 128;
pub(crate) const BIASES_MAX: usize = 1024;
pub(crate) const STOPS_MAX: usize = 64;
pub(crate) const STOP_BYTES_MAX: usize = 1024;
const STOP_IDS_MAX: usize = 256;
const SALT_CHARS_MAX: usize = 1024;
const BAD_WORDS_MAX: usize = 256;
const BAD_WORD_BYTES_MAX: usize = 128;

/// How to generate. `None` where the checkpoint or the server decides.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generation {
    pub model: Option<String>,
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<usize>,
    pub min_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<i64>,
    /// At least 1.
    pub n: usize,
    /// Texts whose tokens are not drawn one after the other; none is empty.
    pub bad_words: Vec<String>,
    /// Not empty: no other tokens are drawn.
    pub allowed_token_ids: Option<Vec<u32>>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub include_stop_str_in_output: bool,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    /// What is left of a prompt.
    pub truncate_prompt_tokens: Option<Truncation>,
    /// Log probabilities of each prompt token and of so many beside it.
    pub prompt_logprobs: Option<usize>,
    /// `Some` when the answer is to be streamed.
    pub stream: Option<StreamOptions>,
    pub return_token_ids: bool,
    pub return_tokens_as_token_ids: bool,
    /// Lower runs earlier.
    pub priority: i32,
    /// The prompt's blocks are shared only among requests of equal salts.
    pub cache_salt: Option<String>,
    /// What the answer's text is to be.
    pub constrained: Option<Constrained>,
}

/// How much of a prompt's end is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// As much as the context has room for beside the answer.
    Fit,
    /// At most so many tokens, at least 1.
    Last(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// The last chunk carries the usage of the whole request.
    pub include_usage: bool,
    /// Every chunk carries the usage so far.
    pub continuous_usage_stats: bool,
}

impl Generation {
    /// Takes the shared fields, all but those for the length.
    pub(crate) fn take(fields: &mut Fields, vocab_size: usize) -> Result<Self> {
        crate::unserved::check_inert(fields)?;
        let stream = take_stream(fields)?;
        Ok(Self {
            model: fields.string("model")?,
            max_tokens: None,
            min_tokens: 0,
            temperature: fields.number("temperature", Bounds::from(0.0, 2.0))?,
            top_p: fields.number("top_p", Bounds::above(0.0, 1.0))?,
            top_k: fields.int("top_k", -1..=i64::MAX)?.map(|k| k.max(0) as usize),
            min_p: fields.number("min_p", Bounds::from(0.0, 1.0))?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", Bounds::from(-2.0, 2.0))?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", Bounds::from(-2.0, 2.0))?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", Bounds::above(0.0, 2.0))?,
            logit_bias: take_logit_bias(fields, vocab_size)?,
            seed: fields.int("seed", i64::MIN..=i64::MAX)?,
            n: fields.int("n", 1..=CHOICES_MAX)?.unwrap_or(1) as usize,
            bad_words: take_bad_words(fields)?,
            allowed_token_ids: take_allowed_ids(fields, vocab_size)?,
            stop: take_stop(fields)?,
            stop_token_ids: take_stop_ids(fields, vocab_size)?,
            include_stop_str_in_output: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: fields.bool("skip_special_tokens")?.unwrap_or(true),
            truncate_prompt_tokens: take_truncation(fields)?,
            prompt_logprobs: take_prompt_logprobs(fields, stream.is_some())?,
            stream,
            return_token_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            return_tokens_as_token_ids: fields.bool("return_tokens_as_token_ids")?.unwrap_or(false),
            priority: take_priority(fields)?,
            cache_salt: take_cache_salt(fields)?,
            constrained: Constrained::take(fields)?,
        })
    }

    /// Takes `min_tokens`, once `max_tokens` is known.
    pub(crate) fn take_min_tokens(&mut self, fields: &mut Fields) -> Result<()> {
        let least = fields.int("min_tokens", 0..=i64::MAX)?.unwrap_or(0) as usize;
        if let Some(most) = self.max_tokens.filter(|most| least > *most) {
            return Err(Error::value(
                "min_tokens",
                format!("`min_tokens` is {least}, more than `max_tokens`, which is {most}."),
            ));
        }
        self.min_tokens = least;
        Ok(())
    }
}

fn take_logit_bias(fields: &mut Fields, vocab_size: usize) -> Result<Vec<(u32, f32)>> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    if map.len() > BIASES_MAX {
        return Err(Error::value(
            "logit_bias",
            format!("`logit_bias` has {} entries; at most {BIASES_MAX} are allowed.", map.len()),
        ));
    }
    let entry = |(key, value): (&String, &Value)| {
        let plain = key.bytes().all(|b| b.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
        let id = plain.then(|| key.parse::<u32>().ok()).flatten();
        let Some(id) = id.filter(|id| (*id as usize) < vocab_size) else {
            let shown: String = key.chars().take(32).collect();
            return Err(Error::value(
                "logit_bias",
                format!(
                    "The key {shown:?} of `logit_bias` is not a token id of this model; ids are \
                     decimal numbers below {vocab_size}."
                ),
            ));
        };
        let path = format!("logit_bias.{id}");
        Ok((id, to_number(&path, value, &Bounds::from(-100.0, 100.0))? as f32))
    };
    map.iter().map(entry).collect()
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>> {
    match fields.take("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => check_stop("stop", &text).map(|()| vec![text]),
        Some(Value::Array(list)) => to_stops("stop", list),
        Some(other) => Err(wrong_type("stop", &other, "a string or an array of strings")),
    }
}

pub(crate) fn to_stops(path: &str, list: Vec<Value>) -> Result<Vec<String>> {
    if list.len() > STOPS_MAX {
        let message = format!("`{path}` has {} strings; at most {STOPS_MAX} are allowed.", list.len());
        return Err(Error::value(path, message));
    }
    let text = |(i, item)| {
        let path = format!("{path}[{i}]");
        let text = to_string(&path, item)?;
        check_stop(&path, &text).map(|()| text)
    };
    list.into_iter().enumerate().map(text).collect()
}

fn check_stop(path: &str, text: &str) -> Result<()> {
    if (1..=STOP_BYTES_MAX).contains(&text.len()) {
        return Ok(());
    }
    let message = format!("`{path}` has {} bytes; a stop string has 1 to {STOP_BYTES_MAX}.", text.len());
    Err(Error::value(path, message))
}

fn take_stop_ids(fields: &mut Fields, vocab_size: usize) -> Result<Vec<u32>> {
    let list = fields.list("stop_token_ids")?.unwrap_or_default();
    if list.len() > STOP_IDS_MAX {
        return Err(Error::value(
            "stop_token_ids",
            format!("`stop_token_ids` has {} ids; at most {STOP_IDS_MAX} are allowed.", list.len()),
        ));
    }
    to_ids("stop_token_ids", &list, vocab_size)
}

fn take_bad_words(fields: &mut Fields) -> Result<Vec<String>> {
    let list = fields.list("bad_words")?.unwrap_or_default();
    if list.len() > BAD_WORDS_MAX {
        return Err(Error::value(
            "bad_words",
            format!("`bad_words` has {} strings; at most {BAD_WORDS_MAX} are allowed.", list.len()),
        ));
    }
    let word = |(i, item)| {
        let path = format!("bad_words[{i}]");
        let text = to_string(&path, item)?;
        if text.is_empty() || text.len() > BAD_WORD_BYTES_MAX {
            let message = format!("`{path}` has {} bytes; it has 1 to {BAD_WORD_BYTES_MAX}.", text.len());
            return Err(Error::value(&path, message));
        }
        Ok(text)
    };
    list.into_iter().enumerate().map(word).collect()
}

fn take_allowed_ids(fields: &mut Fields, vocab_size: usize) -> Result<Option<Vec<u32>>> {
    let Some(list) = fields.list("allowed_token_ids")? else { return Ok(None) };
    if list.is_empty() {
        return Err(Error::value(
            "allowed_token_ids",
            "`allowed_token_ids` is empty; it needs at least one token id. Leave it out to allow all.",
        ));
    }
    let ids = to_ids("allowed_token_ids", &list, vocab_size)?;
    let mut seen = vec![false; vocab_size];
    match ids.iter().position(|&id| std::mem::replace(&mut seen[id as usize], true)) {
        None => Ok(Some(ids)),
        Some(at) => {
            let path = format!("allowed_token_ids[{at}]");
            let message = format!("`{path}` is {}, which stands before it. Name each id once.", ids[at]);
            Err(Error::value(&path, message))
        }
    }
}

fn take_truncation(fields: &mut Fields) -> Result<Option<Truncation>> {
    match fields.int("truncate_prompt_tokens", -1..=i64::MAX)? {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncation::Fit)),
        Some(0) => Err(Error::value(
            "truncate_prompt_tokens",
            "`truncate_prompt_tokens` is 0; it must be at least 1, or -1 to fit the context.",
        )),
        Some(most) => Ok(Some(Truncation::Last(most as usize))),
    }
}

fn take_prompt_logprobs(fields: &mut Fields, streams: bool) -> Result<Option<usize>> {
    let wanted = fields.int("prompt_logprobs", 0..=20)?;
    if wanted.is_some() && streams {
        return Err(Error::value(
            "prompt_logprobs",
            "`prompt_logprobs` is not allowed with `stream`: true. Leave one of them out.",
        ));
    }
    Ok(wanted.map(|n| n as usize))
}

fn take_priority(fields: &mut Fields) -> Result<i32> {
    let priority = fields.int("priority", i32::MIN.into()..=i32::MAX.into())?.unwrap_or(0);
    Ok(priority as i32)
}

fn take_cache_salt(fields: &mut Fields) -> Result<Option<String>> {
    let salt = fields.string("cache_salt")?;
    let n = salt.as_ref().map_or(1, |salt| salt.chars().count());
    if (1..=SALT_CHARS_MAX).contains(&n) {
        return Ok(salt);
    }
    Err(Error::value(
        "cache_salt",
        format!(
            "`cache_salt` has {n} characters; it has 1 to {SALT_CHARS_MAX}. Leave it out to share blocks."
        ),
    ))
}

fn take_stream(fields: &mut Fields) -> Result<Option<StreamOptions>> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else {
        return Ok(stream.then(StreamOptions::default));
    };
    let mut options = Fields::at("stream_options", options)?;
    if !stream {
        return Err(Error::value("stream_options", "`stream_options` is only allowed with `stream`: true."));
    }
    // Padding against traffic analysis; a local server has none to switch off.
    options.bool("include_obfuscation")?;
    Ok(Some(StreamOptions {
        include_usage: options.bool("include_usage")?.unwrap_or(false),
        continuous_usage_stats: options.bool("continuous_usage_stats")?.unwrap_or(false),
    }))
}
