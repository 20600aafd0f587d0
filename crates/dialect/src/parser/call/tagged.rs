//! Calls whose arguments are tags, one a property: made into JSON as they come.

use std::collections::VecDeque;

use serde_json::Value;

use super::json::escaped;
use super::{Call, HEADER_MAX, Next, Outcome, State, attribute, bounded, done_or, is_known, next_of};
use crate::Tool;
use crate::arguments::{Kind, kind_of};
use crate::calls::Shape;
use crate::parser::buffer::Buffer;
use crate::parser::{Part, say};

impl Call {
    /// The name ends where the first key begins, or the call ends.
    pub(super) fn keyed_header(
        &mut self,
        buffer: &mut Buffer,
        tools: &[Tool],
        end: bool,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        let rest = bounded(buffer.rest(), HEADER_MAX);
        let Some(at) = rest.find('<') else { return self.wait_for_header(buffer, end) };
        match next_of(&buffer.rest()[at..], &[self.marks.sep, self.marks.call.1]) {
            Next::Is(_) if is_known(tools, rest[..at].trim()) => {
                self.name = rest[..at].trim().to_owned();
                buffer.skip(at);
                self.tell(None, parts);
                say(parts, Part::Arguments("{".to_owned()));
                self.state = State::Property;
                Outcome::Goes
            }
            Next::MayCome if !end => Outcome::Waits,
            _ => self.broken(),
        }
    }

    pub(super) fn property(&mut self, buffer: &mut Buffer, end: bool, parts: &mut VecDeque<Part>) -> Outcome {
        self.skip_space(buffer);
        let key = if self.marks.shape == Shape::Keyed { self.marks.sep } else { "<｜DSML｜parameter" };
        match next_of(buffer.rest(), &[key, self.marks.call.1]) {
            Next::Is(0) => {
                buffer.skip(key.len());
                self.state = State::Key;
                Outcome::Goes
            }
            Next::Is(_) => {
                say(parts, Part::Arguments("}".to_owned()));
                self.state = State::End;
                Outcome::Goes
            }
            Next::MayCome if !end => Outcome::Waits,
            _ => Outcome::Done,
        }
    }

    pub(super) fn key(
        &mut self,
        buffer: &mut Buffer,
        tools: &[Tool],
        end: bool,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        let keyed = self.marks.shape == Shape::Keyed;
        let tag = if keyed { "</arg_key>" } else { ">" };
        let Some(at) = bounded(buffer.rest(), HEADER_MAX + tag.len()).find(tag) else {
            return if end || buffer.rest().len() > HEADER_MAX { Outcome::Done } else { Outcome::Waits };
        };
        let text = buffer.take(at);
        buffer.skip(tag.len());
        if keyed {
            self.raw = text; // the key, until its value begins
            self.state = State::ValueOpen;
            return Outcome::Goes;
        }
        let Some(name) = attribute(&text, "name") else { return Outcome::Done };
        let is_text = match attribute(&text, "string").as_deref() {
            Some("true") => Kind::Text,
            Some(_) => Kind::Json,
            None => kind_of(self.tool(tools), &name),
        };
        self.begin_value(&name, is_text, parts)
    }

    pub(super) fn value_open(
        &mut self,
        buffer: &mut Buffer,
        tools: &[Tool],
        end: bool,
        parts: &mut VecDeque<Part>,
    ) -> Outcome {
        let rest = buffer.rest();
        let space = rest.len() - rest.trim_ascii_start().len();
        buffer.skip(space);
        const TAG: &str = "<arg_value>";
        match next_of(buffer.rest(), &[TAG]) {
            Next::Is(_) => {
                buffer.skip(TAG.len());
                let name = std::mem::take(&mut self.raw);
                let kind = kind_of(self.tool(tools), name.trim());
                self.begin_value(name.trim(), kind, parts)
            }
            Next::MayCome if !end => Outcome::Waits,
            _ => {
                self.raw.clear();
                Outcome::Done
            }
        }
    }

    fn tool<'a>(&self, tools: &'a [Tool]) -> &'a Tool {
        let found = tools.iter().find(|tool| tool.name == self.name);
        found.expect("its name was looked up when the call was told")
    }

    fn begin_value(&mut self, name: &str, kind: Kind, parts: &mut VecDeque<Part>) -> Outcome {
        let comma = if self.n_properties > 0 { ", " } else { "" };
        self.n_properties += 1;
        let is_text = kind == Kind::Text;
        let quote = if is_text { "\"" } else { "" };
        say(parts, Part::Arguments(format!("{comma}\"{}\": {quote}", escaped(name))));
        self.state = if is_text { State::Text } else { State::Held { scanned: 0 } };
        Outcome::Goes
    }

    pub(super) fn text(&mut self, buffer: &mut Buffer, end: bool, parts: &mut VecDeque<Part>) -> Outcome {
        let rest = buffer.rest();
        let found = self.tags.argument_end.find(rest);
        let n = match found {
            Some((at, _)) => at,
            None if end => rest.len(),
            None => rest.len() - self.tags.argument_end.beginning(rest),
        };
        say(parts, Part::Arguments(escaped(&rest[..n])));
        buffer.skip(n);
        if found.is_some() {
            buffer.skip(self.tags.argument_end.len(0));
            say(parts, Part::Arguments("\"".to_owned()));
            self.state = State::Property;
        }
        done_or(found.is_some(), end)
    }

    pub(super) fn held(&mut self, buffer: &mut Buffer, end: bool, parts: &mut VecDeque<Part>) -> Outcome {
        let State::Held { scanned } = &mut self.state else { return Outcome::Done };
        let rest = buffer.rest();
        let from = *scanned;
        let Some((at, _)) = self.tags.argument_end.find(&rest[from..]) else {
            *scanned = rest.len() - self.tags.argument_end.beginning(rest);
            if !end {
                return Outcome::Waits;
            }
            let n = rest.len();
            say(parts, Part::Arguments(buffer.take(n)));
            return Outcome::Done;
        };
        let value = rest[..from + at].trim();
        let is_json = serde_json::from_str::<Value>(value).is_ok();
        let value = if is_json { value.to_owned() } else { format!("\"{}\"", escaped(&rest[..from + at])) };
        say(parts, Part::Arguments(value));
        buffer.skip(from + at + self.tags.argument_end.len(0));
        self.state = State::Property;
        Outcome::Goes
    }
}
