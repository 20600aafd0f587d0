//! The error object of every answer that is not 2xx.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as clients branch on it. Each code has one status and one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidJson,
    InvalidType,
    InvalidValue,
    MissingRequiredParameter,
    UnsupportedParameter,
    UnsupportedValue,
    ContextLengthExceeded,
    /// A JSON schema that cannot be enforced.
    InvalidSchema,
    /// An expression or a grammar that cannot be.
    InvalidGrammar,
    InvalidApiKey,
    ModelNotFound,
    UnknownUrl,
    UnsupportedEndpoint,
    MethodNotAllowed,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The answer was not complete in time; the same request would take as long again.
    RequestExpired,
    RequestTooLarge,
    UrlTooLong,
    HeadersTooLarge,
    UnsupportedMediaType,
    /// The client is over its own limit.
    RateLimitExceeded,
    /// The queue is full.
    ServerOverloaded,
    InternalError,
    ModelLoading,
    ShuttingDown,
    EngineDead,
}

impl Code {
    /// HTTP status, `code` and `type` of the error.
    const fn row(self) -> (u16, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidJson => (400, "invalid_json", REQUEST),
            Self::InvalidType => (400, "invalid_type", REQUEST),
            Self::InvalidValue => (400, "invalid_value", REQUEST),
            Self::MissingRequiredParameter => (400, "missing_required_parameter", REQUEST),
            Self::UnsupportedParameter => (400, "unsupported_parameter", REQUEST),
            Self::UnsupportedValue => (400, "unsupported_value", REQUEST),
            Self::ContextLengthExceeded => (400, "context_length_exceeded", REQUEST),
            Self::InvalidSchema => (400, "invalid_schema", REQUEST),
            Self::InvalidGrammar => (400, "invalid_grammar", REQUEST),
            Self::InvalidApiKey => (401, "invalid_api_key", REQUEST),
            Self::ModelNotFound => (404, "model_not_found", REQUEST),
            Self::UnknownUrl => (404, "unknown_url", REQUEST),
            Self::UnsupportedEndpoint => (404, "unsupported_endpoint", REQUEST),
            Self::MethodNotAllowed => (405, "method_not_allowed", REQUEST),
            Self::RequestTimeout => (408, "request_timeout", REQUEST),
            Self::RequestExpired => (408, "request_timeout", REQUEST),
            Self::RequestTooLarge => (413, "request_too_large", REQUEST),
            Self::UrlTooLong => (414, "request_too_large", REQUEST),
            Self::HeadersTooLarge => (431, "request_too_large", REQUEST),
            Self::UnsupportedMediaType => (415, "unsupported_media_type", REQUEST),
            Self::RateLimitExceeded => (429, "rate_limit_exceeded", "rate_limit_error"),
            Self::ServerOverloaded => (429, "server_overloaded", "rate_limit_error"),
            Self::InternalError => (500, "internal_error", SERVER),
            Self::ModelLoading => (503, "model_loading", SERVER),
            Self::ShuttingDown => (503, "shutting_down", SERVER),
            Self::EngineDead => (503, "engine_dead", SERVER),
        }
    }

    pub const fn status(self) -> u16 {
        self.row().0
    }

    pub const fn as_str(self) -> &'static str {
        self.row().1
    }
}

/// An error object. It serialises to `{"error":{"message","type","param","code"}}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    /// What is wrong, what would be right, and what to do.
    pub message: String,
    /// Path of the field: `messages[2].content[0].type`.
    pub param: Option<String>,
}

impl Error {
    /// An error that no single field is to blame for.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None }
    }

    /// An error of the field at `param`.
    pub fn at(code: Code, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: Some(param.into()) }
    }

    /// A wrong value of the field at `param`.
    pub fn value(param: &str, message: impl Into<String>) -> Self {
        Self::at(Code::InvalidValue, param, message)
    }

    /// The prompt alone does not fit: it was not even counted.
    pub fn prompt_length(param: &str, context_len: usize, prompt_len_min: usize) -> Self {
        Self::at(
            Code::ContextLengthExceeded,
            param,
            format!(
                "This model's maximum context length is {context_len} tokens. However, you requested at \
                 least {prompt_len_min} tokens in the {param}. Please reduce the length of the {param}."
            ),
        )
    }

    /// Prompt and answer together do not fit. Clients look for "maximum context length is".
    pub fn context_length(param: &str, context_len: usize, prompt_len: usize, answer_len: usize) -> Self {
        let total = prompt_len + answer_len;
        Self::at(
            Code::ContextLengthExceeded,
            param,
            format!(
                "This model's maximum context length is {context_len} tokens. However, you requested \
                 {total} tokens ({prompt_len} in the {param}, {answer_len} in the completion). Please \
                 reduce the length of the {param} or completion."
            ),
        )
    }
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: &'a str,
        }
        let (_, code, kind) = self.code.row();
        let body = Body { message: &self.message, r#type: kind, param: self.param.as_deref(), code };
        let mut outer = serializer.serialize_struct("Error", 1)?;
        outer.serialize_field("error", &body)?;
        outer.end()
    }
}
