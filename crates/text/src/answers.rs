//! Where past answers stand in a rendered conversation: what the model drew, and an engine may have kept.
//!
//! A second rendering has a letter of nobody's behind each answer, which shows where the answer ends. It begins where
//! the generation prompt ended that the model read before it drew. An answer that the template wrote in other words,
//! or behind other text than a generation prompt, is not what the model drew and has no place.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use crate::chat::is_stand_in;
use crate::template::{ChatInput, ChatTemplate};

/// Whether an assistant wrote the message.
pub(crate) fn is_answer(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// Byte ranges of past answers in `text`, which is the rendered `input`; rising and disjoint. `free` are letters that
/// neither the template nor `input` holds.
pub(crate) fn places(
    template: &ChatTemplate,
    input: &ChatInput,
    text: &str,
    free: impl Iterator<Item = char>,
) -> Vec<Range<usize>> {
    let contents = input.messages.iter().enumerate().filter_map(|(at, message)| {
        let content = message.get("content")?.as_str()?;
        (is_answer(message) && !content.trim().is_empty()).then_some((at, content))
    });
    let answers: BTreeMap<char, (usize, &str)> = free.zip(contents).collect();
    if answers.is_empty() {
        return Vec::new();
    }
    let mut messages = input.messages.to_vec();
    for (letter, &(at, content)) in &answers {
        // Before the white space at its end, which templates may cut.
        let (words, space) = content.split_at(content.trim_end().len());
        messages[at]["content"] = format!("{words}{letter}{space}").into();
    }
    let marked = template.render(&ChatInput { messages: &messages, ..*input });
    // A template may complain of the letters, or write other text for them. It did not for the answers.
    let Ok(marked) = marked else { return Vec::new() };
    let meaning = |letter| is_stand_in(letter).then(|| answers.get(&letter)).flatten();
    let (unmarked, ends) = take_out(&marked.text, meaning);
    if unmarked != text {
        return Vec::new();
    }
    // Some templates write none behind what a tool said. Else it is the same for every answer.
    let prompts = [false, true].map(|tool| {
        let (first, _) = answers.values().find(|&&(at, _)| is_behind_tool(input, at) == tool)?;
        prompt_at(template, input, *first)
    });
    let mut places: Vec<Range<usize>> = Vec::with_capacity(ends.len());
    for (end, &(at, content)) in ends {
        let taken = places.last().map_or(0, |last| last.end);
        let prompt = prompts[usize::from(is_behind_tool(input, at))].as_deref();
        let place = prompt.and_then(|prompt| place(text, end, content, prompt));
        places.extend(place.filter(|place| place.start >= taken));
    }
    places
}

fn is_behind_tool(input: &ChatInput, at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| input.messages[before]["role"] == "tool")
}

/// The generation prompt in front of a message.
fn prompt_at(template: &ChatTemplate, input: &ChatInput, at: usize) -> Option<String> {
    let messages = &input.messages[..at];
    let render =
        |add_generation_prompt| template.render(&ChatInput { messages, add_generation_prompt, ..*input });
    let (closed, open) = (render(false).ok()?.text, render(true).ok()?.text);
    open.strip_prefix(closed.as_str()).map(str::to_owned)
}

/// The text without letters that have a `meaning`, and where in it each was.
fn take_out<T>(text: &str, meaning: impl Fn(char) -> Option<T>) -> (String, Vec<(usize, T)>) {
    let mut rest = String::with_capacity(text.len());
    let mut found = Vec::new();
    for letter in text.chars() {
        match meaning(letter) {
            Some(meaning) => found.push((rest.len(), meaning)),
            None => rest.push(letter),
        }
    }
    (rest, found)
}

/// The answer whose words end at `end`, if it is the whole `content` behind the generation prompt. White space
/// between the two is what the model drew; that behind the words, too, if the template kept it.
fn place(text: &str, end: usize, content: &str, prompt: &str) -> Option<Range<usize>> {
    let (before, behind) = text.split_at(end);
    let before = before.strip_suffix(content.trim())?;
    let (leading, trailing) =
        (&content[..content.len() - content.trim_start().len()], &content[content.trim_end().len()..]);
    let start = if prompt.is_empty() {
        before.strip_suffix(leading).unwrap_or(before).len()
    } else {
        // The prompt may itself end in white space.
        let start = before.trim_end().strip_suffix(prompt.trim_end())?.len();
        before[start..].starts_with(prompt).then_some(start + prompt.len())?
    };
    let end = if behind.starts_with(trailing) { end + trailing.len() } else { end };
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_content_behind_the_prompt() {
        // `|` in the text is where the content's words end.
        let check = |text: &str, content: &str, prompt: &str, expected: Option<&str>| {
            let end = text.find('|').unwrap();
            let text = text.replace('|', "");
            let found = place(&text, end, content, prompt).map(|place| &text[place]);
            assert_eq!(found, expected, "{text}");
        };
        check("U: a\nA:no|$", "no", "A:", Some("no"));
        check("U: a\nA: no|$", "no", "A:", Some(" no"));
        check("U: a\nA: \nno|$", "no", "A: ", Some("\nno"));
        check("U: a\nA:\n\n no|$", "no", "A:\n\n", Some(" no"));
        check("U: a\nA:no|$", "no", "A:\n", None);
        check("U: a\nA: A: no|\n\n$", "A: no\n", "A:", Some(" A: no\n"));
        check("U: a\nA:no|$", " no \n", "A:", Some("no"));
        check("A:<t></t>no|$", "no", "A:", None);
        check("A:no|$", "yes, no", "A:", None);
        check("out\nno|$", "\nno", "", Some("\nno"));
        check("out\nno|$", "no", "", Some("no"));
        check("outno|$", " no", "", Some("no"));
        check("no|", "no", "A:", None);
    }
}
