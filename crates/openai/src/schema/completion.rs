//! `POST /v1/completions`, and from text to token ids and back.

use std::collections::HashMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::chat::{PastMessage, Tool, ToolChoice};
use super::common::Effort;
use super::shapes::{Prompt, TokenId};

#[derive(ToSchema)]
pub(super) struct CompletionRequest {
    /// A text, several, the token ids of one, or of several: at most 256.
    prompt: Prompt,
    /// Most tokens of an answer; 0 only with `echo`: true. Without it: 16, or what is left of the context.
    #[schema(minimum = 0)]
    max_tokens: Option<i64>,
    /// The answer tells the log probability of each token and of so many others beside it.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<i64>,
    /// The prompt stands before the answer.
    #[schema(default = false)]
    echo: Option<bool>,
    /// Answers that are drawn, at least `n`: the most probable are told. More than `n` not with `stream`: true.
    #[schema(minimum = 1, maximum = 20)]
    best_of: Option<i64>,
    /// Texts are encoded with the tokens that the tokenizer puts around them.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
}

#[derive(ToSchema)]
pub(super) struct TokenizeText {
    model: Option<String>,
    prompt: String,
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    /// The answer has the text of each token.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
}

/// Fields as in a chat request.
#[derive(ToSchema)]
pub(super) struct TokenizeChat {
    model: Option<String>,
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<PastMessage>,
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    reasoning_effort: Option<Effort>,
    chat_template_kwargs: Option<HashMap<String, Value>>,
    #[schema(default = true)]
    add_generation_prompt: Option<bool>,
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    #[schema(default = false)]
    add_special_tokens: Option<bool>,
    /// The answer has the text of each token.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
}

#[derive(ToSchema)]
pub(super) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<TokenId>,
}
