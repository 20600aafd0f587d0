use super::{check_len, check_view};
use crate::backend::{Backend, View};
use crate::error::{Result, require};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// DeepSeek-V2: softmax over all experts; a group scores by its best expert.
    Softmax,
    /// DeepSeek-V3: sigmoid; the correction bias joins in choosing, not in weighing; a group scores
    /// by the sum of its best two.
    Sigmoid,
}

/// How experts are chosen and weighed. V2: arXiv 2405.04434 §2.2; V3: arXiv 2412.19437 §2.1.2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouteRule {
    pub n_experts: usize,
    pub top_k: usize,
    pub scoring: Scoring,
    /// Experts `g * n / groups..` form group g; only the best `top_groups` may be chosen from.
    pub n_groups: usize,
    pub top_groups: usize,
    /// Divide the chosen weights by their sum (+ 1e-20).
    pub normalise: bool,
    /// Multiplies the weights, after that.
    pub scale: f32,
}

/// `ids, weights = rule(W x[t])`, best first, in f32 throughout.
///
/// GPU: one launch (GEMV a token, scoring, group limit, top-k), captured; reads
/// experts · hidden · 4 + T · hidden · 4.
pub struct Route<'a, B: Backend> {
    /// `[tokens, hidden]`
    pub x: View<'a, B>,
    /// `[1, experts, hidden]`, f32
    pub weight: &'a B::Weight,
    /// `[experts]`, for [`Scoring::Sigmoid`] only
    pub bias: Option<&'a B::Buffer>,
    pub rule: RouteRule,
    /// `[tokens, top_k]`
    pub ids: &'a mut B::Indices,
    /// `[tokens, top_k]`
    pub weights: &'a mut B::Buffer,
}

impl<B: Backend> Route<'_, B> {
    /// Returns `hidden`.
    pub(crate) fn check(&self, tokens: usize) -> Result<usize> {
        let rule = &self.rule;
        let [stack, experts, hidden] = B::weight_shape(self.weight);
        let in_chosen_groups = rule.n_experts.checked_div(rule.n_groups).unwrap_or(0) * rule.top_groups;
        let sound = stack == 1
            && experts == rule.n_experts
            && rule.n_groups > 0
            && rule.n_experts.is_multiple_of(rule.n_groups)
            && (1..=rule.n_groups).contains(&rule.top_groups)
            && (1..=in_chosen_groups).contains(&rule.top_k);
        require(sound, "route", || format!("{rule:?} with {experts} experts"))?;
        require(self.bias.is_none_or(|b| B::buffer_len(b) == experts), "route", || "bias".into())?;
        check_view("route", "x", &self.x, tokens, hidden)?;
        check_len::<B>("route", "weights", self.weights, tokens, rule.top_k)?;
        let ids = B::indices_len(self.ids);
        require(tokens * rule.top_k <= ids, "route", || format!("{ids} ids"))?;
        Ok(hidden)
    }
}

/// Scratch of [`reference`], so that a step allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct RouteScratch {
    /// `[experts]` what the choice is made by
    choice: Vec<f32>,
    /// `[groups]`
    groups: Vec<f32>,
}

impl RouteScratch {
    pub(crate) fn new(n_experts: usize) -> Self {
        Self { choice: Vec::with_capacity(n_experts), groups: Vec::with_capacity(n_experts) }
    }
}

/// One token. `logits` (`[experts]`) become scores in place; `ids` and `weights` are `[top_k]`.
///
/// The fast backends call this too: a few hundred numbers a token are nobody's bottleneck.
pub(crate) fn reference(
    logits: &mut [f32],
    bias: Option<&[f32]>,
    rule: &RouteRule,
    scratch: &mut RouteScratch,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    match rule.scoring {
        Scoring::Sigmoid => logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = logits.iter().sum();
            logits.iter_mut().for_each(|x| *x /= sum);
        }
    }
    let scores = &*logits;
    let RouteScratch { choice, groups } = scratch;
    choice.clear();
    choice.extend(scores.iter().enumerate().map(|(e, s)| s + bias.map_or(0.0, |b| b[e])));
    if rule.n_groups > 1 {
        let size = rule.n_experts / rule.n_groups;
        groups.clear();
        groups.extend(choice.chunks(size).map(|group| match rule.scoring {
            Scoring::Softmax => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            Scoring::Sigmoid => sum_of_best_two(group),
        }));
        // Softmax scores are positive, so that masking with 0 (as V2 does) or -inf chooses alike.
        let keep = rule.top_groups;
        for g in 0..rule.n_groups {
            if rank(groups, g) >= keep {
                choice[g * size..(g + 1) * size].fill(f32::NEG_INFINITY);
            }
        }
    }
    let mut sum = 0.0;
    for (id, weight) in ids.iter_mut().zip(weights.iter_mut()) {
        let best = largest(choice);
        *id = best as u32;
        *weight = scores[best];
        sum += scores[best];
        choice[best] = f32::NEG_INFINITY;
    }
    let factor = if rule.normalise { rule.scale / (sum + 1e-20) } else { rule.scale };
    weights.iter_mut().for_each(|w| *w *= factor);
}

/// Index of the largest value that is not taken; the lowest on ties. NaN counts as smallest.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &v) in values.iter().enumerate() {
        if v > values[best] || (values[best].is_nan() && !v.is_nan()) {
            best = i;
        }
    }
    best
}

/// How many groups are better than group `g`; on ties the lower index is.
fn rank(scores: &[f32], g: usize) -> usize {
    scores.iter().enumerate().filter(|&(i, &s)| s > scores[g] || (s == scores[g] && i < g)).count()
}

fn sum_of_best_two(group: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &x in group {
        if x > first {
            second = first;
            first = x;
        } else if x > second {
            second = x;
        }
    }
    if group.len() < 2 { first } else { first + second }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: RouteRule, scores: &[f32], bias: Option<&[f32]>, ids: &[u32], weights: &[f32]) {
        // Logits whose sigmoid (softmax) is `scores`.
        let mut logits: Vec<f32> = match rule.scoring {
            Scoring::Sigmoid => scores.iter().map(|s| (s / (1.0 - s)).ln()).collect(),
            Scoring::Softmax => scores.iter().map(|s| s.ln()).collect(),
        };
        let (mut got, mut w) = (vec![0; rule.top_k], vec![0.0; rule.top_k]);
        reference(&mut logits, bias, &rule, &mut RouteScratch::default(), &mut got, &mut w);
        assert_eq!(got, ids);
        for (a, b) in w.iter().zip(weights) {
            assert!((a - b).abs() < 1e-5, "{w:?} is not {weights:?}");
        }
    }

    const RULE: RouteRule = RouteRule {
        n_experts: 4,
        top_k: 2,
        scoring: Scoring::Sigmoid,
        n_groups: 1,
        top_groups: 1,
        normalise: true,
        scale: 2.0,
    };

    #[test]
    fn bias_chooses_but_does_not_weigh() {
        check(RULE, &[0.6, 0.2, 0.3, 0.1], Some(&[0.0, 0.5, 0.0, 0.0]), &[1, 0], &[0.5, 1.5]);
    }

    #[test]
    fn sigmoid_groups_score_by_their_best_two() {
        let rule = RouteRule { n_groups: 2, normalise: false, scale: 1.0, ..RULE };
        check(rule, &[0.9, 0.1, 0.6, 0.5], None, &[2, 3], &[0.6, 0.5]);
        // Biased scores may be negative: the other group must stay out all the same.
        check(rule, &[0.9, 0.1, 0.6, 0.5], Some(&[-2.0, -2.0, -2.0, -2.0]), &[2, 3], &[0.6, 0.5]);
    }

    #[test]
    fn softmax_groups_score_by_their_best() {
        let rule =
            RouteRule { scoring: Scoring::Softmax, n_groups: 2, normalise: false, scale: 16.0, ..RULE };
        check(rule, &[0.4, 0.05, 0.3, 0.25], None, &[0, 1], &[6.4, 0.8]);
    }

    #[test]
    fn ties_and_nan_give_valid_experts() {
        check(RULE, &[0.5, 0.5, 0.5, 0.5], None, &[0, 1], &[1.0, 1.0]);
        let (mut ids, mut weights) = ([9; 2], [0.0; 2]);
        reference(&mut [f32::NAN; 4], None, &RULE, &mut RouteScratch::default(), &mut ids, &mut weights);
        assert!(ids.iter().all(|&id| id < 4));
    }
}
