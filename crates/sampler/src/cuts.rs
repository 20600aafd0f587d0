//! Cutting a vocabulary down without sorting it. A cut is a value: what is larger stays, what is
//! smaller goes, and of the equal ones the lowest ids stay.

use super::lanes::{BLOCK, TILE, each_within, mass_from};

/// The best logits of a row with their ids, in the order of the ids.
#[derive(Default)]
pub(super) struct Shortlist {
    pub(super) ids: Vec<u32>,
    pub(super) logits: Vec<f32>,
    order: Vec<i32>,
}

impl Shortlist {
    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.logits.clear();
    }

    /// Keeps exactly the `k` best, or all where there are fewer. `maxima` are those of the blocks
    /// of `logits`.
    pub(super) fn keep_top_k(&mut self, logits: &[f32], maxima: &[f32], k: usize) {
        self.clear();
        if k == 0 {
            return;
        }
        // At least k logits are as large as the k-th of the maxima, and in most rows few more. As
        // large as the least of the maxima are many times their number; should k be more still, all.
        let floor = self.kth(maxima, k.min(maxima.len()));
        self.gather(logits, maxima, floor);
        if self.ids.len() < k.min(logits.len()) {
            self.clear();
            self.gather(logits, maxima, f32::NEG_INFINITY);
        }
        if self.ids.len() > k {
            self.shorten(k);
        }
    }

    fn gather(&mut self, logits: &[f32], maxima: &[f32], floor: f32) {
        each_within::<BLOCK, f32>(logits, maxima, (floor, f32::INFINITY), |id, logit| {
            self.ids.push(id as u32);
            self.logits.push(logit);
        });
    }

    fn shorten(&mut self, k: usize) {
        let kept = std::mem::take(&mut self.logits);
        let cut = self.kth(&kept, k);
        let mut ties = k - kept.iter().filter(|&&logit| logit > cut).count();
        self.logits = kept;
        let mut n = 0;
        for at in 0..self.ids.len() {
            let (id, logit) = (self.ids[at], self.logits[at]);
            if logit < cut || (logit == cut && ties == 0) {
                continue;
            }
            ties -= usize::from(logit == cut);
            (self.ids[n], self.logits[n]) = (id, logit);
            n += 1;
        }
        self.ids.truncate(n);
        self.logits.truncate(n);
    }

    /// The `k`-th largest, from 1.
    fn kth(&mut self, values: &[f32], k: usize) -> f32 {
        self.order.clear();
        self.order.extend(values.iter().map(|&value| order(value)));
        let at = values.len() - k;
        value(*self.order.select_nth_unstable(at).1)
    }
}

/// The bits of a float order like an integer, once those below zero are turned round. Integers
/// compare several times faster. -0 comes before 0; no cut sees the difference.
fn order(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

fn value(order: i32) -> f32 {
    f32::from_bits((order ^ (((order >> 31) as u32) >> 1) as i32) as u32)
}

/// So many weights are looked at for a guess at the cut.
const SAMPLE: usize = 1024;

/// The least weight of the smallest set of largest weights that reach the share `p` of all. Of
/// those that weigh the same, those with the highest ids are set to 0 where not all are needed.
///
/// `masses`: of each tile of `weights`. `picked` is a buffer for bits of some of the weights: above
/// zero they order like integers.
pub(super) fn keep_top_p(weights: &mut [f32], masses: &[f64], p: f32, picked: &mut Vec<u32>) -> f32 {
    let total: f64 = masses.iter().sum();
    // A decimal like 0.3 is a little more as f32: without the slack, 3 of 10 equal tokens miss it.
    let needed = f64::from(p) * total * (1.0 - f64::from(f32::EPSILON));
    let (low, high) = guess(weights, total - needed, picked);

    // Only speed depends on the guess: wherever the cut is, it is searched there.
    let mut above = mass_from(weights, high, masses);
    if above >= needed {
        above = 0.0;
        gather(weights, masses, (high, f32::INFINITY), picked);
    } else {
        gather(weights, masses, (low, high), picked);
        let from_low = above + mass(picked);
        if from_low < needed {
            above = from_low;
            gather(weights, masses, (f32::MIN_POSITIVE, low), picked);
        }
    }
    let enough = reach(picked, needed - above);
    let Some(&least) = picked[..enough].last() else { return low };
    let cut = f32::from_bits(least);
    let count = |bits: &[u32]| bits.iter().filter(|&&bits| bits == least).count();
    let ties = count(&picked[..enough]);
    if ties < count(picked) {
        weights.iter_mut().filter(|weight| **weight == cut).skip(ties).for_each(|weight| *weight = 0.0);
    }
    cut
}

/// A range of weights that most likely holds the least to keep, from a sample, if `spare` is the
/// most that the others may weigh.
fn guess(weights: &[f32], spare: f64, picked: &mut Vec<u32>) -> (f32, f32) {
    let (mut low, high) = (f32::MIN_POSITIVE, f32::INFINITY);
    if weights.len() <= 2 * SAMPLE {
        return (low, high);
    }
    let stride = weights.len().div_ceil(SAMPLE);
    picked.clear();
    picked.extend(weights.iter().step_by(stride).map(|weight| weight.to_bits()));
    picked.sort_unstable();
    // From the least up: what all up to here weigh in the whole row, and its deviation.
    let (mut sum, mut squares) = (0.0, 0.0);
    for weight in picked.iter().map(|&bits| f32::from_bits(bits)) {
        sum += f64::from(weight);
        squares += f64::from(weight) * f64::from(weight);
        let (mass, deviation) = (sum * stride as f64, squares.sqrt() * stride as f64);
        if mass - 3.0 * deviation > spare {
            return (low, weight.max(low));
        }
        if mass + 3.0 * deviation < spare {
            low = weight.max(low);
        }
    }
    (low, high)
}

/// Picks the weights in the range.
fn gather(weights: &[f32], masses: &[f64], range: (f32, f32), picked: &mut Vec<u32>) {
    picked.clear();
    each_within::<TILE, f64>(weights, masses, range, |_, weight| picked.push(weight.to_bits()));
}

fn mass(picked: &[u32]) -> f64 {
    picked.iter().map(|&bits| f64::from(f32::from_bits(bits))).sum()
}

/// Moves the fewest largest that reach `needed` to the front, the least of them last, and says how
/// many; all if they do not. Halves the undecided range each time, so the work is linear.
fn reach(picked: &mut [u32], needed: f64) -> usize {
    // The largest `short` weigh `short_mass`, too little; the largest `enough` are enough.
    let (mut short, mut short_mass, mut enough) = (0, 0.0, picked.len());
    while enough - short > 1 {
        let middle = short + (enough - short) / 2;
        picked[short..enough].select_nth_unstable_by(middle - short, |a, b| b.cmp(a));
        let middle_mass = short_mass + mass(&picked[short..middle]);
        if middle_mass >= needed {
            enough = middle;
        } else {
            (short, short_mass) = (middle, middle_mass);
        }
    }
    enough
}

/// The index at the share `uniform`, in [0, 1), of the way through the weights that are at least
/// `cut`; `masses` are what they weigh in each tile.
pub(super) fn drawn(weights: &[f32], masses: &[f64], cut: f32, uniform: f64) -> usize {
    let mut left = uniform * masses.iter().sum::<f64>();
    let mut tile = 0;
    for (at, &mass) in masses.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
        tile = at;
        if left < mass {
            break;
        }
        left -= mass;
    }
    let mut last = tile * TILE;
    for (at, &weight) in weights.iter().enumerate().skip(tile * TILE).take(TILE) {
        if weight >= cut {
            last = at;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    last // rounding may use up the weights a hair too early
}
