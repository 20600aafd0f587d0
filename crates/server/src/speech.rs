//! Reasoning and tool calls of an answer, told apart from its text.

use std::sync::Arc;

use dialect::{Dialect, Opening, Parser, Part};
use text::Tokenizer;

use crate::decode::{Delta, Said};

/// How the answers to one request are read.
pub(crate) struct Speech {
    dialect: Dialect,
    opening: Opening,
    tools: Vec<dialect::Tool>,
    separate_reasoning: bool,
    /// What is told apart is told.
    tell_reasoning: bool,
    /// Tokens that must be seen in the text, special or not.
    pub(crate) shown: Arc<[u32]>,
}

impl Speech {
    pub(crate) fn new(
        dialect: Dialect,
        opening: Opening,
        tools: Vec<dialect::Tool>,
        separate_reasoning: bool,
        tell_reasoning: bool,
        tokenizer: &Tokenizer,
    ) -> Self {
        let thinking: &[&str] = &["<think>", "</think>"];
        let of_use = |tag: &&str| if thinking.contains(tag) { separate_reasoning } else { !tools.is_empty() };
        let shown = dialect.tags().filter(of_use).filter_map(|tag| tokenizer.token_id(tag)).collect();
        Self { dialect, opening, tools, separate_reasoning, tell_reasoning, shown }
    }
}

/// Reads one answer.
pub(crate) struct Speaker {
    parser: Parser,
    tell_reasoning: bool,
    n_calls: usize,
}

impl Speaker {
    pub(crate) fn new(speech: &Speech) -> Self {
        let Speech { dialect, opening, tools, separate_reasoning, .. } = speech;
        let parser = Parser::new(*dialect, *opening, tools.clone(), *separate_reasoning);
        Self { parser, tell_reasoning: speech.tell_reasoning, n_calls: 0 }
    }

    pub(crate) fn is_reasoning(&self) -> bool {
        self.parser.is_reasoning()
    }

    /// Adds what is certain with this text.
    pub(crate) fn say(&mut self, text: &str, delta: &mut Delta) {
        let parts = self.parser.push(text);
        self.tell(parts, delta);
    }

    /// Adds what is left; whether there were calls.
    pub(crate) fn finish(&mut self, delta: &mut Delta) -> bool {
        let parts = self.parser.finish();
        self.tell(parts, delta);
        self.n_calls > 0
    }

    fn tell(&mut self, parts: Vec<Part>, delta: &mut Delta) {
        for part in parts {
            delta.say(match part {
                Part::Reasoning(_) if !self.tell_reasoning => continue,
                Part::Reasoning(text) => Said::Reasoning(text),
                Part::Content(text) => Said::Text(text),
                Part::Call { name, id } => {
                    let id = id.unwrap_or_else(|| format!("call_{:024x}", rand::random::<u128>() >> 32));
                    self.n_calls += 1;
                    Said::Call { index: self.n_calls - 1, opened: Some((id, name)), arguments: String::new() }
                }
                Part::Arguments(arguments) => {
                    Said::Call { index: self.n_calls.saturating_sub(1), opened: None, arguments }
                }
            });
        }
    }
}
