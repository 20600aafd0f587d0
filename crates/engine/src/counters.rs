//! What the engine tells about itself without being asked to stop: plain counters.

use kv_cache::PoolStats;

use crate::request::{End, FinishReason};
use crate::sequence::Progress;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets that [`Snapshot::step_tokens`] counts in, in tokens.
pub const STEP_TOKENS_BOUNDS: [u64; 15] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000];

/// The engine at one moment. Gauges are as of the end of the last step; each field is exact, two
/// fields may be a step apart. A client that has heard its `End` finds it counted here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The engine's thread runs. Once false, never true again.
    pub alive: bool,
    /// A step is being taken just now: its gauges may be older than what is in it.
    pub in_step: bool,
    /// Choices whose sequence holds KV blocks.
    pub running: u64,
    /// Choices accepted and not running: not yet, or not now.
    pub waiting: u64,
    /// Blocks that sequences hold; those kept for reuse alone are not counted.
    pub blocks_used: u64,
    /// Blocks that can be lent; the padding block is not counted.
    pub blocks_total: u64,
    /// Blocks kept for whoever comes with the same tokens.
    pub blocks_cached: u64,
    /// Forward passes, failed ones included.
    pub steps: u64,
    /// Steps that failed and were tried again row by row.
    pub steps_failed: u64,
    /// Sequences that gave up their blocks to others, to go on later.
    pub preempted: u64,
    /// Tokens computed again after a preemption.
    pub recomputed_tokens: u64,
    /// Tokens that the prefix cache was asked for, and those that it had in whole blocks ...
    pub cache_queries: u64,
    pub cache_hits: u64,
    /// ... and, beyond these, copied from the beginning of another block.
    pub cache_copied: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Choices ended by a stop id.
    pub stopped: u64,
    /// Choices ended by `max_new_tokens` or the context.
    pub exhausted: u64,
    /// Choices whose client left before the end.
    pub cancelled: u64,
    /// Choices of requests that could never run.
    pub rejected: u64,
    /// Choices ended by their deadline.
    pub expired: u64,
    pub failed: u64,
    /// Steps by the tokens computed in them: not cumulative, the last bucket has no bound.
    pub step_tokens: [u64; STEP_TOKENS_BOUNDS.len() + 1],
    /// Tokens computed in all steps.
    pub step_tokens_sum: u64,
}

/// [`Snapshot`] as the engine writes it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) alive: AtomicBool,
    pub(crate) in_step: AtomicBool,
    running: AtomicU64,
    /// Choices that ran and wait to go on.
    interrupted: AtomicU64,
    blocks_used: AtomicU64,
    blocks_total: AtomicU64,
    blocks_cached: AtomicU64,
    steps: AtomicU64,
    pub(crate) steps_failed: AtomicU64,
    pub(crate) preempted: AtomicU64,
    recomputed_tokens: AtomicU64,
    cache_queries: AtomicU64,
    cache_hits: AtomicU64,
    cache_copied: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    stopped: AtomicU64,
    exhausted: AtomicU64,
    cancelled: AtomicU64,
    rejected: AtomicU64,
    expired: AtomicU64,
    failed: AtomicU64,
    step_tokens: [AtomicU64; STEP_TOKENS_BOUNDS.len() + 1],
    step_tokens_sum: AtomicU64,
}

impl Counters {
    pub(crate) fn set_gauges(&self, running: usize, interrupted: usize, pool: PoolStats) {
        self.running.store(running as u64, Relaxed);
        self.interrupted.store(interrupted as u64, Relaxed);
        self.blocks_used.store(pool.used as u64, Relaxed);
        self.blocks_cached.store(pool.cached as u64, Relaxed);
        self.blocks_total.store(pool.total as u64, Relaxed);
    }

    pub(crate) fn count_progress(&self, progress: &Progress) {
        self.prompt_tokens.fetch_add(progress.prompt_tokens as u64, Relaxed);
        self.recomputed_tokens.fetch_add(progress.recomputed_tokens as u64, Relaxed);
        self.generated_tokens.fetch_add(progress.generated_tokens as u64, Relaxed);
    }

    /// Of `tokens` the cache had `hits` in whole blocks, and `copied` more.
    pub(crate) fn count_lookup(&self, tokens: usize, hits: usize, copied: usize) {
        self.cache_queries.fetch_add(tokens as u64, Relaxed);
        self.cache_hits.fetch_add(hits as u64, Relaxed);
        self.cache_copied.fetch_add(copied as u64, Relaxed);
    }

    pub(crate) fn count_cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

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
            End::Expired => &self.expired,
            End::Stuck | End::Failed(_) => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// The engine is gone, and with it all that it held.
    pub(crate) fn clear_gauges(&self) {
        for gauge in [&self.running, &self.interrupted, &self.blocks_used, &self.blocks_cached] {
            gauge.store(0, Relaxed);
        }
    }

    /// `queued`: choices that have not run yet, which the queue knows.
    pub(crate) fn snapshot(&self, queued: u64) -> Snapshot {
        Snapshot {
            alive: self.alive.load(Relaxed),
            in_step: self.in_step.load(Relaxed),
            running: self.running.load(Relaxed),
            waiting: queued + self.interrupted.load(Relaxed),
            blocks_used: self.blocks_used.load(Relaxed),
            blocks_total: self.blocks_total.load(Relaxed),
            blocks_cached: self.blocks_cached.load(Relaxed),
            steps: self.steps.load(Relaxed),
            steps_failed: self.steps_failed.load(Relaxed),
            preempted: self.preempted.load(Relaxed),
            recomputed_tokens: self.recomputed_tokens.load(Relaxed),
            cache_queries: self.cache_queries.load(Relaxed),
            cache_hits: self.cache_hits.load(Relaxed),
            cache_copied: self.cache_copied.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            generated_tokens: self.generated_tokens.load(Relaxed),
            stopped: self.stopped.load(Relaxed),
            exhausted: self.exhausted.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            expired: self.expired.load(Relaxed),
            failed: self.failed.load(Relaxed),
            step_tokens: std::array::from_fn(|i| self.step_tokens[i].load(Relaxed)),
            step_tokens_sum: self.step_tokens_sum.load(Relaxed),
        }
    }
}
