//! From a row of logits to one token.
//!
//! The order is fixed: banned ids and those outside the mask leave → repetition, frequency and presence penalties →
//! bias → temperature → top-k → top-p → min-p → draw. A token is a function of the row, of its [`Draw`], and of the one
//! token before that the draw may name, on any machine ([`lanes`]).
//!
//! Nothing is sorted: cuts are values found by passes over the row ([`cuts`]), and the draw walks the
//! kept tokens in the order of their ids.
mod cuts;
mod draws;
mod lanes;
mod logprobs;
mod reference;
#[cfg(test)]
mod tests;

use cuts::{Shortlist, drawn, keep_top_p};
pub use draws::{DRAWN, Draw, Draws, mask_words};
use lanes::{BLOCK, Softmax, cut_masses, largest, survey};
pub use logprobs::{Logprobs, logprobs};
pub use reference::reference;

/// Below it a temperature is greedy: the division would leave nothing but the best token anyway.
pub const TEMPERATURE_MIN: f32 = 1e-5;
/// A bias of ±this is an order, not a hint.
pub const BIAS_MAX: f32 = 100.0;

/// Why nothing can be drawn from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    #[error("the model returned logits that are not numbers; the checkpoint or its dtype may be broken")]
    NotFinite,
    #[error("no token is left to draw: biases, masks and min_new_tokens exclude all that the model allows")]
    AllMasked,
}

/// What came of a draw.
pub type Drawn = Result<u32, NoToken>;

/// Buffers that all draws share, one after the other. They grow to what the first draws need.
#[derive(Default)]
pub struct Scratch {
    /// The row of a draw that changes it. `[sampled_vocab]`
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

/// What draw `at` of `draws` comes to in a row of logits, `[vocab_size]`. `before`: what came of the draws of the step
/// before.
pub fn draw(draws: &Draws, at: usize, row: &[f32], before: &[Drawn], scratch: &mut Scratch) -> Drawn {
    Row { draws, draw: &draws.draws[at], before }.draw(row, scratch)
}

/// [`draw`] for all draws of a step, one after the other, from its logits, `[outputs, vocab_size]`, into `drawn`.
pub fn draw_all(
    draws: &Draws,
    logits: &[f32],
    vocab_size: usize,
    before: &[Drawn],
    scratch: &mut Scratch,
    drawn: &mut Vec<Drawn>,
) {
    let row = |at: usize| &logits[draws.draws[at].output as usize * vocab_size..][..vocab_size];
    drawn.clear();
    drawn.extend((0..draws.len()).map(|at| draw(draws, at, row(at), before, scratch)));
}

/// One draw, and what it refers to.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    draws: &'a Draws,
    draw: &'a Draw,
    before: &'a [Drawn],
}

impl Row<'_> {
    /// The next token after the position that `row` (`[vocab_size]`) belongs to.
    fn draw(self, row: &[f32], scratch: &mut Scratch) -> Drawn {
        let (row, padding) = row.split_at(self.draws.sampled_vocab);
        let numbers = survey(row, &mut scratch.maxima);
        if !numbers || !padding.iter().all(|&logit| logit < f32::INFINITY) {
            return Err(NoToken::NotFinite);
        }
        if !self.draw.adjusts() {
            return self.choose(row, scratch);
        }
        let mut logits = std::mem::take(&mut scratch.adjusted);
        logits.clear();
        logits.extend_from_slice(row);
        self.adjust(&mut Adjusted { logits: &mut logits, maxima: &mut scratch.maxima });
        let id = self.choose(&logits, scratch);
        scratch.adjusted = logits;
        id
    }

    /// The token that the list of counts does not know yet.
    fn after(self) -> Option<u32> {
        self.draw.after.and_then(|after| self.before[after as usize].ok())
    }

    /// `(id, times drawn)` of all that the penalties concern.
    fn counts(self) -> impl Iterator<Item = (u32, u32)> {
        let listed = &self.draws.counts[self.draw.counts.clone()];
        let after = self.after();
        let unlisted = after.filter(|id| listed.iter().all(|(other, _)| other != id));
        let counted = move |&(id, count): &(u32, u32)| (id, count + u32::from(after == Some(id)));
        listed.iter().map(counted).chain(unlisted.map(|id| (id, 1)))
    }

    /// Masks, penalties and bias.
    fn adjust(self, row: &mut Adjusted<'_>) {
        let Self { draws, draw, .. } = self;
        if let Some(mask) = draw.mask {
            row.mask(&draws.masks[mask..]);
        }
        for &id in &draws.banned[draw.banned.clone()] {
            row.update(id, |_| f32::NEG_INFINITY);
        }
        if draw.penalises() {
            for (id, count) in self.counts() {
                row.update(id, |logit| penalised(logit, draw, count));
            }
        }
        row.bias(&draws.biases[draw.biases.clone()]);
        row.survey_changes();
    }

    fn choose(self, logits: &[f32], scratch: &mut Scratch) -> Drawn {
        let best = largest(&scratch.maxima);
        if best == f32::NEG_INFINITY {
            return Err(NoToken::AllMasked);
        }
        if self.draw.is_greedy() {
            return Ok(first(logits, &scratch.maxima, best));
        }
        let cut = self.draw.weigh(logits, best, scratch);
        let at = drawn(&scratch.weights, &scratch.masses, cut, self.draw.uniform);
        Ok(scratch.shortlist.ids.get(at).copied().unwrap_or(at as u32))
    }
}

impl Draw {
    /// Temperature and the three cuts. Leaves the ids that top-k leaves in `shortlist`, if it cuts,
    /// with their weights and masses beside it; returns the least weight that may be drawn.
    fn weigh(&self, logits: &[f32], best: f32, scratch: &mut Scratch) -> f32 {
        let Scratch { maxima, shortlist, weights, masses, picked, .. } = scratch;
        let Self { temperature, top_k, top_p, min_p, .. } = *self;
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

/// A row that a draw changes before it draws.
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

    /// Leaves the ids whose bit is set.
    fn mask(&mut self, words: &[u32]) {
        for (logits, word) in self.logits.chunks_mut(32).zip(words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
            }
        }
        self.maxima.fill(f32::NAN);
    }

    /// Adds the biases; a token forced by one leaves only its like.
    fn bias(&mut self, biases: &[(u32, f32)]) {
        for &(id, bias) in biases {
            self.update(id, |logit| biased(logit, bias));
        }
        let forced: Vec<(u32, f32)> = biases
            .iter()
            .filter(|(_, bias)| *bias >= BIAS_MAX)
            .filter_map(|&(id, _)| Some((id, *self.logits.get(id as usize)?)))
            .filter(|(_, logit)| logit.is_finite())
            .collect();
        if !forced.is_empty() {
            self.logits.fill(f32::NEG_INFINITY);
            self.maxima.fill(f32::NEG_INFINITY);
            for (id, logit) in forced {
                self.update(id, |_| logit);
            }
        }
    }

    fn survey_changes(&mut self) {
        let blocks = self.logits.chunks(BLOCK).zip(&mut *self.maxima);
        for (block, max) in blocks.filter(|(_, max)| max.is_nan()) {
            *max = largest(block);
        }
    }
}

fn biased(logit: f32, bias: f32) -> f32 {
    if bias <= -BIAS_MAX { f32::NEG_INFINITY } else { logit + bias }
}

/// A logit of a token that was drawn `count` times, or only read in the prompt.
fn penalised(logit: f32, draw: &Draw, count: u32) -> f32 {
    let presence = if count > 0 { draw.presence_penalty } else { 0.0 };
    let penalty = draw.frequency_penalty * count as f32 + presence;
    repelled(logit, draw.repetition_penalty) - penalty
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
