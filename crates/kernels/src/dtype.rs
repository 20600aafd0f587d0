//! Number formats of checkpoints, and reading them as f32.

use half::{bf16, f16};
use std::sync::LazyLock;

/// How a checkpoint stores a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    Bf16,
    /// OCP FP8 e4m3 "fn": no infinities, one NaN, largest value 448.
    F8E4M3,
}

impl DType {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 => 1,
        }
    }
}

/// What weights, activations entering a product, and the latent cache are rounded to.
/// Sums are f32 in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The nearest representable value.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }
}

static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|byte| e4m3_to_f32(byte as u8)));

/// Sign, 4 exponent bits (bias 7), 3 mantissa bits; all ones is NaN.
fn e4m3_to_f32(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(byte >> 3 & 0xf);
    let mantissa = f32::from(byte & 7);
    match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// Reads `out.len()` little-endian elements from the front of `bytes`.
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        DType::F16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f16::from_le_bytes(*b).to_f32();
            }
        }
        DType::Bf16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        DType::F8E4M3 => {
            let table = &*E4M3;
            for (x, b) in out.iter_mut().zip(bytes) {
                *x = table[usize::from(*b)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_values() {
        for (byte, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(e4m3_to_f32(byte), value, "{byte:#x}");
        }
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn every_format_reads_back_minus_one_and_a_half() {
        for (dtype, bytes) in [
            (DType::F32, (-1.5f32).to_le_bytes().to_vec()),
            (DType::F16, f16::from_f32(-1.5).to_le_bytes().to_vec()),
            (DType::Bf16, bf16::from_f32(-1.5).to_le_bytes().to_vec()),
            (DType::F8E4M3, vec![0xbc]),
        ] {
            let mut out = [0.0];
            decode(dtype, &bytes, &mut out);
            assert_eq!(out, [-1.5], "{dtype:?}");
        }
    }
}
