//! From a row of logits to one token.
//!
//! The order is fixed: stop ids masked before `min_new_tokens` → repetition, frequency and
//! presence penalties → `logit_bias` → temperature → top-k → top-p → min-p → draw. Nothing here
//! depends on what else runs: a sequence draws one number per token from a stream of its own.
mod candidates;
mod logprobs;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::request::{Request, Sampling};
use candidates::{Candidate, drawn, keep_top_k, keep_top_p};
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
    /// `[sampled_vocab]`
    logits: Vec<f32>,
    /// capacity `sampled_vocab`
    candidates: Vec<Candidate>,
}

impl Scratch {
    /// Room for the ids below `sampled_vocab`, which alone are ever drawn.
    pub(crate) fn new(sampled_vocab: usize) -> Self {
        Self { logits: vec![0.0; sampled_vocab], candidates: Vec::with_capacity(sampled_vocab) }
    }
}

/// One sequence's way of drawing, and what it must remember for it.
pub(crate) struct Sampler {
    sampling: Sampling,
    stop_ids: Vec<u32>,
    min_new_tokens: usize,
    /// Distinct prompt tokens, if the repetition penalty wants them.
    prompt: HashSet<u32>,
    /// How often each token was drawn.
    counts: HashMap<u32, u32>,
    n_drawn: usize,
    stream: ChaCha8Rng,
}

impl Sampler {
    pub(crate) fn new(request: &Request, choice: u64) -> Self {
        let sampling = request.sampling.clone();
        let mut stream = ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or_else(rand::random));
        stream.set_stream(choice);
        let prompt = if sampling.repetition_penalty == 1.0 { &[][..] } else { &request.prompt };
        Self {
            stop_ids: request.stop_ids.clone(),
            min_new_tokens: request.min_new_tokens,
            prompt: prompt.iter().copied().collect(),
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
        if row.iter().fold(false, |bad, &logit| bad | logit.is_nan() | (logit == f32::INFINITY)) {
            return Err(NoToken::NotFinite);
        }
        let Scratch { logits, candidates } = scratch;
        let sampled_vocab = logits.len();
        logits.copy_from_slice(&row[..sampled_vocab]);
        self.adjust(logits);
        let best = greedy(logits).ok_or(NoToken::AllMasked)?;
        let id = if self.sampling.temperature < TEMPERATURE_MIN {
            best.id()
        } else {
            candidates.clear();
            candidates.extend(
                (0..)
                    .zip(&*logits)
                    .filter(|(_, logit)| logit.is_finite())
                    .map(|(id, &logit)| Candidate::new(logit, id)),
            );
            self.choose(best.value(), candidates)
        };
        *self.counts.entry(id).or_default() += 1;
        self.n_drawn += 1;
        Ok(id)
    }

    /// Masks, penalties and bias.
    fn adjust(&self, logits: &mut [f32]) {
        if self.n_drawn < self.min_new_tokens {
            for &id in &self.stop_ids {
                update(logits, id, |_| f32::NEG_INFINITY);
            }
        }
        let sampling = &self.sampling;
        if sampling.repetition_penalty != 1.0 {
            let drawn_only = self.counts.keys().filter(|id| !self.prompt.contains(id));
            for &id in self.prompt.iter().chain(drawn_only) {
                update(logits, id, |l| repelled(l, sampling.repetition_penalty));
            }
        }
        if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
            for (&id, &count) in &self.counts {
                let penalty = sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
                update(logits, id, |l| l - penalty);
            }
        }
        self.bias(logits);
    }

    /// Adds the biases; a token forced by one leaves only its like.
    fn bias(&self, logits: &mut [f32]) {
        let biases = &self.sampling.logit_bias;
        for &(id, bias) in biases {
            update(logits, id, |l| if bias <= -BIAS_MAX { f32::NEG_INFINITY } else { l + bias });
        }
        let forced: Vec<(u32, f32)> = biases
            .iter()
            .filter(|(_, bias)| *bias >= BIAS_MAX)
            .filter_map(|&(id, _)| Some((id, *logits.get(id as usize)?)))
            .filter(|(_, logit)| logit.is_finite())
            .collect();
        if !forced.is_empty() {
            logits.fill(f32::NEG_INFINITY);
            for (id, logit) in forced {
                logits[id as usize] = logit;
            }
        }
    }

    /// Temperature, the three cuts, and the draw. `best` is the largest of the candidates' values.
    fn choose(&mut self, best: f32, candidates: &mut Vec<Candidate>) -> u32 {
        let sampling = &self.sampling;
        if sampling.top_k > 0 {
            keep_top_k(candidates, sampling.top_k);
        }
        for candidate in &mut *candidates {
            let weight = ((candidate.value() - best) / sampling.temperature).exp();
            *candidate = Candidate::new(weight, candidate.id());
        }
        if sampling.top_p < 1.0 {
            keep_top_p(candidates, sampling.top_p);
        }
        if sampling.min_p > 0.0 {
            candidates.retain(|candidate| candidate.value() >= sampling.min_p); // the best weighs 1
        }
        let uniform = (self.stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64; // [0, 1)
        drawn(candidates, uniform)
    }
}

/// Ids beyond the sampled vocabulary are never drawn, so nothing need change there.
fn update(logits: &mut [f32], id: u32, change: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = change(*logit);
    }
}

/// The repetition penalty moves a logit towards minus infinity (above 1) on either side of zero.
fn repelled(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 { (logit / penalty).min(f32::MAX) } else { logit * penalty }
}

/// The largest logit, the lowest id on ties; `None` if all are masked.
fn greedy(logits: &[f32]) -> Option<Candidate> {
    let value = largest(logits);
    let id = logits.iter().position(|&logit| logit == value)?;
    value.is_finite().then_some(Candidate::new(value, id as u32))
}

/// In lanes that do not wait for each other, so that it runs at the speed of memory.
fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}
