//! `POST /v1/chat/completions`: the request.

use serde_json::{Map, Value};

use crate::Parsed;
use crate::common::Generation;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::message::{Message, take_messages};

/// Template variables that a request may not replace.
const RESERVED: &[&str] =
    &["add_generation_prompt", "bos_token", "eos_token", "messages", "pad_token", "tools", "unk_token"];

#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub generation: Generation,
    /// At least one.
    pub messages: Vec<Message>,
    /// Log probabilities of each token and of so many beside it.
    pub logprobs: Option<usize>,
    pub add_generation_prompt: bool,
    pub chat_template_kwargs: Map<String, Value>,
}

impl ChatRequest {
    /// Reads a body for a model whose token ids are below `vocab_size`.
    pub fn parse(body: &[u8], vocab_size: usize) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        crate::unserved::refuse_in_chat(&mut fields)?;
        let mut generation = Generation::take(&mut fields, vocab_size)?;
        let messages = take_messages(&mut fields)?;
        let max_tokens = fields.int("max_tokens", 1..=i64::MAX)?;
        let max_completion_tokens = fields.int("max_completion_tokens", 1..=i64::MAX)?;
        generation.max_tokens = max_completion_tokens.or(max_tokens).map(|n| n as usize);
        generation.take_min_tokens(&mut fields)?;
        // Either way exactly one BOS results: the template's, or the tokenizer's where it has none.
        fields.bool("add_special_tokens")?;
        let request = Self {
            generation,
            messages,
            logprobs: take_logprobs(&mut fields)?,
            add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(true),
            chat_template_kwargs: take_template_kwargs(&mut fields)?,
        };
        Ok(Parsed { request, ignored: fields.rest() })
    }
}

fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.int("top_logprobs", 0..=20)?;
    match (wanted, top) {
        (false, Some(_)) => {
            Err(Error::value("top_logprobs", "`top_logprobs` is only allowed with `logprobs`: true."))
        }
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}

pub(crate) fn take_template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>> {
    let kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    match kwargs.keys().find(|key| RESERVED.contains(&key.as_str())) {
        None => Ok(kwargs),
        Some(name) => Err(Error::value(
            &format!("chat_template_kwargs.{name}"),
            format!("`chat_template_kwargs` cannot replace `{name}`. Use another name."),
        )),
    }
}
