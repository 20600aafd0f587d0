//! How the latent cache stores its rows.

use crate::backend::MlaDims;
use crate::dtype::Precision;
use half::bf16;

/// How a row of the latent cache is stored: `kv_lora_rank` latent numbers and `qk_rope_head_dim` rotary ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheFormat {
    /// In the precision that products are computed in.
    #[default]
    Plain,
    /// The latent part in FP8 e4m3, each group of 128 numbers with a scale of its own in f32; the rotary part in bf16.
    ///
    /// A group's scale is the smallest power of two, from 2^-100 on, with which no number of it exceeds 448, the largest
    /// of e4m3; 1 for zeros. A number is the nearest e4m3 of itself over the scale, ties to even. Both are exact in bf16, so
    /// that every backend reads the same numbers. The scale of a group that holds NaN or an infinity is NaN, and so are then
    /// all its numbers. (Numbers from 3.29e38 on, at f32's end, become infinities.)
    Fp8,
}

/// Numbers of the latent part that share a scale.
pub(crate) const GROUP: usize = 128;

impl CacheFormat {
    /// Bytes of a row, where `precision` is that of products.
    pub fn row_bytes(self, precision: Precision, dims: &MlaDims) -> usize {
        match self {
            Self::Plain => precision.size() * dims.latent_width(),
            Self::Fp8 => {
                let (rank, rope) = (dims.kv_lora_rank, dims.qk_rope_head_dim);
                (4 * rank.div_ceil(GROUP) + 2 * rope + rank).next_multiple_of(4)
            }
        }
    }

    /// Whether rows fill pages of 64 of them, for which a GPU has its fast kernels if blocks do too.
    pub fn fills_pages(self, precision: Precision, dims: &MlaDims) -> bool {
        match self {
            Self::Plain => precision == Precision::Bf16 && dims.latent_width().is_multiple_of(64),
            Self::Fp8 => dims.kv_lora_rank.is_multiple_of(GROUP) && dims.qk_rope_head_dim.is_multiple_of(64),
        }
    }

    pub fn name(self, precision: Precision) -> &'static str {
        match self {
            Self::Plain => precision.name(),
            Self::Fp8 => "fp8",
        }
    }

    /// What the cache gives back for a row.
    pub(crate) fn round(self, precision: Precision, dims: &MlaDims, row: &mut [f32]) {
        if self == Self::Plain {
            row.iter_mut().for_each(|x| *x = precision.round(*x));
            return;
        }
        let (latent, rotary) = row.split_at_mut(dims.kv_lora_rank);
        for group in latent.chunks_mut(GROUP) {
            let scale = scale(group);
            group.iter_mut().for_each(|x| *x = nearest_e4m3(*x / scale) * scale);
        }
        rotary.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
}

fn scale(group: &[f32]) -> f32 {
    if group.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let largest = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let mut scale = 2f32.powi(-100);
    while largest / scale > 448.0 {
        scale *= 2.0;
    }
    scale
}

/// Of `|x| <= 448`. Numbers are an eighth of their power of two apart, from 2^-6 down as far as there.
fn nearest_e4m3(x: f32) -> f32 {
    let exponent = (x.to_bits() >> 23 & 0xff) as i32 - 127;
    let step = 2f32.powi(exponent.max(-6) - 3);
    (x / step).round_ties_even() * step
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: MlaDims = MlaDims {
        n_heads: 1,
        kv_lora_rank: 512,
        qk_nope_head_dim: 1,
        qk_rope_head_dim: 64,
        v_head_dim: 1,
        softmax_scale: 1.0,
    };

    #[test]
    fn bytes_of_a_row() {
        for (rank, rope, bytes) in [(512, 64, 656), (22, 6, 40), (128, 2, 136), (129, 2, 144)] {
            let dims = MlaDims { kv_lora_rank: rank, qk_rope_head_dim: rope, ..DIMS };
            assert_eq!(CacheFormat::Fp8.row_bytes(Precision::Bf16, &dims), bytes, "{rank} + {rope}");
        }
        assert_eq!(CacheFormat::Plain.row_bytes(Precision::Bf16, &DIMS), 1152);
    }

    #[test]
    fn numbers_and_their_scales() {
        let check = |group: &[f32], want: &[f32]| {
            let dims = MlaDims { kv_lora_rank: group.len(), qk_rope_head_dim: 0, ..DIMS };
            let mut got = group.to_vec();
            CacheFormat::Fp8.round(Precision::F32, &dims, &mut got);
            let same = got.iter().zip(want).all(|(g, w)| g == w || (g.is_nan() && w.is_nan()));
            assert!(same && got.len() == want.len(), "{group:?} became {got:?}, expected {want:?}");
        };
        // 448 needs no scale, what is larger one of 2. Ties go to the even number.
        check(&[448.0, 17.0, 19.0, -17.0], &[448.0, 16.0, 20.0, -16.0]);
        check(&[449.0, 34.0, 0.0], &[448.0, 32.0, 0.0]);
        // The least number is 2^-9 of a scale of 1 here, half of it is nothing.
        check(&[256.0, 0.0078125, 0.001, 0.0009765625], &[256.0, 0.0078125, 0.001953125, 0.0]);
        check(&[0.0, 0.0], &[0.0, 0.0]);
        check(&[1.0, f32::NAN], &[f32::NAN; 2]);
        check(&[1.0, f32::INFINITY], &[f32::NAN; 2]);
        // Each group for itself.
        let mut two = [vec![1.0; 128], vec![f32::NAN; 1]].concat();
        CacheFormat::Fp8.round(
            Precision::F32,
            &MlaDims { kv_lora_rank: 129, qk_rope_head_dim: 0, ..DIMS },
            &mut two,
        );
        assert!(two[..128] == [1.0; 128] && two[128].is_nan());
    }
}
