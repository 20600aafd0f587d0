//! `POST /v1/chat/completions`.

use std::collections::HashMap;

use serde_json::Value;
use utoipa::openapi::schema::Type;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::common::{Effort, Function, FunctionType, ToolChoiceWord};
use super::shapes::{Refused, list, of_type, one_of, refer, shape};

#[derive(ToSchema)]
pub(super) struct ChatRequest {
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<PastMessage>,
    /// Older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// Most tokens of an answer, reasoning included. Without it: what is left of the context.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    /// The answer tells the log probability of each token.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// And of so many others beside it. Only with `logprobs`: true.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// The model may call more than one tool at once.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    /// `none` turns thinking off, the others on, where the model thinks.
    reasoning_effort: Option<Effort>,
    /// The answer tells the reasoning.
    #[schema(default = true)]
    include_reasoning: Option<bool>,
    /// Variables for the chat template. They cannot replace its own, such as `messages`.
    chat_template_kwargs: Option<HashMap<String, Value>>,
    /// The prompt ends with the beginning of an assistant's message.
    #[schema(default = true)]
    add_generation_prompt: Option<bool>,
    /// The prompt ends with the text of the last message, an assistant's, and the answer goes on with it. Not with
    /// `add_generation_prompt`: true.
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    /// Without effect here: exactly one token begins the text.
    add_special_tokens: Option<bool>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum PastMessage {
    Input(InputMessage),
    Assistant(AssistantMessage),
    Tool(ToolMessage),
}

/// What the model is told.
#[derive(ToSchema)]
pub(super) struct InputMessage {
    role: InputRole,
    content: Content,
    name: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum InputRole {
    System,
    /// As `system`.
    Developer,
    User,
}

/// What the model has answered. Without calls it needs `content`.
#[derive(ToSchema)]
pub(super) struct AssistantMessage {
    role: AssistantRole,
    content: Option<AssistantContent>,
    /// Text, where there is no `content`.
    refusal: Option<String>,
    name: Option<String>,
    reasoning_content: Option<String>,
    /// Another name of `reasoning_content`.
    reasoning: Option<String>,
    #[schema(max_items = 128)]
    tool_calls: Option<Vec<PastCall>>,
    /// Not supported: use `tool_calls`.
    #[schema(required = false)]
    function_call: Refused,
    /// Not supported.
    #[schema(required = false)]
    audio: Refused,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum AssistantRole {
    Assistant,
}

/// The result of a call.
#[derive(ToSchema)]
pub(super) struct ToolMessage {
    role: ToolRole,
    content: Content,
    /// The `id` of the call.
    tool_call_id: String,
    name: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum ToolRole {
    Tool,
}

shape!(Content [TextPart]: "A text, or parts that are joined with nothing between."
    = one_of([of_type(Type::String), list(refer::<TextPart>(), 1, None)]));

shape!(AssistantContent [AssistantPart]: "A text, or parts that are joined with nothing between."
    = one_of([of_type(Type::String), list(refer::<AssistantPart>(), 1, None)]));

#[derive(ToSchema)]
struct TextPart {
    r#type: TextType,
    text: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum TextType {
    Text,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
enum AssistantPart {
    Text { text: String },
    Refusal { refusal: String },
}

/// A call that an assistant has made.
#[derive(ToSchema)]
struct PastCall {
    id: String,
    r#type: Option<FunctionType>,
    function: PastFunction,
}

#[derive(ToSchema)]
struct PastFunction {
    name: String,
    /// JSON as text.
    arguments: String,
}

#[derive(ToSchema)]
pub(super) struct Tool {
    r#type: FunctionType,
    function: Function,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum ToolChoice {
    Word(ToolChoiceWord),
    Named(NamedTool),
}

/// Exactly one call, of this one of the `tools`.
#[derive(ToSchema)]
pub(super) struct NamedTool {
    r#type: FunctionType,
    function: ToolName,
}

#[derive(ToSchema)]
struct ToolName {
    name: String,
}
