//! One call after the other, from the tag that begins them to the one that ends them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::buffer::{Buffer, Tags};
use super::{Part, say};
use crate::Tool;
use crate::calls::{Marks, Shape};

mod json;
mod tagged;

use json::{Head, Scanner, head};

/// Longest header of a call, and of an argument: what is longer is none.
const HEADER_MAX: usize = 512;

/// What a step came to.
pub(super) enum Outcome {
    Goes,
    /// More text is needed.
    Waits,
    /// The calls are over; what follows is content.
    Done,
    /// It was no call: this is content, and so is what follows.
    Broken(String),
}

pub(super) struct Call {
    marks: Marks,
    state: State,
    /// What was taken and not told: content, if it was no call.
    raw: String,
    name: String,
    /// Properties that were told.
    n_properties: usize,
    tags: Arc<CallTags>,
}

/// What is looked for within calls; costs more to make than a call to read.
pub(super) struct CallTags {
    begin: Tags,
    argument_end: Tags,
}

impl CallTags {
    pub(super) fn new(marks: &Marks) -> Self {
        let argument_end =
            if marks.shape == Shape::Attributed { "</｜DSML｜parameter>" } else { "</arg_value>" };
        Self { begin: Tags::new([marks.call.0]), argument_end: Tags::new([argument_end]) }
    }
}

enum State {
    /// A call comes next, or the section's end.
    Between,
    Header,
    /// Name and fence, after what comes before the separator.
    Fence,
    /// Blanks, then the arguments' first brace.
    Open {
        id: Option<String>,
    },
    /// An object that holds name and arguments; `scanned` bytes of it were seen where it is not told as it comes.
    Object {
        whole: Option<(Scanner, usize)>,
    },
    Arguments(Scanner),
    /// What is left of the object around the arguments.
    Tail(Scanner),
    /// What ends the call.
    End,
    /// A property comes next, or the end.
    Property,
    Key,
    /// The tag between key and value.
    ValueOpen,
    /// As it comes, escaped.
    Text,
    /// Held until it is whole; so many bytes were seen.
    Held {
        scanned: usize,
    },
}

impl Call {
    /// `tag`: which of [`Marks::beginnings`] was found; `raw`: its text, and what stood before it.
    pub(super) fn new(marks: &Marks, tags: Arc<CallTags>, tag: usize, raw: String) -> Self {
        let in_section = marks.section.is_some() && tag == 0;
        Self {
            marks: *marks,
            state: if in_section { State::Between } else { State::Header },
            raw,
            name: String::new(),
            n_properties: 0,
            tags,
        }
    }

    pub(super) fn step(
        &mut self,
        buffer: &mut Buffer,
        tools: &[Tool],
        end: bool,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        match &mut self.state {
            State::Between => self.between(buffer, end),
            State::Header => self.header(buffer, tools, end, parts),
            State::Fence => self.fence(buffer, tools, end),
            State::Open { id } => {
                let id = id.clone();
                self.open(buffer, end, id, parts)
            }
            State::Object { .. } => self.object(buffer, tools, end, parts),
            State::Arguments(scanner) => {
                let text = buffer.rest();
                let closed = scanner.feed(text);
                let text = buffer.take(closed.unwrap_or(text.len()));
                say(parts, Part::Arguments(text));
                if closed.is_none() {
                    return if end { Outcome::Done } else { Outcome::Waits };
                }
                let in_object = self.marks.shape == Shape::Object;
                self.state = if in_object { State::Tail(Scanner::inside()) } else { State::End };
                Outcome::Goes
            }
            State::Tail(scanner) => {
                let text = buffer.rest();
                let closed = scanner.feed(text);
                buffer.skip(closed.unwrap_or(text.len()));
                if closed.is_some() {
                    self.state = State::End;
                }
                done_or(closed.is_some(), end)
            }
            State::End => self.end(buffer, end),
            State::Property => self.property(buffer, end, parts),
            State::Key => self.key(buffer, tools, end, parts),
            State::ValueOpen => self.value_open(buffer, tools, end, parts),
            State::Text => self.text(buffer, end, parts),
            State::Held { .. } => self.held(buffer, end, parts),
        }
    }

    fn broken(&mut self) -> Outcome {
        let raw = std::mem::take(&mut self.raw);
        if raw.is_empty() { Outcome::Done } else { Outcome::Broken(raw) }
    }

    /// Takes white space, which is only of use if there is no call.
    fn skip_space(&mut self, buffer: &mut Buffer) {
        let rest = buffer.rest();
        let n = rest.len() - rest.trim_ascii_start().len();
        let space = buffer.take(n);
        if !self.raw.is_empty() {
            self.raw.push_str(&space);
        }
    }

    fn between(&mut self, buffer: &mut Buffer, end: bool) -> Outcome {
        self.skip_space(buffer);
        let (begin, close) = (self.marks.call.0, self.marks.section.map_or("", |(_, close)| close));
        match next_of(buffer.rest(), &[begin, close]) {
            Next::Is(0) => {
                let tag = buffer.take(begin.len());
                self.raw.push_str(&tag);
                self.state = State::Header;
                Outcome::Goes
            }
            Next::Is(_) if self.raw.is_empty() => {
                buffer.skip(close.len());
                Outcome::Done
            }
            Next::MayCome if !end => Outcome::Waits,
            _ => self.broken(),
        }
    }

    /// Up to the separator, which is taken too.
    fn up_to(&mut self, buffer: &mut Buffer, tag: &str) -> Option<String> {
        let rest = buffer.rest();
        let at = bounded(rest, HEADER_MAX + tag.len()).find(tag)?;
        let text = buffer.take(at);
        self.raw.push_str(&text);
        let tag = buffer.take(tag.len());
        self.raw.push_str(&tag);
        Some(text)
    }

    fn wait_for_header(&mut self, buffer: &Buffer, end: bool) -> Outcome {
        if end || buffer.rest().len() > HEADER_MAX { self.broken() } else { Outcome::Waits }
    }

    fn header(
        &mut self,
        buffer: &mut Buffer,
        tools: &[Tool],
        end: bool,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        match self.marks.shape {
            Shape::Object => {
                self.state = State::Object { whole: None };
                return Outcome::Goes;
            }
            Shape::Keyed => return self.keyed_header(buffer, tools, end, parts),
            _ => {}
        }
        let Some(text) = self.up_to(buffer, self.marks.sep) else { return self.wait_for_header(buffer, end) };
        let (name, id) = match self.marks.shape {
            Shape::Fenced => {
                self.state = State::Fence;
                return Outcome::Goes;
            }
            Shape::Indexed => {
                let id = text.trim();
                let name = id.strip_prefix("functions.").unwrap_or(id);
                let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
                (name.to_owned(), Some(id.to_owned()))
            }
            Shape::Attributed => (attribute(&text, "name").unwrap_or_default(), None),
            _ => (text.trim().to_owned(), None),
        };
        if !is_known(tools, &name) {
            return self.broken();
        }
        self.name = name;
        if self.marks.shape == Shape::Attributed {
            self.tell(None, parts);
            say(parts, Part::Arguments("{".to_owned()));
            self.state = State::Property;
        } else {
            self.state = State::Open { id };
        }
        Outcome::Goes
    }

    /// `NAME\n```json\n`
    fn fence(&mut self, buffer: &mut Buffer, tools: &[Tool], end: bool) -> Outcome {
        let Some(text) = self.up_to(buffer, "```json") else { return self.wait_for_header(buffer, end) };
        let name = text.trim();
        if !is_known(tools, name) {
            return self.broken();
        }
        self.name = name.to_owned();
        self.state = State::Open { id: None };
        Outcome::Goes
    }

    fn tell(&mut self, id: Option<String>, parts: &mut VecDeque<Part>) {
        self.raw.clear();
        self.n_properties = 0;
        say(parts, Part::Call { name: self.name.clone(), id });
    }

    fn open(
        &mut self,
        buffer: &mut Buffer,
        end: bool,
        id: Option<String>,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        self.skip_space(buffer);
        match buffer.rest().bytes().next() {
            Some(b'{') => {
                self.tell(id, parts);
                self.state = State::Arguments(Scanner::new());
                Outcome::Goes
            }
            None if !end => Outcome::Waits,
            _ => self.broken(),
        }
    }

    fn object(
        &mut self,
        buffer: &mut Buffer,
        tools: &[Tool],
        end: bool,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        let State::Object { whole } = &mut self.state else { return Outcome::Done };
        let Some((scanner, scanned)) = whole else {
            return match head(bounded(buffer.rest(), HEADER_MAX)) {
                Head::Found { name, arguments } if is_known(tools, &name) => {
                    self.name = name;
                    buffer.skip(arguments);
                    self.tell(None, parts);
                    self.state = State::Arguments(Scanner::new());
                    Outcome::Goes
                }
                Head::Found { .. } | Head::None => self.broken(),
                Head::More if buffer.rest().len() <= HEADER_MAX => {
                    if end {
                        self.broken()
                    } else {
                        Outcome::Waits
                    }
                }
                Head::Other | Head::More => {
                    *whole = Some((Scanner::new(), 0));
                    Outcome::Goes
                }
            };
        };
        // Not told as it comes. The next call's beginning ends the patience, so that nothing is seen too often.
        let rest = buffer.rest();
        let from = floor(rest, scanned.saturating_sub(self.marks.call.0.len()));
        let next = self.tags.begin.find(&rest[from..]).map(|(at, _)| from + at);
        let fresh = &rest[*scanned..next.unwrap_or(rest.len()).max(*scanned)];
        let closed = scanner.feed(fresh).map(|at| *scanned + at);
        if closed.is_none() && next.is_some() {
            return self.broken();
        }
        *scanned = rest.len();
        let Some(closed) = closed else { return if end { self.broken() } else { Outcome::Waits } };
        match json::call(&rest[..closed]) {
            Some((name, arguments)) if is_known(tools, &name) => {
                self.name = name;
                buffer.skip(closed);
                self.tell(None, parts);
                say(parts, Part::Arguments(arguments));
                self.state = State::End;
                Outcome::Goes
            }
            _ => self.broken(),
        }
    }

    /// Blanks and a fence, then the tag.
    fn end(&mut self, buffer: &mut Buffer, end: bool) -> Outcome {
        self.skip_space(buffer);
        let close = self.marks.call.1;
        let fence = if self.marks.shape == Shape::Fenced { "```" } else { close };
        match next_of(buffer.rest(), &[close, fence]) {
            Next::Is(0) => {
                buffer.skip(close.len());
                self.state = State::Between;
                if self.marks.section.is_none() { Outcome::Done } else { Outcome::Goes }
            }
            Next::Is(_) => {
                buffer.skip(fence.len());
                Outcome::Goes
            }
            Next::MayCome if !end => Outcome::Waits,
            _ => Outcome::Done,
        }
    }
}

fn done_or(goes: bool, end: bool) -> Outcome {
    match (goes, end) {
        (true, _) => Outcome::Goes,
        (false, true) => Outcome::Done,
        (false, false) => Outcome::Waits,
    }
}

fn is_known(tools: &[Tool], name: &str) -> bool {
    tools.iter().any(|tool| tool.name == name)
}

enum Next {
    Is(usize),
    MayCome,
    Other,
}

/// Which of these the text begins with, or may with more text.
fn next_of(text: &str, tags: &[&str]) -> Next {
    match tags.iter().position(|tag| text.starts_with(tag)) {
        Some(at) => Next::Is(at),
        None if tags.iter().any(|tag| tag.starts_with(text)) => Next::MayCome,
        None => Next::Other,
    }
}

/// At most so many bytes of a text.
fn bounded(text: &str, most: usize) -> &str {
    &text[..floor(text, most)]
}

/// The last place at or before `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// The value of `key="…"`.
fn attribute(text: &str, key: &str) -> Option<String> {
    let (_, behind) = text.split_once(&format!("{key}=\""))?;
    behind.split_once('"').map(|(value, _)| value.to_owned())
}
