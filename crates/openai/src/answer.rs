//! Answers and stream chunks.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::message::ToolCall;
use crate::schema::FinishReason;

/// The outside of an answer or a chunk; `C` is a choice of its kind.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Answer<'a, C> {
    pub id: &'a str,
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<C>,
    /// Absent, null (in chunks before the last) or the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    pub system_fingerprint: &'a str,
    /// Chat has the key, and no tiers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub service_tier: Option<Option<&'static str>>,
    /// Chat, on request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Chat, on request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<HashMap<String, PromptScore>>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens that were not computed again.
    pub cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Tokens of reasoning that was told apart.
    pub reasoning_tokens: usize,
}

/// What ended an answer, where `finish_reason` is `stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    Text(String),
    Id(u32),
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: ChatMessage,
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    #[schema(value_type = Option<FinishReason>, required)]
    pub finish_reason: Option<&'static str>,
    #[schema(required)]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatMessage {
    /// Always `assistant`.
    pub role: &'static str,
    #[schema(required)]
    pub content: Option<String>,
    #[schema(required)]
    pub refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A piece of a call in a chunk.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CallChunk {
    pub index: usize,
    /// With the type and the name: in the call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    pub function: FunctionChunk,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FunctionChunk {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: ChatDelta,
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    #[schema(value_type = Option<FinishReason>, required)]
    pub finish_reason: Option<&'static str>,
    /// In the chunk that finishes the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<StopReason>)]
    pub stop_reason: Option<Option<StopReason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallChunk>,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
    #[schema(required)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub chosen: TopLogprob,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    /// The token's own bytes, perhaps part of a character.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    #[schema(required)]
    pub logprobs: Option<CompletionLogprobs>,
    #[schema(value_type = Option<FinishReason>, required)]
    pub finish_reason: Option<&'static str>,
    #[schema(required)]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<HashMap<String, PromptScore>>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// Four lists of one length, an entry a token.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<Option<f32>>,
    #[schema(value_type = Vec<Option<HashMap<String, f32>>>)]
    pub top_logprobs: Vec<Option<TokenMap>>,
    /// Code points before the token in `text`.
    pub text_offset: Vec<usize>,
}

/// An object from token to log probability, in the order of the list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenMap(pub Vec<(String, f32)>);

impl Serialize for TokenMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// An entry a token of the prompt; the first token has no score.
pub type PromptLogprobs = Vec<Option<PromptScores>>;

/// An object from token id to score: the token that stands there, then the best, in the order of the list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptScores(pub Vec<(u32, PromptScore)>);

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PromptScore {
    pub logprob: f32,
    /// Tokens that are more probable, plus one.
    pub rank: u32,
    pub decoded_token: String,
}

impl Serialize for PromptScores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, score)| (id, score)))
    }
}
