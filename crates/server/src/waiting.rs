//! The engine's queue as seen from here: whether there is room in it, and when there will be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::app::App;

/// What one place that becomes free leaves of the weight of those before it.
const KEEP: f64 = 0.9;

/// Prompts that were submitted and not started.
pub(crate) struct Waiting(Mutex<State>);

struct State {
    requests: usize,
    tokens: usize,
    /// When the latest place became free, or somebody came into an empty queue.
    since: Instant,
    /// Time in which somebody waited, and who left meanwhile; the recent past weighs more.
    time_s: f64,
    left_requests: f64,
    left_tokens: f64,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::new(Instant::now())))
    }

    /// A new request would be refused.
    pub(crate) fn is_full(&self, requests_max: usize, tokens_max: usize) -> bool {
        let state = self.state();
        state.requests >= requests_max || state.tokens >= tokens_max
    }

    /// Whole seconds until so many places are likely to be free.
    pub(crate) fn seconds_for_requests(&self, requests: usize) -> u64 {
        self.state().seconds(Instant::now(), |state| state.left_requests, requests)
    }

    /// The same for places of prompt tokens.
    pub(crate) fn seconds_for_tokens(&self, tokens: usize) -> u64 {
        self.state().seconds(Instant::now(), |state| state.left_tokens, tokens)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self { requests: 0, tokens: 0, since: now, time_s: 0.0, left_requests: 0.0, left_tokens: 0.0 }
    }

    fn enter(&mut self, tokens: usize, now: Instant) {
        if self.requests == 0 {
            self.since = now;
        }
        self.requests += 1;
        self.tokens += tokens;
    }

    fn leave(&mut self, tokens: usize, now: Instant) {
        self.requests -= 1;
        self.tokens -= tokens;
        self.time_s = KEEP * self.time_s + (now - self.since).as_secs_f64();
        self.left_requests = KEEP * self.left_requests + 1.0;
        self.left_tokens = KEEP * self.left_tokens + tokens as f64;
        self.since = now;
    }

    /// At the rate at which `left` left. That nobody has left since a while counts, too.
    fn seconds(&self, now: Instant, left: impl Fn(&Self) -> f64, wanted: usize) -> u64 {
        let idle_s = if self.requests == 0 { 0.0 } else { (now - self.since).as_secs_f64() };
        let each_s = (self.time_s + idle_s) / left(self).max(1.0);
        (each_s * wanted as f64).ceil().clamp(1.0, 60.0) as u64
    }
}

/// A prompt's place, until it starts or is given up.
pub(crate) struct Place {
    app: App,
    tokens: usize,
}

impl Place {
    pub(crate) fn take(app: &App, tokens: usize) -> Self {
        app.waiting().state().enter(tokens, Instant::now());
        Self { app: app.clone(), tokens }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.waiting().state().leave(self.tokens, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn places_become_free_as_fast_as_they_did() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut state = State::new(start);
        let requests = |state: &State, now, n| state.seconds(now, |state| state.left_requests, n);
        let tokens = |state: &State, now, n| state.seconds(now, |state| state.left_tokens, n);
        assert_eq!(requests(&state, at(1000), 1), 1, "an empty queue");
        // From the 1000th second on one leaves every 2 seconds, with 100 tokens.
        (0..40).for_each(|_| state.enter(100, at(1000)));
        assert_eq!(requests(&state, at(1003), 2), 6, "nobody has left yet");
        (1..=30).for_each(|i| state.leave(100, at(1000 + 2 * i)));
        assert_eq!((requests(&state, at(1060), 5), tokens(&state, at(1060), 990)), (10, 20));
        assert_eq!(requests(&state, at(1060), 1000), 60, "no client waits longer");
        assert!(requests(&state, at(1090), 5) > 20, "it has stalled for half a minute");
        // While nobody waits, no time passes.
        (31..=40).for_each(|i| state.leave(100, at(1000 + 2 * i)));
        assert_eq!((state.requests, state.tokens), (0, 0));
        state.enter(100, at(9000));
        assert_eq!(requests(&state, at(9000), 5), 10);
    }
}
