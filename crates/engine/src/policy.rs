//! The scheduler's values, chosen by simulation: see `docs/scheduling.md`.

/// What could be otherwise; `examples/simulate` shows what it does to latencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Prompt tokens computed in a step beside answers; at least a prefill unit in any case.
    pub prompt_tokens_beside_answers: usize,
    /// Pairs of such a token and one before it, beyond whole units: at a depth it is attention that takes long.
    pub prompt_pairs_beside_answers: usize,
    /// Of several prompts the shortest is read first in so many steps; in the next it is the one that was passed
    /// over longest. 0: all in order of rank.
    pub passed_over_max: usize,
    /// Tokens that each sequence must find room to grow by, or to its end, when one joins others.
    pub spare_tokens: usize,
    /// A prompt that begins with what another computes just now waits to find it in the cache.
    pub await_prefixes: bool,
    /// Younger requests that may be admitted before a waiting one.
    pub overtaken_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            prompt_tokens_beside_answers: 256,
            prompt_pairs_beside_answers: 1 << 18,
            passed_over_max: 8,
            spare_tokens: 256,
            await_prefixes: true,
            overtaken_max: 64,
        }
    }
}
