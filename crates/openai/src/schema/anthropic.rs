//! Anthropic's `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use utoipa::openapi::schema::Type;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::shapes::{AnyObject, ObjectSchema, StopText, list, of_type, one_of, refer, shape};

#[derive(ToSchema)]
pub(super) struct MessagesRequest {
    /// Most tokens of the answer, thinking included.
    #[schema(minimum = 1)]
    max_tokens: i64,
}

/// All but the length of the answer: what `/v1/messages/count_tokens` takes too.
#[derive(ToSchema)]
pub(super) struct Conversation {
    /// A served name; without it, the first of them.
    model: Option<String>,
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<ConversationMessage>,
    system: Option<TextBlocks>,
    #[schema(max_items = 128)]
    tools: Option<Vec<MessagesTool>>,
    tool_choice: Option<MessagesToolChoice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    /// The answer comes as server-sent events.
    #[schema(default = false)]
    stream: Option<bool>,
    /// 0 is greedy. Without it: the checkpoint's own, else 1.
    #[schema(minimum = 0, maximum = 1)]
    temperature: Option<f32>,
    /// Draw from the most probable tokens that together reach this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Draw from so many of the most probable tokens; 0 is off.
    #[schema(minimum = 0)]
    top_k: Option<i64>,
    /// Texts that end the answer.
    #[schema(max_items = 64)]
    stop_sequences: Option<Vec<StopText>>,
    /// Without effect here.
    cache_control: Option<AnyObject>,
    /// Without effect here.
    metadata: Option<MessagesMetadata>,
    /// Without effect here.
    service_tier: Option<String>,
    /// Without effect here.
    user_profile_id: Option<String>,
    /// Without effect here.
    workspace_id: Option<String>,
}

#[derive(ToSchema)]
struct MessagesMetadata {
    user_id: Option<String>,
}

shape!(TextBlocks [TextBlock]: "A text, or blocks that are joined with nothing between."
    = one_of([of_type(Type::String), list(refer::<TextBlock>(), 0, None)]));

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TextBlock {
    Text {
        text: String,
        /// Without effect here.
        cache_control: Option<AnyObject>,
    },
}

#[derive(ToSchema)]
#[serde(tag = "role", rename_all = "snake_case")]
enum ConversationMessage {
    User { content: UserContent },
    Assistant { content: AnswerContent },
    System { content: TextBlocks },
}

shape!(UserContent [UserBlock]: "A text, or blocks."
    = one_of([of_type(Type::String), list(refer::<UserBlock>(), 1, None)]));

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum UserBlock {
    Text {
        text: String,
        /// Without effect here.
        cache_control: Option<AnyObject>,
    },
    /// The result of a call.
    ToolResult {
        tool_use_id: String,
        content: Option<TextBlocks>,
        #[schema(default = false)]
        is_error: Option<bool>,
        /// Without effect here.
        cache_control: Option<AnyObject>,
    },
}

shape!(AnswerContent [AnswerBlock]: "A text, or blocks."
    = one_of([of_type(Type::String), list(refer::<AnswerBlock>(), 0, None)]));

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum AnswerBlock {
    Text {
        text: String,
        /// Without effect here.
        cache_control: Option<AnyObject>,
    },
    Thinking {
        thinking: String,
        /// Not checked.
        signature: Option<String>,
        /// Without effect here.
        cache_control: Option<AnyObject>,
    },
    /// A call that the model has made.
    ToolUse {
        id: String,
        name: String,
        input: AnyObject,
        /// Without effect here.
        cache_control: Option<AnyObject>,
    },
}

/// A function that the model may call.
#[derive(ToSchema)]
struct MessagesTool {
    r#type: Option<CustomType>,
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    input_schema: ObjectSchema,
    /// All of the schema is enforced.
    #[schema(default = false)]
    strict: Option<bool>,
    /// Without effect here.
    cache_control: Option<AnyObject>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum CustomType {
    Custom,
}

/// `auto`: the model decides; `any`: at least one call; `tool`: exactly one, of `name`; `none`: no call.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum MessagesToolChoice {
    Auto { disable_parallel_tool_use: Option<bool> },
    Any { disable_parallel_tool_use: Option<bool> },
    Tool { name: String, disable_parallel_tool_use: Option<bool> },
    None { disable_parallel_tool_use: Option<bool> },
}

/// Where the model thinks.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Thinking {
    /// The budget is a wish, and less than `max_tokens`.
    Enabled {
        #[schema(minimum = 1024)]
        budget_tokens: i64,
        display: Option<Display>,
    },
    Adaptive {
        display: Option<Display>,
    },
    Disabled {
        display: Option<Display>,
    },
}

/// `omitted`: the answer does not tell the thinking.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Display {
    Summarized,
    Omitted,
}

#[derive(ToSchema)]
struct OutputConfig {
    effort: Option<OutputEffort>,
    format: Option<OutputFormat>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum OutputEffort {
    Low,
    Medium,
    High,
    Xhigh,
    /// As `xhigh`.
    Max,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputFormat {
    /// JSON that validates.
    JsonSchema { schema: AnyObject },
}

/// An answer of `/v1/messages`.
#[derive(ToSchema)]
pub(super) struct MessagesAnswer {
    id: String,
    r#type: MessageType,
    role: AnswerRole,
    model: String,
    content: Vec<ContentBlock>,
    #[schema(required)]
    stop_reason: Option<MessagesStopReason>,
    #[schema(required)]
    stop_sequence: Option<String>,
    usage: MessagesUsage,
}

#[derive(ToSchema)]
#[schema(as = AnthropicMessageType, rename_all = "lowercase")]
enum MessageType {
    Message,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum AnswerRole {
    Assistant,
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ContentBlock {
    Thinking { thinking: String, signature: String },
    Text { text: String },
    ToolUse { id: String, name: String, input: AnyObject },
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum MessagesStopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
}

#[derive(ToSchema)]
pub(super) struct MessagesUsage {
    /// Prompt tokens that were computed.
    input_tokens: usize,
    cache_creation_input_tokens: Option<usize>,
    /// Prompt tokens that were not computed again.
    cache_read_input_tokens: Option<usize>,
    output_tokens: usize,
    output_tokens_details: Option<ThinkingTokens>,
}

#[derive(ToSchema)]
struct ThinkingTokens {
    thinking_tokens: usize,
}

/// The data of an event of the same name.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum MessagesEvent {
    MessageStart { message: MessagesAnswer },
    ContentBlockStart { index: usize, content_block: ContentBlock },
    ContentBlockDelta { index: usize, delta: BlockDelta },
    ContentBlockStop { index: usize },
    MessageDelta { delta: MessageEnd, usage: MessagesUsage },
    MessageStop,
    Ping,
    Error { error: MessagesErrorObject },
}

#[derive(ToSchema)]
#[serde(tag = "type")]
pub(super) enum BlockDelta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
}

#[derive(ToSchema)]
pub(super) struct MessageEnd {
    #[schema(required)]
    stop_reason: Option<MessagesStopReason>,
    #[schema(required)]
    stop_sequence: Option<String>,
}

/// An answer of `/v1/messages/count_tokens`.
#[derive(ToSchema)]
pub(super) struct TokenCount {
    input_tokens: usize,
}

/// The body of each answer of these two routes that is not 2xx.
#[derive(ToSchema)]
pub(super) struct MessagesError {
    r#type: MessagesErrorType,
    error: MessagesErrorObject,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum MessagesErrorType {
    Error,
}

#[derive(ToSchema)]
pub(super) struct MessagesErrorObject {
    /// As Anthropic names them: `invalid_request_error`, `not_found_error`, `overloaded_error`…
    r#type: String,
    message: String,
}
