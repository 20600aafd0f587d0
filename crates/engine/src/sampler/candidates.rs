//! Cutting a vocabulary down without sorting it.

use std::cmp::Ordering;

/// A token with its logit, later its weight. Ordered from worse to better: a larger value is
/// better, the lower id on ties. Values are never NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) value: f32,
    pub(super) id: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.partial_cmp(&other.value).unwrap_or(Ordering::Equal).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Moves the `n` best to the front, in no order.
fn select(candidates: &mut [Candidate], n: usize) {
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n, |a, b| b.cmp(a));
    }
}

fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.value)).sum()
}

/// Keeps exactly the `k` best, or all where there are fewer.
pub(super) fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    select(candidates, k);
    candidates.truncate(k);
}

/// Keeps the smallest set of best candidates whose weights reach the share `p` of all, at least
/// one. Halves the undecided range each time, so the work is linear in the candidates.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    // A decimal like 0.3 is a little more as f32: without the slack, 3 of 10 equal tokens miss it.
    let needed = f64::from(p) * mass(candidates) * (1.0 - f64::from(f32::EPSILON));
    // The best `short` weigh `short_mass`, too little; the best `enough` are enough.
    let (mut short, mut short_mass, mut enough) = (0, 0.0, candidates.len());
    while enough - short > 1 {
        let middle = short + (enough - short) / 2;
        select(&mut candidates[short..enough], middle - short);
        let middle_mass = short_mass + mass(&candidates[short..middle]);
        if middle_mass >= needed {
            enough = middle;
        } else {
            (short, short_mass) = (middle, middle_mass);
        }
    }
    candidates.truncate(enough);
}

/// The candidate at the share `uniform`, in [0, 1), of the way through the weights.
pub(super) fn drawn(candidates: &[Candidate], uniform: f64) -> u32 {
    let mut left = uniform * mass(candidates);
    let mut last = candidates[0].id;
    for candidate in candidates.iter().filter(|candidate| candidate.value > 0.0) {
        last = candidate.id;
        left -= f64::from(candidate.value);
        if left < 0.0 {
            break;
        }
    }
    last // rounding may use up the weights a hair too early
}
