//! How much may wait: requests and prompt tokens, counted where they are submitted.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Shared by the handles, who take places, and the engine, which gives them back.
#[derive(Debug)]
pub(crate) struct Queue {
    requests_max: usize,
    tokens_max: usize,
    requests: AtomicUsize,
    tokens: AtomicUsize,
    choices: AtomicUsize,
    /// Sequences that could be admitted at once, as of the last step: whoever takes such a place will
    /// not wait for it.
    open: AtomicUsize,
}

impl Queue {
    pub(crate) fn new(requests_max: usize, tokens_max: usize, open: usize) -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        let (requests, tokens, choices) = (zero(), zero(), zero());
        Arc::new(Self { requests_max, tokens_max, requests, tokens, choices, open: AtomicUsize::new(open) })
    }

    /// A place for a request of `tokens` prompt tokens, or which bound is reached. A prompt longer than
    /// the bound has it to itself; one that need not wait is not bound.
    pub(crate) fn enter(self: &Arc<Self>, choices: usize, tokens: usize) -> Result<Place, Full> {
        let open = self.open.load(SeqCst);
        let take = |n: &AtomicUsize, amount: usize, max: usize| {
            n.fetch_update(SeqCst, SeqCst, |n| n.checked_add(amount).filter(|&n| n <= max))
        };
        let tokens = tokens.min(self.tokens_max);
        let before = take(&self.requests, 1, self.requests_max.saturating_add(open))
            .map_err(|_| Full::Requests(self.requests_max))?;
        let tokens_max = if before < open { usize::MAX } else { self.tokens_max };
        if take(&self.tokens, tokens, tokens_max).is_err() {
            self.requests.fetch_sub(1, SeqCst);
            return Err(Full::Tokens(self.tokens_max));
        }
        self.choices.fetch_add(choices, SeqCst);
        Ok(Place { queue: self.clone(), choices, tokens })
    }

    pub(crate) fn choices(&self) -> usize {
        self.choices.load(SeqCst)
    }

    pub(crate) fn set_open(&self, places: usize) {
        self.open.store(places, SeqCst);
    }
}

/// Which bound a request met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Requests(usize),
    Tokens(usize),
}

/// A waiting request's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    choices: usize,
    tokens: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.requests.fetch_sub(1, SeqCst);
        self.queue.tokens.fetch_sub(self.tokens, SeqCst);
        self.queue.choices.fetch_sub(self.choices, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_by_requests_and_by_tokens() {
        let queue = Queue::new(3, 100, 0);
        let full = |tokens| queue.enter(1, tokens).err();
        let first = queue.enter(4, 60).unwrap();
        assert_eq!(full(41), Some(Full::Tokens(100)));
        let second = queue.enter(1, 40).unwrap();
        assert_eq!(queue.choices(), 5);
        assert_eq!(full(1), Some(Full::Tokens(100)), "and the refused request's place is free again:");
        drop(second);
        let third = queue.enter(1, 1).unwrap();
        let fourth = queue.enter(1, 1).unwrap();
        assert_eq!(full(1), Some(Full::Requests(3)));
        queue.set_open(1);
        drop(queue.enter(1, 1).unwrap());
        queue.set_open(4);
        drop(queue.enter(1, 100).expect("it need not wait"));
        queue.set_open(0);
        drop((first, third, fourth));
        let giant = queue.enter(1, 1_000).unwrap();
        assert_eq!(full(1), Some(Full::Tokens(100)), "a giant waits alone");
        drop(giant);
        assert_eq!((queue.choices(), full(100)), (0, None));
    }
}
