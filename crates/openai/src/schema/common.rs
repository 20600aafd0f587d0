//! What several requests have in common.

use utoipa::ToSchema;

use super::shapes::{
    AllowedIds, BadWord, Choices, JsonSchema, JsonSchemaOrText, LogitBias, Metadata, ObjectSchema, Stop,
    TokenId, Truncation, Yes,
};

/// How to generate: fields of chat, completions and responses.
#[derive(ToSchema)]
pub(super) struct Generation {
    /// A served name; without it, the first of them.
    model: Option<String>,
    /// At most this many tokens are generated before the answer may end.
    #[schema(minimum = 0, default = 0)]
    min_tokens: Option<i64>,
    /// 0 is greedy. Without it: the checkpoint's own, else 1.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    /// Draw from the most probable tokens that together reach this probability. Without it: the checkpoint's own, else 1.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Draw from so many of the most probable tokens; 0 and -1 are off. Without it: the checkpoint's own.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Draw from tokens of at least this share of the best one's probability.
    #[schema(minimum = 0, maximum = 1, default = 0)]
    min_p: Option<f32>,
    /// Subtracted from logits of tokens that were generated.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    presence_penalty: Option<f32>,
    /// Subtracted from logits of tokens, for each time they were generated.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    frequency_penalty: Option<f32>,
    /// Divides logits of tokens in prompt and answer. Without it: the checkpoint's own, else 1.
    #[schema(exclusive_minimum = 0, maximum = 2)]
    repetition_penalty: Option<f32>,
    /// From token id, as a decimal number, to what is added to its logit: -100 bans it.
    logit_bias: Option<LogitBias>,
    /// Equal requests of equal seeds get equal answers.
    seed: Option<i64>,
    /// Choices a prompt. All prompts together have at most 256.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    n: Option<i64>,
    /// Texts that end the answer, of at most 1024 bytes each.
    stop: Option<Stop>,
    /// Texts that do not occur in the answer.
    #[schema(max_items = 256)]
    bad_words: Option<Vec<BadWord>>,
    allowed_token_ids: Option<AllowedIds>,
    /// Tokens that end the answer.
    #[schema(max_items = 256)]
    stop_token_ids: Option<Vec<TokenId>>,
    /// The text ends after the stop string, not before it.
    #[schema(default = false)]
    include_stop_str_in_output: Option<bool>,
    /// The end token is a token like any other.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// The text has no special tokens.
    #[schema(default = true)]
    skip_special_tokens: Option<bool>,
    truncate_prompt_tokens: Option<Truncation>,
    /// The answer tells the log probability of each prompt token and of so many others beside it. Not with `stream`: true.
    #[schema(minimum = 0, maximum = 20)]
    prompt_logprobs: Option<i64>,
    /// The answer comes as server-sent events.
    #[schema(default = false)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// The answer has the ids of prompt and answer too.
    #[schema(default = false)]
    return_token_ids: Option<bool>,
    /// Log probabilities name tokens as `token_id:123`.
    #[schema(default = false)]
    return_tokens_as_token_ids: Option<bool>,
    /// Lower runs earlier.
    #[schema(default = 0, minimum = -2147483648, maximum = 2147483647)]
    priority: Option<i32>,
    /// Cached blocks of the prompt are shared only among requests of equal salts.
    #[schema(min_length = 1, max_length = 1024)]
    cache_salt: Option<String>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<StructuredOutputs>,
    /// As `json` in `structured_outputs`.
    guided_json: Option<JsonSchemaOrText>,
    /// As `regex` in `structured_outputs`.
    guided_regex: Option<String>,
    /// As `choice` in `structured_outputs`.
    guided_choice: Option<Choices>,
    /// As `grammar` in `structured_outputs`.
    guided_grammar: Option<String>,
    /// Without effect here.
    user: Option<String>,
    /// Without effect here.
    safety_identifier: Option<String>,
    /// Without effect here.
    prompt_cache_key: Option<String>,
    /// Without effect here.
    prompt_cache_retention: Option<String>,
    /// Without effect here.
    service_tier: Option<String>,
    /// Without effect here.
    verbosity: Option<String>,
    /// Without effect here: nothing is kept.
    store: Option<bool>,
    /// Without effect here.
    metadata: Option<Metadata>,
}

/// Only with `stream`: true.
#[derive(ToSchema)]
struct StreamOptions {
    /// The last chunk carries the usage.
    #[schema(default = false)]
    include_usage: Option<bool>,
    /// Each chunk carries the usage so far.
    #[schema(default = false)]
    continuous_usage_stats: Option<bool>,
    /// Without effect here.
    include_obfuscation: Option<bool>,
}

/// The form of the answer's text.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    /// Any.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that validates.
    JsonSchema { json_schema: NamedSchema },
}

/// A schema, enforced whether strict or not. A keyword that cannot be enforced is refused by name.
#[derive(ToSchema)]
pub(super) struct NamedSchema {
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    schema: JsonSchema,
    strict: Option<bool>,
}

/// Exactly one way to constrain the answer's text.
#[derive(ToSchema)]
#[serde(untagged)]
enum StructuredOutputs {
    /// JSON that validates. The schema may come as its JSON text.
    Json { json: JsonSchemaOrText },
    /// What matches the expression, whole.
    Regex { regex: String },
    /// One of these texts.
    Choice { choice: Choices },
    /// In Lark's notation or in GBNF.
    Grammar { grammar: String },
    /// A JSON object of any kind.
    JsonObject { json_object: Yes },
}

/// A function that the model may call.
#[derive(ToSchema)]
pub(super) struct Function {
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// A JSON schema whose `type` is `object`. Without it, there are no arguments.
    parameters: Option<ObjectSchema>,
    /// All of the schema is enforced.
    #[schema(default = false)]
    strict: Option<bool>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum FunctionType {
    Function,
}

/// `auto`: the model decides; `none`: no call; `required`: at least one.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum ToolChoiceWord {
    None,
    Auto,
    Required,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
}
