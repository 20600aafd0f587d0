//! Errors on their way out: status, headers and the error object.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use openai::{Code, Error};

/// An error to answer with.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) error: Error,
    pub(crate) retry: Retry,
}

/// What clients hear of trying again, beside the status.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Retry {
    Unsaid,
    AfterSeconds(u64),
    /// OpenAI's clients repeat some errors by themselves, unless they are told not to.
    Never,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let retry = match error.code {
            Code::ModelLoading | Code::EngineDead | Code::ShuttingDown => Retry::AfterSeconds(5),
            Code::ServerOverloaded | Code::RateLimitExceeded => Retry::AfterSeconds(1),
            Code::RequestExpired => Retry::Never,
            _ => Retry::Unsaid,
        };
        Self { error, retry }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.error)).into_response();
        let headers = response.headers_mut();
        match self.retry {
            Retry::Unsaid => {}
            Retry::AfterSeconds(seconds) => drop(headers.insert(header::RETRY_AFTER, seconds.into())),
            Retry::Never => drop(headers.insert("x-should-retry", HeaderValue::from_static("false"))),
        }
        // For routes whose errors have another shape.
        response.extensions_mut().insert(self.error);
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A fault of ours; the cause goes to the log, not to the client.
pub(crate) fn internal(cause: &str) -> Error {
    tracing::error!(cause, "a request failed");
    Error::new(
        Code::InternalError,
        "The server failed while it worked on this request. Its log has the cause, beside the \
         request id. Send the request again.",
    )
}

pub(crate) fn engine_dead() -> Error {
    Error::new(
        Code::EngineDead,
        "The engine has stopped after a fault and must be restarted. The log has the cause.",
    )
}

pub(crate) fn shutting_down() -> Error {
    Error::new(
        Code::ShuttingDown,
        "The server is shutting down. Send the request to another replica, or again later.",
    )
}
