//! Softmax attention over tiles of 64 keys, in latent space and expanded.
//!
//! Both go through [`attend_tile`]. Queries are packed into panels once (lanes are queries), so that
//! keys are used where they lie: `q · k` is a panel of queries times the vector of a key. Scores come
//! out key by key with a query a lane, so that the softmax runs down the lanes. Values are packed
//! into panels of 16 columns, and `p · v` is a panel of values times the vector of a query's weights.
//!
//! A query's numbers depend on its own position alone: tiles start at multiples of 64 keys, whatever
//! the block size, and in latent space each part of `SPLIT_KEYS` keys is summed from nothing and
//! merged in order, by one thread or several.

use super::isa::{Isa, for_each_isa};
use super::lanes;
use super::tile::{Elem, MAX_VECTORS, PANEL, Start, Tile, max_vectors, prefetch};
use std::ops::Range;

/// Queries whose scores are computed together: four panels.
const QUERIES: usize = 4 * PANEL;

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
    /// `[16, qk_stride]` queries on their way into panels
    pub query_rows: Vec<E>,
    /// `[queries / 16]` panels, `[qk_stride / PAIR, 16, PAIR]` each
    q: Vec<E>,
    /// `[queries, v_stride]` weighted sums of values, not yet divided by `sum`
    pub out: Vec<f32>,
    /// `[queries]` running maximum of the scores
    pub max: Vec<f32>,
    /// `[queries]` running sum of `e^(score - max)`
    pub sum: Vec<f32>,
    /// `[KEYS, qk_stride]` and `[KEYS, v_stride]`: keys and values expanded from latent rows
    pub key_rows: Vec<E>,
    pub value_rows: Vec<E>,
    /// `[KEYS, latent_width, rounded up to whole steps]`: latent rows of FP8, widened
    pub latents: Vec<E>,
    /// `[qk]` a query on its way to `q`
    pub query: Vec<f32>,
    /// `[MAX_VECTORS, panels * 16]` expanded numbers on their way to the rows
    pub expanded: Vec<f32>,
    /// `[v_stride / 16]` panels, `[64 / PAIR, 16, PAIR]` each
    values: Vec<E>,
    /// `[KEYS, QUERIES]`
    scores: Vec<f32>,
    /// `[QUERIES, KEYS]`
    weights: Vec<E>,
}

impl<E: Elem> Scratch<E> {
    /// For up to `queries` queries of any of `widths`; `latent_width` of rows that must be widened, else 0.
    pub(super) fn new(cases: &[(usize, Widths)], latent_width: usize) -> Self {
        let most =
            |f: &dyn Fn(usize, Widths) -> usize| cases.iter().map(|&(n, w)| f(n, w)).max().unwrap_or(0);
        let qk = most(&|_, w| w.qk_stride::<E>());
        let v = most(&|_, w| w.v_stride());
        let queries = most(&|n, _| n);
        Self {
            query_rows: vec![E::ZERO; PANEL * qk],
            q: vec![E::ZERO; most(&|n, w| n.next_multiple_of(PANEL) * w.qk_stride::<E>())],
            out: vec![0.0; most(&|n, w| n.next_multiple_of(PANEL) * w.v_stride())],
            max: vec![0.0; queries.next_multiple_of(PANEL)],
            sum: vec![0.0; queries.next_multiple_of(PANEL)],
            query: vec![0.0; qk],
            expanded: vec![0.0; MAX_VECTORS * qk.max(v).next_multiple_of(PANEL)],
            key_rows: vec![E::ZERO; KEYS * qk],
            value_rows: vec![E::ZERO; KEYS * v],
            latents: vec![E::ZERO; KEYS * latent_width.next_multiple_of(E::PAIR)],
            values: vec![E::ZERO; KEYS * v],
            scores: vec![0.0; KEYS * QUERIES],
            weights: vec![E::ZERO; QUERIES * KEYS],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let elements = self.q.len()
            + self.query_rows.len()
            + self.key_rows.len()
            + self.value_rows.len()
            + self.latents.len()
            + self.values.len()
            + self.weights.len();
        let f32s = self.out.len()
            + self.max.len()
            + self.sum.len()
            + self.query.len()
            + self.expanded.len()
            + self.scores.len();
        elements * size_of::<E>() + f32s * 4
    }

    /// Forgets what the first `queries` queries have seen. Those that fill up the last panel are
    /// forgotten too: they see no key.
    pub(super) fn clear(&mut self, queries: usize, widths: Widths) {
        let queries = queries.next_multiple_of(PANEL);
        self.out[..queries * widths.v_stride()].fill(0.0);
        self.max[..queries].fill(f32::NEG_INFINITY);
        self.sum[..queries].fill(0.0);
    }

    /// Packs queries `16 * panel..`, of which the first `rows` of `query_rows` are given.
    pub(super) fn pack_queries(&mut self, isa: Isa, panel: usize, rows: usize, widths: Widths) {
        let stride = widths.qk_stride::<E>();
        assert!(rows <= PANEL);
        let from: [*const E; PANEL] = std::array::from_fn(|i| self.query_rows[i * stride..].as_ptr());
        let out = &mut self.q[panel * PANEL * stride..][..PANEL * stride];
        // SAFETY: 16 rows of `stride` elements.
        unsafe { E::transpose(isa, &from, stride / E::PAIR, out) };
    }

    /// Packs up to 64 values for [`attend_tile`].
    ///
    /// # Safety
    /// Each pointer is valid for `widths.v` elements.
    pub(super) unsafe fn pack_values(&mut self, isa: Isa, rows: &[*const E], widths: Widths) {
        let values = &mut self.values[..KEYS * widths.v_stride()];
        if rows.len() < KEYS {
            // Missing keys weigh nothing, but a stale NaN would still show.
            values.fill(E::ZERO);
        }
        // SAFETY: the caller's promise.
        unsafe { E::interleave(isa, rows, widths.v, values) };
    }
}

/// Keys of a tile, at most 64, and those of the next one as they are stored, which are not read.
pub(super) struct Keys<'a, E> {
    pub rows: &'a [*const E],
    pub ahead: &'a [*const u8],
    /// Of each row ahead.
    pub ahead_bytes: usize,
}

/// Rows that the next tile will read, fetched a few at a time between products: all at once would
/// only wait for memory here instead of there.
struct Ahead<'a> {
    rows: std::slice::Iter<'a, *const u8>,
    row_bytes: usize,
}

impl Ahead<'_> {
    /// Between products: about ten of them are made of a tile of 64 keys.
    const FEW: usize = 7;

    fn fetch_few(&mut self) {
        for row in self.rows.by_ref().take(Self::FEW) {
            (0..self.row_bytes).step_by(64).for_each(|at| prefetch(row.wrapping_add(at)));
        }
    }
}

/// Attends queries `queries` (starting at a multiple of 16) to up to 64 keys, whose values are packed.
/// `visible(i)`: how many of the keys query `i` may see.
///
/// # Safety
/// Each pointer in `keys.rows` is valid for `qk_stride` elements.
pub(super) unsafe fn attend_tile<E: Elem>(
    isa: Isa,
    s: &mut Scratch<E>,
    queries: Range<usize>,
    keys: Keys<'_, E>,
    widths: Widths,
    scale: f32,
    visible: impl Fn(usize) -> usize,
) {
    assert!(queries.start.is_multiple_of(PANEL) && keys.rows.len() <= KEYS);
    let (qk, v) = (widths.qk_stride::<E>(), widths.v_stride());
    let mut ahead = Ahead { rows: keys.ahead.iter(), row_bytes: keys.ahead_bytes };
    let keys = keys.rows;
    for first in queries.clone().step_by(QUERIES) {
        let n = QUERIES.min(queries.end - first);
        let panels = n.div_ceil(PANEL);
        let q = &s.q[first * qk..][..panels * PANEL * qk];
        let together = max_vectors(isa, panels);
        for (key, x) in (0..).step_by(together).zip(keys.chunks(together)) {
            let out = &mut s.scores[key * QUERIES..][..x.len() * QUERIES];
            let tile = Tile {
                w: q.as_ptr(),
                panel_stride: PANEL * qk,
                panels,
                k_steps: qk / E::PAIR,
                x,
                out: out.as_mut_ptr(),
                out_stride: QUERIES,
                start: Start::Zero,
            };
            ahead.fetch_few();
            // SAFETY: `q` holds the panels, `out` a row of QUERIES a key; keys by the caller's promise.
            unsafe { E::multiply(isa, tile) };
        }
        for panel in 0..panels {
            let at = first + panel * PANEL;
            let seen = std::array::from_fn(|lane| {
                if at + lane < queries.end { visible(at + lane).min(keys.len()) as u32 } else { 0 }
            });
            let scores = &mut s.scores[panel * PANEL..];
            let (max, sum) = (&mut s.max[at..][..PANEL], &mut s.sum[at..][..PANEL]);
            let mut shrink = [1.0; PANEL];
            softmax_lanes(isa, scores, keys.len(), &seen, scale, max, sum, &mut shrink);
            turn(isa, scores, &mut s.weights[panel * PANEL * KEYS..]);
            for (lane, &shrink) in shrink.iter().enumerate().filter(|(_, shrink)| **shrink != 1.0) {
                lanes::scale(isa, &mut s.out[(at + lane) * v..][..v], shrink);
            }
        }
        for done in (0..n).step_by(MAX_VECTORS) {
            let vectors = MAX_VECTORS.min(n - done);
            let x: [*const E; MAX_VECTORS] =
                std::array::from_fn(|t| s.weights[(done + t.min(vectors - 1)) * KEYS..][..KEYS].as_ptr());
            let out = &mut s.out[(first + done) * v..][..vectors * v];
            let tile = Tile {
                w: s.values[..KEYS * v].as_ptr(),
                panel_stride: KEYS * PANEL,
                panels: v / PANEL,
                k_steps: KEYS / E::PAIR,
                x: &x[..vectors],
                out: out.as_mut_ptr(),
                out_stride: v,
                start: Start::Output,
            };
            ahead.fetch_few();
            // SAFETY: the slices above have these sizes.
            unsafe { E::multiply(isa, tile) };
        }
    }
}

for_each_isa! {
    /// One panel of queries, a lane each: `scores[key][lane]` become `e^(s - max)`, `max` and `sum` go on
    /// from the tiles before, and `shrink` is what sums over those must be multiplied by. Keys at and
    /// beyond `seen[lane]`, and beyond `keys`, weigh nothing.
    fn softmax_lanes(
        scores: &mut [f32],
        keys: usize,
        seen: &[u32; PANEL],
        scale: f32,
        max: &mut [f32],
        sum: &mut [f32],
        shrink: &mut [f32; PANEL],
    ) {
        let max: &mut [f32; PANEL] = max.first_chunk_mut().expect("a lane each");
        let sum: &mut [f32; PANEL] = sum.first_chunk_mut().expect("a lane each");
        let mut high = *max;
        for (key, row) in scores.chunks_mut(QUERIES).take(keys).enumerate() {
            let row: &mut [f32; PANEL] = row.first_chunk_mut().expect("a lane each");
            for lane in 0..PANEL {
                let s = if (key as u32) < seen[lane] { row[lane] * scale } else { f32::NEG_INFINITY };
                row[lane] = s;
                high[lane] = if s > high[lane] { s } else { high[lane] };
            }
        }
        let mut total = [0.0f32; PANEL];
        // A query that has seen nothing yet has no maximum: its weights are e^-inf all the same.
        let base: [f32; PANEL] = std::array::from_fn(|l| if high[l] == f32::NEG_INFINITY { 0.0 } else { high[l] });
        for (key, row) in scores.chunks_mut(QUERIES).take(KEYS).enumerate() {
            let row: &mut [f32; PANEL] = row.first_chunk_mut().expect("a lane each");
            if key >= keys {
                *row = [0.0; PANEL];
                continue;
            }
            for lane in 0..PANEL {
                row[lane] = lanes::exp(row[lane] - base[lane]);
                total[lane] += row[lane];
            }
        }
        for lane in 0..PANEL {
            shrink[lane] = lanes::exp(max[lane] - base[lane]);
            sum[lane] = sum[lane] * shrink[lane] + total[lane];
            max[lane] = high[lane];
        }
    }
}

/// `weights[query][key] = scores[key][query]`, rounded, for one panel of queries.
fn turn<E: Elem>(isa: Isa, scores: &[f32], weights: &mut [E]) {
    let mut block = [0.0f32; PANEL * PANEL];
    for key in (0..KEYS).step_by(PANEL) {
        let rows: [*const f32; PANEL] =
            std::array::from_fn(|i| scores[(key + i) * QUERIES..][..PANEL].as_ptr());
        // SAFETY: 16 rows of 16.
        unsafe { f32::transpose(isa, &rows, PANEL, &mut block) };
        for (query, row) in block.as_chunks::<PANEL>().0.iter().enumerate() {
            E::convert(isa, row, &mut weights[query * KEYS + key..][..PANEL]);
        }
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
    /// Values of pairs of keys side by side, in panels of 16 columns: `out[v / 16][pair][16][2]`. A pair is
    /// one 32-bit word, its first key in the low half.
    pub(super) fn interleave_pairs(rows: &[*const u16], width: usize, out: &mut [u16]) {
        let panel_len = KEYS * PANEL;
        for (pair, rows) in rows.chunks(2).enumerate() {
            // SAFETY: `interleave`'s caller vouches for rows of `width` elements.
            let a = unsafe { std::slice::from_raw_parts(rows[0], width) };
            // SAFETY: as above. A key without a partner is paired with itself, and that half cleared.
            let b = unsafe { std::slice::from_raw_parts(*rows.last().unwrap_or(&rows[0]), width) };
            let keep = if rows.len() == 2 { u32::MAX } else { 0xffff };
            let columns = a.chunks(PANEL).zip(b.chunks(PANEL));
            for ((a, b), out) in columns.zip(out.chunks_exact_mut(panel_len)) {
                let out: &mut [u16; 2 * PANEL] = out[pair * 2 * PANEL..].first_chunk_mut().expect("a whole step");
                let mut words = [0u32; PANEL];
                if let (Some(a), Some(b)) = (a.first_chunk::<PANEL>(), b.first_chunk::<PANEL>()) {
                    for lane in 0..PANEL {
                        words[lane] = (u32::from(a[lane]) | u32::from(b[lane]) << 16) & keep;
                    }
                } else {
                    for ((word, &a), &b) in words.iter_mut().zip(a).zip(b) {
                        *word = (u32::from(a) | u32::from(b) << 16) & keep;
                    }
                }
                // SAFETY: both are 64 bytes, and halves of a word are in order on a little-endian machine.
                *out = unsafe { std::mem::transmute::<[u32; PANEL], [u16; 2 * PANEL]>(words) };
            }
        }
    }
}
