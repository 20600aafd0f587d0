//! Tiles and the transpose in x86-64 intrinsics.
//!
//! Loops run over constant counts, so that accumulators stay in registers; an iterator over the
//! outputs would hide which register is which.
#![allow(clippy::needless_range_loop)]

use super::{PANEL, Start, Tile};
use half::bf16;
use std::arch::x86_64::*;

/// Defines a tile kernel on 512-bit registers: `$step(w, x, k, acc)` for a panel and vector.
macro_rules! avx512_tile {
    ($name:ident, $elem:ty, $features:literal, $word:ty, |$wv:ident: $wt:ty, $xv:ident: $xt:ty| $load:expr, $bcast:expr, $fma:expr) => {
        /// # Safety
        /// As [`super::Elem::tile`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const P: usize, const T: usize>(a: &Tile<'_, $elem>) {
            // SAFETY: indices stay within the sizes of `a`, whose pointers the caller vouches for;
            // a panel's k-step is one 64-byte register, a vector's one 32-bit word.
            unsafe {
                let mut acc = [[_mm512_setzero_ps(); T]; P];
                if a.start == Start::Output {
                    for p in 0..P {
                        for t in 0..T {
                            acc[p][t] = _mm512_loadu_ps(a.out.add(t * a.out_stride + p * PANEL));
                        }
                    }
                }
                let x: [*const $word; T] = std::array::from_fn(|t| a.x[t].cast());
                let w: [*const $word; P] = std::array::from_fn(|p| a.w.add(p * a.panel_stride).cast());
                for k in 0..a.k_steps {
                    let mut xs: [$xt; T] = [$bcast(x[0].add(k)); T];
                    for t in 1..T {
                        xs[t] = $bcast(x[t].add(k));
                    }
                    for p in 0..P {
                        let at = w[p].add(k * PANEL);
                        if T == 1 {
                            // One vector: the panels stream from memory, each line once.
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH * PANEL).cast());
                        }
                        let $wv: $wt = $load(at);
                        for t in 0..T {
                            let $xv = xs[t];
                            acc[p][t] = $fma(acc[p][t], $wv, $xv);
                        }
                    }
                }
                for p in 0..P {
                    for t in 0..T {
                        _mm512_storeu_ps(a.out.add(t * a.out_stride + p * PANEL), acc[p][t]);
                    }
                }
            }
        }
    };
}

/// k-steps (lines of 64 B) that a stream is fetched ahead.
const PREFETCH: usize = 16;

avx512_tile!(
    avx512_dp_bf16,
    bf16,
    "avx512f,avx512bw,avx512vl,avx512bf16",
    i32,
    |w: __m512bh, x: __m512bh| |at: *const i32| cast_bh(_mm512_loadu_si512(at.cast())),
    |at: *const i32| cast_bh(_mm512_set1_epi32(at.read_unaligned())),
    |acc, w, x| _mm512_dpbf16_ps(acc, w, x)
);

avx512_tile!(
    avx512_bf16,
    bf16,
    "avx512f,avx512bw,avx512vl",
    i32,
    |w: __m512i, x: __m512i| |at: *const i32| _mm512_loadu_si512(at.cast()),
    |at: *const i32| _mm512_set1_epi32(at.read_unaligned()),
    |acc, w, x| {
        let acc = _mm512_fmadd_ps(odd(w), odd(x), acc);
        _mm512_fmadd_ps(even(w), even(x), acc)
    }
);

avx512_tile!(
    avx512_f32,
    f32,
    "avx512f",
    f32,
    |w: __m512, x: __m512| |at: *const f32| _mm512_loadu_ps(at),
    |at: *const f32| _mm512_set1_ps(*at),
    |acc, w, x| _mm512_fmadd_ps(w, x, acc)
);

#[inline(always)]
fn cast_bh(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(x) }
}

/// The high halves of 32-bit lanes, as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn odd(x: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000u32 as i32)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn even(x: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
}

/// 16 x 16 words at a time: four rounds of interleaving, of words, pairs, quads and halves.
///
/// # Safety
/// 16 rows of `words` words; `out` holds `words * 16`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_avx512(rows: &[*const u32; 16], words: usize, out: *mut u32) {
    let mut at = 0;
    while at < words {
        let n = (words - at).min(16);
        let mask = ((1u32 << n) - 1) as __mmask16;
        // SAFETY: the mask keeps loads within the rows, the loop below keeps stores within `out`.
        unsafe {
            let mut a: [__m512i; 16] =
                std::array::from_fn(|r| _mm512_maskz_loadu_epi32(mask, rows[r].add(at).cast()));
            let mut b = a;
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
            }
            for i in 0..4 {
                for j in 0..2 {
                    a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + 2 + j]);
                    a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + 2 + j]);
                }
            }
            // a[4 i + c]: rows 4i..4i+4 of columns c, 4 + c, 8 + c, 12 + c, one in each quarter.
            for c in 0..4 {
                let low = _mm512_shuffle_i32x4::<0x88>(a[c], a[4 + c]);
                let high = _mm512_shuffle_i32x4::<0xdd>(a[c], a[4 + c]);
                let low2 = _mm512_shuffle_i32x4::<0x88>(a[8 + c], a[12 + c]);
                let high2 = _mm512_shuffle_i32x4::<0xdd>(a[8 + c], a[12 + c]);
                b[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
                b[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
                b[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
                b[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
            }
            for (i, v) in b.iter().enumerate().take(n) {
                _mm512_storeu_si512(out.add((at + i) * 16).cast(), *v);
            }
        }
        at += 16;
    }
}

/// # Safety
/// As [`super::Elem::tile`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2_f32<const P: usize, const T: usize>(a: &Tile<'_, f32>) {
    // SAFETY: indices stay within the sizes of `a`; a panel's k-step is two 32-byte registers.
    unsafe {
        let mut acc = [[[_mm256_setzero_ps(); 2]; T]; P];
        load_avx2(a, &mut acc);
        for k in 0..a.k_steps {
            for p in 0..P {
                let at = a.w.add(p * a.panel_stride + k * PANEL);
                let w = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
                for t in 0..T {
                    let x = _mm256_set1_ps(*a.x[t].add(k));
                    for h in 0..2 {
                        acc[p][t][h] = _mm256_fmadd_ps(w[h], x, acc[p][t][h]);
                    }
                }
            }
        }
        store_avx2(a, &acc);
    }
}

/// # Safety
/// As [`super::Elem::tile`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2_bf16<const P: usize, const T: usize>(a: &Tile<'_, bf16>) {
    // SAFETY: indices stay within the sizes of `a`; a panel's k-step is two 32-byte registers.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
        let odd = |v| _mm256_castsi256_ps(_mm256_and_si256(v, high));
        let even = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
        let mut acc = [[[_mm256_setzero_ps(); 2]; T]; P];
        load_avx2(a, &mut acc);
        for k in 0..a.k_steps {
            for p in 0..P {
                let at = a.w.add(p * a.panel_stride + k * 2 * PANEL).cast::<__m256i>();
                let w = [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))];
                for t in 0..T {
                    let x = _mm256_set1_epi32(a.x[t].add(2 * k).cast::<i32>().read_unaligned());
                    for h in 0..2 {
                        let sum = _mm256_fmadd_ps(odd(w[h]), odd(x), acc[p][t][h]);
                        acc[p][t][h] = _mm256_fmadd_ps(even(w[h]), even(x), sum);
                    }
                }
            }
        }
        store_avx2(a, &acc);
    }
}

type Acc256<const P: usize, const T: usize> = [[[__m256; 2]; T]; P];

/// # Safety
/// As [`super::Elem::tile`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_avx2<E, const P: usize, const T: usize>(a: &Tile<'_, E>, acc: &mut Acc256<P, T>) {
    if a.start == Start::Zero {
        return;
    }
    for p in 0..P {
        for t in 0..T {
            for h in 0..2 {
                // SAFETY: within the tile's output.
                acc[p][t][h] = unsafe { _mm256_loadu_ps(a.out.add(t * a.out_stride + p * PANEL + h * 8)) };
            }
        }
    }
}

/// # Safety
/// As [`super::Elem::tile`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_avx2<E, const P: usize, const T: usize>(a: &Tile<'_, E>, acc: &Acc256<P, T>) {
    for p in 0..P {
        for t in 0..T {
            for h in 0..2 {
                // SAFETY: within the tile's output.
                unsafe { _mm256_storeu_ps(a.out.add(t * a.out_stride + p * PANEL + h * 8), acc[p][t][h]) };
            }
        }
    }
}
