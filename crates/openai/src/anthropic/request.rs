//! The request of `POST /v1/messages`.

use serde_json::{Map, Value};

use super::messages::take_messages;
use crate::Parsed;
use crate::chat::{ChatRequest, Ending, check_one_constraint};
use crate::common::{Generation, StreamOptions, to_stops};
use crate::constraint::{Constrained, Constraint};
use crate::error::{Error, Result};
use crate::fields::{Bounds, Fields, missing, not_one_of, unserved};
use crate::tools::{Tool, ToolChoice, Tools, check_count, check_name, take_parameters};
use crate::unserved::refuse_in_messages;

/// A budget below it is none.
const BUDGET_TOKENS_MIN: i64 = 1024;

#[derive(Debug, Clone, PartialEq)]
pub struct MessagesRequest {
    pub chat: ChatRequest,
}

impl MessagesRequest {
    /// Reads a body of `/v1/messages`.
    pub fn parse(body: &[u8]) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        let max_tokens = fields.int("max_tokens", 1..=i64::MAX)?;
        let max_tokens = max_tokens.ok_or_else(|| missing("max_tokens", "an integer of at least 1"))?;
        let parsed = Self::take(fields, Some(max_tokens))?;
        let messages = &parsed.request.chat.messages;
        if messages.last().is_some_and(|last| last.role == crate::Role::Assistant) {
            let message = "`messages` ends with an assistant's message, and an answer that goes on from it is not \
                           supported. End with a user's message.";
            return Err(Error::value("messages", message));
        }
        Ok(parsed)
    }

    /// Reads a body of `/v1/messages/count_tokens`.
    pub fn parse_count(body: &[u8]) -> Result<Parsed<Self>> {
        Self::take(Fields::root(body)?, None)
    }

    fn take(mut fields: Fields, max_tokens: Option<i64>) -> Result<Parsed<Self>> {
        refuse_in_messages(&mut fields)?;
        check_inert(&mut fields)?;
        let mut kwargs = Map::new();
        let include_reasoning = take_thinking(&mut fields, max_tokens, &mut kwargs)?;
        let constrained = take_output_config(&mut fields, &mut kwargs)?;
        let generation = Generation {
            model: fields.string("model")?,
            max_tokens: max_tokens.map(|n| n as usize),
            temperature: fields.number("temperature", Bounds::from(0.0, 1.0))?,
            top_p: fields.number("top_p", Bounds::above(0.0, 1.0))?,
            top_k: fields.int("top_k", 0..=i64::MAX)?.map(|k| k as usize),
            n: 1,
            stop: to_stops("stop_sequences", fields.list("stop_sequences")?.unwrap_or_default())?,
            skip_special_tokens: true,
            stream: fields.bool("stream")?.unwrap_or(false).then(StreamOptions::default),
            constrained,
            ..Generation::default()
        };
        let tools = take_tools(&mut fields)?;
        check_one_constraint(&generation, &tools)?;
        let chat = ChatRequest {
            generation,
            messages: take_messages(&mut fields)?,
            logprobs: None,
            ending: Ending::GenerationPrompt,
            chat_template_kwargs: kwargs,
            tools,
            include_reasoning,
        };
        Ok(Parsed { request: Self { chat }, ignored: fields.rest() })
    }
}

/// Checks the types of fields that have no effect here.
fn check_inert(fields: &mut Fields) -> Result<()> {
    for name in ["service_tier", "user_profile_id", "workspace_id"] {
        fields.string(name)?;
    }
    fields.object("cache_control")?;
    let Some(metadata) = fields.take("metadata") else { return Ok(()) };
    Fields::at("metadata", metadata)?.string("user_id").map(|_| ())
}

/// `thinking` as template variables, and whether the reasoning is told.
fn take_thinking(
    fields: &mut Fields,
    max_tokens: Option<i64>,
    kwargs: &mut Map<String, Value>,
) -> Result<bool> {
    let Some(thinking) = fields.take("thinking") else { return Ok(true) };
    let mut thinking = Fields::at("thinking", thinking)?;
    let path = thinking.path("type");
    let on = match thinking.required("type")?.as_str() {
        "enabled" => {
            check_budget(&mut thinking, max_tokens)?;
            true
        }
        // How much is the model's affair in any case.
        "adaptive" => true,
        "disabled" => false,
        "between_tools" => {
            return Err(unserved(&path, "between_tools", "Use \"enabled\" or \"disabled\"."));
        }
        other => return Err(not_one_of(&path, other, "\"enabled\", \"adaptive\" or \"disabled\"")),
    };
    for name in ["thinking", "enable_thinking"] {
        kwargs.insert(name.into(), on.into());
    }
    let path = thinking.path("display");
    match thinking.string("display")?.as_deref() {
        None | Some("summarized") => Ok(true),
        Some("omitted") => Ok(false),
        Some(other) => Err(not_one_of(&path, other, "\"summarized\" or \"omitted\"")),
    }
}

/// A budget is a wish: templates know none. One that leaves nothing for the answer is a mistake.
fn check_budget(thinking: &mut Fields, max_tokens: Option<i64>) -> Result<()> {
    let path = thinking.path("budget_tokens");
    let budget = thinking.int("budget_tokens", BUDGET_TOKENS_MIN..=i64::MAX)?;
    let budget = budget.ok_or_else(|| missing(&path, "an integer of at least 1024"))?;
    match max_tokens {
        Some(most) if budget >= most => Err(Error::value(
            &path,
            format!("`{path}` is {budget}; it must be less than `max_tokens`, which is {most}."),
        )),
        _ => Ok(()),
    }
}

/// `output_config`: effort as a template variable, and the form of the answer.
fn take_output_config(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<Option<Constrained>> {
    let Some(config) = fields.take("output_config") else { return Ok(None) };
    let mut config = Fields::at("output_config", config)?;
    let path = config.path("effort");
    if let Some(effort) = config.string("effort")? {
        let effort = match effort.as_str() {
            "low" | "medium" | "high" | "xhigh" => effort.as_str(),
            // The most that templates know.
            "max" => "xhigh",
            other => return Err(not_one_of(&path, other, "one of low, medium, high, xhigh, max")),
        };
        kwargs.insert("reasoning_effort".into(), effort.into());
    }
    let path = config.path("format");
    let Some(format) = config.take("format") else { return Ok(None) };
    let mut format = Fields::at(&path, format)?;
    let path = format.path("type");
    match format.required("type")?.as_str() {
        "json_schema" => {}
        other => return Err(not_one_of(&path, other, "\"json_schema\"")),
    }
    let param = format.path("schema");
    let schema = format.object("schema")?.ok_or_else(|| missing(&param, "a JSON schema: an object"))?;
    Ok(Some(Constrained { constraint: Constraint::JsonSchema(Value::Object(schema)), param }))
}

fn take_tools(fields: &mut Fields) -> Result<Tools> {
    let list = fields.list("tools")?.unwrap_or_default();
    check_count(list.len())?;
    let tool = |(i, item)| to_tool(Fields::at(&format!("tools[{i}]"), item)?);
    let list = list.into_iter().enumerate().map(tool).collect::<Result<Vec<_>>>()?;
    let (choice, parallel) = take_choice(fields)?;
    Tools::new(list, choice, parallel)
}

fn to_tool(mut tool: Fields) -> Result<Tool> {
    let path = tool.path("type");
    if let Some(kind) = tool.string("type")?.filter(|kind| kind != "custom") {
        let remedy = "This server runs no tools: give each as `name`, `description` and `input_schema`.";
        return Err(unserved(&path, &kind, remedy));
    }
    tool.object("cache_control")?;
    let name = tool.required("name")?;
    check_name(&tool.path("name"), &name)?;
    let description = tool.string("description")?;
    let path = tool.path("input_schema");
    let parameters = take_parameters(&mut tool, "input_schema")?;
    if parameters.is_none() {
        return Err(missing(&path, "a JSON schema: an object"));
    }
    Ok(Tool { name, description, parameters, strict: tool.bool("strict")?.unwrap_or(false) })
}

/// The choice, and whether calls may come several at once.
fn take_choice(fields: &mut Fields) -> Result<(Option<ToolChoice>, bool)> {
    let Some(choice) = fields.take("tool_choice") else { return Ok((None, true)) };
    let mut choice = Fields::at("tool_choice", choice)?;
    let word = match choice.required("type")?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "tool" => ToolChoice::Named(choice.required("name")?),
        "none" => ToolChoice::None,
        other => return Err(not_one_of("tool_choice.type", other, "one of auto, any, tool, none")),
    };
    Ok((Some(word), !choice.bool("disable_parallel_tool_use")?.unwrap_or(false)))
}
