//! What an answer may be, put together from pieces.

use serde_json::Value;

/// A set of texts. Formats of tool calls and reasoning are written in it, with what clients ask for as leaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// This text, letter by letter.
    Text(String),
    /// A mark of the model's own format: the control token that is written like this where the tokenizer has one, else
    /// the text.
    Tag(String),
    /// Any text, the empty one too, in which none of these tags stands, as a token or letter by letter.
    Free { without: Vec<String> },
    /// JSON text of a value that a schema allows; `lenient`: as far as the schema can be enforced.
    Json { schema: Value, lenient: bool },
    /// What matches an expression, whole.
    Regex(String),
    /// What a grammar derives, in llguidance's Lark dialect or in GBNF.
    Lark(String),
    /// One after the other.
    Seq(Vec<Piece>),
    /// Any one of these, at least one.
    OneOf(Vec<Piece>),
    /// From `min` to `max` times, without an end if that is `None`.
    Repeat { piece: Box<Piece>, min: usize, max: Option<usize> },
}

impl Piece {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub fn tag(text: impl Into<String>) -> Self {
        Self::Tag(text.into())
    }
}
