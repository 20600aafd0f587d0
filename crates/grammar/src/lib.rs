//! What an answer may be, token by token: JSON schemas, expressions and grammars, and the formats of tool calls around them.

mod piece;

pub use piece::Piece;
