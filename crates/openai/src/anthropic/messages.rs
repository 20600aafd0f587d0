//! `system` and `messages`, whose contents are blocks, as messages of text.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::fields::{Fields, missing, not_one_of, unserved, wrong_type};
use crate::message::{Message, Role, ToolCall, check_count};

pub(super) fn take_messages(fields: &mut Fields) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    if let Some(text) = take_text(fields, "system")? {
        messages.push(Message::new(Role::System, Some(text)));
    }
    let list = fields.list("messages")?.ok_or_else(|| missing("messages", "an array of messages"))?;
    check_count("messages", list.len())?;
    for (i, item) in list.into_iter().enumerate() {
        let mut message = Fields::at(&format!("messages[{i}]"), item)?;
        let path = message.path("role");
        match message.required("role")?.as_str() {
            "user" => add_user(&mut message, &mut messages)?,
            "assistant" => messages.push(to_assistant(&mut message)?),
            "system" => {
                let text = take_text(&mut message, "content")?;
                let text = text.ok_or_else(|| missing(&message.path("content"), TEXTS))?;
                messages.push(Message::new(Role::System, Some(text)));
            }
            other => return Err(not_one_of(&path, other, "one of user, assistant, system")),
        }
    }
    Ok(messages)
}

const TEXTS: &str = "a string or an array of text blocks";

/// A string, or the texts of blocks with nothing between.
fn take_text(fields: &mut Fields, key: &str) -> Result<Option<String>> {
    let path = fields.path(key);
    match fields.take(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(blocks)) => {
            let text = |(i, block)| {
                let mut block = to_block(&path, i, block)?;
                match block.required("type")?.as_str() {
                    "text" => block.required("text"),
                    other => Err(unserved(&block.path("type"), other, "Only \"text\" is read here.")),
                }
            };
            blocks.into_iter().enumerate().map(text).collect::<Result<String>>().map(Some)
        }
        Some(other) => Err(wrong_type(&path, &other, TEXTS)),
    }
}

/// What is to be cached is the server's affair.
fn to_block(path: &str, i: usize, block: Value) -> Result<Fields> {
    let mut block = Fields::at(&format!("{path}[{i}]"), block)?;
    block.object("cache_control")?;
    Ok(block)
}

/// The blocks of a message; a string is one of text.
fn take_blocks(message: &mut Fields) -> Result<Vec<Fields>> {
    let path = message.path("content");
    match message.take("content") {
        None => Err(missing(&path, "a string or an array of blocks")),
        Some(Value::String(text)) => {
            Ok(vec![Fields::at(&path, serde_json::json!({"type": "text", "text": text}))?])
        }
        Some(Value::Array(blocks)) => {
            blocks.into_iter().enumerate().map(|(i, block)| to_block(&path, i, block)).collect()
        }
        Some(other) => Err(wrong_type(&path, &other, "a string or an array of blocks")),
    }
}

/// Results of calls become messages of their own, and what is said before and behind them too.
fn add_user(message: &mut Fields, messages: &mut Vec<Message>) -> Result<()> {
    let blocks = take_blocks(message)?;
    if blocks.is_empty() {
        let path = message.path("content");
        return Err(Error::value(&path, format!("`{path}` has no blocks; it needs at least one.")));
    }
    let mut said: Option<String> = None;
    let user = |text| Message::new(Role::User, Some(text));
    for mut block in blocks {
        match block.required("type")?.as_str() {
            "text" => said.get_or_insert_default().push_str(&block.required("text")?),
            "tool_result" => {
                messages.extend(said.take().map(user));
                messages.push(to_result(&mut block)?);
            }
            other => {
                let remedy = "A user's blocks are \"text\" and \"tool_result\": this model reads text only.";
                return Err(unserved(&block.path("type"), other, remedy));
            }
        }
    }
    messages.extend(said.map(user));
    Ok(())
}

/// Templates have no mark for a call that failed, so its text says so.
fn to_result(block: &mut Fields) -> Result<Message> {
    let id = block.required("tool_use_id")?;
    let text = take_text(block, "content")?.unwrap_or_default();
    let failed = block.bool("is_error")?.unwrap_or(false);
    Ok(Message::result(id, if failed { format!("Error: {text}") } else { text }))
}

/// No blocks are an answer of no text.
fn to_assistant(message: &mut Fields) -> Result<Message> {
    let mut answer = Message::new(Role::Assistant, None);
    for mut block in take_blocks(message)? {
        match block.required("type")?.as_str() {
            "text" => answer.content.get_or_insert_default().push_str(&block.required("text")?),
            "thinking" => {
                // It is nobody's here: what it vouches for is not checked.
                block.string("signature")?;
                answer.reasoning_content.get_or_insert_default().push_str(&block.required("thinking")?);
            }
            "tool_use" => {
                let id = block.required("id")?;
                let name = block.required("name")?;
                let path = block.path("input");
                let input = block.object("input")?.ok_or_else(|| missing(&path, "an object"))?;
                answer.tool_calls.push(ToolCall::new(id, name, Value::Object(input).to_string()));
            }
            other => {
                let remedy = "An assistant's blocks are \"text\", \"thinking\" and \"tool_use\".";
                return Err(unserved(&block.path("type"), other, remedy));
            }
        }
    }
    if answer.tool_calls.is_empty() {
        answer.content.get_or_insert_default();
    }
    Ok(answer)
}
