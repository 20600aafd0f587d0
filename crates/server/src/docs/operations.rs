//! What the routes take and answer.

use utoipa::openapi::HttpMethod;

pub(super) struct Operation {
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    /// Name of the body's schema; without one, the method is GET.
    pub(super) request: Option<&'static str>,
    /// `None`: never.
    pub(super) answer: Option<Body>,
}

/// What a success is made of, by names of schemas.
#[derive(Clone, Copy)]
pub(super) enum Body {
    Json(&'static str),
    /// Whole, or the data of events, each one of these.
    JsonOrEvents(&'static str, &'static [&'static str]),
    /// A text of this media type.
    Text(&'static str),
}

const OPENAI: &str = "OpenAI's API";
pub(super) const ANTHROPIC: &str = "Anthropic's API";
const TOKENS: &str = "Text and tokens";
/// No key is asked for.
pub(super) const OPEN: &str = "The server";

use Body::{Json, JsonOrEvents, Text};

#[rustfmt::skip]
pub(super) const OPERATIONS: &[Operation] = &[
    Operation { path: "/v1/chat/completions", id: "createChatCompletion", tag: OPENAI, summary: "Answer a conversation", request: Some("ChatRequest"), answer: Some(JsonOrEvents("ChatCompletion", &["ChatCompletionChunk", "Error"])) },
    Operation { path: "/v1/completions", id: "createCompletion", tag: OPENAI, summary: "Continue a text", request: Some("CompletionRequest"), answer: Some(JsonOrEvents("Completion", &["Completion", "Error"])) },
    Operation { path: "/v1/responses", id: "createResponse", tag: OPENAI, summary: "Answer a conversation, as a list of items", request: Some("ResponsesRequest"), answer: Some(JsonOrEvents("ResponsesAnswer", &["ResponsesEvent"])) },
    Operation { path: "/v1/responses/{id}", id: "retrieveResponse", tag: OPENAI, summary: "Refused: nothing is kept", request: None, answer: None },
    Operation { path: "/v1/models", id: "listModels", tag: OPENAI, summary: "The served names", request: None, answer: Some(Json("ModelList")) },
    Operation { path: "/v1/models/{id}", id: "retrieveModel", tag: OPENAI, summary: "One served name", request: None, answer: Some(Json("Model")) },
    Operation { path: "/v1/embeddings", id: "createEmbedding", tag: OPENAI, summary: "Refused: the model generates text", request: Some("AnyObject"), answer: None },
    Operation { path: "/v1/messages", id: "createMessage", tag: ANTHROPIC, summary: "Answer a conversation", request: Some("MessagesRequest"), answer: Some(JsonOrEvents("MessagesAnswer", &["MessagesEvent"])) },
    Operation { path: "/v1/messages/count_tokens", id: "countTokens", tag: ANTHROPIC, summary: "Count the tokens of a conversation", request: Some("CountTokensRequest"), answer: Some(Json("TokenCount")) },
    Operation { path: "/tokenize", id: "tokenize", tag: TOKENS, summary: "From a text or a conversation to token ids", request: Some("TokenizeRequest"), answer: Some(Json("TokenizeAnswer")) },
    Operation { path: "/detokenize", id: "detokenize", tag: TOKENS, summary: "From token ids to a text", request: Some("DetokenizeRequest"), answer: Some(Json("DetokenizeAnswer")) },
    Operation { path: "/health", id: "health", tag: OPEN, summary: "Whether the engine lives", request: None, answer: Some(Json("Status")) },
    Operation { path: "/ready", id: "ready", tag: OPEN, summary: "Whether a new request would be taken", request: None, answer: Some(Json("Status")) },
    Operation { path: "/version", id: "version", tag: OPEN, summary: "Which build runs where", request: None, answer: Some(Json("Version")) },
    Operation { path: "/metrics", id: "metrics", tag: OPEN, summary: "Metrics for Prometheus", request: None, answer: Some(Text("text/plain")) },
    Operation { path: "/openapi.json", id: "document", tag: OPEN, summary: "This document", request: None, answer: Some(Json("AnyObject")) },
    Operation { path: "/docs", id: "page", tag: OPEN, summary: "A page over this document", request: None, answer: Some(Text("text/html")) },
];

/// Statuses of failures, and what they mean.
pub(super) const STATUSES: &[(u16, &str)] = &[
    (400, "The request cannot be served as it is; the error names the field."),
    (401, "The API key is missing or wrong."),
    (404, "The model does not exist here, or the route serves nothing."),
    (408, "The body did not arrive in time, or the answer was not complete in time."),
    (413, "The body is too large."),
    (414, "The URL is too long."),
    (415, "The body is not plain `application/json`."),
    (429, "The queue is full, or the key is over its limit."),
    (431, "The headers are too large."),
    (500, "A fault of the server; its log has the cause beside the request id."),
    (503, "The model is loading, the server shuts down, or the engine is dead."),
];

impl Operation {
    pub(super) fn method(&self) -> HttpMethod {
        if self.request.is_some() { HttpMethod::Post } else { HttpMethod::Get }
    }

    /// Of failures.
    pub(super) fn statuses(&self) -> impl Iterator<Item = u16> {
        let some: &[u16] = match (self.path, self.request) {
            ("/health" | "/ready", _) => &[500, 503],
            ("/v1/models/{id}" | "/v1/responses/{id}" | "/v1/embeddings", _) => &[401, 404, 429, 500],
            (_, Some(_)) => &[400, 401, 404, 408, 413, 415, 429, 500, 503],
            (_, None) if self.tag == OPEN => &[500],
            (_, None) => &[401, 429, 500],
        };
        // Any URL and any headers may be too long.
        some.iter().copied().chain([414, 431])
    }

    /// Name of the schema of what is not 2xx.
    pub(super) fn error_schema(&self) -> &'static str {
        if self.tag == ANTHROPIC { "MessagesError" } else { "Error" }
    }
}
