//! API keys and the origins that browsers may call from.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use openai::{Code, Error};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::app::App;
use crate::errors::ApiError;

/// Asks for a key where one is needed, before the body is read.
pub(crate) async fn check_key(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = &app.options().api_keys;
    if keys.is_empty() || is_open(request.uri().path()) || has_key(&request, keys) {
        return next.run(request).await;
    }
    let error = Error::new(
        Code::InvalidApiKey,
        "The API key is missing or wrong. Send the header `Authorization: Bearer KEY` with a key \
         of this server.",
    );
    ApiError::from(error).into_response()
}

fn is_open(path: &str) -> bool {
    !(path == "/v1" || path.starts_with("/v1/") || path == "/tokenize" || path == "/detokenize")
}

fn has_key(request: &Request, keys: &[String]) -> bool {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else { return false };
    let Some((scheme, key)) = value.as_bytes().split_at_checked(7) else { return false };
    // Every key is looked at, whole: the time tells nothing about which one came close.
    let known = keys.iter().fold(false, |found, k| found | equal(k.as_bytes(), key.trim_ascii()));
    scheme.eq_ignore_ascii_case(b"bearer ") && known
}

/// Compares in a time that depends on the length of `given` alone.
fn equal(key: &[u8], given: &[u8]) -> bool {
    let mut differences = usize::from(key.len() != given.len());
    for (i, byte) in given.iter().enumerate() {
        let expected = key.get(i % key.len().max(1)).copied().unwrap_or(0);
        differences |= usize::from(std::hint::black_box(byte ^ expected));
    }
    differences == 0
}

/// Which browser pages may call: those from this machine, and those named.
pub(crate) fn cors(app: &App) -> CorsLayer {
    let named = app.options().cors_origins.clone();
    let allowed = move |origin: &HeaderValue, _: &axum::http::request::Parts| {
        let Ok(origin) = origin.to_str() else { return false };
        is_local(origin) || named.iter().any(|name| name == "*" || name == origin)
    };
    let names = [
        "authorization",
        "content-type",
        "x-request-id",
        // What OpenAI's own clients send besides.
        "openai-beta",
        "openai-organization",
        "openai-project",
        "x-stainless-arch",
        "x-stainless-lang",
        "x-stainless-os",
        "x-stainless-package-version",
        "x-stainless-retry-count",
        "x-stainless-runtime",
        "x-stainless-runtime-version",
        "x-stainless-timeout",
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::OPTIONS])
        .allow_headers(names.map(HeaderName::from_static))
        .expose_headers([HeaderName::from_static("x-request-id")])
}

fn is_local(origin: &str) -> bool {
    let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let Some(host) = host else { return false };
    ["localhost", "127.0.0.1", "[::1]"].into_iter().any(|local| {
        let Some(port) = host.strip_prefix(local) else { return false };
        port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_equal_only_to_themselves() {
        let cases = [
            ("abc", "abc", true),
            ("abc", "abd", false),
            ("abc", "abcabc", false),
            ("abc", "", false),
            ("", "a", false),
        ];
        for (key, given, expected) in cases {
            assert_eq!(equal(key.as_bytes(), given.as_bytes()), expected, "{key} {given}");
        }
    }

    #[test]
    fn local_origins() {
        for origin in ["http://localhost", "https://localhost:3000", "http://127.0.0.1:1", "http://[::1]:80"]
        {
            assert!(is_local(origin), "{origin}");
        }
        for origin in
            ["http://localhost.evil.com", "http://evil.com", "null", "file://", "http://localhost:x"]
        {
            assert!(!is_local(origin), "{origin}");
        }
    }
}
