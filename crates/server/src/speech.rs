//! Reasoning and tool calls of an answer, told apart from its text.

use std::sync::Arc;

use dialect::{Dialect, Opening, Parser, Part};
use text::Tokenizer;

use crate::decode::Said;

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

    /// What is certain with this text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Said> {
        let parts = self.parser.push(text);
        self.said(parts)
    }

    /// What is left when no text follows.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let parts = self.parser.finish();
        self.said(parts)
    }

    pub(crate) fn has_called(&self) -> bool {
        self.n_calls > 0
    }

    fn said(&mut self, parts: Vec<Part>) -> Vec<Said> {
        parts.into_iter().filter_map(|part| self.one(part)).collect()
    }

    fn one(&mut self, part: Part) -> Option<Said> {
        Some(match part {
            Part::Reasoning(_) if !self.tell_reasoning => return None,
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
        })
    }
}
