//! `POST /v1/chat/completions`: the request.

use serde_json::{Map, Value};

use crate::Parsed;
use crate::common::Generation;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::message::{Message, Role, take_messages};
use crate::tools::{ToolChoice, Tools};

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
    pub ending: Ending,
    /// What thinking asks of the template is in it.
    pub chat_template_kwargs: Map<String, Value>,
    pub tools: Tools,
    /// Reasoning is told, if the model does any.
    pub include_reasoning: bool,
}

/// How the prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// Where the template lets an answer begin.
    #[default]
    GenerationPrompt,
    /// Behind the last message, as the template closes it.
    Closed,
    /// With the last message's text, an assistant's: the answer goes on with it.
    Open,
}

impl Ending {
    pub(crate) fn take(fields: &mut Fields, messages: &[Message]) -> Result<Self> {
        let prompt = fields.bool("add_generation_prompt")?;
        if !fields.bool("continue_final_message")?.unwrap_or(false) {
            return Ok(if prompt.unwrap_or(true) { Self::GenerationPrompt } else { Self::Closed });
        }
        if prompt == Some(true) {
            let message =
                "`continue_final_message` and `add_generation_prompt` exclude each other. Give one of them.";
            return Err(Error::value("continue_final_message", message));
        }
        let has_text = |last: &Message| last.content.as_ref().is_some_and(|text| !text.trim().is_empty());
        if !messages.last().is_some_and(|last| last.role == Role::Assistant && has_text(last)) {
            let message =
                "`continue_final_message` needs an assistant's message with a text at the end of `messages`.";
            return Err(Error::value("continue_final_message", message));
        }
        Ok(Self::Open)
    }
}

impl ChatRequest {
    /// Reads a body for a model whose token ids are below `vocab_size`.
    pub fn parse(body: &[u8], vocab_size: usize) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        crate::unserved::refuse_in_chat(&mut fields)?;
        let mut generation = Generation::take(&mut fields, vocab_size)?;
        let messages = take_messages(&mut fields)?;
        let ending = Ending::take(&mut fields, &messages)?;
        let max_tokens = fields.int("max_tokens", 1..=i64::MAX)?;
        let max_completion_tokens = fields.int("max_completion_tokens", 1..=i64::MAX)?;
        generation.max_tokens = max_completion_tokens.or(max_tokens).map(|n| n as usize);
        generation.take_min_tokens(&mut fields)?;
        let tools = Tools::take(&mut fields)?;
        check_one_constraint(&generation, &tools)?;
        let mut chat_template_kwargs = take_template_kwargs(&mut fields)?;
        take_thinking(&mut fields, &mut chat_template_kwargs)?;
        // Either way exactly one BOS results: the template's, or the tokenizer's where it has none.
        fields.bool("add_special_tokens")?;
        let request = Self {
            generation,
            messages,
            logprobs: take_logprobs(&mut fields)?,
            ending,
            chat_template_kwargs,
            tools,
            include_reasoning: fields.bool("include_reasoning")?.unwrap_or(true),
        };
        Ok(Parsed { request, ignored: fields.rest() })
    }
}

/// A call that must come leaves no room for text of another form.
pub(crate) fn check_one_constraint(generation: &Generation, tools: &Tools) -> Result<()> {
    match (&generation.constrained, &tools.choice) {
        (Some(constrained), ToolChoice::Required | ToolChoice::Named(_)) => Err(Error::value(
            &constrained.param,
            format!(
                "`{}` constrains a text, and `tool_choice` asks for a call. Give one of them.",
                constrained.param
            ),
        )),
        _ => Ok(()),
    }
}

/// `reasoning_effort` as template variables, and the two names of the switch, which mean the same: DeepSeek's templates
/// read `thinking`, GLM's `enable_thinking`.
pub(crate) fn take_thinking(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<()> {
    if let Some(effort) = fields.string("reasoning_effort")? {
        note_effort("reasoning_effort", &effort, kwargs)?;
    }
    const SWITCHES: [&str; 2] = ["thinking", "enable_thinking"];
    if let Some(on) = SWITCHES.into_iter().find_map(|name| kwargs.get(name).cloned()) {
        for name in SWITCHES {
            kwargs.entry(name).or_insert_with(|| on.clone());
        }
    }
    Ok(())
}

/// Variables that the client sets itself stay.
pub(crate) fn note_effort(path: &str, effort: &str, kwargs: &mut Map<String, Value>) -> Result<()> {
    const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
    if !EFFORTS.contains(&effort) {
        let shown: String = effort.chars().take(32).collect();
        let message = format!("`{path}` is {shown:?}; it must be one of {}.", EFFORTS.join(", "));
        return Err(Error::value(path, message));
    }
    kwargs.entry("reasoning_effort").or_insert_with(|| effort.into());
    if !kwargs.contains_key("enable_thinking") {
        kwargs.entry("thinking").or_insert_with(|| (effort != "none").into());
    }
    Ok(())
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
