//! The request of `POST /v1/responses`.

use serde_json::{Map, Value, json};

use super::items::take_messages;
use crate::Parsed;
use crate::chat::{
    ChatRequest, Ending, check_one_constraint, note_effort, take_template_kwargs, take_thinking,
};
use crate::common::Generation;
use crate::constraint::{Constrained, Constraint, to_named_schema};
use crate::error::{Error, Result};
use crate::fields::{Fields, missing, not_one_of, to_string, unserved};
use crate::tools::{Tool, ToolChoice, Tools, check_count, to_choice, to_function};
use crate::unserved::refuse_in_responses;

#[derive(Debug, Clone, PartialEq)]
pub struct ResponsesRequest {
    pub chat: ChatRequest,
    /// The keys of the answer that repeat the request. Where `temperature` and `top_p` are null, the caller may fill in
    /// what the model's own defaults are.
    pub echo: Map<String, Value>,
}

impl ResponsesRequest {
    /// Reads a body for a model whose token ids are below `vocab_size`.
    pub fn parse(body: &[u8], vocab_size: usize) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        refuse_in_responses(&mut fields)?;
        // As they were written: what is read from them is rounded, or has lost its form.
        let [temperature, top_p, metadata, user, text, parallel] =
            ["temperature", "top_p", "metadata", "user", "text", "parallel_tool_calls"]
                .map(|key| fields.get(key).cloned().unwrap_or_default());
        let mut generation = Generation::take(&mut fields, vocab_size)?;
        generation.max_tokens = fields.int("max_output_tokens", 1..=i64::MAX)?.map(|n| n as usize);
        generation.take_min_tokens(&mut fields)?;
        take_text(&mut fields, &mut generation)?;
        let tools = take_tools(&mut fields)?;
        check_one_constraint(&generation, &tools)?;
        let mut chat_template_kwargs = take_template_kwargs(&mut fields)?;
        let effort = take_reasoning(&mut fields, &mut chat_template_kwargs)?;
        take_thinking(&mut fields, &mut chat_template_kwargs)?;
        let logprobs = take_logprobs(&mut fields)?;
        // They count calls of tools that the server runs, and it runs none.
        let max_tool_calls = fields.int("max_tool_calls", 1..=i64::MAX)?;
        let instructions = fields.string("instructions")?;
        let echo = json!({
            "background": false,
            "instructions": instructions,
            "max_output_tokens": generation.max_tokens,
            "max_tool_calls": max_tool_calls,
            "metadata": if metadata.is_null() { json!({}) } else { metadata },
            "parallel_tool_calls": if parallel.is_null() { true.into() } else { parallel },
            "previous_response_id": null,
            "reasoning": {"effort": effort, "summary": null},
            "service_tier": "default",
            "store": false,
            "temperature": temperature,
            "text": text_echo(text),
            "tool_choice": choice_echo(&tools),
            "tools": tools.list.iter().map(tool_echo).collect::<Vec<_>>(),
            "top_logprobs": logprobs.unwrap_or(0),
            "top_p": top_p,
            "truncation": "disabled",
            "user": user,
        });
        let Value::Object(echo) = echo else { unreachable!("an object was written") };
        let chat = ChatRequest {
            generation,
            messages: take_messages(&mut fields, instructions)?,
            logprobs,
            ending: Ending::GenerationPrompt,
            chat_template_kwargs,
            tools,
            include_reasoning: fields.bool("include_reasoning")?.unwrap_or(true),
        };
        Ok(Parsed { request: Self { chat, echo }, ignored: fields.rest() })
    }
}

/// `text`: what form the answer has. How long it is, `verbosity`, is the model's affair.
fn take_text(fields: &mut Fields, generation: &mut Generation) -> Result<()> {
    let Some(text) = fields.take("text") else { return Ok(()) };
    let mut text = Fields::at("text", text)?;
    text.string("verbosity")?;
    let Some(format) = text.take("format") else { return Ok(()) };
    let Some(constrained) = to_format(Fields::at("text.format", format)?)? else { return Ok(()) };
    if let Some(other) = &generation.constrained {
        let message =
            format!("`text.format` and `{}` both constrain the answer. Give one of them.", other.param);
        return Err(Error::value("text.format", message));
    }
    generation.constrained = Some(constrained);
    Ok(())
}

/// As chat's `response_format`, but flat.
fn to_format(mut format: Fields) -> Result<Option<Constrained>> {
    const TYPES: &str = "\"text\", \"json_object\" or \"json_schema\"";
    let path = format.path("type");
    match format.string("type")?.as_deref() {
        None => Err(missing(&path, TYPES)),
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constrained { constraint: Constraint::JsonObject, param: path })),
        Some("json_schema") => to_named_schema(format).map(Some),
        Some(other) => Err(not_one_of(&path, other, TYPES)),
    }
}

fn take_tools(fields: &mut Fields) -> Result<Tools> {
    let list = fields.list("tools")?.unwrap_or_default();
    check_count(list.len())?;
    let tool = |(i, item)| {
        let mut tool = Fields::at(&format!("tools[{i}]"), item)?;
        check_type(&mut tool)?;
        to_function(&mut tool)
    };
    let list = list.into_iter().enumerate().map(tool).collect::<Result<Vec<_>>>()?;
    let choice = match fields.take("tool_choice") {
        Some(choice @ Value::Object(_)) => {
            let mut choice = Fields::at("tool_choice", choice)?;
            check_type(&mut choice)?;
            Some(ToolChoice::Named(choice.required("name")?))
        }
        word => to_choice(word)?,
    };
    Tools::new(list, choice, fields.bool("parallel_tool_calls")?.unwrap_or(true))
}

/// The other types are tools that a server runs, or whose arguments are not JSON.
fn check_type(fields: &mut Fields) -> Result<()> {
    match fields.required("type")?.as_str() {
        "function" => Ok(()),
        other => Err(unserved(&fields.path("type"), other, "Use \"function\".")),
    }
}

/// `reasoning`: how much of it. Returns the effort.
fn take_reasoning(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<Option<String>> {
    let Some(reasoning) = fields.take("reasoning") else { return Ok(None) };
    let mut reasoning = Fields::at("reasoning", reasoning)?;
    // The reasoning is told as it is; `auto` leaves it to the model whether there is a summary too.
    let harmless =
        [("summary", "auto"), ("generate_summary", "auto"), ("context", "auto"), ("mode", "standard")];
    for (key, word) in harmless {
        if let Some(other) = reasoning.string(key)?.filter(|other| other != word) {
            return Err(unserved(&reasoning.path(key), &other, "Leave it out."));
        }
    }
    let effort = reasoning.string("effort")?;
    if let Some(effort) = &effort {
        note_effort("reasoning.effort", effort, kwargs)?;
    }
    Ok(effort)
}

/// Asked for by `top_logprobs`, by `include`, or by both.
fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let top = fields.int("top_logprobs", 0..=20)?.map(|top| top as usize);
    let mut wanted = top.is_some_and(|top| top > 0);
    for (i, value) in fields.list("include")?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("include[{i}]");
        match to_string(&path, value)?.as_str() {
            "message.output_text.logprobs" => wanted = true,
            // It is there to carry reasoning from answer to request, which its text, told openly, does as well.
            "reasoning.encrypted_content" => {}
            other => return Err(unserved(&path, other, "Leave it out.")),
        }
    }
    Ok(wanted.then(|| top.unwrap_or(0)))
}

fn text_echo(text: Value) -> Value {
    let mut echo = json!({"format": {"type": "text"}});
    for (key, value) in text.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        echo[key] = value.clone();
    }
    echo
}

fn choice_echo(tools: &Tools) -> Value {
    match &tools.choice {
        ToolChoice::None if tools.list.is_empty() => "auto".into(),
        ToolChoice::None => "none".into(),
        ToolChoice::Auto => "auto".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => json!({"type": "function", "name": name}),
    }
}

fn tool_echo(tool: &Tool) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    })
}
