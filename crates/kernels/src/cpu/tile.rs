//! The one inner loop that everything heavy runs through: a few panels of 16 matrix rows times a few
//! vectors, in registers.
//!
//! A *panel* holds 16 rows of a matrix, column by column: `[k_steps][16][PAIR]`, where `PAIR` is 2 for
//! bf16 (the unit of `vdpbf16ps`) and 1 for f32. Vector lanes are matrix rows and the sum over k runs
//! in one accumulator in the order of k, so that a result depends on its row and vector alone, never on
//! how many others are computed with it. bf16 products are exact in f32; of a pair, the odd element
//! is added first, as `vdpbf16ps` does.

use super::attend;
use super::isa::Isa;
use super::lanes;
use crate::matrix::Matrix;
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// Matrix rows in a panel.
pub(super) const PANEL: usize = 16;
/// Most vectors in one tile of several panels.
pub(super) const MAX_VECTORS: usize = 6;
/// Most vectors in one tile of a single panel: a product takes about six cycles and two may start in
/// each, so that twelve sums must be under way.
pub(super) const MAX_VECTORS_ALONE: usize = 12;
/// Most panels in one tile.
pub(super) const MAX_PANELS: usize = 8;

/// Vectors that one tile takes beside so many panels.
pub(super) fn max_vectors(isa: Isa, panels: usize) -> usize {
    if panels == 1 && isa >= Isa::Avx512 { MAX_VECTORS_ALONE } else { MAX_VECTORS }
}

/// Panels that one tile takes beside so many vectors: as many accumulators as registers allow.
pub(super) fn max_panels(isa: Isa, vectors: usize) -> usize {
    match (isa, vectors) {
        (Isa::Avx512 | Isa::Avx512Bf16, 1..=3) => 8,
        (Isa::Avx512 | Isa::Avx512Bf16, 4..=MAX_VECTORS) => 4,
        (_, 1) => 4,
        (_, 2 | 3) => 2,
        _ => 1,
    }
}

/// What a tile does with the numbers at its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Zero,
    /// Goes on from them.
    Output,
}

/// Arguments of a tile: `out[t * out_stride + p * 16 + lane] (+)= Σ_k panel[p][k][lane] * x[t][k]`.
pub(super) struct Tile<'a, E> {
    /// Panels `0..panels` start `panel_stride` elements apart, from here.
    pub w: *const E,
    pub panel_stride: usize,
    pub panels: usize,
    pub k_steps: usize,
    /// One pointer a vector, each to `k_steps * PAIR` elements.
    pub x: &'a [*const E],
    pub out: *mut f32,
    pub out_stride: usize,
    pub start: Start,
}

/// An element type that tiles compute with.
pub(super) trait Elem: Copy + Send + Sync + 'static {
    /// Neighbours in k that lie side by side in a panel.
    const PAIR: usize;
    const ZERO: Self;

    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
    fn convert(isa: Isa, x: &[f32], out: &mut [Self]);
    /// Copies a row that the file already holds in this format into lane `lane` of a panel; false if
    /// it holds another.
    fn copy_row(_matrix: &Matrix<'_>, _row: usize, _lane: usize, _panel: &mut [Self]) -> bool {
        false
    }

    /// Packs up to 16 rows of `words` words of `PAIR` elements into a panel whose lanes are the rows;
    /// lanes without a row are left as they are.
    ///
    /// # Safety
    /// Each row is valid for `words * PAIR` elements; `out` holds `words * 16 * PAIR`.
    unsafe fn transpose(isa: Isa, rows: &[*const Self], words: usize, out: &mut [Self]);

    /// Packs rows `first..` (an even number) of up to 64, `width` elements each, into panels of 16
    /// columns: `[width / 16][64 / PAIR][16][PAIR]`.
    ///
    /// # Safety
    /// Each row is valid for `width` elements.
    unsafe fn interleave(isa: Isa, rows: &[*const Self], first: usize, width: usize, out: &mut [Self]);

    /// # Safety
    /// The pointers of `tile` are valid for the lengths that its sizes imply, `out` for writing and by
    /// nobody else meanwhile; `1 <= x.len() <= max_vectors(isa, panels)`, `panels <= max_panels(isa, x.len())`;
    /// the machine has `isa`.
    unsafe fn tile(isa: Isa, tile: &Tile<'_, Self>);

    /// Calls [`Self::tile`] as often as `tile.panels` needs.
    ///
    /// # Safety
    /// As [`Self::tile`], with any number of panels.
    unsafe fn multiply(isa: Isa, tile: Tile<'_, Self>) {
        let most = max_panels(isa, tile.x.len());
        let mut done = 0;
        while done < tile.panels {
            // Tiles exist for 1, 2, 4 and 8 panels.
            let n = most.min(1 << (tile.panels - done).ilog2());
            // SAFETY: a part of what the caller vouches for.
            unsafe {
                let w = tile.w.add(done * tile.panel_stride);
                let out = tile.out.add(done * PANEL);
                Self::tile(isa, &Tile { w, out, panels: n, ..tile });
            }
            done += n;
        }
    }
}

macro_rules! dispatch {
    ($kernel:ident, $tile:expr) => {
        match ($tile.panels, $tile.x.len()) {
            (8, 1) => $kernel::<8, 1>($tile),
            (8, 2) => $kernel::<8, 2>($tile),
            (8, 3) => $kernel::<8, 3>($tile),
            (4, 1) => $kernel::<4, 1>($tile),
            (4, 2) => $kernel::<4, 2>($tile),
            (4, 3) => $kernel::<4, 3>($tile),
            (4, 4) => $kernel::<4, 4>($tile),
            (4, 5) => $kernel::<4, 5>($tile),
            (4, 6) => $kernel::<4, 6>($tile),
            (2, 1) => $kernel::<2, 1>($tile),
            (2, 2) => $kernel::<2, 2>($tile),
            (2, 3) => $kernel::<2, 3>($tile),
            (2, 4) => $kernel::<2, 4>($tile),
            (2, 5) => $kernel::<2, 5>($tile),
            (2, 6) => $kernel::<2, 6>($tile),
            (1, 1) => $kernel::<1, 1>($tile),
            (1, 2) => $kernel::<1, 2>($tile),
            (1, 3) => $kernel::<1, 3>($tile),
            (1, 4) => $kernel::<1, 4>($tile),
            (1, 5) => $kernel::<1, 5>($tile),
            (1, 6) => $kernel::<1, 6>($tile),
            (1, 7) => $kernel::<1, 7>($tile),
            (1, 8) => $kernel::<1, 8>($tile),
            (1, 9) => $kernel::<1, 9>($tile),
            (1, 10) => $kernel::<1, 10>($tile),
            (1, 11) => $kernel::<1, 11>($tile),
            (1, 12) => $kernel::<1, 12>($tile),
            sizes => unreachable!("no tile of {sizes:?} panels and vectors"),
        }
    };
}

impl Elem for bf16 {
    const PAIR: usize = 2;
    const ZERO: Self = bf16::ZERO;

    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    fn convert(isa: Isa, x: &[f32], out: &mut [Self]) {
        lanes::to_bf16(isa, x, out);
    }

    fn copy_row(matrix: &Matrix<'_>, row: usize, lane: usize, panel: &mut [Self]) -> bool {
        let Some(bytes) = matrix.bf16_row(row) else { return false };
        let (pairs, last) = bytes.as_chunks::<4>();
        let mut steps = panel.chunks_exact_mut(PANEL * Self::PAIR);
        for (pair, out) in pairs.iter().zip(&mut steps) {
            out[2 * lane] = bf16::from_le_bytes([pair[0], pair[1]]);
            out[2 * lane + 1] = bf16::from_le_bytes([pair[2], pair[3]]);
        }
        if let (&[a, b], Some(out)) = (last, steps.next()) {
            out[2 * lane] = bf16::from_le_bytes([a, b]);
        }
        true
    }

    unsafe fn transpose(isa: Isa, rows: &[*const Self], words: usize, out: &mut [Self]) {
        assert!(out.len() >= words * PANEL * Self::PAIR && rows.len() <= PANEL);
        // SAFETY: a word is a pair of bf16; reads and writes are unaligned.
        unsafe { transpose_words(isa, words_of(rows), words, out.as_mut_ptr().cast()) }
    }

    unsafe fn interleave(isa: Isa, rows: &[*const Self], first: usize, width: usize, out: &mut [Self]) {
        // SAFETY: bf16 is a u16 in memory, and so is a pointer to it.
        let rows = unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) };
        attend::interleave_pairs(isa, rows, first, width, out.reinterpret_cast_mut());
    }

    unsafe fn tile(isa: Isa, tile: &Tile<'_, Self>) {
        // SAFETY: the caller's promise, passed on to the kernel for `isa`.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => dispatch!(avx512_dp_bf16, tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => dispatch!(avx512_bf16, tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => dispatch!(avx2_bf16, tile),
                _ => dispatch!(plain_bf16, tile),
            }
        }
    }
}

impl Elem for f32 {
    const PAIR: usize = 1;
    const ZERO: Self = 0.0;

    fn from_f32(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }

    fn convert(_: Isa, x: &[f32], out: &mut [Self]) {
        out.copy_from_slice(x);
    }

    unsafe fn transpose(isa: Isa, rows: &[*const Self], words: usize, out: &mut [Self]) {
        assert!(out.len() >= words * PANEL && rows.len() <= PANEL);
        // SAFETY: a word is an f32.
        unsafe { transpose_words(isa, words_of(rows), words, out.as_mut_ptr().cast()) }
    }

    unsafe fn interleave(_: Isa, rows: &[*const Self], first: usize, width: usize, out: &mut [Self]) {
        for (key, &row) in (first..).zip(rows) {
            // SAFETY: the caller's promise.
            let row = unsafe { std::slice::from_raw_parts(row, width) };
            for (panel, columns) in row.chunks(PANEL).enumerate() {
                out[(panel * attend::KEYS + key) * PANEL..][..columns.len()].copy_from_slice(columns);
            }
        }
    }

    unsafe fn tile(isa: Isa, tile: &Tile<'_, Self>) {
        // SAFETY: the caller's promise, passed on to the kernel for `isa`.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 => dispatch!(avx512_f32, tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => dispatch!(avx2_f32, tile),
                _ => dispatch!(plain_f32, tile),
            }
        }
    }
}

/// Asks for the cache line at `at`, into L2. A hint: no address is wrong.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching never faults, and every x86-64 can.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same rows, as 32-bit words: a pair of bf16, or an f32.
fn words_of<E: Elem>(rows: &[*const E]) -> &[*const u32] {
    // SAFETY: pointers to sized types have one layout.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) }
}

/// `out[word][lane] = rows[lane][word]`
///
/// # Safety
/// At most 16 rows of `words` words; `out` holds `words * 16`.
unsafe fn transpose_words(isa: Isa, rows: &[*const u32], words: usize, out: *mut u32) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Ok(rows)) = (isa >= Isa::Avx512, rows.try_into()) {
        // SAFETY: 16 rows; the rest is the caller's promise.
        return unsafe { transpose_avx512(rows, words, out) };
    }
    let _ = isa;
    // SAFETY: the caller's promise.
    unsafe {
        for (lane, row) in rows.iter().enumerate() {
            for word in 0..words {
                out.add(word * PANEL + lane).write_unaligned(row.add(word).read_unaligned());
            }
        }
    }
}

/// Accumulators in memory: what the compiler can vectorise on any machine.
///
/// # Safety
/// As [`Elem::tile`]; `step(acc, w, x)` reads `16 * PAIR` elements at `w` and `PAIR` at `x`.
#[inline(always)]
unsafe fn plain<E: Elem, const P: usize, const T: usize>(
    a: &Tile<'_, E>,
    step: impl Fn(&mut [f32; PANEL], *const E, *const E),
) {
    // SAFETY: indices stay within the sizes of `a`.
    unsafe {
        for (t, &x) in a.x.iter().enumerate().take(T) {
            for p in 0..P {
                let out = a.out.add(t * a.out_stride + p * PANEL).cast::<[f32; PANEL]>();
                let mut acc = if a.start == Start::Zero { [0.0; PANEL] } else { out.read_unaligned() };
                let w = a.w.add(p * a.panel_stride);
                for k in 0..a.k_steps {
                    step(&mut acc, w.add(k * PANEL * E::PAIR), x.add(k * E::PAIR));
                }
                out.write_unaligned(acc);
            }
        }
    }
}

/// # Safety
/// As [`Elem::tile`].
unsafe fn plain_f32<const P: usize, const T: usize>(a: &Tile<'_, f32>) {
    // SAFETY: `plain` hands out pointers to 16 and 1 elements.
    unsafe {
        plain::<f32, P, T>(a, |acc, w, x| {
            for (lane, s) in acc.iter_mut().enumerate() {
                *s += *w.add(lane) * *x;
            }
        });
    }
}

/// # Safety
/// As [`Elem::tile`].
unsafe fn plain_bf16<const P: usize, const T: usize>(a: &Tile<'_, bf16>) {
    // SAFETY: `plain` hands out pointers to 32 and 2 elements.
    unsafe {
        plain::<bf16, P, T>(a, |acc, w, x| {
            let (even, odd) = (widen(*x), widen(*x.add(1)));
            for (lane, s) in acc.iter_mut().enumerate() {
                *s += widen(*w.add(2 * lane + 1)) * odd;
                *s += widen(*w.add(2 * lane)) * even;
            }
        });
    }
}

#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::*;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{PANEL, Start, Tile};
    use half::bf16;
    use std::arch::x86_64::*;

    /// Defines a tile kernel on 512-bit registers: `$step(w, x, k, acc)` for a panel and vector.
    macro_rules! avx512_tile {
        ($name:ident, $elem:ty, $features:literal, $word:ty, |$wv:ident: $wt:ty, $xv:ident: $xt:ty| $load:expr, $bcast:expr, $fma:expr) => {
            /// # Safety
            /// As [`super::Elem::tile`].
            #[target_feature(enable = $features)]
            pub(in super::super) unsafe fn $name<const P: usize, const T: usize>(a: &Tile<'_, $elem>) {
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
    pub(in super::super) unsafe fn transpose_avx512(rows: &[*const u32; 16], words: usize, out: *mut u32) {
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
    pub(in super::super) unsafe fn avx2_f32<const P: usize, const T: usize>(a: &Tile<'_, f32>) {
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
    pub(in super::super) unsafe fn avx2_bf16<const P: usize, const T: usize>(a: &Tile<'_, bf16>) {
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
                    acc[p][t][h] =
                        unsafe { _mm256_loadu_ps(a.out.add(t * a.out_stride + p * PANEL + h * 8)) };
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
                    unsafe {
                        _mm256_storeu_ps(a.out.add(t * a.out_stride + p * PANEL + h * 8), acc[p][t][h])
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set, panel count and vector count against the plain sum in the same order.
    fn check<E: Elem>() {
        let (k_steps, most_panels) = (13, 11);
        let k = k_steps * E::PAIR;
        let value = |i: usize| E::from_f32(((i * 37) % 101) as f32 / 50.0 - 1.0);
        let w: Vec<E> = (0..most_panels * k * PANEL).map(value).collect();
        for isa in Isa::all() {
            for (panels, vectors) in
                (1..=MAX_VECTORS).map(|t| (11, t)).chain((7..=max_vectors(isa, 1)).map(|t| (1, t)))
            {
                for start in [Start::Zero, Start::Output] {
                    let x: Vec<E> = (0..vectors * k).map(|i| value(i * 3 + 1)).collect();
                    let pointers: Vec<*const E> = (0..vectors).map(|t| x[t * k..].as_ptr()).collect();
                    let stride = panels * PANEL + 5;
                    let mut out = vec![0.5f32; vectors * stride];
                    let tile = Tile {
                        w: w.as_ptr(),
                        panel_stride: k * PANEL,
                        panels,
                        k_steps,
                        x: &pointers,
                        out: out.as_mut_ptr(),
                        out_stride: stride,
                        start,
                    };
                    // SAFETY: the vectors above have these sizes.
                    unsafe { E::multiply(isa, tile) };
                    for (i, got) in out.iter().enumerate() {
                        let (t, row) = (i / stride, i % stride);
                        let mut want = if start == Start::Zero { 0.0 } else { 0.5 };
                        if row >= panels * PANEL {
                            want = 0.5; // beyond the panels: untouched
                        } else {
                            for j in 0..k {
                                // Of a pair, the odd element first.
                                let j = if E::PAIR == 2 { j ^ 1 } else { j };
                                let at = (row / PANEL * k_steps + j / E::PAIR) * PANEL * E::PAIR;
                                let w = w[at + row % PANEL * E::PAIR + j % E::PAIR].to_f32();
                                want += w * x[t * k + j].to_f32();
                            }
                        }
                        assert!((got - want).abs() < 2e-5, "{isa:?} {vectors} {start:?} {i}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn transposed_words() {
        for (n, words) in [(16, 16), (16, 37), (16, 1), (3, 20)] {
            let data: Vec<f32> = (0..n * words).map(|i| i as f32).collect();
            let rows: Vec<*const f32> = data.chunks(words).map(<[f32]>::as_ptr).collect();
            for isa in Isa::all() {
                let mut out = vec![-1.0; words * PANEL];
                // SAFETY: rows of `words` words.
                unsafe { f32::transpose(isa, &rows, words, &mut out) };
                for (i, &v) in out.iter().enumerate() {
                    let (word, lane) = (i / PANEL, i % PANEL);
                    let want = if lane < n { data[lane * words + word] } else { -1.0 };
                    assert_eq!(v, want, "{isa:?} {n} x {words}: word {word} lane {lane}");
                }
            }
        }
    }

    #[test]
    fn bf16_tiles() {
        check::<bf16>();
    }

    #[test]
    fn f32_tiles() {
        check::<f32>();
    }
}
