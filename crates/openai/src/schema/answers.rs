//! What answers of several routes have in common.

use utoipa::ToSchema;

/// The body of each answer that is not 2xx.
#[derive(ToSchema)]
pub(super) struct Error {
    error: ErrorObject,
}

#[derive(ToSchema)]
struct ErrorObject {
    /// What is wrong, what would be right, and what to do.
    message: String,
    r#type: ErrorType,
    /// The field to blame, as a path: `messages[2].content[0].type`.
    #[schema(required)]
    param: Option<String>,
    /// What clients branch on.
    code: String,
}

#[derive(ToSchema)]
enum ErrorType {
    #[schema(rename = "invalid_request_error")]
    InvalidRequest,
    #[schema(rename = "rate_limit_error")]
    RateLimit,
    #[schema(rename = "server_error")]
    Server,
}

/// Why an answer ended.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// The model ended it, or a stop string or stop token did.
    Stop,
    /// By `max_tokens`, or by the end of the context.
    Length,
    ToolCalls,
}
