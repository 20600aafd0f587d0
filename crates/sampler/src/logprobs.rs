//! Log probabilities of one row, from the model's raw logits over the whole vocabulary.

use crate::NoToken;
use crate::cuts::Shortlist;
use crate::lanes::{Softmax, largest, survey};

/// Log probabilities at one position, from the softmax of the model's raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the token that stands at the position.
    pub chosen: f32,
    /// Tokens with a larger logit, plus one.
    pub rank: u32,
    /// The best tokens, best first, `(id, log probability)`.
    pub top: Vec<(u32, f32)>,
}

/// Stands for minus infinity, which JSON cannot say.
const LOGPROB_MIN: f32 = -9_999.0;

/// Of the token `chosen` and of the `n` best, best first, the lower id on ties.
pub fn logprobs(row: &[f32], chosen: u32, n: usize) -> Result<Logprobs, NoToken> {
    let mut maxima = Vec::new();
    let numbers = survey(row, &mut maxima);
    let max = largest(&maxima);
    if !numbers || max == f32::NEG_INFINITY {
        return Err(NoToken::NotFinite);
    }
    let chosen = row[chosen as usize];
    let (mass, above) = Softmax::new(max, 1.0).mass_and_rank(row, chosen);
    let log_total = f64::from(max) + mass.ln();
    let logprob = |logit: f32| ((f64::from(logit) - log_total) as f32).max(LOGPROB_MIN);
    let top = best(row, &maxima, n).into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
    Ok(Logprobs { chosen: logprob(chosen), rank: above + 1, top })
}

fn best(row: &[f32], maxima: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut list = Shortlist::default();
    list.keep_top_k(row, maxima, n);
    let mut top: Vec<(u32, f32)> = list.ids.into_iter().zip(list.logits).collect();
    top.sort_by(|a, b| (b.1 + 0.0).total_cmp(&(a.1 + 0.0))); // stable, by ids so far; +0.0: -0 equals 0
    top
}
