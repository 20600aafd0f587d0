//! `POST /v1/completions`: the request.

use serde_json::Value;

use crate::Parsed;
use crate::common::{Generation, SEQUENCES_MAX};
use crate::error::{Error, Result};
use crate::fields::{Fields, missing, to_ids, wrong_type};

/// Length of an answer when the request names none.
const MAX_TOKENS_DEFAULT: usize = 16;
const BEST_OF_MAX: i64 = 20;
const SHAPES: &str = "a string, an array of strings, an array of token ids or an array of such arrays";

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    /// At least one, each in the vocabulary.
    Ids(Vec<u32>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub generation: Generation,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// `max_tokens` was absent: the default may be cut to what is left of the context.
    pub max_tokens_defaulted: bool,
    /// Answers drawn for each prompt, at least `n`: those `n` are told whose tokens have the highest mean log
    /// probability, the best first. The usage counts the tokens of all.
    pub best_of: usize,
    /// Log probabilities of each token and of so many beside it.
    pub logprobs: Option<usize>,
    /// The prompt stands before the answer.
    pub echo: bool,
    pub add_special_tokens: bool,
}

impl CompletionRequest {
    /// Reads a body for a model whose token ids are below `vocab_size`.
    pub fn parse(body: &[u8], vocab_size: usize) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        crate::unserved::refuse_in_completion(&mut fields)?;
        let mut generation = Generation::take(&mut fields, vocab_size)?;
        let prompts = take_prompts(&mut fields, vocab_size)?;
        let echo = fields.bool("echo")?.unwrap_or(false);
        let max_tokens = fields.int("max_tokens", 0..=i64::MAX)?;
        if max_tokens == Some(0) && !echo {
            return Err(Error::value(
                "max_tokens",
                "`max_tokens` is 0; it must be at least 1, or 0 with `echo`: true.",
            ));
        }
        generation.max_tokens = Some(max_tokens.map_or(MAX_TOKENS_DEFAULT, |n| n as usize));
        generation.take_min_tokens(&mut fields)?;
        let best_of = take_best_of(&mut fields, &generation, prompts.len())?;
        let request = Self {
            prompts,
            best_of,
            max_tokens_defaulted: max_tokens.is_none(),
            logprobs: fields.int("logprobs", 0..=20)?.map(|n| n as usize),
            echo,
            add_special_tokens: fields.bool("add_special_tokens")?.unwrap_or(true),
            generation,
        };
        Ok(Parsed { request, ignored: fields.rest() })
    }
}

fn take_best_of(fields: &mut Fields, generation: &Generation, prompts: usize) -> Result<usize> {
    let n = generation.n;
    check_count("n", n, prompts)?;
    let Some(best_of) = fields.int("best_of", 1..=BEST_OF_MAX)?.map(|best_of| best_of as usize) else {
        return Ok(n);
    };
    if best_of < n {
        return Err(Error::value(
            "best_of",
            format!("`best_of` is {best_of}; it must be at least `n`, which is {n}."),
        ));
    }
    if best_of > n && generation.stream.is_some() {
        return Err(Error::value(
            "best_of",
            format!(
                "`best_of` is {best_of}, more than `n`, which is {n}: the best are known when all are complete. \
                 Leave out `stream` or `best_of`."
            ),
        ));
    }
    check_count("best_of", best_of, prompts)?;
    Ok(best_of)
}

/// `field`: how many answers a prompt has.
fn check_count(field: &str, answers: usize, prompts: usize) -> Result<()> {
    let all = answers * prompts;
    if all <= SEQUENCES_MAX {
        return Ok(());
    }
    Err(Error::value(
        field,
        format!("`{field}` times the number of prompts is {all}; at most {SEQUENCES_MAX} are allowed."),
    ))
}

fn take_prompts(fields: &mut Fields, vocab_size: usize) -> Result<Vec<Prompt>> {
    let list = match fields.take("prompt") {
        None => return Err(missing("prompt", SHAPES)),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("prompt", &other, SHAPES)),
    };
    match list.first() {
        None => Err(Error::value("prompt", "`prompt` is empty; it needs at least one token.")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(to_ids("prompt", &list, vocab_size)?)]),
        Some(_) if list.len() > SEQUENCES_MAX => Err(Error::value(
            "prompt",
            format!("`prompt` has {} prompts; at most {SEQUENCES_MAX} are allowed.", list.len()),
        )),
        Some(first) => {
            let text = first.is_string();
            let prompt = |(i, item)| to_prompt(&format!("prompt[{i}]"), item, text, vocab_size);
            list.into_iter().enumerate().map(prompt).collect()
        }
    }
}

/// One prompt of several; all are texts or all are ids, as the first one is.
fn to_prompt(path: &str, item: Value, text: bool, vocab_size: usize) -> Result<Prompt> {
    match item {
        Value::String(prompt) if text => Ok(Prompt::Text(prompt)),
        Value::Array(ids) if !text && ids.is_empty() => {
            Err(Error::value(path, format!("`{path}` is empty; it needs at least one token.")))
        }
        Value::Array(ids) if !text => Ok(Prompt::Ids(to_ids(path, &ids, vocab_size)?)),
        other => {
            let wanted = if text { "a string, as the first prompt is" } else { "an array of token ids" };
            Err(wrong_type(path, &other, wanted))
        }
    }
}
