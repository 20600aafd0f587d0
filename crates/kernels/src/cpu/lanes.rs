//! Row-wise arithmetic in plain Rust, compiled for each instruction set.

use super::isa::for_each_isa;
use half::bf16;

/// Lanes in which sums run: the order of additions is the same on every machine.
const LANES: usize = 16;

/// e^x, about 1 ulp for x in [-87, 88]; 0 below, no larger than e^88.7 above. Cephes' scheme: x = n ln2 + r, a polynomial
/// in r, then n into the exponent.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the integer part in the low bits
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    // 2^n in two halves, as n may be 128.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = bits >> 1;
    let pow = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let y = y * pow(half) * pow(bits - half);
    if x < -87.3 { 0.0 } else { y }
}

#[inline(always)]
fn sum_lanes(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (a, &v) in acc.iter_mut().zip(chunk) {
            *a += f(v);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    rest.iter().fold(acc[0], |sum, &v| sum + f(v))
}

for_each_isa! {
    /// See [`crate::ops::RmsNorm`].
    pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let mean = sum_lanes(x, |v| v * v) / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
            *o = v * scale * w;
        }
    }
}

for_each_isa! {
    /// Rounds to the nearest bf16, ties to even.
    pub(super) fn to_bf16(x: &[f32], out: &mut [bf16]) {
        for (o, &v) in out.iter_mut().zip(x) {
            let bits = v.to_bits();
            let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
            *o = bf16::from_bits(if v.is_nan() { 0x7fc0 } else { rounded });
        }
    }
}

for_each_isa! {
    /// `gate[i] <- silu(gate[i]) * up[i]`
    pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

for_each_isa! {
    /// Sums in 16 lanes.
    pub(super) fn sum(x: &[f32]) -> f32 {
        sum_lanes(x, |v| v)
    }
}

for_each_isa! {
    /// `x *= factor`
    pub(super) fn scale(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|v| *v *= factor);
    }
}

for_each_isa! {
    /// `x = x * a + y * b`
    pub(super) fn blend(x: &mut [f32], a: f32, y: &[f32], b: f32) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x = *x * a + y * b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -9000..8870 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(x), f64::from(x).exp());
            let bound = if x < -87.29 { 2e-38 } else { want * 2e-7 };
            assert!((f64::from(got) - want).abs() <= bound, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_rounds_as_half_does() {
        let x: Vec<f32> = (0..70_000u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .chain([f32::INFINITY])
            .collect();
        for isa in Isa::all() {
            let mut out = vec![bf16::ZERO; x.len()];
            to_bf16(isa, &x, &mut out);
            for (&v, o) in x.iter().zip(out) {
                let want = bf16::from_f32(v);
                assert!(o == want || (o.is_nan() && want.is_nan()), "{isa:?}: {v} became {o}");
            }
        }
    }
}
