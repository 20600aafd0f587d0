//! The same by sorting, plainly: what the sampler and a device's kernel must come to.

use crate::lanes::Softmax;
use crate::{Draw, Drawn, Draws, NoToken, biased, penalised};

/// What draw `at` of `draws` comes to in a row of logits, `[vocab_size]`. `before`: what came of the draws of the step
/// before.
pub fn reference(draws: &Draws, at: usize, row: &[f32], before: &[Drawn]) -> Drawn {
    let draw = &draws.draws[at];
    if !row.iter().all(|&logit| logit < f32::INFINITY) {
        return Err(NoToken::NotFinite);
    }
    let row = adjusted(draws, draw, &row[..draws.sampled_vocab], before);
    let ids = sorted(&row);
    if row[ids[0]] == f32::NEG_INFINITY {
        return Err(NoToken::AllMasked);
    }
    if draw.is_greedy() {
        return Ok(ids[0] as u32);
    }
    let weights = kept(draw, &row);
    let mut left = draw.uniform * mass(&weights);
    let at = weights.iter().position(|&weight| {
        left -= f64::from(weight);
        left < 0.0
    });
    let last = weights.iter().rposition(|&weight| weight > 0.0);
    Ok(at.or(last).expect("the best weighs 1") as u32)
}

/// Logits after masks, penalties and bias.
pub(crate) fn adjusted(draws: &Draws, draw: &Draw, row: &[f32], before: &[Drawn]) -> Vec<f32> {
    let mut row = row.to_vec();
    let after = draw.after.and_then(|after| before[after as usize].ok());
    let counts = &draws.counts[draw.counts.clone()];
    let biases = &draws.biases[draw.biases.clone()];
    for (id, logit) in (0u32..).zip(&mut row) {
        let masked = draw.mask.is_some_and(|at| draws.masks[at + id as usize / 32] >> (id % 32) & 1 == 0);
        if masked || draws.banned[draw.banned.clone()].contains(&id) {
            *logit = f32::NEG_INFINITY;
        }
        let listed = counts.iter().find(|(other, _)| *other == id).map(|&(_, count)| count);
        let count = if after == Some(id) { Some(listed.unwrap_or(0) + 1) } else { listed };
        if let Some(count) = count.filter(|_| draw.penalises()) {
            *logit = penalised(*logit, draw, count);
        }
        if let Some(&(_, bias)) = biases.iter().find(|(other, _)| *other == id) {
            *logit = biased(*logit, bias);
        }
    }
    let forces =
        |id: usize| biases.iter().any(|&(other, bias)| other as usize == id && bias >= crate::BIAS_MAX);
    if (0..row.len()).any(|id| forces(id) && row[id].is_finite()) {
        (0..row.len()).filter(|&id| !forces(id)).for_each(|id| row[id] = f32::NEG_INFINITY);
    }
    row
}

/// What each token weighs after the cuts.
pub(crate) fn kept(draw: &Draw, row: &[f32]) -> Vec<f32> {
    let ids = sorted(row);
    let softmax = Softmax::new(row[ids[0]], draw.temperature);
    let mut weights = vec![0.0; row.len()];
    for &id in ids.iter().take(if draw.top_k == 0 { ids.len() } else { draw.top_k }) {
        weights[id] = softmax.weight(row[id]);
    }
    if draw.top_p < 1.0 {
        let needed = mass(&weights) * f64::from(draw.top_p) * (1.0 - f64::from(f32::EPSILON));
        let mut reached = 0.0;
        for id in sorted(&weights) {
            let weight = std::mem::take(&mut weights[id]);
            if reached < needed {
                weights[id] = weight;
            }
            reached += f64::from(weight);
        }
    }
    weights.iter_mut().filter(|weight| **weight < draw.min_p).for_each(|weight| *weight = 0.0);
    weights
}

/// Ids from the largest value down, the lowest id first on ties.
pub(crate) fn sorted(row: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).expect("numbers"));
    ids
}

pub(crate) fn mass(weights: &[f32]) -> f64 {
    weights.iter().copied().map(f64::from).sum()
}
