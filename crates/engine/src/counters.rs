//! What the engine tells about itself without being asked to stop: plain counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::request::{End, FinishReason};

/// Upper bounds of the buckets that [`Snapshot::step_tokens`] counts in, in tokens.
pub const STEP_TOKENS_BOUNDS: [u64; 15] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000];

/// The engine at one moment. Gauges are as of the end of the last step; each field is exact, two
/// fields may be a step apart. A client that has heard its `End` finds it counted here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The engine's thread runs. Once false, never true again.
    pub alive: bool,
    /// Requests that hold KV blocks.
    pub running: u64,
    /// Requests accepted and not yet running.
    pub waiting: u64,
    pub blocks_used: u64,
    /// Blocks that can be lent; the padding block is not counted.
    pub blocks_total: u64,
    /// Forward passes, failed ones included.
    pub steps: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Requests ended by a stop id.
    pub stopped: u64,
    /// Requests ended by `max_new_tokens` or the context.
    pub exhausted: u64,
    /// Requests whose client left before the end.
    pub cancelled: u64,
    pub rejected: u64,
    pub failed: u64,
    /// Steps by the tokens computed in them: not cumulative, the last bucket has no bound.
    pub step_tokens: [u64; STEP_TOKENS_BOUNDS.len() + 1],
    /// Tokens computed in all steps.
    pub step_tokens_sum: u64,
}

/// [`Snapshot`] as the engine writes it; `waiting` is known to the handle.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) alive: AtomicBool,
    pub(crate) running: AtomicU64,
    pub(crate) blocks_used: AtomicU64,
    pub(crate) blocks_total: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    stopped: AtomicU64,
    exhausted: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    step_tokens: [AtomicU64; STEP_TOKENS_BOUNDS.len() + 1],
    step_tokens_sum: AtomicU64,
}

impl Counters {
    pub(crate) fn count_step(&self, n_tokens: usize) {
        let n_tokens = n_tokens as u64;
        let bucket = STEP_TOKENS_BOUNDS.partition_point(|&bound| bound < n_tokens);
        self.steps.fetch_add(1, Relaxed);
        self.step_tokens[bucket].fetch_add(1, Relaxed);
        self.step_tokens_sum.fetch_add(n_tokens, Relaxed);
    }

    pub(crate) fn count_end(&self, end: &End) {
        let counter = match end {
            End::Finished(FinishReason::Stop) => &self.stopped,
            End::Finished(FinishReason::Length) => &self.exhausted,
            End::Rejected(_) => &self.rejected,
            End::Failed(_) => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self, waiting: u64) -> Snapshot {
        Snapshot {
            alive: self.alive.load(Relaxed),
            running: self.running.load(Relaxed),
            waiting,
            blocks_used: self.blocks_used.load(Relaxed),
            blocks_total: self.blocks_total.load(Relaxed),
            steps: self.steps.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            generated_tokens: self.generated_tokens.load(Relaxed),
            stopped: self.stopped.load(Relaxed),
            exhausted: self.exhausted.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            failed: self.failed.load(Relaxed),
            step_tokens: std::array::from_fn(|i| self.step_tokens[i].load(Relaxed)),
            step_tokens_sum: self.step_tokens_sum.load(Relaxed),
        }
    }
}
