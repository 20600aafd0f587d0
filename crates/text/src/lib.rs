//! Text and token ids: the tokenizer, chat templates, incremental decoding and stop strings.
//!
//! What clients type is data. [`encode_chat`] turns the template's own control tokens into ids, and never a
//! control token's text inside a message. Nothing here knows HTTP or the engine.

mod answers;
mod chat;
mod control;
mod detokenizer;
mod error;
mod length;
mod python_json;
mod stop;
mod template;
mod token_table;
mod tokenizer;

pub use chat::{EncodedChat, encode_chat, encode_chat_within};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use stop::{StopOutcome, StopStrings};
pub use template::{ChatInput, ChatTemplate, Rendered};
pub use tokenizer::{SpecialTokens, Tokenizer};

/// Both are shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
    shared::<ChatTemplate>();
};
