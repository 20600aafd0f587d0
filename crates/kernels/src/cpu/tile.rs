//! The one inner loop that everything heavy runs through: a few panels of 16 matrix rows times a few
//! vectors, in registers.
//!
//! A *panel* holds 16 rows of a matrix, column by column: `[k_steps][16][PAIR]`, where `PAIR` is 2 for
//! bf16 (the unit of `vdpbf16ps`) and 1 for f32. Vector lanes are matrix rows and the sum over k runs
//! in one accumulator in the order of k, so that a result depends on its row and vector alone, never on
//! how many others are computed with it. bf16 products are exact in f32; of a pair, the odd element
//! is added first, as `vdpbf16ps` does.

#[cfg(target_arch = "x86_64")]
use x86::{avx2_bf16, avx2_f32, avx512_bf16, avx512_dp_bf16, avx512_f32, transpose_avx512};

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

    /// Packs up to 64 rows of `width` elements into panels of 16 columns: `[width / 16][64 / PAIR][16][PAIR]`.
    ///
    /// # Safety
    /// Each row is valid for `width` elements.
    unsafe fn interleave(isa: Isa, rows: &[*const Self], width: usize, out: &mut [Self]);

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

    unsafe fn interleave(isa: Isa, rows: &[*const Self], width: usize, out: &mut [Self]) {
        // SAFETY: bf16 is a u16 in memory, and so is a pointer to it.
        let rows = unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) };
        attend::interleave_pairs(isa, rows, width, out.reinterpret_cast_mut());
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

    unsafe fn interleave(_: Isa, rows: &[*const Self], width: usize, out: &mut [Self]) {
        for (key, &row) in rows.iter().enumerate() {
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

#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;
