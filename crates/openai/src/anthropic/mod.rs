//! Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens`: a request read, its answer, its events, its errors.

mod events;
mod input;
mod messages;
mod request;

use serde_json::{Value, json};

pub use events::{Events, Header, ping};
pub use request::MessagesRequest;

use crate::error::Error;

/// The body of an answer that is not 2xx. Its status is that of the error's code.
pub fn error_body(error: &Error) -> Value {
    let kind = match error.code.status() {
        401 => "authentication_error",
        404 => "not_found_error",
        408 => "timeout_error",
        413 | 414 | 431 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

/// The body of an answer of `/v1/messages/count_tokens`.
pub fn count_body(input_tokens: usize) -> Value {
    json!({"input_tokens": input_tokens})
}
