//! Attention over the cache as it lies: every head's key is the latent row.

use super::arena::{Stored, latent_rows};
use super::attend::{self, KEYS, Keys, Widths, attend_tile, merge};
use super::packed::SendPtr;
use super::scratch::tokens_per_item;
use super::tile::PANEL;
use super::{Cpu, Isa, same_precision};
use crate::error::Result;
use crate::ops::AttendLatent;

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
}

/// Below so many items, each is split over the threads by keys.
pub(super) fn few_items(threads: usize) -> usize {
    if threads == 1 { 0 } else { 2 * threads }
}

impl Cpu {
    pub(super) fn attend_latent_of<E: Stored>(&mut self, op: AttendLatent<'_, Self>) -> Result<()> {
        if self.absorbed.is_empty() {
            return Ok(());
        }
        let (dims, isa, split_keys) = (op.dims, self.isa, self.scratch.split_keys);
        let heads = dims.n_heads;
        let widths = Widths { qk: dims.latent_width(), v: dims.kv_lora_rank };
        let arena = SendPtr::new(same_precision(E::arena(op.arena), "attend_latent")?.cast_mut());
        self.fill_items(heads);
        let items = std::mem::take(&mut self.scratch.items);
        let most_splits = items.iter().map(|i| i.keys().div_ceil(split_keys)).max().unwrap_or(0);
        let scratch = SendPtr::new(E::operands(&mut self.scratch).attend.as_mut_ptr());
        let merged = SendPtr::new(self.scratch.merged.as_mut_ptr());
        let (step, q) = (&self.step, op.q.as_slice());
        // SAFETY: a worker runs one item at a time, and there is one scratch a thread.
        let of_worker = |worker: usize| unsafe { (&mut *scratch.at(worker), &mut *merged.at(worker)) };
        let attend_part = |s: &mut attend::Scratch<E>, item: &LatentItem, split: usize| {
            let queries = item.tokens * heads;
            s.clear(queries, widths);
            let end = item.keys().min((split + 1) * split_keys);
            for first in (split * split_keys..end).step_by(KEYS) {
                // This tile's rows and the next one's.
                let mut rows = [std::ptr::null(); 2 * KEYS];
                let rows = &mut rows[..(2 * KEYS).min(end - first)];
                latent_rows(arena.get(), op.arena, op.layer, step, item.row, first, rows);
                let (rows, ahead) = rows.split_at(KEYS.min(rows.len()));
                // SAFETY: arena rows are `qk_stride` long and start with the value.
                unsafe {
                    s.pack_values(isa, rows, widths);
                    let keys = Keys { rows, ahead };
                    attend_tile(isa, s, 0..queries, keys, widths, dims.softmax_scale, |query| {
                        (item.position + query / heads + 1).saturating_sub(first)
                    });
                }
            }
        };
        let load_queries = |s: &mut attend::Scratch<E>, item: &LatentItem| {
            let stride = widths.qk_stride::<E>();
            let queries = &q[item.token * heads * widths.qk..][..item.tokens * heads * widths.qk];
            for (panel, queries) in queries.chunks(PANEL * widths.qk).enumerate() {
                let rows = queries.chunks_exact(widths.qk);
                for (q, out) in rows.clone().zip(s.query_rows.chunks_exact_mut(stride)) {
                    E::convert(isa, q, &mut out[..widths.qk]);
                }
                s.pack_queries(isa, panel, rows.len(), widths);
            }
        };
        let out = SendPtr::new(op.out.as_mut_ptr());
        let finish = |item: &LatentItem, merged: &Sums<'_>| {
            let queries = item.tokens * heads;
            let at = item.token * heads * widths.v;
            // SAFETY: items own their tokens' rows of `out`, which lie within it as checked.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(at), queries * widths.v) };
            merged.finish(out, widths);
        };
        let part_len = sums_len(items.iter().map(|i| i.tokens * heads).max().unwrap_or(0), widths);
        let fits = items.len() * most_splits * part_len <= self.scratch.parts.len();
        if most_splits > 1 && items.len() < few_items(self.pool.threads()) && fits {
            let parts = SendPtr::new(self.scratch.parts.as_mut_ptr());
            // SAFETY: each (item, split) has its own part, within `parts` as just checked.
            let part = |item: usize, split: usize| unsafe {
                std::slice::from_raw_parts_mut(parts.at((item * most_splits + split) * part_len), part_len)
            };
            self.pool.run(items.len() * most_splits, &|worker, i| {
                let (i, split) = (i / most_splits, i % most_splits);
                let item = &items[i];
                if split * split_keys < item.keys() {
                    let s = of_worker(worker).0;
                    load_queries(s, item);
                    attend_part(s, item, split);
                    Sums::new(part(i, split), item.tokens * heads, widths).copy_from(s);
                }
            });
            self.pool.run(items.len(), &|worker, i| {
                let item = &items[i];
                let queries = item.tokens * heads;
                let mut sums = Sums::new(of_worker(worker).1, queries, widths);
                sums.clear();
                for split in 0..item.keys().div_ceil(split_keys) {
                    let Sums { max, sum, out } = Sums::new(part(i, split), queries, widths);
                    sums.merge(isa, max, sum, out, widths);
                }
                finish(item, &sums);
            });
        } else {
            self.pool.run(items.len(), &|worker, i| {
                let item = &items[i];
                let (s, merged) = of_worker(worker);
                let mut sums = Sums::new(merged, item.tokens * heads, widths);
                sums.clear();
                load_queries(s, item);
                for split in 0..item.keys().div_ceil(split_keys) {
                    attend_part(s, item, split);
                    sums.merge(isa, &s.max, &s.sum, &s.out, widths);
                }
                finish(item, &sums);
            });
        }
        self.scratch.items = items;
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

/// `(max, sum, out)` of some queries, in one slice: `[queries, v_stride]`, `[queries]`, `[queries]`.
struct Sums<'a> {
    max: &'a mut [f32],
    sum: &'a mut [f32],
    out: &'a mut [f32],
}

fn sums_len(queries: usize, widths: Widths) -> usize {
    queries * (widths.v_stride() + 2)
}

impl<'a> Sums<'a> {
    fn new(memory: &'a mut [f32], queries: usize, widths: Widths) -> Self {
        let (out, rest) = memory.split_at_mut(queries * widths.v_stride());
        let (max, rest) = rest.split_at_mut(queries);
        Self { max, sum: &mut rest[..queries], out }
    }

    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.out.fill(0.0);
    }

    fn copy_from<E>(&mut self, s: &attend::Scratch<E>) {
        let n = self.max.len();
        self.max.copy_from_slice(&s.max[..n]);
        self.sum.copy_from_slice(&s.sum[..n]);
        self.out.copy_from_slice(&s.out[..self.out.len()]);
    }

    fn merge(&mut self, isa: Isa, max: &[f32], sum: &[f32], out: &[f32], widths: Widths) {
        let v = widths.v_stride();
        for i in 0..self.max.len() {
            // 0: the query sees none of the part's keys. NaN is passed on.
            if sum[i] != 0.0 {
                let into = (&mut self.max[i], &mut self.sum[i], &mut self.out[i * v..][..v]);
                merge(isa, into, (max[i], sum[i], &out[i * v..][..v]));
            }
        }
    }

    /// `out[query] = sums / sum`, dense.
    fn finish(&self, out: &mut [f32], widths: Widths) {
        let rows = out.chunks_exact_mut(widths.v).zip(self.out.chunks_exact(widths.v_stride()));
        for ((out, from), sum) in rows.zip(&*self.sum) {
            let inverse = 1.0 / sum;
            out.iter_mut().zip(from).for_each(|(o, v)| *o = v * inverse);
        }
    }
}
