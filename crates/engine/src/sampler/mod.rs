//! From a row of logits to one token.
//!
//! The order is fixed: stop ids masked before `min_new_tokens` → repetition, frequency and
//! presence penalties → `logit_bias` → temperature → top-k → top-p → min-p → draw. Nothing here
//! depends on what else runs: a sequence draws one number per token from a stream of its own, so a
//! token is a function of the row and of what its sampler has drawn, on any machine ([`lanes`]).
//!
//! Nothing is sorted: cuts are values found by passes over the row ([`cuts`]), and the draw walks the
//! kept tokens in the order of their ids.
mod cuts;
mod lanes;
mod logprobs;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::request::{Request, Sampling};
use cuts::{Shortlist, drawn, keep_top_p};
use lanes::{BLOCK, Softmax, cut_masses, largest, survey};
pub(crate) use logprobs::logprobs;

/// Below it a temperature is greedy: the division would leave nothing but the best token anyway.
const TEMPERATURE_MIN: f32 = 1e-5;
/// A `logit_bias` of ±this is an order, not a hint.
const BIAS_MAX: f32 = 100.0;

/// Why a sequence cannot go on. It alone ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoToken {
    #[error("the model returned logits that are not numbers; the checkpoint or its dtype may be broken")]
    NotFinite,
    #[error("no token is left to draw: logit_bias and min_new_tokens exclude all that the model allows")]
    AllMasked,
}

/// Buffers that all sequences share, one after the other.
pub(crate) struct Scratch {
    /// The row of a sequence that changes it. `[sampled_vocab]`
    adjusted: Vec<f32>,
    /// The largest logit of each block of those below `sampled_vocab`.
    maxima: Vec<f32>,
    /// What top-k leaves.
    shortlist: Shortlist,
    /// Of each logit, or of the shortlist's.
    weights: Vec<f32>,
    /// The sum of each tile of weights.
    masses: Vec<f64>,
    /// Some of the weights, as bits.
    picked: Vec<u32>,
}

impl Scratch {
    /// Room for the ids below `sampled_vocab`, which alone are ever drawn.
    pub(crate) fn new(sampled_vocab: usize) -> Self {
        Self {
            adjusted: vec![0.0; sampled_vocab],
            maxima: Vec::new(),
            shortlist: Shortlist::default(),
            weights: Vec::with_capacity(sampled_vocab),
            masses: Vec::new(),
            picked: Vec::new(),
        }
    }
}

/// The tokens of a request's prompt that its choices are to repeat less, once each.
pub(crate) fn penalised(request: &Request) -> Arc<[u32]> {
    if request.sampling.repetition_penalty == 1.0 {
        return Arc::default();
    }
    let mut ids = request.prompt.clone();
    ids.sort_unstable();
    ids.dedup();
    ids.into()
}

/// One sequence's way of drawing, and what it must remember for it.
pub(crate) struct Sampler {
    sampling: Sampling,
    stop_ids: Vec<u32>,
    min_new_tokens: usize,
    /// The prompt's tokens, once each, if the repetition penalty wants them; shared by all choices.
    prompt: Arc<[u32]>,
    /// How often each token was drawn, if a penalty wants it.
    counts: HashMap<u32, u32>,
    n_drawn: usize,
    stream: ChaCha8Rng,
}

impl Sampler {
    /// `choice`: which of the answers to one request. It draws as a request of its own would whose seed is so
    /// much more.
    pub(crate) fn new(request: &Request, choice: u64, prompt: Arc<[u32]>) -> Self {
        let sampling = request.sampling.clone();
        let seed = sampling.seed.map_or_else(rand::random, |seed| seed.wrapping_add(choice));
        let stream = ChaCha8Rng::seed_from_u64(seed);
        Self {
            stop_ids: request.stop_ids.clone(),
            min_new_tokens: request.min_new_tokens,
            prompt,
            counts: HashMap::new(),
            n_drawn: 0,
            stream,
            sampling,
        }
    }

    pub(crate) fn is_stop(&self, id: u32) -> bool {
        self.stop_ids.contains(&id)
    }

    /// The next token after the position that `row` (`[vocab_size]`) belongs to.
    pub(crate) fn draw(&mut self, row: &[f32], scratch: &mut Scratch) -> Result<u32, NoToken> {
        let (row, padding) = row.split_at(scratch.adjusted.len());
        let numbers = survey(row, &mut scratch.maxima);
        if !numbers || !padding.iter().all(|&logit| logit < f32::INFINITY) {
            return Err(NoToken::NotFinite);
        }
        let id = if self.adjusts() {
            let mut logits = std::mem::take(&mut scratch.adjusted);
            logits.copy_from_slice(row);
            self.adjust(&mut Adjusted { logits: &mut logits, maxima: &mut scratch.maxima });
            let id = self.choose(&logits, scratch);
            scratch.adjusted = logits;
            id?
        } else {
            self.choose(row, scratch)?
        };
        if self.penalises() {
            *self.counts.entry(id).or_default() += 1;
        }
        self.n_drawn += 1;
        Ok(id)
    }

    fn penalises(&self) -> bool {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        (repetition_penalty, frequency_penalty, presence_penalty) != (1.0, 0.0, 0.0)
    }

    fn adjusts(&self) -> bool {
        self.penalises() || !self.sampling.logit_bias.is_empty() || self.n_drawn < self.min_new_tokens
    }

    /// Masks, penalties and bias.
    fn adjust(&self, row: &mut Adjusted) {
        if self.n_drawn < self.min_new_tokens {
            for &id in &self.stop_ids {
                row.update(id, |_| f32::NEG_INFINITY);
            }
        }
        if self.penalises() {
            let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
            let undrawn = self.prompt.iter().filter(|id| !self.counts.contains_key(id)).map(|id| (id, &0));
            for (&id, &count) in self.counts.iter().chain(undrawn) {
                let presence = if count > 0 { presence_penalty } else { 0.0 };
                let penalty = frequency_penalty * count as f32 + presence;
                row.update(id, |logit| repelled(logit, repetition_penalty) - penalty);
            }
        }
        self.bias(row);
        row.survey_changes();
    }

    /// Adds the biases; a token forced by one leaves only its like.
    fn bias(&self, row: &mut Adjusted) {
        let biases = &self.sampling.logit_bias;
        for &(id, bias) in biases {
            row.update(id, |logit| if bias <= -BIAS_MAX { f32::NEG_INFINITY } else { logit + bias });
        }
        let forced: Vec<(u32, f32)> = biases
            .iter()
            .filter(|(_, bias)| *bias >= BIAS_MAX)
            .filter_map(|&(id, _)| Some((id, *row.logits.get(id as usize)?)))
            .filter(|(_, logit)| logit.is_finite())
            .collect();
        if !forced.is_empty() {
            row.logits.fill(f32::NEG_INFINITY);
            row.maxima.fill(f32::NEG_INFINITY);
            for (id, logit) in forced {
                row.update(id, |_| logit);
            }
        }
    }

    fn choose(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<u32, NoToken> {
        let best = largest(&scratch.maxima);
        if best == f32::NEG_INFINITY {
            return Err(NoToken::AllMasked);
        }
        if self.sampling.temperature < TEMPERATURE_MIN {
            return Ok(first(logits, &scratch.maxima, best));
        }
        let cut = self.weigh(logits, best, scratch);
        let uniform = (self.stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64; // [0, 1)
        let at = drawn(&scratch.weights, &scratch.masses, cut, uniform);
        Ok(scratch.shortlist.ids.get(at).copied().unwrap_or(at as u32))
    }

    /// Temperature and the three cuts. Leaves the ids that top-k leaves in `shortlist`, if it cuts,
    /// with their weights and masses beside it; returns the least weight that may be drawn.
    fn weigh(&self, logits: &[f32], best: f32, scratch: &mut Scratch) -> f32 {
        let Scratch { maxima, shortlist, weights, masses, picked, .. } = scratch;
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        shortlist.clear();
        let logits = if top_k > 0 && top_k < logits.len() {
            shortlist.keep_top_k(logits, maxima, top_k);
            &shortlist.logits
        } else {
            logits
        };
        weights.resize(logits.len(), 0.0);
        Softmax::new(best, temperature).weigh(logits, weights, masses);
        let mut cut = f32::MIN_POSITIVE;
        if top_p < 1.0 {
            cut = cut.max(keep_top_p(weights, masses, top_p, picked));
        }
        cut = cut.max(min_p); // the best weighs 1
        if cut > f32::MIN_POSITIVE {
            cut_masses(weights, cut, masses);
        }
        cut
    }
}

/// A row that a sequence changes before it draws.
struct Adjusted<'a> {
    logits: &'a mut [f32],
    /// Of each block; NaN where a logit changed.
    maxima: &'a mut [f32],
}

impl Adjusted<'_> {
    /// Ids beyond the sampled vocabulary are never drawn, so nothing need change there.
    fn update(&mut self, id: u32, change: impl Fn(f32) -> f32) {
        if let Some(logit) = self.logits.get_mut(id as usize) {
            *logit = change(*logit);
            self.maxima[id as usize / BLOCK] = f32::NAN;
        }
    }

    fn survey_changes(&mut self) {
        let blocks = self.logits.chunks(BLOCK).zip(&mut *self.maxima);
        for (block, max) in blocks.filter(|(_, max)| max.is_nan()) {
            *max = largest(block);
        }
    }
}

/// The repetition penalty moves a logit towards minus infinity (above 1) on either side of zero.
fn repelled(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 { (logit / penalty).min(f32::MAX) } else { logit * penalty }
}

/// The first id of the logit `best`, which is the largest of the maxima of their blocks.
fn first(logits: &[f32], maxima: &[f32], best: f32) -> u32 {
    let block = maxima.iter().position(|&max| max == best).expect("it is one of them");
    let start = block * BLOCK;
    let at = logits[start..].iter().position(|&logit| logit == best).expect("it is in this block");
    (start + at) as u32
}
