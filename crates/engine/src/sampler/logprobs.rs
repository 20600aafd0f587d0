//! Log probabilities of one row, from the model's raw logits over the whole vocabulary.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::candidates::Candidate;
use super::{NoToken, largest};
use crate::request::Logprobs;

/// Stands for minus infinity, which JSON cannot say.
const LOGPROB_MIN: f32 = -9_999.0;

/// Of the token `chosen` and of the `n` best, best first, the lower id on ties.
pub(crate) fn logprobs(row: &[f32], chosen: u32, n: usize) -> Result<Logprobs, NoToken> {
    let log_total = log_sum_exp(row)?;
    let logprob = |logit: f32| ((f64::from(logit) - log_total) as f32).max(LOGPROB_MIN);
    let chosen = row[chosen as usize];
    let rank = 1 + row.iter().filter(|&&logit| logit > chosen).count() as u32;
    let top = best(row, n).into_iter().map(|token| (token.id(), logprob(token.value()))).collect();
    Ok(Logprobs { chosen: logprob(chosen), rank, top })
}

/// Exponentials in f32, their sum in f64: 100,000 small terms would drown in an f32.
fn log_sum_exp(row: &[f32]) -> Result<f64, NoToken> {
    let max = largest(row);
    let sum: f64 = row.iter().map(|logit| f64::from((logit - max).exp())).sum();
    let log_total = f64::from(max) + sum.ln();
    if log_total.is_finite() { Ok(log_total) } else { Err(NoToken::NotFinite) }
}

/// The `n` best in one pass over the row.
fn best(row: &[f32], n: usize) -> Vec<Candidate> {
    let mut kept = BinaryHeap::with_capacity(n.min(row.len())); // the worst of the kept on top
    for (id, &value) in (0..).zip(row) {
        let candidate = Reverse(Candidate::new(value, id));
        if kept.len() < n {
            kept.push(candidate);
        } else if let Some(mut worst) = kept.peek_mut()
            && candidate < *worst
        {
            *worst = candidate;
        }
    }
    kept.into_sorted_vec().into_iter().map(|Reverse(candidate)| candidate).collect()
}
