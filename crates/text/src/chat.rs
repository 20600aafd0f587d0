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

use crate::answers;
use crate::control::ControlTokens;
use crate::template::{ChatInput, ChatTemplate};
use crate::{TextError, Tokenizer};

/// A conversation as ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChat {
    /// The whole conversation.
    pub ids: Vec<u32>,
    /// Where in `ids` the model most likely drew the tokens itself: from the end of a past answer's generation prompt
    /// to the end of its content. Rising, disjoint, none empty. Answers are left out of which the template changed or
    /// cut something, or that are no text.
    pub answers: Vec<Range<usize>>,
}

/// Ids of a conversation: the template's control tokens as ids, all that clients typed as text, and exactly one BOS
/// if the template writes one or the tokenizer adds one.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    input: &ChatInput,
) -> Result<EncodedChat, TextError> {
    encode_chat_within(tokenizer, template, input, usize::MAX)
}

/// [`encode_chat`], but what has more than `tokens_max` tokens by its length alone costs no encoding.
pub fn encode_chat_within(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    input: &ChatInput,
    tokens_max: usize,
) -> Result<EncodedChat, TextError> {
    let mut masked = match render(tokenizer.control(), template, input) {
        // Clients send the arguments of past calls as JSON text. Templates that want the object fail on it.
        Err(first @ TextError::Render(_)) => {
            let messages = with_parsed_arguments(input.messages).ok_or_else(|| first.clone())?;
            let parsed = ChatInput { messages: &messages, ..*input };
            render(tokenizer.control(), template, &parsed).map_err(|_| first)?
        }
        rendered => rendered?,
    };
    if input.continue_final_message {
        masked.end_with_content()?;
    }
    let at_least = tokenizer.tokens_min(masked.len_min());
    if at_least > tokens_max {
        return Err(TextError::TooManyTokens { at_least });
    }
    let (mut ids, mut answers) = tokenizer.encode_masked(&masked.text, &masked.letters, &masked.answers)?;
    if let Some(bos) = tokenizer.bos_of_text().filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
        answers.iter_mut().for_each(|range| *range = range.start + 1..range.end + 1);
    }
    Ok(EncodedChat { ids, answers })
}

/// A rendered conversation, what stands in it for other letters, and the bytes of past answers.
struct Masked {
    text: String,
    /// The last message's words, as they stand in it.
    last_content: String,
    letters: Vec<StandIn>,
    answers: Vec<Range<usize>>,
}

impl Masked {
    /// Cuts what the template wrote behind the last message's text.
    fn end_with_content(&mut self) -> Result<(), TextError> {
        // Templates may cut white space; it is the model's own then.
        let words = [self.last_content.as_str(), self.last_content.trim()];
        let found = words.into_iter().find_map(|words| Some(self.text.rfind(words)? + words.len()));
        let end = found.filter(|_| !self.last_content.trim().is_empty()).ok_or(TextError::NotContinued)?;
        self.text.truncate(end);
        self.answers.retain(|answer| answer.end <= end);
        Ok(())
    }

    /// Bytes of the text without stand-ins, at least.
    fn len_min(&self) -> usize {
        self.text.chars().map(|letter| if is_stand_in(letter) { 1 } else { letter.len_utf8() }).sum()
    }
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
        return masked(template, input, Vec::new(), survey.free());
    }
    let (letters, free) = survey.letters()?;
    let mask = Mask { control, letters };
    let own = walk(input, &mut |text, is_answer| mask.text(text, is_answer));
    let input =
        ChatInput { messages: &own.messages, tools: own.tools.as_deref(), kwargs: &own.kwargs, ..*input };
    let letters = mask.letters.iter().map(|(&letter, &stand_in)| (stand_in, letter)).collect();
    masked(template, &input, letters, free)
}

/// `input` with stand-ins in it, rendered; `free` are private-use letters that are none.
fn masked(
    template: &ChatTemplate,
    input: &ChatInput,
    letters: Vec<StandIn>,
    free: impl Iterator<Item = char>,
) -> Result<Masked, TextError> {
    let text = template.render(input)?.text;
    let answers = answers::places(template, input, &text, free);
    let last = input.messages.last().and_then(|message| message.get("content")?.as_str());
    Ok(Masked { last_content: last.unwrap_or_default().to_owned(), text, letters, answers })
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
        messages.push(match message.as_object().filter(|_| answers::is_answer(message)) {
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
pub(crate) fn is_stand_in(letter: char) -> bool {
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

    /// Private-use letters that nobody uses.
    fn free(self) -> impl Iterator<Item = char> {
        ('\u{F0000}'..=char::MAX).filter(move |letter| !self.taken.contains(letter))
    }

    /// Letter → what stands in for it; and the free letters that are left.
    fn letters(mut self) -> Result<(BTreeMap<char, char>, impl Iterator<Item = char>), TextError> {
        let hidden = std::mem::take(&mut self.hidden);
        let mut free = self.free();
        let wanted = hidden.len();
        let letters: BTreeMap<_, _> = hidden.into_iter().zip(free.by_ref()).collect();
        // With too few, the rest would be left as control tokens.
        if letters.len() < wanted {
            let why = "it holds every private-use letter of Unicode's planes 15 and 16. Leave some out.";
            return Err(TextError::Render(why.to_owned()));
        }
        Ok((letters, free))
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
