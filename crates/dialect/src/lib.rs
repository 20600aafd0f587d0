//! How each family of models writes tool calls and reasoning: read from a stream of text ([`Parser`]), and as a grammar
//! ([`Dialect::grammar`]).
//!
//! Formats are those of the families' published chat templates; `docs/api.md` shows them side by side.

mod arguments;
mod calls;
mod grammar;
mod parser;
mod prompt;

use serde_json::Value;

pub use parser::{Parser, Part};
pub use prompt::teach;

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";

/// How a model writes calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// V3 and R1: the arguments in a fenced block.
    DeepSeekV3,
    DeepSeekV31,
    /// Arguments as tags.
    DeepSeekV32,
    KimiK2,
    /// GLM-4.5 and later: arguments as tags.
    Glm,
    /// A JSON object between tags: what models of many families were taught, and those that were taught nothing are told.
    Hermes,
}

/// Names of the families, for flags, each with a tag that only its templates hold.
const FAMILIES: [(&str, Family, &[&str]); 6] = [
    ("deepseek-v3.2", Family::DeepSeekV32, &["｜DSML｜"]),
    ("deepseek-v3", Family::DeepSeekV3, &["<｜tool▁calls▁begin｜>", "```json"]),
    ("deepseek-v3.1", Family::DeepSeekV31, &["<｜tool▁calls▁begin｜>"]),
    ("kimi-k2", Family::KimiK2, &["<|tool_calls_section_begin|>"]),
    ("glm", Family::Glm, &["<arg_key>"]),
    ("hermes", Family::Hermes, &[]),
];

/// What a checkpoint's answers look like beside plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    pub family: Family,
    /// Answers may begin with `<think>` … `</think>`.
    pub reasons: bool,
    /// The chat template shows tools to the model.
    pub shows_tools: bool,
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// Schema of the arguments; `None`: there are none.
    pub parameters: Option<Value>,
    /// All of the schema is to be enforced.
    pub strict: bool,
}

/// Whether the model shall call a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    None,
    Auto,
    /// At least one.
    Required,
    /// Exactly one, of this name.
    Named(String),
}

/// How a prompt ends, for the answer that goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// `<think>` is open: the answer begins inside.
    Thinking,
    /// `</think>` was written: there is no reasoning.
    Thought,
    /// The model may open `<think>` itself.
    Bare,
}

impl Opening {
    /// By the prompt's last characters.
    pub fn of(prompt_tail: &str) -> Self {
        let tail = prompt_tail.trim_end();
        if tail.ends_with(THINK) {
            Self::Thinking
        } else if tail.ends_with(THINK_END) {
            Self::Thought
        } else {
            Self::Bare
        }
    }
}

impl Opening {
    /// Of an answer that goes on with a text.
    pub fn within(text: Option<&str>) -> Self {
        let text = text.unwrap_or_default();
        if text.rfind(THINK) > text.rfind(THINK_END) { Self::Thinking } else { Self::Thought }
    }
}

impl Dialect {
    /// By the tags in the chat template.
    pub fn detect(template: Option<&str>) -> Self {
        let source = template.unwrap_or_default();
        let holds = |tags: &[&str]| tags.iter().all(|tag| source.contains(tag));
        let family =
            FAMILIES.iter().find(|(_, _, tags)| holds(tags)).map_or(Family::Hermes, |(_, family, _)| *family);
        Self { family, reasons: source.contains(THINK_END), shows_tools: source.contains("tools") }
    }

    /// The same with another family's calls.
    pub fn with_family(self, name: &str) -> Option<Self> {
        let found = FAMILIES.iter().find(|(known, _, _)| *known == name)?;
        Some(Self { family: found.1, ..self })
    }

    /// What [`Self::with_family`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|(name, _, _)| *name)
    }

    /// Texts of tokens that must stay in a text of which special tokens are left out: what the parser looks for.
    pub fn tags(&self) -> impl Iterator<Item = &'static str> {
        let thinking: &[&str] = if self.reasons { &[THINK, THINK_END] } else { &[] };
        self.family.tags().iter().chain(thinking).copied()
    }
}

impl Family {
    pub fn name(self) -> &'static str {
        FAMILIES.iter().find(|(_, family, _)| *family == self).map_or("", |(name, _, _)| name)
    }

    fn tags(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Self::DeepSeekV32 => &["｜DSML｜"],
            Self::KimiK2 => &[
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            Self::Glm => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            Self::Hermes => &["<tool_call>", "</tool_call>"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_tell_the_dialect() {
        let check = |template: &str, family: Family, reasons: bool, shows_tools: bool| {
            assert_eq!(
                Dialect::detect(Some(template)),
                Dialect { family, reasons, shows_tools },
                "{template}"
            );
        };
        check("{{ messages }}", Family::Hermes, false, false);
        check("{% if tools %}<tool_call>", Family::Hermes, false, true);
        check("{% if tools %}<｜tool▁calls▁begin｜>\n```json\n", Family::DeepSeekV3, false, true);
        check("{% if tools %}<｜tool▁calls▁begin｜><think></think>", Family::DeepSeekV31, true, true);
        check("tools<｜DSML｜invoke</think>", Family::DeepSeekV32, true, true);
        check("tools<|tool_calls_section_begin|>", Family::KimiK2, false, true);
        check("tools<tool_call><arg_key></think>", Family::Glm, true, true);
        for name in Dialect::names() {
            assert_eq!(Dialect::detect(None).with_family(name).unwrap().family.name(), name);
        }
        assert_eq!(Dialect::detect(None).with_family("llama"), None);
    }

    #[test]
    fn prompts_tell_where_an_answer_begins() {
        assert_eq!(Opening::of("<｜Assistant｜><think>\n"), Opening::Thinking);
        assert_eq!(Opening::of("<|assistant|>\n<think></think>"), Opening::Thought);
        assert_eq!(Opening::of("<|assistant|>"), Opening::Bare);
        assert_eq!(Opening::of(""), Opening::Bare);
    }
}
