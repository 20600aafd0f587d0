//! Latent rows in FP8: `[f32 scales, bf16 rotary part, e4m3 numbers]`, see [`crate::CacheFormat::Fp8`].

use super::arena::Stored;
use super::isa::{Isa, for_each_isa};
use crate::cache::GROUP;
use half::bf16;

/// The nearest e4m3 of `|x| <= 448`, ties to even.
#[inline(always)]
fn to_e4m3(x: f32) -> u8 {
    /// Added to a number below 2^-6, it leaves its multiples of 2^-9 in the low bits.
    const ROUND: f32 = 16_384.0;
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let small = (f32::from_bits(magnitude) + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
    // The exponent counts from -7 instead of -127.
    let large = (magnitude.wrapping_add(0x7_ffff + (magnitude >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let code = if magnitude < 0x3c80_0000 { small } else { large };
    (code | bits >> 24 & 0x80) as u8
}

/// Exponent and mantissa where f32 has them, then 2^120 for the other bias; also of a subnormal. No code is NaN here.
#[inline(always)]
fn from_e4m3(code: u8) -> f32 {
    let bits = u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20;
    f32::from_bits(bits) * f32::from_bits((120 + 127) << 23)
}

for_each_isa! {
    /// Writes the group's numbers and returns their scale.
    fn quantize(group: &[f32], codes: &mut [u8]) -> f32 {
        // As integers, so that NaN is the largest.
        let largest = group.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
        if largest >= f32::INFINITY.to_bits() {
            codes.fill(0);
            return f32::NAN;
        }
        // 448 is 1.75 x 2^8: a mantissa beyond .75 needs the next exponent.
        let exponent = if largest == 0 { 127 } else { ((largest + 0x1f_ffff) >> 23).max(27 + 8) - 8 };
        let inverse = f32::from_bits((254 - exponent) << 23);
        for (code, &x) in codes.iter_mut().zip(group) {
            *code = to_e4m3(x * inverse);
        }
        f32::from_bits(exponent << 23)
    }
}

for_each_isa! {
    pub(super) fn widen_f32(codes: &[u8], scale: f32, out: &mut [f32]) {
        for (o, &code) in out.iter_mut().zip(codes) {
            *o = from_e4m3(code) * scale;
        }
    }
}

for_each_isa! {
    pub(super) fn widen_bf16(codes: &[u8], scale: f32, out: &mut [bf16]) {
        for (o, &code) in out.iter_mut().zip(codes) {
            // Nothing is lost: see the format.
            *o = bf16::from_bits(((from_e4m3(code) * scale).to_bits() >> 16) as u16);
        }
    }
}

/// `latent` is `[rank]` numbers and a rotary part; `row` as long as the format says.
pub(super) fn store(isa: Isa, latent: &[f32], rank: usize, row: &mut [u8]) {
    let (scales, rest) = row.split_at_mut(4 * rank.div_ceil(GROUP));
    let (rotary, numbers) = rest.split_at_mut(2 * (latent.len() - rank));
    let groups = latent[..rank].chunks(GROUP).zip(numbers.chunks_mut(GROUP));
    for ((group, codes), scale) in groups.zip(scales.as_chunks_mut::<4>().0) {
        *scale = quantize(isa, group, &mut codes[..group.len()]).to_ne_bytes();
    }
    for (x, bytes) in latent[rank..].iter().zip(rotary.as_chunks_mut::<2>().0) {
        *bytes = bf16::from_f32(*x).to_ne_bytes();
    }
}

/// The row that [`store`] was given, as the cache has it: `out.len()` numbers.
pub(super) fn widen<E: Stored>(isa: Isa, row: &[u8], rank: usize, out: &mut [E]) {
    let (scales, rest) = row.split_at(4 * rank.div_ceil(GROUP));
    let (latent, rotary) = out.split_at_mut(rank);
    let (from, numbers) = rest.split_at(2 * rotary.len());
    let groups = latent.chunks_mut(GROUP).zip(numbers.chunks(GROUP));
    for ((out, codes), scale) in groups.zip(scales.as_chunks::<4>().0) {
        E::widen(isa, codes, f32::from_ne_bytes(*scale), out);
    }
    for (o, bytes) in rotary.iter_mut().zip(from.as_chunks::<2>().0) {
        *o = E::from_bf16(bf16::from_ne_bytes(*bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheFormat;
    use crate::backend::MlaDims;
    use crate::dtype::Precision;

    /// What comes back is what the format says, to the bit.
    fn check(rank: usize, rope: usize, latent: &[f32]) {
        let dims = MlaDims {
            n_heads: 1,
            kv_lora_rank: rank,
            qk_nope_head_dim: 1,
            qk_rope_head_dim: rope,
            v_head_dim: 1,
            softmax_scale: 1.0,
        };
        let mut want = latent.to_vec();
        CacheFormat::Fp8.round(Precision::F32, &dims, &mut want);
        let same = |got: f32, want: f32| got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        for isa in Isa::all() {
            let mut row = vec![0xaa; CacheFormat::Fp8.row_bytes(Precision::F32, &dims)];
            store(isa, latent, rank, &mut row);
            let (mut wide, mut narrow) = (vec![0.0f32; rank + rope], vec![bf16::ZERO; rank + rope]);
            widen(isa, &row, rank, &mut wide);
            widen(isa, &row, rank, &mut narrow);
            for (i, (&w, (&a, &b))) in want.iter().zip(wide.iter().zip(&narrow)).enumerate() {
                assert!(same(a, w) && same(b.to_f32(), w), "{isa:?} [{i}] {}: {a}, {b}, not {w}", latent[i]);
            }
        }
    }

    #[test]
    fn rows_come_back_as_the_format_says() {
        // All signs and exponents, with ties among the mantissas.
        let bits = |i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b9) & 0xfff8_0000);
        let all: Vec<f32> = (0..4096).map(bits).collect();
        check(4096, 0, &all.iter().map(|x| if x.is_finite() { *x } else { 1.0 }).collect::<Vec<_>>());
        for shift in [-140, -100, -9, 0, 3, 110] {
            let near: Vec<f32> = (0..518u32)
                .map(|i| {
                    (i.wrapping_mul(0x9e37_79b9) >> 16) as i16 as f32
                        * 2f32.powi(-8)
                        * 2f32.powi(shift / 2)
                        * 2f32.powi(shift - shift / 2)
                })
                .collect();
            check(512, 6, &near);
        }
        for at in [0, 127, 128, 150] {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut row = vec![1.0; 151];
                row[at] = broken;
                check(145, 6, &row);
            }
        }
        check(130, 2, &[0.0; 132]);
        check(22, 6, &[-0.0; 28]);
    }
}
