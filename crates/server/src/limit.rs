//! What one client may take: requests a minute, and bytes of a request's head.
//!
//! Who is one client? With keys, whoever has the key. Without, the address that the connection comes from: nothing
//! else about a request is more than what it says of itself. Behind a proxy all clients are one then.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use openai::{Code, Error};

use crate::app::App;
use crate::auth::{Caller, KeyHash, is_open};
use crate::errors::{ApiError, Retry};

const MINUTE: Duration = Duration::from_secs(60);
/// Of a request's URL, in bytes. What hyper itself refuses, further up, has no error object.
const URL_BYTES_MAX: usize = 8 << 10;
/// Of its headers, names and values together.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Where a connection comes from.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Whose requests are counted together. Keys are few; addresses share 65,536 places, which bounds the memory, and by
/// a secret hash, so that nobody chooses with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    Key(KeyHash),
    Place(u16),
}

/// A bucket of requests for each client, full at first, that fills at an even pace.
pub(crate) struct RateLimit<C: Clock = DefaultClock> {
    limiter: RateLimiter<Client, HashMapStateStore<Client>, C, StateInformationMiddleware>,
    per_minute: NonZeroU32,
    places: RandomState,
}

/// What a client has left.
#[derive(Debug, PartialEq, Eq)]
struct Allowance {
    remaining: u32,
    /// Until the next request, if this one is over the limit.
    wait: Option<Duration>,
    /// Until nothing counts any more.
    reset: Duration,
}

impl RateLimit {
    pub(crate) fn new(per_minute: NonZeroU32) -> Self {
        Self::with_clock(per_minute, DefaultClock::default())
    }
}

impl<C: Clock> RateLimit<C> {
    fn with_clock(per_minute: NonZeroU32, clock: C) -> Self {
        let limiter = RateLimiter::new(Quota::per_minute(per_minute), HashMapStateStore::default(), clock);
        Self { limiter, per_minute, places: RandomState::new() }
    }

    /// Counts a request.
    fn take(&self, client: Client) -> Allowance {
        let refill = |n: u32| MINUTE * n / self.per_minute.get();
        match self.limiter.check_key(&client) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let reset = refill(self.per_minute.get().saturating_sub(remaining));
                Allowance { remaining, wait: None, reset }
            }
            Err(over) => {
                let wait = over.wait_time_from(self.limiter.clock().now());
                Allowance { remaining: 0, wait: Some(wait), reset: wait + refill(self.per_minute.get() - 1) }
            }
        }
    }

    fn client_of(&self, request: &Request) -> Client {
        match request.extensions().get::<Caller>().and_then(|caller| caller.key()) {
            Some(key) => Client::Key(key),
            None => {
                let peer = request.extensions().get::<Peer>().map(|peer| network(peer.0));
                Client::Place(self.places.hash_one(peer) as u16)
            }
        }
    }

    fn write(&self, allowance: &Allowance, headers: &mut HeaderMap) {
        headers.insert("x-ratelimit-limit-requests", self.per_minute.get().into());
        headers.insert("x-ratelimit-remaining-requests", allowance.remaining.into());
        let reset = HeaderValue::try_from(format!("{}s", whole_seconds(allowance.reset)));
        headers.extend(reset.ok().map(|reset| (RESET, reset)));
    }
}

const RESET: axum::http::HeaderName = axum::http::HeaderName::from_static("x-ratelimit-reset-requests");

/// An IPv6 client has all of a /64.
fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

/// Rounded up: who comes back then is not refused again.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Counts a request before its body is read, and refuses it over the limit. What is open to all is not counted:
/// whoever watches the server must not go blind.
pub(crate) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(limit) = app.rate_limit().filter(|_| !is_open(request.uri().path())) else {
        return next.run(request).await;
    };
    let allowance = limit.take(limit.client_of(&request));
    let mut response = match allowance.wait {
        None => next.run(request).await,
        Some(wait) => too_often(limit.per_minute, whole_seconds(wait).max(1)).into_response(),
    };
    limit.write(&allowance, response.headers_mut());
    response
}

fn too_often(per_minute: NonZeroU32, seconds: u64) -> ApiError {
    let message =
        format!("More than {per_minute} requests a minute, this server's limit. Try again in {seconds} s.");
    ApiError { error: Error::new(Code::RateLimitExceeded, message), retry: Retry::AfterSeconds(seconds) }
}

/// Refuses a URL or headers of a size that no client means.
pub(crate) async fn bound_head(request: Request, next: Next) -> Response {
    let url = request.uri();
    let url_bytes = url.path_and_query().map_or(0, |url| url.as_str().len());
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let (code, what, limit) = if url_bytes > URL_BYTES_MAX {
        (Code::UrlTooLong, "URL is", URL_BYTES_MAX)
    } else if headers.sum::<usize>() > HEADER_BYTES_MAX {
        (Code::HeadersTooLarge, "headers are", HEADER_BYTES_MAX)
    } else {
        return next.run(request).await;
    };
    let message = format!("The request's {what} larger than {limit} bytes. Send what is long in the body.");
    ApiError::from(Error::new(code, message)).into_response()
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_bucket_fills_at_an_even_pace() {
        let clock = FakeRelativeClock::default();
        let limit = RateLimit::with_clock(NonZeroU32::new(3).unwrap(), clock.clone());
        let (one, other) = (Client::Place(1), Client::Key([1; 32]));
        // Seconds since the request before, who asks, and what is left.
        let steps = [
            (0, one, 2, None, 20),
            (0, one, 1, None, 40),
            (0, one, 0, None, 60),
            (0, one, 0, Some(20), 60),
            (0, other, 2, None, 20),
            (15, one, 0, Some(5), 45),
            (5, one, 0, None, 60),
            (60, one, 2, None, 20),
        ];
        for (step, (passed, client, remaining, wait, reset)) in steps.into_iter().enumerate() {
            clock.advance(seconds(passed));
            let expected = Allowance { remaining, wait: wait.map(seconds), reset: seconds(reset) };
            assert_eq!(limit.take(client), expected, "step {step}");
        }
    }

    #[test]
    fn addresses_of_one_client_are_one() {
        let networks = |list: [&str; 2]| list.map(|address| network(address.parse().unwrap()));
        for (pair, same) in [
            (["10.0.0.1", "::ffff:10.0.0.1"], true),
            (["10.0.0.1", "10.0.0.2"], false),
            (["2001:db8::1", "2001:db8::ffff:1"], true),
            (["2001:db8:0:1::1", "2001:db8:0:2::1"], false),
        ] {
            let [a, b] = networks(pair);
            assert_eq!(a == b, same, "{pair:?}");
        }
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (millis, expected) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), expected);
        }
    }
}
