//! What an answer may be, token by token: JSON schemas, expressions and grammars, and the formats of tool calls around them.
//!
//! A [`Piece`] says what texts are allowed. A [`Compiler`] knows the tokenizer and makes an [`engine::grammar::Grammar`] of
//! it, whose matchers say which tokens may come next. The parsing is llguidance's; limits, and what of JSON Schema is
//! refused rather than ignored, are ours.

mod compiler;
mod gbnf;
mod lark;
mod limits;
mod piece;
mod schema;

pub use compiler::{Compiler, Vocabulary};
pub use limits::Limits;
pub use piece::Piece;
pub use schema::check as check_schema;

/// Why there is no grammar of a piece.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A schema, at the path within it.
    #[error("{message}")]
    Schema { path: String, message: String },
    #[error("{0}")]
    Grammar(String),
    /// It takes longer than it may, or than others leave it.
    #[error("{0}")]
    Time(String),
}
