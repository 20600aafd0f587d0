//! From a conversation to ids, so that only the template can write control tokens.
//!
//! Where a client's words spell an added token, one private-use letter stands in for it while the template renders,
//! and the text that comes back in its place is encoded with added tokens switched off.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use crate::template::{ChatInput, ChatTemplate, Rendered};
use crate::tokenizer::ControlTokens;
use crate::{TextError, Tokenizer};

/// Ids of a conversation: the template's control tokens as ids, all that clients typed as text, and exactly one BOS
/// if the template writes one or the tokenizer adds one.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    input: &ChatInput,
) -> Result<Vec<u32>, TextError> {
    let rendered = render(tokenizer.control(), template, input)?;
    let mut ids = Vec::new();
    let mut done = 0;
    for typed in &rendered.typed {
        ids.extend(tokenizer.encode(&rendered.text[done..typed.start], false)?);
        ids.extend(tokenizer.encode_plain(&rendered.text[typed.clone()])?);
        done = typed.end;
    }
    ids.extend(tokenizer.encode(&rendered.text[done..], false)?);
    if let Some(bos) = tokenizer.bos_of_text().filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

fn render(
    control: &ControlTokens,
    template: &ChatTemplate,
    input: &ChatInput,
) -> Result<Rendered, TextError> {
    let mut survey = Survey { control, typed: HashSet::new(), taken: HashSet::new() };
    survey.visit(input);
    if survey.typed.is_empty() {
        return template.render(input);
    }
    survey.note_letters(&template.source);
    let mask = Mask { control, letters: survey.letters() };
    let messages: Vec<Value> = input.messages.iter().map(|message| mask.message(message)).collect();
    let tools: Option<Vec<Value>> =
        input.tools.map(|tools| tools.iter().map(|tool| mask.value(tool, false)).collect());
    let kwargs: Map<String, Value> =
        input.kwargs.iter().map(|(name, value)| (name.clone(), mask.value(value, false))).collect();
    let masked = ChatInput { messages: &messages, tools: tools.as_deref(), kwargs: &kwargs, ..*input };
    Ok(mask.restore(&template.render(&masked)?.text))
}

/// Past answers may hold the model's own reasoning, which templates look for by these tokens.
fn is_format_of_answers(text: &str) -> bool {
    matches!(text, "<think>" | "</think>")
}

fn is_answer(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// Planes 15 and 16 hold nothing but private-use letters.
fn is_stand_in(letter: char) -> bool {
    letter >= '\u{F0000}'
}

/// What stands in the input: control tokens, and private-use letters, which cannot stand in for anything then.
struct Survey<'a> {
    control: &'a ControlTokens,
    /// Indices of control tokens.
    typed: HashSet<usize>,
    taken: HashSet<char>,
}

impl Survey<'_> {
    fn visit(&mut self, input: &ChatInput) {
        for message in input.messages {
            match message.as_object().filter(|_| is_answer(message)) {
                Some(fields) => fields.iter().for_each(|(key, value)| {
                    self.text(key, false);
                    self.value(value, key == "content");
                }),
                None => self.value(message, false),
            }
        }
        input.tools.unwrap_or_default().iter().for_each(|tool| self.value(tool, false));
        input.kwargs.values().for_each(|value| self.value(value, false));
    }

    fn value(&mut self, value: &Value, in_answer: bool) {
        match value {
            Value::String(text) => self.text(text, in_answer),
            Value::Array(items) => items.iter().for_each(|item| self.value(item, in_answer)),
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                self.text(key, in_answer);
                self.value(value, in_answer);
            }),
            _ => {}
        }
    }

    fn text(&mut self, text: &str, in_answer: bool) {
        let found = self.control.finder.find_iter(text).map(|found| found.pattern().as_usize());
        self.typed.extend(found.filter(|&i| !(in_answer && is_format_of_answers(&self.control.texts[i]))));
        self.note_letters(text);
    }

    fn note_letters(&mut self, text: &str) {
        self.taken.extend(text.chars().filter(|&letter| is_stand_in(letter)));
    }

    /// A free letter for each control token that was typed.
    fn letters(self) -> BTreeMap<usize, char> {
        let free = ('\u{F0000}'..=char::MAX).filter(|letter| !self.taken.contains(letter));
        self.typed.into_iter().zip(free).collect()
    }
}

struct Mask<'a> {
    control: &'a ControlTokens,
    /// Index of a control token → the letter that stands in for it.
    letters: BTreeMap<usize, char>,
}

impl Mask<'_> {
    fn message(&self, message: &Value) -> Value {
        match message.as_object().filter(|_| is_answer(message)) {
            Some(fields) => fields
                .iter()
                .map(|(key, value)| (self.text(key, false), self.value(value, key == "content")))
                .collect(),
            None => self.value(message, false),
        }
    }

    fn value(&self, value: &Value, in_answer: bool) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, in_answer)),
            Value::Array(items) => items.iter().map(|item| self.value(item, in_answer)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| (self.text(key, in_answer), self.value(value, in_answer)))
                .collect(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str, in_answer: bool) -> String {
        let mut masked = String::with_capacity(text.len());
        self.control.finder.replace_all_with(text, &mut masked, |found, own, masked| {
            let index = found.pattern().as_usize();
            match self.letters.get(&index) {
                Some(&letter) if !(in_answer && is_format_of_answers(own)) => masked.push(letter),
                _ => masked.push_str(own),
            }
            true
        });
        masked
    }

    fn restore(&self, masked: &str) -> Rendered {
        let tokens: BTreeMap<char, &str> = self
            .letters
            .iter()
            .map(|(&index, &letter)| (letter, self.control.texts[index].as_str()))
            .collect();
        let mut rendered = Rendered { text: String::with_capacity(masked.len()), typed: Vec::new() };
        for letter in masked.chars() {
            match tokens.get(&letter) {
                Some(token) => {
                    let start = rendered.text.len();
                    rendered.text.push_str(token);
                    rendered.typed.push(start..rendered.text.len());
                }
                None => rendered.text.push(letter),
            }
        }
        rendered
    }
}
