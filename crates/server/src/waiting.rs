//! The engine's queue as seen from here: whether there is room in it, and when there will be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::app::App;

/// What one place that becomes free leaves of the weight of those before it.
const KEEP: f64 = 0.9;

/// Whoever waited less found a place that was free: that tells nothing of the time until one becomes free.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// Prompts that were submitted and not started.
pub(crate) struct Waiting(Mutex<State>);

struct State {
    requests: usize,
    tokens: usize,
    /// When the latest place became free for who waited, or somebody came into an empty queue.
    since: Instant,
    /// Time in which somebody waited, and who left meanwhile; the recent past weighs more.
    time_s: f64,
    left: f64,
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
        self.state().seconds(Instant::now(), requests as f64)
    }

    /// The same for places of prompt tokens.
    pub(crate) fn seconds_for_tokens(&self, tokens: usize) -> u64 {
        let state = self.state();
        state.seconds(Instant::now(), state.prompts_of(tokens))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self { requests: 0, tokens: 0, since: now, time_s: 0.0, left: 0.0 }
    }

    fn enter(&mut self, tokens: usize, now: Instant) {
        if self.requests == 0 {
            self.since = now;
        }
        self.requests += 1;
        self.tokens += tokens;
    }

    fn leave(&mut self, tokens: usize, entered: Instant, now: Instant) {
        self.requests -= 1;
        self.tokens -= tokens;
        if now - entered < WAIT_MIN {
            return;
        }
        self.time_s = KEEP * self.time_s + (now - self.since).as_secs_f64();
        self.left = KEEP * self.left + 1.0;
        self.since = now;
    }

    /// How many of those who wait have so many tokens.
    fn prompts_of(&self, tokens: usize) -> f64 {
        tokens as f64 * self.requests as f64 / self.tokens.max(1) as f64
    }

    /// Until so many have left at the rate at which they did, less the time since the latest. Where the next
    /// one is overdue, the rate is what it would be if they left now.
    fn seconds(&self, now: Instant, prompts: f64) -> u64 {
        let since_s = if self.requests == 0 { 0.0 } else { (now - self.since).as_secs_f64() };
        let if_now_s = (KEEP * self.time_s + since_s) / (KEEP * self.left + 1.0);
        let each_s = (self.time_s / self.left.max(1.0)).max(if_now_s);
        (prompts.max(1.0) * each_s - since_s.min(each_s)).ceil().clamp(1.0, 60.0) as u64
    }
}

/// A prompt's place, until it starts or is given up.
pub(crate) struct Place {
    app: App,
    tokens: usize,
    entered: Instant,
}

impl Place {
    pub(crate) fn take(app: &App, tokens: usize) -> Self {
        let entered = Instant::now();
        app.waiting().state().enter(tokens, entered);
        Self { app: app.clone(), tokens, entered }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.waiting().state().leave(self.tokens, self.entered, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_free_as_fast_as_they_did() {
        let start = Instant::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let mut state = State::new(start);
        assert_eq!(state.seconds(at(1000.0), 1.0), 1, "an empty queue");
        // From the 1000th second on one leaves every 2 seconds, with 100 tokens.
        (0..40).for_each(|_| state.enter(100, at(1000.0)));
        assert_eq!(state.seconds(at(1003.0), 3.0), 6, "nobody has left yet");
        (1..=30).for_each(|i| state.leave(100, at(1000.0), at(1000.0 + 2.0 * f64::from(i))));
        let tokens = state.prompts_of(990);
        assert_eq!((state.seconds(at(1060.0), 5.0), state.seconds(at(1060.0), tokens)), (10, 20));
        assert_eq!(state.seconds(at(1060.0), 1000.0), 60, "no client waits longer");
        assert!(state.seconds(at(1090.0), 5.0) > 15, "it has stalled for half a minute");
        // While nobody waits, no time passes.
        (31..=40).for_each(|i| state.leave(100, at(1000.0), at(1000.0 + 2.0 * f64::from(i))));
        assert_eq!((state.requests, state.tokens), (0, 0));
        state.enter(100, at(9000.0));
        assert_eq!(state.seconds(at(9000.0), 5.0), 10);
    }

    #[test]
    fn the_time_that_has_passed_is_no_longer_to_come() {
        let start = Instant::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let mut state = State::new(start);
        // Those who find the server free do not make it look fast.
        for _ in 0..5 {
            state.enter(1, start);
            state.leave(1, start, at(0.01));
        }
        (0..9).for_each(|_| state.enter(1, start));
        (1..=8).for_each(|i| state.leave(1, start, at(6.3 * f64::from(i))));
        for (since, one, two) in [(0.0, 7, 13), (0.4, 6, 13), (3.0, 4, 10), (6.2, 1, 7), (6.4, 1, 7)] {
            let now = at(6.3 * 8.0 + since);
            assert_eq!((state.seconds(now, 1.0), state.seconds(now, 2.0)), (one, two), "{since}");
        }
    }
}
