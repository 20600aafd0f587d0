//! An answer as it comes, in parts, for the routes that tell it as a list of blocks.

use std::mem::discriminant;

use serde_json::Value;

use crate::answer::{StopReason, Usage};

/// A piece of an answer. Pieces of one kind that follow each other are one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Reasoning(String),
    Text(String),
    /// A call begins. `id`: by which its result will name it.
    Call {
        id: String,
        name: String,
    },
    /// Of the last call: pieces of one JSON text.
    Arguments(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// By `max_tokens`, or by the end of the context.
    Length,
    ToolCalls,
}

/// How an answer ended that did not fail.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub finish: Finish,
    /// What matched, where `finish` is `Stop`.
    pub stop: Option<StopReason>,
    pub usage: Usage,
}

/// A server-sent event: its name, and the JSON of its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: &'static str,
    pub data: Value,
}

/// The keys of both objects.
pub(crate) fn with(mut first: Value, second: Value) -> Value {
    if let (Value::Object(map), Value::Object(more)) = (&mut first, second) {
        map.extend(more);
    }
    first
}

/// Parts of one kind, put together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Block {
    Reasoning(String),
    Text(String),
    Call { id: String, name: String, arguments: String },
}

/// What one part did to the blocks. Only the last block grows.
pub(crate) struct Grown {
    /// The block before is complete: its index.
    pub(crate) closed: Option<usize>,
    /// The last block is new.
    pub(crate) opened: bool,
    /// What the last block gained.
    pub(crate) delta: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    /// `None`: the part is empty and says nothing.
    ///
    /// # Panics
    ///
    /// If arguments come without a call.
    pub(crate) fn grow(&mut self, part: Part) -> Option<Grown> {
        let (fresh, delta) = match part {
            Part::Reasoning(text) => (Block::Reasoning(String::new()), text),
            Part::Text(text) => (Block::Text(String::new()), text),
            Part::Call { id, name } => {
                let closed = self.last();
                self.0.push(Block::Call { id, name, arguments: String::new() });
                return Some(Grown { closed, opened: true, delta: String::new() });
            }
            Part::Arguments(delta) => {
                let Some(Block::Call { arguments, .. }) = self.0.last_mut() else {
                    panic!("arguments without a call: {delta:?}");
                };
                arguments.push_str(&delta);
                return (!delta.is_empty()).then_some(Grown { closed: None, opened: false, delta });
            }
        };
        if delta.is_empty() {
            return None;
        }
        let closed = self.last();
        let opened = self.0.last().is_none_or(|last| discriminant(last) != discriminant(&fresh));
        if opened {
            self.0.push(fresh);
        }
        if let Some(Block::Reasoning(text) | Block::Text(text)) = self.0.last_mut() {
            text.push_str(&delta);
        }
        Some(Grown { closed: closed.filter(|_| opened), opened, delta })
    }

    /// A text of no characters, for an answer of no parts.
    pub(crate) fn open_text(&mut self) {
        self.0.push(Block::Text(String::new()));
    }

    pub(crate) fn last(&self) -> Option<usize> {
        self.0.len().checked_sub(1)
    }

    pub(crate) fn list(&self) -> &[Block] {
        &self.0
    }
}
