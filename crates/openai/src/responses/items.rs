//! `instructions` and `input` as messages.

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, missing, not_one_of, unserved, wrong_type};
use crate::message::{Message, Role, ToolCall, check_count};

pub(super) fn take_messages(fields: &mut Fields, instructions: Option<String>) -> Result<Vec<Message>> {
    let mut turns = Turns(Vec::new());
    if let Some(text) = instructions {
        turns.0.push(Message::new(Role::System, Some(text)));
    }
    match fields.take("input") {
        None => return Err(missing("input", "a string or an array of items")),
        Some(Value::String(text)) => turns.0.push(Message::new(Role::User, Some(text))),
        Some(Value::Array(items)) => {
            check_count("input", items.len())?;
            for (i, item) in items.into_iter().enumerate() {
                turns.add(Fields::at(&format!("input[{i}]"), item)?)?;
            }
        }
        Some(other) => return Err(wrong_type("input", &other, "a string or an array of items")),
    }
    if turns.0.is_empty() {
        let message = "`input` says nothing: its items are empty. Give at least one message.";
        return Err(Error::value("input", message));
    }
    Ok(turns.into_messages())
}

/// An assistant's message is told as up to three kinds of items: reasoning, then its text, then its calls.
struct Turns(Vec<Message>);

impl Turns {
    fn add(&mut self, mut item: Fields) -> Result<()> {
        for key in ["id", "status"] {
            item.string(key)?;
        }
        let path = item.path("type");
        match item.string("type")?.as_deref() {
            Some("message") => self.add_message(item),
            // The short form of a message.
            None if item.get("role").is_some() => self.add_message(item),
            None => Err(missing(&path, KINDS)),
            Some("reasoning") => self.add_reasoning(item),
            Some("function_call") => {
                let id = item.required("call_id")?;
                let call = ToolCall::new(id, item.required("name")?, item.required("arguments")?);
                self.answer(|_| true).tool_calls.push(call);
                Ok(())
            }
            Some("function_call_output") => {
                let id = item.required("call_id")?;
                let text = take_text(&mut item, "output", &["input_text"])?;
                self.0.push(Message::result(id, text));
                Ok(())
            }
            Some(other) => Err(unserved(&path, other, &format!("An item is {KINDS}."))),
        }
    }

    fn add_message(&mut self, mut item: Fields) -> Result<()> {
        let path = item.path("role");
        let role = match item.required("role")?.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(not_one_of(&path, other, "one of system, developer, user, assistant")),
        };
        if role != Role::Assistant {
            let text = take_text(&mut item, "content", &["input_text"])?;
            self.0.push(Message::new(role, Some(text)));
            return Ok(());
        }
        let text = take_text(&mut item, "content", &["output_text", "refusal"])?;
        self.answer(|last| last.content.is_none() && last.tool_calls.is_empty()).content = Some(text);
        Ok(())
    }

    /// The text of the reasoning, or the summary where there is only that. An item of neither says nothing.
    fn add_reasoning(&mut self, mut item: Fields) -> Result<()> {
        let content = take_parts(&mut item, "content", &["reasoning_text"])?;
        let summary = take_parts(&mut item, "summary", &["summary_text"])?;
        let path = item.path("encrypted_content");
        let encrypted = item.string("encrypted_content")?;
        let text = [content, summary].into_iter().flatten().find(|text| !text.is_empty());
        match (text, encrypted) {
            (Some(text), _) => {
                let last = self.answer(|last| last.content.is_none() && last.tool_calls.is_empty());
                last.reasoning_content.get_or_insert_default().push_str(&text);
                Ok(())
            }
            (None, Some(sealed)) if !sealed.is_empty() => Err(Error::at(
                Code::UnsupportedParameter,
                &path,
                format!(
                    "`{path}` cannot be read here. Send the reasoning's `content`, or leave the item out."
                ),
            )),
            (None, _) => Ok(()),
        }
    }

    /// The assistant's message that the conversation ends in, if it `can` take more; or a new one.
    fn answer(&mut self, can: fn(&Message) -> bool) -> &mut Message {
        if !self.0.last().is_some_and(|last| last.role == Role::Assistant && can(last)) {
            self.0.push(Message::new(Role::Assistant, None));
        }
        self.0.last_mut().expect("one was pushed")
    }

    /// Reasoning that nothing follows stands beside an empty text: only calls may stand without one.
    fn into_messages(mut self) -> Vec<Message> {
        for message in &mut self.0 {
            if message.tool_calls.is_empty() {
                message.content.get_or_insert_default();
            }
        }
        self.0
    }
}

const KINDS: &str = "one of message, function_call, function_call_output, reasoning";

/// A string, or the texts of parts with nothing between.
fn take_text(item: &mut Fields, key: &str, kinds: &[&str]) -> Result<String> {
    let path = item.path(key);
    if let Some(Value::String(_)) = item.get(key) {
        return item.required(key);
    }
    let wanted = format!("a string or an array of parts of type {}", kinds.join(" or "));
    match item.get(key) {
        None => Err(missing(&path, &wanted)),
        Some(Value::Array(parts)) if parts.is_empty() => {
            Err(Error::value(&path, format!("`{path}` has no parts; it needs at least one.")))
        }
        Some(Value::Array(_)) => Ok(take_parts(item, key, kinds)?.unwrap_or_default()),
        Some(other) => Err(wrong_type(&path, other, &wanted)),
    }
}

fn take_parts(item: &mut Fields, key: &str, kinds: &[&str]) -> Result<Option<String>> {
    let path = item.path(key);
    let Some(parts) = item.list(key)? else { return Ok(None) };
    let text = |(i, part)| to_text(Fields::at(&format!("{path}[{i}]"), part)?, kinds);
    parts.into_iter().enumerate().map(text).collect::<Result<String>>().map(Some)
}

fn to_text(mut part: Fields, kinds: &[&str]) -> Result<String> {
    let kind = part.required("type")?;
    if !kinds.contains(&kind.as_str()) {
        let remedy = format!("This model reads text only, here as {}.", kinds.join(" or "));
        return Err(unserved(&part.path("type"), &kind, &remedy));
    }
    part.required(if kind == "refusal" { "refusal" } else { "text" })
}
