//! Softmax attention over tiles of 64 keys, in latent space and expanded.
//!
//! Both go through [`attend_tile`]: the keys of a tile are packed into panels whose lanes are keys
//! (for `q · k`), the values into panels whose lanes are value columns (for `p · v`), and the products
//! are the same tiles as everywhere else. A query's numbers depend on its own position alone: tiles
//! start at multiples of 64 keys, whatever the block size, and in latent space each part of
//! `split_len` keys is summed from nothing and merged in order, by one thread or several.

use super::isa::{Isa, for_each_isa};
use super::lanes;
use super::tile::{Elem, MAX_VECTORS, PANEL, Start, Tile};

/// Keys in a tile.
pub(super) const KEYS: usize = 64;

/// Widths of one attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    /// Of a query and key.
    pub qk: usize,
    /// Of a value.
    pub v: usize,
}

impl Widths {
    /// Elements of a stored query or key: `qk`, rounded up to whole steps.
    pub(super) fn qk_stride<E: Elem>(self) -> usize {
        self.qk.next_multiple_of(E::PAIR)
    }

    /// Elements of an accumulated value: `v`, rounded up to whole panels.
    pub(super) fn v_stride(self) -> usize {
        self.v.next_multiple_of(PANEL)
    }
}

/// One thread's memory, made for the largest step.
pub(super) struct Scratch<E> {
    /// `[queries, qk_stride]`
    pub q: Vec<E>,
    /// `[queries, v_stride]` weighted sums of values, not yet divided by `sum`
    pub out: Vec<f32>,
    /// `[queries]` running maximum of the scores
    pub max: Vec<f32>,
    /// `[queries]` running sum of `e^(score - max)`
    pub sum: Vec<f32>,
    /// `[KEYS, qk_stride]` and `[KEYS, v_stride]`: keys and values expanded from latent rows
    pub key_rows: Vec<E>,
    pub value_rows: Vec<E>,
    /// `[qk]` a query on its way to `q`
    pub query: Vec<f32>,
    /// `[MAX_VECTORS, panels * 16]` expanded numbers on their way to the rows
    pub expanded: Vec<f32>,
    keys: Vec<E>,
    values: Vec<E>,
    scores: [f32; MAX_VECTORS * KEYS],
    weights: Vec<E>,
}

impl<E: Elem> Scratch<E> {
    /// For up to `queries` queries of any of `widths`.
    pub(super) fn new(cases: &[(usize, Widths)]) -> Self {
        let most =
            |f: &dyn Fn(usize, Widths) -> usize| cases.iter().map(|&(n, w)| f(n, w)).max().unwrap_or(0);
        let qk = most(&|_, w| w.qk_stride::<E>());
        let v = most(&|_, w| w.v_stride());
        let queries = most(&|n, _| n);
        Self {
            q: vec![E::ZERO; most(&|n, w| n * w.qk_stride::<E>())],
            out: vec![0.0; most(&|n, w| n * w.v_stride())],
            max: vec![0.0; queries],
            sum: vec![0.0; queries],
            query: vec![0.0; qk],
            expanded: vec![0.0; MAX_VECTORS * qk.max(v).next_multiple_of(PANEL)],
            key_rows: vec![E::ZERO; KEYS * qk],
            value_rows: vec![E::ZERO; KEYS * v],
            keys: vec![E::ZERO; KEYS * qk],
            values: vec![E::ZERO; KEYS * v],
            scores: [0.0; MAX_VECTORS * KEYS],
            weights: vec![E::ZERO; MAX_VECTORS * KEYS],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let elements = self.q.len()
            + self.key_rows.len()
            + self.value_rows.len()
            + self.keys.len()
            + self.values.len()
            + self.weights.len();
        let f32s = self.out.len() + self.max.len() + self.sum.len() + self.expanded.len() + self.scores.len();
        elements * size_of::<E>() + f32s * 4
    }

    /// Forgets what the first `queries` queries have seen.
    pub(super) fn clear(&mut self, queries: usize, widths: Widths) {
        self.out[..queries * widths.v_stride()].fill(0.0);
        self.max[..queries].fill(f32::NEG_INFINITY);
        self.sum[..queries].fill(0.0);
    }
}

/// Packs up to 64 keys and values for [`attend_tile`].
///
/// # Safety
/// Each pointer in `keys` is valid for `qk_stride` elements, each in `values` for `v`.
pub(super) unsafe fn pack_tile<E: Elem>(
    isa: Isa,
    s: &mut Scratch<E>,
    keys: &[*const E],
    values: &[*const E],
    widths: Widths,
) {
    let steps = widths.qk_stride::<E>() / E::PAIR;
    for (panel, out) in keys.chunks(PANEL).zip(s.keys.chunks_exact_mut(steps * PANEL * E::PAIR)) {
        // SAFETY: the rows are as long as the caller says, which is `steps` words of PAIR elements.
        unsafe { E::transpose(isa, panel, steps, out) };
    }
    // Missing keys: their scores are masked, but a stale NaN in a value would still show.
    let len = KEYS * widths.v_stride();
    if values.len() < KEYS {
        s.values[..len].fill(E::ZERO);
    }
    // SAFETY: as above.
    unsafe { E::interleave(isa, values, widths.v, &mut s.values[..len]) };
}

/// Attends queries `first..first + n` to the packed tile. `visible(i)`: how many of the tile's keys
/// query `i` may see.
pub(super) fn attend_tile<E: Elem>(
    isa: Isa,
    s: &mut Scratch<E>,
    queries: std::ops::Range<usize>,
    widths: Widths,
    scale: f32,
    visible: impl Fn(usize) -> usize,
) {
    let (qk, v) = (widths.qk_stride::<E>(), widths.v_stride());
    let mut first = queries.start;
    while first < queries.end {
        let n = MAX_VECTORS.min(queries.end - first);
        assert!((first + n) * qk <= s.q.len() && (first + n) * v <= s.out.len());
        assert!(KEYS * qk <= s.keys.len() && KEYS * v <= s.values.len());
        let x: [*const E; MAX_VECTORS] = std::array::from_fn(|t| s.q[(first + t.min(n - 1)) * qk..].as_ptr());
        let scores = Tile {
            w: s.keys.as_ptr(),
            panel_stride: qk * PANEL,
            panels: KEYS / PANEL,
            k_steps: qk / E::PAIR,
            x: &x[..n],
            out: s.scores.as_mut_ptr(),
            out_stride: KEYS,
            start: Start::Zero,
        };
        // SAFETY: sizes asserted above; `scores` holds MAX_VECTORS * KEYS.
        unsafe { E::multiply(isa, scores) };
        for t in 0..n {
            let query = first + t;
            let row = &mut s.scores[t * KEYS..][..KEYS];
            let seen = visible(query).min(KEYS);
            if seen == 0 {
                row.fill(0.0);
            } else {
                row[seen..].fill(f32::NEG_INFINITY);
                let (max, sum) = lanes::softmax_part(isa, row, scale, s.max[query]);
                let shrink = lanes::exp(s.max[query] - max);
                s.max[query] = max;
                s.sum[query] = s.sum[query] * shrink + sum;
                if shrink != 1.0 {
                    lanes::scale(isa, &mut s.out[query * v..][..v], shrink);
                }
            }
            E::convert(isa, row, &mut s.weights[t * KEYS..][..KEYS]);
        }
        let x: [*const E; MAX_VECTORS] = std::array::from_fn(|t| s.weights[t * KEYS..].as_ptr());
        let sums = Tile {
            w: s.values.as_ptr(),
            panel_stride: KEYS * PANEL,
            panels: v / PANEL,
            k_steps: KEYS / E::PAIR,
            x: &x[..n],
            out: s.out[first * v..].as_mut_ptr(),
            out_stride: v,
            start: Start::Output,
        };
        // SAFETY: sizes asserted above; `weights` holds MAX_VECTORS * KEYS.
        unsafe { E::multiply(isa, sums) };
        first += n;
    }
}

/// Adds one part's `(max, sum, out)` to another's: `out` and `sum` are relative to `max`.
pub(super) fn merge(isa: Isa, into: (&mut f32, &mut f32, &mut [f32]), part: (f32, f32, &[f32])) {
    let (max, sum, out) = into;
    let both = max.max(part.0);
    let (a, b) = (lanes::exp(*max - both), lanes::exp(part.0 - both));
    *max = both;
    *sum = *sum * a + part.1 * b;
    lanes::blend(isa, out, a, part.2, b);
}

for_each_isa! {
    /// Values of pairs of keys side by side, in panels of 16 columns: `out[v / 16][pair][16][2]`, as words.
    pub(super) fn interleave_pairs(rows: &[*const u16], width: usize, out: &mut [u16]) {
        let panel_len = 64 * 16;
        for (pair, rows) in rows.chunks(2).enumerate() {
            // SAFETY: `interleave`'s caller vouches for rows of `width` elements.
            let a = unsafe { std::slice::from_raw_parts(rows[0], width) };
            let b = rows.get(1).map(|&r| {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts(r, width) }
            });
            let (full, tail) = a.as_chunks::<16>();
            for (panel, a) in full.iter().enumerate() {
                let out: &mut [u16; 32] =
                    out[panel * panel_len + pair * 32..].first_chunk_mut().expect("a whole step");
                let b = b.map_or([0; 16], |b| *b[panel * 16..].first_chunk().expect("as long as a"));
                for lane in 0..16 {
                    out[2 * lane] = a[lane];
                    out[2 * lane + 1] = b[lane];
                }
            }
            let at = full.len() * panel_len + pair * 32;
            for (lane, &a) in tail.iter().enumerate() {
                out[at + 2 * lane] = a;
                out[at + 2 * lane + 1] = b.map_or(0, |b| b[full.len() * 16 + lane]);
            }
        }
    }
}
