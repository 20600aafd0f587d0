//! Passes over a row, in lanes that do not wait for each other.
//!
//! Each pass is plain code that the compiler vectorises; [`vectorised`] picks at run time between
//! what it made of it for the baseline and for the machine's own instructions. Both round alike and
//! add in the same order, and neither fuses a multiplication with an addition, nor calls a library's
//! `exp`: the same row gives the same bits on every machine.

use std::f32::consts::{LN_2, LOG2_E};

/// Logits that share one maximum. Small enough that the few blocks with large maxima are soon
/// searched, large enough that there are few maxima.
pub(super) const BLOCK: usize = 128;
/// Weights that share one sum.
pub(super) const TILE: usize = 512;
const LANES: usize = 16;

/// Runs `pass`, an `#[inline(always)]` closure, compiled for the best instructions at hand. Write
/// loops in it: what an iterator's adaptor does not inline stays as slow as the baseline.
fn vectorised<R>(pass: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(pass)
}

/// The largest logit of each block. False if a logit is NaN or plus infinity.
pub(super) fn survey(row: &[f32], maxima: &mut Vec<f32>) -> bool {
    maxima.clear();
    maxima.reserve(row.len().div_ceil(BLOCK));
    vectorised(
        #[inline(always)]
        || {
            let mut n_numbers = 0;
            for tile in row.chunks(TILE) {
                for &logit in tile {
                    n_numbers += u32::from(logit < f32::INFINITY); // not NaN
                }
                // Not `as_chunks`: unrolled in full, it comes out several times slower.
                for block in tile.chunks(BLOCK) {
                    maxima.push(largest(block));
                }
            }
            n_numbers as usize == row.len()
        },
    )
}

/// Minus infinity if there is none.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(chunk[i], lanes[i]);
        }
    }
    let mut max = f32::NEG_INFINITY;
    for &value in lanes.iter().chain(rest) {
        max = larger(value, max);
    }
    max
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// What a logit weighs: `exp((logit - best) / temperature)`, so that the best weighs 1.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    best: f32,
    /// log2(e) / temperature
    scale: f32,
}

impl Softmax {
    pub(super) fn new(best: f32, temperature: f32) -> Self {
        Self { best, scale: LOG2_E / temperature }
    }

    #[inline(always)]
    pub(super) fn weight(self, logit: f32) -> f32 {
        exp2((logit - self.best) * self.scale)
    }

    /// Weights of `logits`, and the sum of each tile of them.
    pub(super) fn weigh(self, logits: &[f32], weights: &mut [f32], masses: &mut Vec<f64>) {
        masses.clear();
        vectorised(
            #[inline(always)]
            || {
                for (logits, weights) in logits.chunks(TILE).zip(weights.chunks_mut(TILE)) {
                    masses.push(self.weigh_tile(logits, weights));
                }
            },
        );
    }

    /// The sum of all weights, and how many of the logits are above `logit`.
    pub(super) fn mass_and_rank(self, logits: &[f32], logit: f32) -> (f64, u32) {
        vectorised(
            #[inline(always)]
            || {
                let mut weights = [0.0; TILE];
                let (mut mass, mut above) = (0.0, 0);
                for logits in logits.chunks(TILE) {
                    mass += self.weigh_tile(logits, &mut weights[..logits.len()]);
                    above += logits.iter().map(|&other| u32::from(other > logit)).sum::<u32>();
                }
                (mass, above)
            },
        )
    }

    /// Two loops: in one, the lanes would not fit the registers.
    #[inline(always)]
    fn weigh_tile(self, logits: &[f32], weights: &mut [f32]) -> f64 {
        for (weight, &logit) in weights.iter_mut().zip(logits) {
            *weight = self.weight(logit);
        }
        sum_from(weights, 0.0)
    }
}

/// 2^y for y ≤ 0, within 2e-7 of it; 0 below 2^-125.
#[inline(always)]
fn exp2(y: f32) -> f32 {
    // Adding it leaves no room for a fraction: the sum's last bits are y, rounded to an integer.
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    // Minimax of the relative error on [-1/2, 1/2], with 1 at 0.
    const POLYNOMIAL: [f32; 5] = [LN_2, 0.240_222_83, 0.055_505_585, 0.009_669_691, 0.001_330_060_7];
    let rounded = y + ROUND;
    let x = y - (rounded - ROUND);
    let [a, b, c, d, e] = POLYNOMIAL;
    let fraction = ((((e * x + d) * x + c) * x + b) * x + a) * x + 1.0;
    let power = f32::from_bits(fraction.to_bits().wrapping_add(rounded.to_bits() << 23));
    if y >= -125.0 { power } else { 0.0 }
}

/// The sum, tile by tile, of the weights that are at least `cut`. `masses`: of each tile in whole.
pub(super) fn cut_masses(weights: &[f32], cut: f32, masses: &mut [f64]) {
    vectorised(
        #[inline(always)]
        || {
            for (weights, mass) in weights.chunks(TILE).zip(masses) {
                // A sum is no less than any of its terms, rounding included.
                *mass = if *mass < f64::from(cut) { 0.0 } else { sum_from(weights, cut) };
            }
        },
    );
}

/// The sum of the weights that are at least `cut`.
pub(super) fn mass_from(weights: &[f32], cut: f32, masses: &[f64]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let mut sum = 0.0;
            for (weights, &mass) in weights.chunks(TILE).zip(masses) {
                if mass >= f64::from(cut) {
                    sum += sum_from(weights, cut);
                }
            }
            sum
        },
    )
}

/// In f64: 100,000 small terms would drown in an f32.
#[inline(always)]
fn sum_from(weights: &[f32], cut: f32) -> f64 {
    let kept = |weight: f32| f64::from(if weight >= cut { weight } else { 0.0 });
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += kept(chunk[i]);
        }
    }
    for (lane, &weight) in lanes.iter_mut().zip(rest) {
        *lane += kept(weight);
    }
    lanes.iter().sum()
}

/// Calls `take` with index and value of each of `values` in `low..high`, in order. `bounds`: one for
/// each `LEN` values, none of them larger; where it is below `low`, they are passed over.
pub(super) fn each_within<const LEN: usize, B: Copy + Into<f64>>(
    values: &[f32],
    bounds: &[B],
    (low, high): (f32, f32),
    mut take: impl FnMut(usize, f32),
) {
    vectorised(
        #[inline(always)]
        || {
            let mut flags = [0u8; LEN];
            for (at, (part, &bound)) in values.chunks(LEN).zip(bounds).enumerate() {
                if bound.into() < f64::from(low) {
                    continue;
                }
                // Bytes first, so that the comparisons are a loop of vectors.
                for (flag, &value) in flags.iter_mut().zip(part) {
                    *flag = u8::from((value >= low) & (value < high));
                }
                flags[part.len()..].fill(0);
                for (eight, flags) in flags.as_chunks::<8>().0.iter().enumerate() {
                    let mut found = u64::from_le_bytes(*flags);
                    while found != 0 {
                        let i = eight * 8 + found.trailing_zeros() as usize / 8;
                        take(at * LEN + i, part[i]);
                        found &= found - 1;
                    }
                }
            }
        },
    );
}
