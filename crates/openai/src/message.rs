//! The messages of a conversation.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, missing, wrong_type};

const MESSAGES_MAX: usize = 4096;
const CALLS_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `developer` too.
    System,
    User,
    Assistant,
    Tool,
}

/// A message as chat templates see it: `content` is one text, or null beside tool calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    pub role: Role,
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    pub(crate) fn new(role: Role, content: Option<String>) -> Self {
        Self {
            role,
            content,
            name: None,
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }

    /// The result of a call.
    pub(crate) fn result(tool_call_id: String, content: String) -> Self {
        Self { tool_call_id: Some(tool_call_id), ..Self::new(Role::Tool, Some(content)) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ToolCall {
    pub id: String,
    /// Always `function`.
    pub r#type: &'static str,
    pub function: CalledFunction,
}

impl ToolCall {
    pub(crate) fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, r#type: "function", function: CalledFunction { name, arguments } }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CalledFunction {
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

pub(crate) fn take_messages(fields: &mut Fields) -> Result<Vec<Message>> {
    let Some(list) = fields.list("messages")? else {
        return Err(missing("messages", "an array of messages"));
    };
    check_count("messages", list.len())?;
    let message = |(i, item)| to_message(Fields::at(&format!("messages[{i}]"), item)?);
    list.into_iter().enumerate().map(message).collect()
}

pub(crate) fn check_count(path: &str, n: usize) -> Result<()> {
    if (1..=MESSAGES_MAX).contains(&n) {
        return Ok(());
    }
    Err(Error::value(path, format!("`{path}` has {n} entries; 1 to {MESSAGES_MAX} are allowed.")))
}

fn to_message(mut fields: Fields) -> Result<Message> {
    let role = take_role(&mut fields)?;
    if let Some(name) = ["audio", "function_call"].into_iter().find(|n| fields.take(n).is_some()) {
        let path = fields.path(name);
        return Err(unsupported(&path, format!("`{path}` is not supported. Leave it out.")));
    }
    let refusal = fields.string("refusal")?;
    let content = take_content(&mut fields, role)?.or(refusal);
    let tool_calls = take_tool_calls(&mut fields, role)?;
    if content.is_none() && tool_calls.is_empty() {
        let wanted = "a string or an array of text parts; only an assistant's message with \
                      `tool_calls` may leave it out";
        return Err(missing(&fields.path("content"), wanted));
    }
    let tool_call_id = fields.string("tool_call_id")?;
    if role == Role::Tool && tool_call_id.is_none() {
        return Err(missing(&fields.path("tool_call_id"), "the id of the call that it answers"));
    }
    let reasoning_content = match fields.string("reasoning_content")? {
        Some(text) => Some(text),
        None => fields.string("reasoning")?,
    };
    let name = fields.string("name")?;
    Ok(Message { role, content, name, reasoning_content, tool_calls, tool_call_id })
}

fn take_role(fields: &mut Fields) -> Result<Role> {
    const ROLES: &str = "one of system, developer, user, assistant, tool";
    let path = fields.path("role");
    let Some(name) = fields.string("role")? else { return Err(missing(&path, ROLES)) };
    match name.as_str() {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => Err(unsupported(
            &path,
            format!("`{path}` is \"function\", which is not supported. Use \"tool\"."),
        )),
        _ => {
            let shown: String = name.chars().take(32).collect();
            Err(Error::value(&path, format!("`{path}` is {shown:?}; it must be {ROLES}.")))
        }
    }
}

fn take_content(fields: &mut Fields, role: Role) -> Result<Option<String>> {
    let path = fields.path("content");
    match fields.take("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) if parts.is_empty() => {
            Err(Error::value(&path, format!("`{path}` has no parts; it needs at least one.")))
        }
        Some(Value::Array(parts)) => {
            let text = |(i, part)| to_text(Fields::at(&format!("{path}[{i}]"), part)?, role);
            parts.into_iter().enumerate().map(text).collect::<Result<String>>().map(Some)
        }
        Some(other) => Err(wrong_type(&path, &other, "a string or an array of text parts")),
    }
}

/// The text of one content part.
fn to_text(mut part: Fields, role: Role) -> Result<String> {
    let path = part.path("type");
    let Some(kind) = part.string("type")? else { return Err(missing(&path, "\"text\"")) };
    let key = match kind.as_str() {
        "text" => "text",
        "refusal" if role == Role::Assistant => "refusal",
        _ => {
            let shown: String = kind.chars().take(32).collect();
            return Err(unsupported(
                &path,
                format!("`{path}` is {shown:?}; this model reads text only. Use \"text\"."),
            ));
        }
    };
    let path = part.path(key);
    part.string(key)?.ok_or_else(|| missing(&path, "a string"))
}

fn take_tool_calls(fields: &mut Fields, role: Role) -> Result<Vec<ToolCall>> {
    let path = fields.path("tool_calls");
    let list = fields.list("tool_calls")?.unwrap_or_default();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if role != Role::Assistant {
        return Err(Error::value(&path, format!("`{path}` is for assistant messages only.")));
    }
    if list.len() > CALLS_MAX {
        return Err(Error::value(
            &path,
            format!("`{path}` has {} calls; at most {CALLS_MAX} are allowed.", list.len()),
        ));
    }
    let call = |(i, item)| to_tool_call(Fields::at(&format!("{path}[{i}]"), item)?);
    list.into_iter().enumerate().map(call).collect()
}

fn to_tool_call(mut call: Fields) -> Result<ToolCall> {
    let path = call.path("type");
    if let Some(kind) = call.string("type")?.filter(|kind| kind != "function") {
        let shown: String = kind.chars().take(32).collect();
        return Err(unsupported(&path, format!("`{path}` is {shown:?}; only \"function\" is supported.")));
    }
    let id = call.required("id")?;
    let path = call.path("function");
    let Some(function) = call.take("function") else {
        return Err(missing(&path, "an object with name and arguments"));
    };
    let mut function = Fields::at(&path, function)?;
    let name = function.required("name")?;
    let arguments = function.required("arguments")?;
    Ok(ToolCall::new(id, name, arguments))
}

fn unsupported(path: &str, message: String) -> Error {
    Error::at(Code::UnsupportedValue, path, message)
}
