//! API keys and the origins that browsers may call from.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use openai::{Code, Error};
use sha2::{Digest as _, Sha256};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::app::App;
use crate::errors::ApiError;
use crate::messages;

/// What may be asked for without a key; all else, known or not, needs one. Preflights are answered before.
const OPEN: [&str; 6] = ["/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json"];

/// Keys of clients, as they are compared: hashed, so that all are of one length, and nothing can show them.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<KeyHash>);

pub(crate) type KeyHash = [u8; 32];

/// Who asks, as far as keys tell.
#[derive(Clone, Copy)]
pub(crate) struct Caller(Option<KeyHash>);

impl<K: AsRef<[u8]>> FromIterator<K> for ApiKeys {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        Self(keys.into_iter().map(|key| Sha256::digest(key).into()).collect())
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl ApiKeys {
    /// Without keys, all who ask are served.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hash of `given`, if it is one of the keys. All are compared, whole: the time tells nothing about
    /// which one came close.
    fn find(&self, given: &[u8]) -> Option<KeyHash> {
        let given: KeyHash = Sha256::digest(given).into();
        let differ =
            |key: &KeyHash| key.iter().zip(&given).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        let known = self.0.iter().fold(false, |known, key| known | (differ(key) == 0));
        known.then_some(given)
    }
}

impl Caller {
    pub(crate) fn key(self) -> Option<KeyHash> {
        self.0
    }

    /// What parts this caller's cached blocks from those of others. A key's hash comes first and has a fixed
    /// length: no value of a client makes it another key's salt.
    pub(crate) fn cache_salt(&self, narrower: Option<&str>) -> Vec<u8> {
        let key = self.0.as_ref().map_or(&[][..], KeyHash::as_slice);
        [key, narrower.unwrap_or_default().as_bytes()].concat()
    }
}

/// Asks for a key where one is needed, before the body is read; handlers find the [`Caller`].
pub(crate) async fn check_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let keys = &app.options().api_keys;
    let anthropic = messages::is_here(request.uri().path());
    let own = request.headers().get("x-api-key").filter(|_| anthropic).map(HeaderValue::as_bytes);
    let key = [bearer(&request), own].into_iter().flatten().find_map(|key| keys.find(key));
    if key.is_some() || keys.is_empty() || is_open(request.uri().path()) {
        request.extensions_mut().insert(Caller(key));
        return next.run(request).await;
    }
    let or = if anthropic { " or `x-api-key: KEY`" } else { "" };
    let message = format!(
        "The API key is missing or wrong. Send the header `Authorization: Bearer KEY`{or} with a key of this server."
    );
    ApiError::from(Error::new(Code::InvalidApiKey, message)).into_response()
}

/// Whether no key is needed at this path.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN.contains(&path)
}

fn bearer(request: &Request) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?;
    let (scheme, key) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
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
        // What OpenAI's and Anthropic's own clients send besides.
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        "anthropic-version",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "x-api-key",
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
        let keys: ApiKeys = ["abc", "xyz"].into_iter().collect();
        assert_eq!(format!("{keys:?}"), "2 keys");
        for (given, expected) in
            [("abc", true), ("xyz", true), ("abd", false), ("abcabc", false), ("ab", false), ("", false)]
        {
            assert_eq!(keys.find(given.as_bytes()).is_some(), expected, "{given}");
        }
    }

    #[test]
    fn salts_of_different_keys_are_different() {
        let callers = [None, Some([1; 32]), Some([2; 32])].map(Caller);
        // The last one is the other key's hash with something behind it.
        let other = String::from_utf8([2; 33].to_vec()).unwrap();
        let values = [None, Some("a"), Some("b"), Some(other.as_str())];
        let salts = callers[1..].iter().flat_map(|caller| values.map(|value| caller.cache_salt(value)));
        let salts: std::collections::HashSet<_> = salts.collect();
        assert_eq!(salts.len(), 8);
        assert_eq!(callers[0].cache_salt(None), b"");
        assert_eq!(callers[0].cache_salt(Some("a")), b"a");
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
