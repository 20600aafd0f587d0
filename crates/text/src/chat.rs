//! From a conversation to ids, so that only the template can write control tokens.
//!
//! While the template renders, a private-use letter that nobody else uses stands in for one letter of each control
//! token in a client's words. Stand-ins go through filters as other letters do; where the text is split at added
//! tokens they keep the client's words whole, and only then they give way to the letters they stand for. So plain
//! words become the ids that they have without any of this.
//!
//! A token may also be typed in pieces that the template joins, or that join the template's own. So a stand-in is
//! put, too, where a client's string ends like the beginning of a control token, or begins like an end. What is left
//! are strings with no punctuation in them, such as a role, which a template may wrap on purpose: `<|` role `|>`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use serde_json::{Map, Value};

use crate::control::ControlTokens;
use crate::template::{ChatInput, ChatTemplate};
use crate::{TextError, Tokenizer};

/// Ids of a conversation: the template's control tokens as ids, all that clients typed as text, and exactly one BOS
/// if the template writes one or the tokenizer adds one.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    input: &ChatInput,
) -> Result<Vec<u32>, TextError> {
    let masked = match render(tokenizer.control(), template, input) {
        // Clients send the arguments of past calls as JSON text. Templates that want the object fail on it.
        Err(first @ TextError::Render(_)) => {
            let messages = with_parsed_arguments(input.messages).ok_or_else(|| first.clone())?;
            let parsed = ChatInput { messages: &messages, ..*input };
            render(tokenizer.control(), template, &parsed).map_err(|_| first)?
        }
        rendered => rendered?,
    };
    let mut ids = tokenizer.encode_masked(&masked.text, &masked.letters)?;
    if let Some(bos) = tokenizer.bos_of_text().filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// A rendered conversation, and what stands in it for other letters.
struct Masked {
    text: String,
    letters: Vec<StandIn>,
}

/// A private-use letter and the letter in whose place it stands.
pub(crate) type StandIn = (char, char);

fn render(control: &ControlTokens, template: &ChatTemplate, input: &ChatInput) -> Result<Masked, TextError> {
    let mut survey = Survey { control, hidden: BTreeSet::new(), taken: HashSet::new() };
    survey.note_taken(&template.source);
    control.texts().for_each(|text| survey.note_taken(text));
    let _ = walk(input, &mut |text, is_answer| {
        survey.text(text, is_answer);
        String::new()
    });
    if survey.hidden.is_empty() {
        return Ok(Masked { text: template.render(input)?.text, letters: Vec::new() });
    }
    let mask = Mask { control, letters: survey.letters()? };
    let own = walk(input, &mut |text, is_answer| mask.text(text, is_answer));
    let masked =
        ChatInput { messages: &own.messages, tools: own.tools.as_deref(), kwargs: &own.kwargs, ..*input };
    let letters = mask.letters.iter().map(|(&letter, &stand_in)| (stand_in, letter)).collect();
    Ok(Masked { text: template.render(&masked)?.text, letters })
}

/// What clients sent, with every string in it exchanged.
struct Sent {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    kwargs: Map<String, Value>,
}

/// Calls `change` on every string, keys of objects too, and tells it which are the content of past answers.
fn walk(input: &ChatInput, change: &mut impl FnMut(&str, bool) -> String) -> Sent {
    let mut messages = Vec::with_capacity(input.messages.len());
    for message in input.messages {
        let is_answer = message.get("role").and_then(Value::as_str) == Some("assistant");
        messages.push(match message.as_object().filter(|_| is_answer) {
            Some(fields) => fields
                .iter()
                .map(|(key, value)| (change(key, false), walk_value(value, key == "content", change)))
                .collect(),
            None => walk_value(message, false, change),
        });
    }
    let tools = input.tools.map(|tools| tools.iter().map(|tool| walk_value(tool, false, change)).collect());
    let kwargs = input.kwargs.iter().map(|(name, value)| (name.clone(), walk_value(value, false, change)));
    Sent { messages, tools, kwargs: kwargs.collect() }
}

fn walk_value(value: &Value, is_answer: bool, change: &mut impl FnMut(&str, bool) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text, is_answer)),
        Value::Array(items) => items.iter().map(|item| walk_value(item, is_answer, change)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (change(key, false), walk_value(value, is_answer, change)))
            .collect(),
        other => other.clone(),
    }
}

/// Past answers may hold the model's own reasoning, which templates cut off by these tokens: one `<think>` in front
/// and the first `</think>`. All others are words about them.
fn own_reasoning(text: &str) -> Vec<Range<usize>> {
    let Some(end) = text.find("</think>") else { return Vec::new() };
    let begin = text.len() - text.trim_start().len();
    let opening = text[begin..].starts_with("<think>").then_some(begin..begin + "<think>".len());
    opening.into_iter().chain(std::iter::once(end..end + "</think>".len())).collect()
}

/// Byte offsets of the letters of `text` that need a stand-in.
fn hidden(control: &ControlTokens, text: &str, is_answer: bool) -> BTreeSet<usize> {
    let mut places = control.places(text);
    if is_answer && !places.is_empty() {
        let own = own_reasoning(text);
        places.retain(|place| !own.iter().any(|range| range.contains(place)));
    }
    places
}

/// Planes 15 and 16 hold nothing but private-use letters.
fn is_stand_in(letter: char) -> bool {
    letter >= '\u{F0000}'
}

/// Which letters need a stand-in, and which cannot be one.
struct Survey<'a> {
    control: &'a ControlTokens,
    hidden: BTreeSet<char>,
    taken: HashSet<char>,
}

impl Survey<'_> {
    fn text(&mut self, text: &str, is_answer: bool) {
        self.note_taken(text);
        let places = hidden(self.control, text, is_answer);
        self.hidden.extend(places.iter().filter_map(|&place| text[place..].chars().next()));
    }

    fn note_taken(&mut self, text: &str) {
        self.taken.extend(text.chars().filter(|&letter| is_stand_in(letter)));
    }

    fn letters(self) -> Result<BTreeMap<char, char>, TextError> {
        let free = ('\u{F0000}'..=char::MAX).filter(|letter| !self.taken.contains(letter));
        let wanted = self.hidden.len();
        let letters: BTreeMap<_, _> = self.hidden.into_iter().zip(free).collect();
        // With too few, the rest would be left as control tokens.
        if letters.len() < wanted {
            let why = "it holds every private-use letter of Unicode's planes 15 and 16. Leave some out.";
            return Err(TextError::Render(why.to_owned()));
        }
        Ok(letters)
    }
}

struct Mask<'a> {
    control: &'a ControlTokens,
    /// Letter → what stands in for it.
    letters: BTreeMap<char, char>,
}

impl Mask<'_> {
    fn text(&self, text: &str, is_answer: bool) -> String {
        let places = hidden(self.control, text, is_answer);
        let letter = |(at, letter)| match self.letters.get(&letter).filter(|_| places.contains(&at)) {
            Some(&stand_in) => stand_in,
            None => letter,
        };
        text.char_indices().map(letter).collect()
    }
}

/// The messages with JSON text in `tool_calls[].function.arguments` as objects; `None` if there is no such text.
fn with_parsed_arguments(messages: &[Value]) -> Option<Vec<Value>> {
    let mut messages = messages.to_vec();
    let mut found = false;
    let calls =
        messages.iter_mut().filter_map(|message| message.get_mut("tool_calls")?.as_array_mut()).flatten();
    for arguments in calls.filter_map(|call| call.get_mut("function")?.get_mut("arguments")) {
        let object =
            arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        if let Some(object) = object {
            *arguments = Value::Object(object);
            found = true;
        }
    }
    found.then_some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_is_what_comes_before_the_answer() {
        let check = |text: &str, own: &[&str]| {
            let found: Vec<&str> = own_reasoning(text).into_iter().map(|range| &text[range]).collect();
            assert_eq!(found, own, "{text}");
        };
        check("<think>why</think>so", &["<think>", "</think>"]);
        check("\n<think>why</think>so </think> <think>", &["<think>", "</think>"]);
        check("why</think>so", &["</think>"]);
        check("the tag <think> opens", &[]);
        check("<think>never closed", &[]);
        check("", &[]);
    }
}
