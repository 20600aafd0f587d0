//! The answer of `POST /v1/responses`, as events and whole.

use serde_json::{Map, Value, json};

use crate::answer::{TokenLogprob, Usage};
use crate::error::Error;
use crate::parts::{Block, Blocks, End, Event, Finish, Part, with};

/// What is known of an answer before it begins.
#[derive(Debug, Clone)]
pub struct Header {
    /// Unique, of letters and digits: the ids of the response and of its items are made of it.
    pub unique: String,
    /// Unix seconds.
    pub created: u64,
    /// The name under which it is served.
    pub model: String,
    /// From the request.
    pub echo: Map<String, Value>,
}

/// Turns the parts of an answer into the events of its stream, and remembers them: the whole answer is what has been
/// streamed.
#[derive(Debug)]
pub struct Events {
    header: Header,
    blocks: Blocks,
    /// Log probabilities of the tokens that have been told, one list a block; only a text's has any.
    scores: Vec<Vec<Value>>,
    /// Of the tokens whose text is still to come.
    unsaid: Vec<Value>,
    state: State,
    sequence_number: u64,
}

#[derive(Debug)]
enum State {
    Running,
    Ended(End),
    Failed(Value),
}

const RUNNING: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

impl Events {
    pub fn new(header: Header) -> Self {
        Self {
            header,
            blocks: Blocks::default(),
            scores: Vec::new(),
            unsaid: Vec::new(),
            state: State::Running,
            sequence_number: 0,
        }
    }

    /// The events before the first part.
    pub fn start(&mut self) -> Vec<Event> {
        let response = self.whole();
        ["response.created", "response.in_progress"]
            .map(|name| self.event(name, json!({"response": response})))
            .into()
    }

    /// Log probabilities of tokens of the text: they are told with the next piece of it.
    pub fn score(&mut self, tokens: &[TokenLogprob]) {
        self.unsaid.extend(tokens.iter().map(|token| json!(token)));
    }

    /// # Panics
    ///
    /// If arguments come without a call.
    pub fn push(&mut self, part: Part) -> Vec<Event> {
        let Some(grown) = self.blocks.grow(part) else { return Vec::new() };
        let mut events = Vec::new();
        if let Some(index) = grown.closed {
            self.close(index, COMPLETED, &mut events);
        }
        if grown.opened {
            self.open(&mut events);
        }
        if !grown.delta.is_empty() {
            let last = self.blocks.last().expect("it has grown");
            events.push(self.delta(last, grown.delta));
        }
        events
    }

    /// The events after the last part.
    pub fn finish(&mut self, end: End) -> Vec<Event> {
        let mut events = Vec::new();
        if self.blocks.list().is_empty() {
            self.blocks.open_text();
            self.open(&mut events);
        }
        let cut = end.finish == Finish::Length;
        self.state = State::Ended(end);
        if let Some(last) = self.blocks.last() {
            self.close(last, if cut { INCOMPLETE } else { COMPLETED }, &mut events);
        }
        let name = if cut { "response.incomplete" } else { "response.completed" };
        let response = self.whole();
        events.push(self.event(name, json!({"response": response})));
        events
    }

    /// The events after the last part, where that was not the last of the answer.
    pub fn fail(&mut self, error: &Error) -> Vec<Event> {
        let code = match error.code.status() {
            429 => "rate_limit_exceeded",
            400 => "invalid_prompt",
            _ => "server_error",
        };
        self.state = State::Failed(json!({"code": code, "message": error.message}));
        let response = self.whole();
        let what = json!({"code": error.code.as_str(), "message": error.message, "param": error.param});
        vec![self.event("error", what), self.event("response.failed", json!({"response": response}))]
    }

    /// The answer so far; after [`Events::finish`], all of it.
    pub fn whole(&self) -> Value {
        let (status, error, usage) = match &self.state {
            State::Running => (RUNNING, Value::Null, Value::Null),
            State::Ended(end) if end.finish == Finish::Length => {
                (INCOMPLETE, Value::Null, usage_value(&end.usage))
            }
            State::Ended(end) => (COMPLETED, Value::Null, usage_value(&end.usage)),
            State::Failed(error) => ("failed", error.clone(), Value::Null),
        };
        let last = match status {
            "failed" => INCOMPLETE,
            status => status,
        };
        let item = |index| {
            let closed = self.blocks.last() != Some(index);
            self.item(index, if closed { COMPLETED } else { last })
        };
        let response = json!({
            "id": format!("resp_{}", self.header.unique),
            "object": "response",
            "created_at": self.header.created,
            "status": status,
            "error": error,
            "incomplete_details": (status == INCOMPLETE).then(|| json!({"reason": "max_output_tokens"})),
            "model": self.header.model,
            "output": (0..self.blocks.list().len()).map(item).collect::<Vec<_>>(),
            "usage": usage,
        });
        with(response, Value::Object(self.header.echo.clone()))
    }

    fn open(&mut self, events: &mut Vec<Event>) {
        let Some(index) = self.blocks.last() else { return };
        self.scores.resize(index + 1, Vec::new());
        let mut item = self.item(index, RUNNING);
        if let Some(content) = item.get_mut("content") {
            *content = json!([]);
        }
        events.push(self.event("response.output_item.added", json!({"output_index": index, "item": item})));
        if matches!(self.blocks.list()[index], Block::Text(_)) {
            let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
            let place = self.place(index);
            events.push(self.event("response.content_part.added", with(place, json!({"part": part}))));
        }
    }

    fn delta(&mut self, index: usize, delta: String) -> Event {
        let place = self.place(index);
        match &self.blocks.list()[index] {
            Block::Reasoning(_) => {
                self.event("response.reasoning_text.delta", with(place, json!({"delta": delta})))
            }
            Block::Text(_) => {
                let logprobs = std::mem::take(&mut self.unsaid);
                self.scores[index].extend(logprobs.iter().cloned());
                let told = json!({"delta": delta, "logprobs": logprobs});
                self.event("response.output_text.delta", with(place, told))
            }
            Block::Call { .. } => {
                self.event("response.function_call_arguments.delta", with(place, json!({"delta": delta})))
            }
        }
    }

    fn close(&mut self, index: usize, status: &str, events: &mut Vec<Event>) {
        // Tokens without text, such as the end of the sequence.
        if matches!(self.blocks.list()[index], Block::Text(_)) && !self.unsaid.is_empty() {
            events.push(self.delta(index, String::new()));
        }
        let item = self.item(index, status);
        let place = self.place(index);
        match &self.blocks.list()[index] {
            Block::Reasoning(text) => {
                let whole = json!({"text": text});
                events.push(self.event("response.reasoning_text.done", with(place, whole)));
            }
            Block::Text(text) => {
                let whole = json!({"text": text, "logprobs": self.scores[index]});
                let part = json!({"part": item["content"][0]});
                events.push(self.event("response.output_text.done", with(place.clone(), whole)));
                events.push(self.event("response.content_part.done", with(place, part)));
            }
            Block::Call { name, arguments, .. } => {
                let whole = json!({"name": name, "arguments": arguments});
                events.push(self.event("response.function_call_arguments.done", with(place, whole)));
            }
        }
        events.push(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
    }

    fn item(&self, index: usize, status: &str) -> Value {
        let id = self.item_id(index);
        match &self.blocks.list()[index] {
            Block::Reasoning(text) => json!({
                "id": id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": [{"type": "reasoning_text", "text": text}],
            }),
            Block::Text(text) => json!({
                "id": id,
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [{
                    "type": "output_text",
                    "text": text,
                    "annotations": [],
                    "logprobs": self.scores[index],
                }],
            }),
            Block::Call { id: call_id, name, arguments } => json!({
                "id": id,
                "type": "function_call",
                "status": status,
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
            }),
        }
    }

    fn item_id(&self, index: usize) -> String {
        let prefix = match &self.blocks.list()[index] {
            Block::Reasoning(_) => "rs",
            Block::Text(_) => "msg",
            Block::Call { .. } => "fc",
        };
        format!("{prefix}_{}_{index}", self.header.unique)
    }

    /// Where in the output a piece of text belongs.
    fn place(&self, index: usize) -> Value {
        let mut place = json!({"item_id": self.item_id(index), "output_index": index});
        if !matches!(self.blocks.list()[index], Block::Call { .. }) {
            place["content_index"] = 0.into();
        }
        place
    }

    fn event(&mut self, name: &'static str, told: Value) -> Event {
        let data = with(json!({"type": name, "sequence_number": self.sequence_number}), told);
        self.sequence_number += 1;
        Event { name, data }
    }
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        // Nobody is charged for what the cache takes in, and it is not counted.
        "input_tokens_details": {
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    })
}
