//! OpenAI's wire format, and Anthropic's: JSON in, JSON out, and the errors in between. No HTTP, no tokens.
//!
//! A request is parsed once into a typed value whose ranges hold; whoever has one need not check
//! it again. Fields that the API knows and this server does not serve are refused by name.

mod answer;
pub mod anthropic;
mod chat;
mod common;
mod completion;
mod constraint;
mod error;
mod fields;
mod json;
mod message;
mod models;
mod parts;
pub mod responses;
pub mod schema;
mod tokenize;
mod tools;
mod unserved;

pub use answer::{
    Answer, CallChunk, ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage, CompletionChoice,
    CompletionLogprobs, CompletionTokensDetails, FunctionChunk, PromptLogprobs, PromptScore, PromptScores,
    PromptTokensDetails, StopReason, TokenLogprob, TokenMap, TopLogprob, Usage,
};
pub use chat::{ChatRequest, Ending};
pub use common::{Generation, StreamOptions, Truncation};
pub use completion::{CompletionRequest, Prompt};
pub use constraint::{Constrained, Constraint};
pub use error::{Code, Error, Result};
pub use message::{CalledFunction, Message, Role, ToolCall};
pub use models::{Model, ModelList};
pub use parts::{End, Event, Finish, Part};
pub use tokenize::{DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeInput, TokenizeRequest};
pub use tools::{Tool, ToolChoice, Tools};

/// A request, and the names of the fields that nobody here knows: ignored, worth a log line.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<T> {
    pub request: T,
    pub ignored: Vec<String>,
}
