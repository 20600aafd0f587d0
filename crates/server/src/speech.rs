//! Reasoning and tool calls of an answer, told apart from its text.

use std::sync::Arc;

use dialect::{Dialect, Opening, Parser, Part};
use text::Tokenizer;

use crate::decode::{CallDelta, Delta};

/// How the answers to one request are read.
pub(crate) struct Speech {
    dialect: Dialect,
    opening: Opening,
    tools: Vec<dialect::Tool>,
    separate_reasoning: bool,
    /// Tokens that must be seen in the text, special or not.
    pub(crate) shown: Arc<[u32]>,
}

impl Speech {
    pub(crate) fn new(
        dialect: Dialect,
        opening: Opening,
        tools: Vec<dialect::Tool>,
        separate_reasoning: bool,
        tokenizer: &Tokenizer,
    ) -> Self {
        let thinking: &[&str] = &["<think>", "</think>"];
        let of_use = |tag: &&str| if thinking.contains(tag) { separate_reasoning } else { !tools.is_empty() };
        let shown = dialect.tags().filter(of_use).filter_map(|tag| tokenizer.token_id(tag)).collect();
        Self { dialect, opening, tools, separate_reasoning, shown }
    }
}

/// Reads one answer.
pub(crate) struct Speaker {
    parser: Parser,
    n_calls: usize,
}

impl Speaker {
    pub(crate) fn new(speech: &Speech) -> Self {
        let Speech { dialect, opening, tools, separate_reasoning, .. } = speech;
        Self { parser: Parser::new(*dialect, *opening, tools.clone(), *separate_reasoning), n_calls: 0 }
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
            match part {
                Part::Reasoning(text) => delta.reasoning.push_str(&text),
                Part::Content(text) => delta.text.push_str(&text),
                Part::Call { name, id } => {
                    let id = id.unwrap_or_else(|| format!("call_{:024x}", rand::random::<u128>() >> 32));
                    let call =
                        CallDelta { index: self.n_calls, opened: Some((id, name)), arguments: String::new() };
                    delta.calls.push(call);
                    self.n_calls += 1;
                }
                Part::Arguments(text) => {
                    let index = self.n_calls.saturating_sub(1);
                    match delta.calls.last_mut().filter(|call| call.index == index) {
                        Some(call) => call.arguments.push_str(&text),
                        None => delta.calls.push(CallDelta { index, opened: None, arguments: text }),
                    }
                }
            }
        }
    }
}
