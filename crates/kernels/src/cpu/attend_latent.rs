//! Attention over the cache as it lies: every head's key is the latent row.

use super::arena::{KeysOf, Stored};
use super::attend::{self, KEYS, Keys, Widths, attend_tile, merge};
use super::packed::SendPtr;
use super::pool::Pool;
use super::scratch::{PARTS_A_THREAD, tokens_per_item};
use super::tile::PANEL;
use super::{Cpu, Isa};
use crate::backend::MlaDims;
use crate::error::Result;
use crate::ops::AttendLatent;
use crate::step::StepState;

/// Keys of one part of a row, whose sums begin from nothing. Parts are merged in order, so that a sum's order
/// is the row's alone: not that of the threads, nor of the longest context.
pub(super) const SPLIT_KEYS: usize = 512;

/// Some tokens of one row, all heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentItem {
    row: usize,
    /// First token in the step.
    token: usize,
    tokens: usize,
    /// Position of the first token.
    position: usize,
}

impl LatentItem {
    /// Keys that its last token sees.
    fn keys(&self) -> usize {
        self.position + self.tokens
    }

    fn splits(&self) -> usize {
        self.keys().div_ceil(SPLIT_KEYS)
    }
}

/// Below so many items, each is split over the threads by keys.
pub(super) fn few_items(threads: usize) -> usize {
    if threads == 1 { 0 } else { 2 * threads }
}

/// Numbers of a query's sums: `[max, sum, v_stride weighted values]`, see [`attend::Scratch`].
pub(super) fn sums_width(widths: Widths) -> usize {
    2 + widths.v_stride()
}

impl Cpu {
    pub(super) fn attend_latent_of<E: Stored>(&mut self, op: AttendLatent<'_, Self>) -> Result<()> {
        let dims = op.dims;
        self.fill_items(dims.n_heads);
        let out = SendPtr::new(op.out.as_mut_ptr());
        let latent = Latent {
            isa: self.isa,
            dims,
            widths: Widths { qk: dims.latent_width(), v: dims.kv_lora_rank },
            op: &op,
            step: &self.step,
            scratch: SendPtr::new(E::operands(&mut self.scratch).attend.as_mut_ptr()),
            out,
        };
        let (items, threads) = (&self.scratch.items, self.pool.threads());
        let splits = items.iter().map(LatentItem::splits).max().unwrap_or(0);
        if splits > 1 && items.len() < few_items(threads) {
            latent.attend_split(&mut self.pool, items, splits, &mut self.scratch.parts);
        } else {
            latent.attend_whole(&mut self.pool, items, &mut self.scratch.merged);
        }
        Ok(())
    }

    /// Cuts the rows that stay in latent space into items.
    fn fill_items(&mut self, heads: usize) {
        let per_item = tokens_per_item(heads);
        let items = &mut self.scratch.items;
        items.clear();
        for row in self.step.rows.iter().filter(|row| !row.expanded) {
            for done in (0..row.len).step_by(per_item) {
                items.push(LatentItem {
                    row: row.index,
                    token: row.first + done,
                    tokens: per_item.min(row.len - done),
                    position: row.kv_len - row.len + done,
                });
            }
        }
    }
}

/// What all items of `attend_latent` share.
struct Latent<'a, E> {
    isa: Isa,
    dims: MlaDims,
    widths: Widths,
    op: &'a AttendLatent<'a, Cpu>,
    step: &'a StepState,
    /// One a thread.
    scratch: SendPtr<attend::Scratch<E>>,
    out: SendPtr<f32>,
}

impl<E: Stored> Latent<'_, E> {
    /// Each item by one thread.
    fn attend_whole(&self, pool: &mut Pool, items: &[LatentItem], merged: &mut [Vec<f32>]) {
        let width = sums_width(self.widths);
        let merged = SendPtr::new(merged.as_mut_ptr());
        pool.run(items.len(), &|worker, i| {
            let item = &items[i];
            // SAFETY: a worker runs one item at a time, and there is one of each a thread.
            let (s, merged) = unsafe { (&mut *self.scratch.at(worker), &mut *merged.at(worker)) };
            let sums = &mut merged[..self.queries(item) * width];
            self.load_queries(s, item);
            clear(sums, width);
            for split in 0..item.splits() {
                self.sum_part(s, item, split);
                for (query, sums) in sums.chunks_exact_mut(width).enumerate() {
                    self.add(sums, self.sums_of(s, query));
                }
            }
            self.finish(item, 0, sums);
        });
    }

    /// Each item by all threads: some parts are summed at a time, then merged in order. `parts` holds
    /// an item's sums, then those of its parts: `[items, 1 + parts, queries, sums_width]`.
    fn attend_split(&self, pool: &mut Pool, items: &[LatentItem], splits: usize, parts: &mut [f32]) {
        let width = sums_width(self.widths);
        let queries = items.iter().map(|item| self.queries(item)).max().unwrap_or(0);
        let together = (PARTS_A_THREAD * pool.threads() / items.len()).min(splits);
        assert!(together > 0 && items.len() * (1 + together) * queries * width <= parts.len());
        let parts = SendPtr::new(parts.as_mut_ptr());
        let sums_at = |item: usize, place: usize, query: usize, n: usize| {
            let first = (item * (1 + together) + place) * queries + query;
            // SAFETY: within `parts` as asserted; no two tasks of a loop ask for the same queries of a place.
            unsafe { std::slice::from_raw_parts_mut(parts.at(first * width), n * width) }
        };
        for first in (0..splits).step_by(together) {
            let end = splits.min(first + together);
            pool.run(items.len() * (end - first), &|worker, i| {
                let (i, split) = (i / (end - first), first + i % (end - first));
                let item = &items[i];
                if split < item.splits() {
                    // SAFETY: a worker runs one item at a time, and there is one scratch a thread.
                    let s = unsafe { &mut *self.scratch.at(worker) };
                    self.load_queries(s, item);
                    self.sum_part(s, item, split);
                    let sums = sums_at(i, 1 + split - first, 0, self.queries(item));
                    for (query, sums) in sums.chunks_exact_mut(width).enumerate() {
                        let (max, sum, out) = self.sums_of(s, query);
                        (sums[0], sums[1]) = (max, sum);
                        sums[2..].copy_from_slice(out);
                    }
                }
            });
            let panels = queries.div_ceil(PANEL);
            pool.run(items.len() * panels, &|_, i| {
                let (i, query) = (i / panels, i % panels * PANEL);
                let item = &items[i];
                let n = PANEL.min(self.queries(item).saturating_sub(query));
                let sums = sums_at(i, 0, query, n);
                if first == 0 {
                    clear(sums, width);
                }
                for split in first..end.min(item.splits()) {
                    let part = sums_at(i, 1 + split - first, query, n);
                    for (sums, part) in sums.chunks_exact_mut(width).zip(part.chunks_exact(width)) {
                        self.add(sums, (part[0], part[1], &part[2..]));
                    }
                }
                if end == splits {
                    self.finish(item, query, sums);
                }
            });
        }
    }

    fn queries(&self, item: &LatentItem) -> usize {
        item.tokens * self.dims.n_heads
    }

    fn load_queries(&self, s: &mut attend::Scratch<E>, item: &LatentItem) {
        let (width, stride) = (self.widths.qk, self.widths.qk_stride::<E>());
        let first = item.token * self.dims.n_heads;
        let queries = &self.op.q[first * width..][..self.queries(item) * width];
        for (panel, queries) in queries.chunks(PANEL * width).enumerate() {
            let rows = queries.chunks_exact(width);
            for (q, out) in rows.clone().zip(s.query_rows.chunks_exact_mut(stride)) {
                E::convert(self.isa, q, &mut out[..width]);
            }
            s.pack_queries(self.isa, panel, rows.len(), self.widths);
        }
    }

    /// Sums of part `split` of the item's keys, from nothing. Its queries are loaded.
    fn sum_part(&self, s: &mut attend::Scratch<E>, item: &LatentItem, split: usize) {
        let Self { isa, widths, op, .. } = *self;
        let (heads, queries) = (self.dims.n_heads, self.queries(item));
        s.clear(queries, widths);
        let end = item.keys().min((split + 1) * SPLIT_KEYS);
        for first in (split * SPLIT_KEYS..end).step_by(KEYS) {
            // This tile's rows and the next one's.
            let mut rows = [std::ptr::null(); KEYS];
            let mut ahead = [std::ptr::null(); KEYS];
            let rows = &mut rows[..KEYS.min(end - first)];
            let ahead = &mut ahead[..KEYS.min(end - first - rows.len())];
            let keys = KeysOf { layer: op.layer, step: self.step, row: item.row, first };
            op.arena.rows(isa, keys, &mut s.latents, rows);
            op.arena.stored(KeysOf { first: first + KEYS, ..keys }, ahead);
            // SAFETY: rows are `qk_stride` long and start with the value.
            unsafe {
                s.pack_values(isa, rows, widths);
                let keys = Keys { rows, ahead, ahead_bytes: op.arena.row_bytes() };
                attend_tile(isa, s, 0..queries, keys, widths, self.dims.softmax_scale, |query| {
                    (item.position + query / heads + 1).saturating_sub(first)
                });
            }
        }
    }

    /// `(max, sum, out)` of a query in the part that `s` has summed.
    fn sums_of<'s>(&self, s: &'s attend::Scratch<E>, query: usize) -> (f32, f32, &'s [f32]) {
        let v = self.widths.v_stride();
        (s.max[query], s.sum[query], &s.out[query * v..][..v])
    }

    /// Adds a part to a query's sums.
    fn add(&self, sums: &mut [f32], part: (f32, f32, &[f32])) {
        // 0: the query sees none of the part's keys. NaN is passed on.
        if let ([max, sum, out @ ..], true) = (sums, part.1 != 0.0) {
            merge(self.isa, (max, sum, out), part);
        }
    }

    /// What the item's queries from `query` on attend to: their values' sums over the weights' sum.
    fn finish(&self, item: &LatentItem, query: usize, sums: &[f32]) {
        let (v, width) = (self.widths.v, sums_width(self.widths));
        let first = item.token * self.dims.n_heads + query;
        // SAFETY: a task has these queries' rows of `out` to itself, and they lie within it as checked.
        let out = unsafe { std::slice::from_raw_parts_mut(self.out.at(first * v), sums.len() / width * v) };
        for (out, sums) in out.chunks_exact_mut(v).zip(sums.chunks_exact(width)) {
            let inverse = 1.0 / sums[1];
            out.iter_mut().zip(&sums[2..]).for_each(|(o, x)| *o = x * inverse);
        }
    }
}

/// Sums that have seen nothing.
fn clear(sums: &mut [f32], width: usize) {
    sums.fill(0.0);
    sums.chunks_exact_mut(width).for_each(|sums| sums[0] = f32::NEG_INFINITY);
}
