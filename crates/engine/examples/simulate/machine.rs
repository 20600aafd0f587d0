//! A model that answers at once and says how long it would have taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use engine::runner::{Batch, Draws, Fault, Limits, ModelRunner, Outcome};

/// Tokens are bytes, and the model always says 0.
pub(crate) const VOCAB_SIZE: usize = 256;
const BLOCK_LEN: usize = 64;
const PREFILL_UNIT: usize = 256;

/// Milliseconds of a step without attention, by its tokens: weights, of which more experts are read the
/// more tokens there are, until arithmetic takes longer than reading. `strait bench` on 2 cores, with the
/// 0.74 B checkpoint of scripts/random_checkpoint.py in bf16.
const STEP_MS: [(f64, f64); 6] =
    [(1.0, 10.1), (4.0, 17.2), (16.0, 32.0), (64.0, 62.0), (256.0, 135.0), (512.0, 250.0)];
/// Milliseconds a pair of query and key in all layers, in latent space and expanded: the same runs at a
/// depth of 8,192, and with prompts of 4,096 tokens.
const LATENT_PAIR_MS: f64 = 1.15e-3;
const EXPANDED_PAIR_MS: f64 = 0.30e-3;

pub(crate) struct Machine {
    limits: Limits,
    clock: Arc<AtomicU64>,
    n_draws: usize,
}

impl Machine {
    pub(crate) fn new(pool_tokens: usize) -> Self {
        let limits = Limits {
            vocab_size: VOCAB_SIZE,
            context_len: 32_768.min(pool_tokens),
            block_len: BLOCK_LEN,
            n_blocks: pool_tokens / BLOCK_LEN + 1,
            step_tokens: 512,
            step_rows: 64,
            step_outputs: 512,
            prefill_unit: PREFILL_UNIT,
        };
        Self { limits, clock: Arc::default(), n_draws: 0 }
    }

    /// Nanoseconds that steps have taken, and whatever is added.
    pub(crate) fn clock(&self) -> Arc<AtomicU64> {
        self.clock.clone()
    }
}

impl ModelRunner for Machine {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn launch(&mut self, batch: &mut Batch, _: &mut dyn FnMut(&mut Draws)) -> Result<(), Fault> {
        let attention_ms: f64 = batch.row_start.windows(2).zip(&batch.kv_len).map(row_ms).sum();
        let ms = step_ms(batch.n_tokens() as f64) + attention_ms;
        self.clock.fetch_add(Duration::from_secs_f64(ms / 1e3).as_nanos() as u64, Relaxed);
        assert!(batch.reads.is_empty(), "nobody asks for log probabilities");
        self.n_draws = batch.draws.len();
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        outcome.drawn.clear();
        outcome.drawn.resize(self.n_draws, Ok(0));
        Ok(())
    }
}

/// Attention of one row: its tokens against all before them.
fn row_ms((bounds, kv_len): (&[u32], &u32)) -> f64 {
    let n = f64::from(bounds[1] - bounds[0]);
    let pairs = n * (f64::from(*kv_len) - n / 2.0);
    pairs * if n >= PREFILL_UNIT as f64 { EXPANDED_PAIR_MS } else { LATENT_PAIR_MS }
}

/// Interpolated between the measured points, and in proportion beyond the last.
fn step_ms(tokens: f64) -> f64 {
    let last = STEP_MS[STEP_MS.len() - 1];
    let at = STEP_MS.windows(2).find(|pair| tokens <= pair[1].0);
    at.map_or(last.1 * tokens / last.0, |pair| {
        let [(n0, ms0), (n1, ms1)] = [pair[0], pair[1]];
        ms0 + (ms1 - ms0) * (tokens - n0) / (n1 - n0)
    })
}
