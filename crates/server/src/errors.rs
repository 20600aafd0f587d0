//! Errors on their way out: status, headers and the error object.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use openai::{Code, Error};

/// An error to answer with.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) error: Error,
    /// For errors that pass.
    pub(crate) retry_after_s: Option<u64>,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let retry_after_s = match error.code {
            Code::ModelLoading | Code::EngineDead | Code::ShuttingDown => Some(5),
            Code::ServerOverloaded => Some(1),
            _ => None,
        };
        Self { error, retry_after_s }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.error)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
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

pub(crate) fn shutting_down() -> Error {
    Error::new(
        Code::ShuttingDown,
        "The server is shutting down. Send the request to another replica, or again later.",
    )
}
