//! `POST /v1/responses`: the request.

use std::collections::HashMap;

use serde_json::Value;
use utoipa::openapi::schema::Type;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::common::{Effort, FunctionType, ToolChoiceWord};
use super::shapes::{AnyObject, JsonSchema, ObjectSchema, list, of_type, one_of, refer, shape};

#[derive(ToSchema)]
pub(super) struct ResponsesRequest {
    input: Input,
    /// Stands before `input` as a system message.
    instructions: Option<String>,
    /// Most tokens of the answer, reasoning included. Without it: what is left of the context.
    #[schema(minimum = 1)]
    max_output_tokens: Option<i64>,
    text: Option<TextOptions>,
    reasoning: Option<ReasoningOptions>,
    #[schema(max_items = 128)]
    tools: Option<Vec<FlatTool>>,
    tool_choice: Option<FlatToolChoice>,
    /// The model may call more than one tool at once.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    /// Without effect here: it counts calls of tools that a server runs.
    #[schema(minimum = 1)]
    max_tool_calls: Option<i64>,
    /// The answer tells the log probability of each token and of so many others beside it.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    include: Option<Vec<Include>>,
    /// The answer tells the reasoning.
    #[schema(default = true)]
    include_reasoning: Option<bool>,
    /// Variables for the chat template. They cannot replace its own, such as `messages`.
    chat_template_kwargs: Option<HashMap<String, Value>>,
}

shape!(Input [InputItem]: "A text, or the items of the conversation so far."
    = one_of([of_type(Type::String), list(refer::<InputItem>(), 1, Some(4096))]));

#[derive(ToSchema)]
#[serde(untagged)]
enum InputItem {
    Message(MessageItem),
    Answer(AnswerItem),
    Reasoning(ReasoningItem),
    Call(CallItem),
    Output(CallOutputItem),
}

#[derive(ToSchema)]
struct MessageItem {
    r#type: Option<MessageType>,
    role: MessageItemRole,
    content: InputContent,
    id: Option<String>,
    status: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum MessageType {
    Message,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum MessageItemRole {
    System,
    /// As `system`.
    Developer,
    User,
}

shape!(InputContent [InputTextPart]: "A text, or parts that are joined with nothing between."
    = one_of([of_type(Type::String), list(refer::<InputTextPart>(), 1, None)]));

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum InputTextPart {
    InputText { text: String },
}

/// What the model has answered.
#[derive(ToSchema)]
struct AnswerItem {
    r#type: Option<MessageType>,
    role: AnswerItemRole,
    content: OutputContent,
    id: Option<String>,
    status: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum AnswerItemRole {
    Assistant,
}

shape!(OutputContent [OutputTextPart]: "A text, or parts that are joined with nothing between."
    = one_of([of_type(Type::String), list(refer::<OutputTextPart>(), 1, None)]));

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputTextPart {
    OutputText { text: String },
    Refusal { refusal: String },
}

/// Reasoning of an answer: its `content`, or the `summary` where there is only that.
#[derive(ToSchema)]
struct ReasoningItem {
    r#type: ReasoningType,
    content: Option<Vec<ReasoningPart>>,
    summary: Option<Vec<SummaryPart>>,
    /// Not read: only beside a text.
    encrypted_content: Option<String>,
    id: Option<String>,
    status: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum ReasoningType {
    Reasoning,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ReasoningPart {
    ReasoningText { text: String },
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum SummaryPart {
    SummaryText { text: String },
}

/// A call that the model has made.
#[derive(ToSchema)]
struct CallItem {
    r#type: CallType,
    call_id: String,
    name: String,
    /// JSON as text.
    arguments: String,
    id: Option<String>,
    status: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum CallType {
    FunctionCall,
}

/// The result of a call.
#[derive(ToSchema)]
struct CallOutputItem {
    r#type: CallOutputType,
    call_id: String,
    output: InputContent,
    id: Option<String>,
    status: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum CallOutputType {
    FunctionCallOutput,
}

/// The form of the answer's text.
#[derive(ToSchema)]
struct TextOptions {
    format: Option<TextFormat>,
    /// Without effect here.
    verbosity: Option<String>,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TextFormat {
    /// Any.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that validates; enforced whether strict or not.
    JsonSchema {
        #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
        name: String,
        schema: JsonSchema,
        description: Option<String>,
        strict: Option<bool>,
    },
}

#[derive(ToSchema)]
struct ReasoningOptions {
    /// `none` turns thinking off, the others on, where the model thinks.
    effort: Option<Effort>,
    summary: Option<Auto>,
    generate_summary: Option<Auto>,
    context: Option<Auto>,
    mode: Option<Standard>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Auto {
    Auto,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Standard {
    Standard,
}

/// A function that the model may call.
#[derive(ToSchema)]
struct FlatTool {
    r#type: FunctionType,
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    parameters: Option<ObjectSchema>,
    /// All of the schema is enforced.
    #[schema(default = false)]
    strict: Option<bool>,
}

#[derive(ToSchema)]
#[serde(untagged)]
enum FlatToolChoice {
    Word(ToolChoiceWord),
    Named(FlatNamedTool),
}

/// Exactly one call, of this one of the `tools`.
#[derive(ToSchema)]
struct FlatNamedTool {
    r#type: FunctionType,
    name: String,
}

#[derive(ToSchema)]
enum Include {
    /// Log probabilities.
    #[schema(rename = "message.output_text.logprobs")]
    Logprobs,
    /// Without effect here: the reasoning is told openly.
    #[schema(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
}

/// An answer of `/v1/responses`.
#[derive(ToSchema)]
pub(super) struct ResponsesAnswer {
    id: String,
    object: ResponseObject,
    /// Unix seconds.
    created_at: u64,
    status: ResponseStatus,
    #[schema(required)]
    error: Option<ResponseError>,
    #[schema(required)]
    incomplete_details: Option<IncompleteDetails>,
    model: String,
    output: Vec<OutputItem>,
    #[schema(required)]
    usage: Option<ResponsesUsage>,
    #[schema(required)]
    instructions: Option<String>,
    #[schema(required)]
    max_output_tokens: Option<i64>,
    #[schema(required)]
    metadata: Option<HashMap<String, String>>,
    parallel_tool_calls: bool,
    #[schema(required)]
    previous_response_id: Option<String>,
    #[schema(required)]
    temperature: Option<f64>,
    #[schema(required)]
    top_p: Option<f64>,
    text: AnyObject,
    tool_choice: FlatToolChoice,
    tools: Vec<AnyObject>,
    background: Option<bool>,
    max_tool_calls: Option<i64>,
    reasoning: Option<AnyObject>,
    service_tier: Option<String>,
    store: Option<bool>,
    top_logprobs: Option<i64>,
    truncation: Option<String>,
    user: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum ResponseObject {
    Response,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ResponseStatus {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

#[derive(ToSchema)]
struct ResponseError {
    code: String,
    message: String,
}

#[derive(ToSchema)]
struct IncompleteDetails {
    reason: String,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputItem {
    Reasoning { id: String, status: ItemStatus, summary: Vec<AnyObject>, content: Vec<ReasoningPart> },
    Message { id: String, role: AnswerItemRole, status: ItemStatus, content: Vec<OutputText> },
    FunctionCall { id: String, status: ItemStatus, call_id: String, name: String, arguments: String },
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputText {
    OutputText { text: String, annotations: Vec<AnyObject>, logprobs: Vec<crate::TokenLogprob> },
}

#[derive(ToSchema)]
struct ResponsesUsage {
    input_tokens: usize,
    input_tokens_details: InputTokensDetails,
    output_tokens: usize,
    output_tokens_details: OutputTokensDetails,
    total_tokens: usize,
}

#[derive(ToSchema)]
struct InputTokensDetails {
    /// Prompt tokens that were not computed again.
    cached_tokens: usize,
    cache_write_tokens: Option<usize>,
}

#[derive(ToSchema)]
struct OutputTokensDetails {
    reasoning_tokens: usize,
}

/// The data of an event: `response.created`, `response.in_progress`, then for each item `response.output_item.added`,
/// its parts and deltas, `response.output_item.done`, and at last `response.completed`, `.incomplete` or `.failed`
/// with the whole response.
#[derive(ToSchema)]
pub(super) struct ResponsesEvent {
    /// As the event's name.
    r#type: String,
    /// From 0 on.
    sequence_number: u64,
    response: Option<ResponsesAnswer>,
    output_index: Option<usize>,
    content_index: Option<usize>,
    item_id: Option<String>,
    item: Option<OutputItem>,
    part: Option<OutputText>,
    delta: Option<String>,
    text: Option<String>,
    arguments: Option<String>,
    name: Option<String>,
    logprobs: Option<Vec<crate::TokenLogprob>>,
    code: Option<String>,
    message: Option<String>,
    param: Option<String>,
}
