//! The answer of `POST /v1/messages`, as events and whole.

use serde_json::{Value, json};

use super::error_body;
use super::input::to_input;
use crate::answer::{StopReason, Usage};
use crate::error::Error;
use crate::parts::{Block, Blocks, End, Event, Finish, Part, with};

/// Clients want to see one, and send it back; nobody reads it.
const SIGNATURE: &str = "unsigned";

/// What is known of an answer before it begins.
#[derive(Debug, Clone)]
pub struct Header {
    /// Unique: the message's id is made of it.
    pub unique: String,
    /// The name under which it is served.
    pub model: String,
    /// What is known of the prompt.
    pub usage: Usage,
}

/// Turns the parts of an answer into the events of its stream, and remembers them: the whole answer is what has been
/// streamed.
#[derive(Debug)]
pub struct Events {
    header: Header,
    blocks: Blocks,
    end: Option<End>,
}

impl Events {
    pub fn new(header: Header) -> Self {
        Self { header, blocks: Blocks::default(), end: None }
    }

    /// The event before the first part.
    pub fn start(&mut self) -> Vec<Event> {
        vec![event("message_start", json!({"message": self.whole()}))]
    }

    /// # Panics
    ///
    /// If arguments come without a call.
    pub fn push(&mut self, part: Part) -> Vec<Event> {
        let Some(grown) = self.blocks.grow(part) else { return Vec::new() };
        let mut events = Vec::new();
        if let Some(index) = grown.closed {
            self.close(index, &mut events);
        }
        let index = self.blocks.last().expect("it has grown");
        if grown.opened {
            let block = match &self.blocks.list()[index] {
                Block::Reasoning(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
                Block::Text(_) => json!({"type": "text", "text": ""}),
                Block::Call { id, name, .. } => {
                    json!({"type": "tool_use", "id": id, "name": name, "input": {}})
                }
            };
            events.push(event("content_block_start", json!({"index": index, "content_block": block})));
        }
        if !grown.delta.is_empty() {
            let delta = match &self.blocks.list()[index] {
                Block::Reasoning(_) => json!({"type": "thinking_delta", "thinking": grown.delta}),
                Block::Text(_) => json!({"type": "text_delta", "text": grown.delta}),
                Block::Call { .. } => json!({"type": "input_json_delta", "partial_json": grown.delta}),
            };
            events.push(event("content_block_delta", json!({"index": index, "delta": delta})));
        }
        events
    }

    /// The events after the last part.
    pub fn finish(&mut self, end: End) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(last) = self.blocks.last() {
            self.close(last, &mut events);
        }
        let (stop_reason, stop_sequence) = stopped(&end);
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        events.push(event("message_delta", json!({"delta": delta, "usage": usage_value(&end.usage)})));
        events.push(event("message_stop", json!({})));
        self.end = Some(end);
        events
    }

    /// The event after the last part, where that was not the last of the answer.
    pub fn fail(&mut self, error: &Error) -> Vec<Event> {
        vec![Event { name: "error", data: error_body(error) }]
    }

    /// The answer so far; after [`Events::finish`], all of it.
    pub fn whole(&self) -> Value {
        let (stop_reason, stop_sequence) = self.end.as_ref().map(stopped).unzip();
        json!({
            "id": format!("msg_{}", self.header.unique),
            "type": "message",
            "role": "assistant",
            "model": self.header.model,
            "content": self.blocks.list().iter().map(block_value).collect::<Vec<_>>(),
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence.flatten(),
            "usage": usage_value(self.end.as_ref().map_or(&self.header.usage, |end| &end.usage)),
        })
    }

    fn close(&self, index: usize, events: &mut Vec<Event>) {
        if let Block::Reasoning(_) = self.blocks.list()[index] {
            let delta = json!({"type": "signature_delta", "signature": SIGNATURE});
            events.push(event("content_block_delta", json!({"index": index, "delta": delta})));
        }
        events.push(event("content_block_stop", json!({"index": index})));
    }
}

/// Keeps a stream from looking dead.
pub fn ping() -> Event {
    event("ping", json!({}))
}

fn event(name: &'static str, told: Value) -> Event {
    Event { name, data: with(json!({"type": name}), told) }
}

fn block_value(block: &Block) -> Value {
    match block {
        Block::Reasoning(text) => json!({"type": "thinking", "thinking": text, "signature": SIGNATURE}),
        Block::Text(text) => json!({"type": "text", "text": text}),
        Block::Call { id, name, arguments } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": to_input(arguments)})
        }
    }
}

/// `stop_reason` and `stop_sequence`.
fn stopped(end: &End) -> (&'static str, Option<&str>) {
    match (end.finish, &end.stop) {
        (Finish::Length, _) => ("max_tokens", None),
        (Finish::ToolCalls, _) => ("tool_use", None),
        (Finish::Stop, Some(StopReason::Text(text))) => ("stop_sequence", Some(text)),
        (Finish::Stop, _) => ("end_turn", None),
    }
}

/// What came from the cache is not among `input_tokens`; what went into it is not told apart.
fn usage_value(usage: &Usage) -> Value {
    let cached = usage.prompt_tokens_details.cached_tokens;
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.completion_tokens_details.reasoning_tokens},
    })
}
