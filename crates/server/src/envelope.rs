//! What surrounds every answer: a request id, a counter, a log line, and an answer even to a panic.

use std::any::Any;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use openai::Error;
use tracing::Instrument;

use crate::app::App;
use crate::errors::{ApiError, internal};
use crate::messages;

const REQUEST_ID: &str = "x-request-id";

/// Gives each answer its `X-Request-Id`: the caller's, if it is plain, else a new one.
pub(crate) async fn identify(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).filter(|value| is_plain(value.as_bytes()));
    let id = given.cloned().unwrap_or_else(new_id);
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn is_plain(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:-".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(plain)
}

fn new_id() -> HeaderValue {
    let id = format!("req-{:032x}", rand::random::<u128>());
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("req"))
}

/// Counts and logs the answer, under its route's template: paths as sent have no bound.
pub(crate) async fn record(
    State(app): State<App>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let anthropic = messages::is_here(request.uri().path());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Error>().filter(|_| anthropic) {
        response = messages::reshape(response, &error);
    }
    let status = response.status();
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    app.metrics().count_http(method_label(&method), route, status.as_str());
    tracing::info!(
        method = method.as_str(),
        route,
        status = status.as_u16(),
        ms = start.elapsed().as_millis() as u64,
        "answered"
    );
    response
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// The answer to a request whose handler panicked.
pub(crate) fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let literal = cause.downcast_ref::<&str>().copied();
    let cause = cause.downcast_ref::<String>().map(String::as_str).or(literal);
    ApiError::from(internal(cause.unwrap_or("panic"))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_echoed() {
        for (id, expected) in [("a.B_9:-", true), ("", false), ("a b", false), ("a\"", false)] {
            assert_eq!(is_plain(id.as_bytes()), expected, "{id}");
        }
        assert!(is_plain(&[b'a'; 128]) && !is_plain(&[b'a'; 129]));
    }
}
