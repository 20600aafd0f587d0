//! An answer's text, taken apart as it comes: reasoning, content, calls.
//!
//! What comes out does not depend on where the text was cut. Text that may begin a tag waits until that is decided.

mod buffer;
mod call;

use std::collections::VecDeque;
use std::sync::Arc;

use buffer::{Buffer, Tags};
use call::{Call, CallTags, Outcome};

use crate::calls::Marks;
use crate::{Dialect, Opening, THINK, THINK_END, Tool};

/// White space in front of a call that is dropped with its tag, in bytes: more was told before.
const SPACE_MAX: usize = 64;

/// A piece of an answer. Pieces of one kind that follow each other are one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Reasoning(String),
    Content(String),
    /// A call begins. `id`: what the model itself named it.
    Call {
        name: String,
        id: Option<String>,
    },
    /// Of the last call: pieces of one JSON text.
    Arguments(String),
}

/// Takes one answer apart.
pub struct Parser {
    tools: Vec<Tool>,
    marks: Marks,
    begin: Tags,
    call_tags: Arc<CallTags>,
    think_end: Tags,
    phase: Phase,
    buffer: Buffer,
    parts: VecDeque<Part>,
}

enum Phase {
    /// Nothing but white space yet: the model may open `<think>`.
    Start,
    /// `first`: a newline would be the one next to the tag.
    Reasoning {
        first: bool,
    },
    /// Newlines behind `</think>`.
    Reasoned {
        newlines: usize,
    },
    /// `fresh`: nothing came since a call, and white space would be what parts it from the next.
    Content {
        fresh: bool,
    },
    Call(Box<Call>),
}

impl Parser {
    /// For an answer to a prompt that ends in `opening`. `tools`: those that may be called; without any, calls are
    /// content. `reasoning`: it is told apart.
    pub fn new(dialect: Dialect, opening: Opening, tools: Vec<Tool>, reasoning: bool) -> Self {
        let marks = Marks::of(dialect.family);
        let phase = match opening {
            Opening::Thinking if dialect.reasons && reasoning => Phase::Reasoning { first: true },
            Opening::Bare if dialect.reasons && reasoning => Phase::Start,
            _ => Phase::Content { fresh: false },
        };
        Self {
            call_tags: Arc::new(CallTags::new(&marks)),
            begin: Tags::new(marks.beginnings()),
            think_end: Tags::new([THINK_END]),
            tools,
            marks,
            phase,
            buffer: Buffer::default(),
            parts: VecDeque::new(),
        }
    }

    /// What is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.buffer.push(text);
        while self.step(false) {}
        self.take()
    }

    /// What is left when no text follows.
    pub fn finish(&mut self) -> Vec<Part> {
        // Each step takes text or changes the phase towards content.
        while self.step(true) {}
        self.take()
    }

    /// Whether what comes next is reasoning, as far as is known.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.phase, Phase::Reasoning { .. })
    }

    fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts).into()
    }

    /// False when there is nothing to do without more text.
    fn step(&mut self, end: bool) -> bool {
        match &mut self.phase {
            Phase::Start => self.start(end),
            Phase::Reasoning { first } => {
                let first = *first;
                self.reasoning(first, end)
            }
            Phase::Reasoned { newlines } => {
                if self.buffer.take_if("\n") {
                    *newlines += 1;
                }
                let done =
                    *newlines == 2 || !self.buffer.rest().is_empty() && !self.buffer.rest().starts_with('\n');
                if done || end {
                    self.phase = Phase::Content { fresh: false };
                }
                done || !self.buffer.rest().is_empty()
            }
            Phase::Content { fresh } => {
                let fresh = *fresh;
                self.content(fresh, end)
            }
            Phase::Call(_) => self.call(end),
        }
    }

    fn start(&mut self, end: bool) -> bool {
        let rest = self.buffer.rest();
        let text = rest.trim_start();
        let space = rest.len() - text.len();
        if text.starts_with(THINK) {
            self.buffer.skip(space + THINK.len());
            self.phase = Phase::Reasoning { first: true };
            return true;
        }
        if THINK.starts_with(text) && space <= SPACE_MAX && !end {
            return false;
        }
        self.phase = Phase::Content { fresh: false };
        true
    }

    fn reasoning(&mut self, first: bool, end: bool) -> bool {
        if first && !self.buffer.rest().is_empty() {
            self.buffer.take_if("\n");
            self.phase = Phase::Reasoning { first: false };
            return true;
        }
        let rest = self.buffer.rest();
        match self.think_end.find(rest) {
            Some((at, _)) => {
                let text = rest[..at].strip_suffix('\n').unwrap_or(&rest[..at]).to_owned();
                self.buffer.skip(at + THINK_END.len());
                self.say(Part::Reasoning(text));
                self.phase = Phase::Reasoned { newlines: 0 };
                true
            }
            None => {
                let mut free = if end { rest.len() } else { rest.len() - self.think_end.beginning(rest) };
                if !end && rest[..free].ends_with('\n') {
                    free -= 1;
                }
                let text = self.buffer.take(free);
                self.say(Part::Reasoning(text));
                false
            }
        }
    }

    fn content(&mut self, fresh: bool, end: bool) -> bool {
        if self.tools.is_empty() {
            let text = self.buffer.take(self.buffer.rest().len());
            self.say(Part::Content(text));
            return false;
        }
        if fresh {
            let rest = self.buffer.rest();
            let space = rest.len() - rest.trim_ascii_start().len();
            self.buffer.skip(space);
            if self.buffer.rest().is_empty() {
                return false;
            }
            self.phase = Phase::Content { fresh: false };
            return true;
        }
        let rest = self.buffer.rest();
        match self.begin.find(rest) {
            Some((at, tag)) => {
                let space = space_before(&rest[..at]);
                let text = self.buffer.take(at - space);
                self.say(Part::Content(text));
                let raw = self.buffer.take(space + self.begin.len(tag));
                self.phase = Phase::Call(Box::new(Call::new(&self.marks, self.call_tags.clone(), tag, raw)));
                true
            }
            None => {
                let held = if end { 0 } else { self.begin.beginning(rest) };
                let free = rest.len() - held;
                let free = if end { free } else { free - space_before(&rest[..free]) };
                let text = self.buffer.take(free);
                self.say(Part::Content(text));
                false
            }
        }
    }

    fn call(&mut self, end: bool) -> bool {
        let Phase::Call(call) = &mut self.phase else { return false };
        match call.step(&mut self.buffer, &self.tools, end, &mut self.parts) {
            Outcome::Goes => true,
            Outcome::Waits => false,
            Outcome::Done => {
                self.phase = Phase::Content { fresh: true };
                true
            }
            Outcome::Broken(raw) => {
                self.say(Part::Content(raw));
                self.phase = Phase::Content { fresh: false };
                true
            }
        }
    }

    fn say(&mut self, part: Part) {
        say(&mut self.parts, part);
    }
}

/// Adds a piece, to the last one if it is of the same kind; empty ones are none.
fn say(parts: &mut VecDeque<Part>, part: Part) {
    match (parts.back_mut(), &part) {
        (_, Part::Reasoning(text) | Part::Content(text) | Part::Arguments(text)) if text.is_empty() => {}
        (Some(Part::Reasoning(last)), Part::Reasoning(text))
        | (Some(Part::Content(last)), Part::Content(text))
        | (Some(Part::Arguments(last)), Part::Arguments(text)) => last.push_str(text),
        _ => parts.push_back(part),
    }
}

/// Bytes of white space at the end of a text, at most [`SPACE_MAX`].
fn space_before(text: &str) -> usize {
    let tail = &text.as_bytes()[text.len().saturating_sub(SPACE_MAX)..];
    tail.len() - tail.trim_ascii_end().len()
}
