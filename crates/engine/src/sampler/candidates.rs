//! Cutting a vocabulary down without sorting it.

use std::cmp::Reverse;

/// A token with its logit, later its weight. Ordered from worse to better: a larger value is
/// better, the lower id on ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(i64);

impl Candidate {
    /// `value` is not NaN.
    pub(super) fn new(value: f32, id: u32) -> Self {
        // The bits of a float order like an integer, once those below zero are turned round;
        // adding zero makes -0 the equal of 0. Integers compare several times faster.
        let bits = (value + 0.0).to_bits() as i32;
        let order = bits ^ (((bits >> 31) as u32) >> 1) as i32;
        Self(i64::from(order) << 32 | i64::from(!id))
    }

    pub(super) fn value(self) -> f32 {
        let order = (self.0 >> 32) as i32;
        f32::from_bits((order ^ (((order >> 31) as u32) >> 1) as i32) as u32)
    }

    pub(super) fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

/// Moves the `n` best to the front, in no order.
fn select(candidates: &mut [Candidate], n: usize) {
    if n < candidates.len() {
        candidates.select_nth_unstable_by_key(n, |&candidate| Reverse(candidate));
    }
}

fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.value())).sum()
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
    let mut last = candidates[0].id();
    for candidate in candidates.iter().filter(|candidate| candidate.value() > 0.0) {
        last = candidate.id();
        left -= f64::from(candidate.value());
        if left < 0.0 {
            break;
        }
    }
    last // rounding may use up the weights a hair too early
}
