//! The attention ops: into latent space, over the cache, and back.

use super::arena::Stored;
use super::attend::{self, KEYS, Keys, Widths, attend_tile, merge};
use super::matmul::{Item, Segment, matmul};
use super::packed::{Panels, SendPtr};
use super::scratch::tokens_per_item;
use super::tile::{MAX_VECTORS, PANEL, Start, Tile};
use super::{Cpu, Isa, LatentArena, same_precision};
use crate::backend::{MlaDims, View};
use crate::error::{Result, require};
use crate::ops::{AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, rotate_pairs};
use crate::step::{Row, StepState};

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

/// Pointers to the latent rows of keys `first..first + out.len()` of a row.
fn latent_rows<E: Stored>(
    arena: *const E,
    shape: &LatentArena,
    layer: usize,
    step: &StepState,
    row: usize,
    first: usize,
    out: &mut [*const E],
) {
    let [_, slots, _] = shape.shape;
    for (i, o) in out.iter_mut().enumerate() {
        let slot = step.slot(row, first + i);
        // The step's tables were checked against the arena's number of blocks.
        debug_assert!(slot < slots);
        *o = arena.wrapping_add((layer * slots + slot) * shape.row);
    }
}

impl Cpu {
    pub(super) fn absorb_query_of<E: Stored>(&mut self, op: AbsorbQuery<'_, Self>) -> Result<()> {
        if self.absorbed.is_empty() {
            return Ok(());
        }
        let d = op.dims;
        let (heads, head, latent) = (d.n_heads, d.qk_head_dim(), d.latent_width());
        let w = same_precision(E::panels(op.w_uk), "absorb_query")?;
        let tokens = self.step.n_tokens();
        let x = E::operands(&mut self.scratch).load(&mut self.pool, self.isa, &op.q, tokens, heads * head)?;
        let absorbed = &self.absorbed;
        let out = SendPtr::new(op.out.as_mut_ptr());
        self.scratch.head_segments.clear();
        self.scratch.head_segments.extend((0..heads).map(|h| Segment {
            matrix: h,
            first: 0,
            len: absorbed.len(),
        }));
        let finish = |h: usize, i: usize, first: usize, values: &mut [f32]| {
            let n = values.len().min(d.kv_lora_rank.saturating_sub(first));
            let at = (absorbed[i] as usize * heads + h) * latent + first;
            // SAFETY: each piece is finished once, and lies within `out` as checked.
            unsafe { std::slice::from_raw_parts_mut(out.at(at), n) }.copy_from_slice(&values[..n]);
        };
        let row = |h: usize, i: usize| x.at(absorbed[i] as usize, h * head);
        // SAFETY: `x` holds `tokens` rows of all heads' queries.
        unsafe {
            matmul(
                &mut self.pool,
                self.isa,
                w,
                &self.scratch.head_segments,
                Item::SegmentPanels,
                row,
                finish,
            );
        }
        for &t in absorbed {
            let t = t as usize;
            let angles = &self.cos_sin[t * d.qk_rope_head_dim..][..d.qk_rope_head_dim];
            for h in 0..heads {
                let q = &op.q.buffer[op.q.offset + t * op.q.stride + h * head + d.qk_nope_head_dim..];
                let rope = &mut op.out[(t * heads + h) * latent + d.kv_lora_rank..][..d.qk_rope_head_dim];
                rope.copy_from_slice(&q[..d.qk_rope_head_dim]);
                rotate_pairs(rope, angles);
            }
        }
        Ok(())
    }

    pub(super) fn absorb_output_of<E: Stored>(&mut self, op: AbsorbOutput<'_, Self>) -> Result<()> {
        if self.absorbed.is_empty() {
            return Ok(());
        }
        let d = op.dims;
        let (heads, rank, v) = (d.n_heads, d.kv_lora_rank, d.v_head_dim);
        let w = same_precision(E::panels(op.w_uv), "absorb_output")?;
        let tokens = self.step.n_tokens();
        let view = View::dense(op.latent, heads * rank);
        let x = E::operands(&mut self.scratch).load(&mut self.pool, self.isa, &view, tokens, heads * rank)?;
        let absorbed = &self.absorbed;
        let out = SendPtr::new(op.out.as_mut_ptr());
        self.scratch.head_segments.clear();
        self.scratch.head_segments.extend((0..heads).map(|h| Segment {
            matrix: h,
            first: 0,
            len: absorbed.len(),
        }));
        let finish = |h: usize, i: usize, first: usize, values: &mut [f32]| {
            let n = values.len().min(v.saturating_sub(first));
            let at = (absorbed[i] as usize * heads + h) * v + first;
            // SAFETY: each piece is finished once, and lies within `out` as checked.
            unsafe { std::slice::from_raw_parts_mut(out.at(at), n) }.copy_from_slice(&values[..n]);
        };
        let row = |h: usize, i: usize| x.at(absorbed[i] as usize, h * rank);
        // SAFETY: `x` holds `tokens` rows of all heads' latents.
        unsafe {
            matmul(
                &mut self.pool,
                self.isa,
                w,
                &self.scratch.head_segments,
                Item::SegmentPanels,
                row,
                finish,
            );
        }
        Ok(())
    }

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
        if most_splits > 1 && items.len() < few_items(self.pool.threads()) {
            let part_len = sums_len(items.iter().map(|i| i.tokens * heads).max().unwrap_or(0), widths);
            let room = self.scratch.parts.len();
            require(items.len() * most_splits * part_len <= room, "attend_latent", || {
                format!("{room} of parts")
            })?;
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
        for row in self.step.rows.iter().filter(|row| row.len < self.expand_from) {
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

    pub(super) fn attend_expanded_of<E: Stored>(&mut self, op: AttendExpanded<'_, Self>) -> Result<()> {
        let expand_from = self.expand_from;
        let expanded = |row: &&Row| row.len >= expand_from;
        let rows = self.step.rows.iter().filter(expanded).count();
        if rows == 0 {
            return Ok(());
        }
        let what = "attend_expanded";
        let out = SendPtr::new(op.out.as_mut_ptr());
        let heads = Heads {
            isa: self.isa,
            dims: op.dims,
            widths: Widths { qk: op.dims.qk_head_dim(), v: op.dims.v_head_dim },
            w_k: same_precision(E::panels(op.w_k), what)?,
            w_uv: same_precision(E::panels(op.w_uv), what)?,
            arena: SendPtr::new(same_precision(E::arena(op.arena), what)?.cast_mut()),
            op: &op,
            step: &self.step,
            cos_sin: &self.cos_sin,
        };
        let n_heads = op.dims.n_heads;
        let scratch = SendPtr::new(E::operands(&mut self.scratch).attend.as_mut_ptr());
        self.pool.run(rows * n_heads, &|worker, i| {
            // SAFETY: a worker runs one item at a time, and there is one scratch a thread.
            let s = unsafe { &mut *scratch.at(worker) };
            if let Some(row) = heads.step.rows.iter().filter(expanded).nth(i / n_heads) {
                heads.attend(s, row, i % n_heads, out);
            }
        });
        Ok(())
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

/// What all items of `attend_expanded` share.
struct Heads<'a, E> {
    isa: Isa,
    dims: MlaDims,
    widths: Widths,
    w_k: &'a Panels<E>,
    w_uv: &'a Panels<E>,
    arena: SendPtr<E>,
    op: &'a AttendExpanded<'a, Cpu>,
    step: &'a StepState,
    cos_sin: &'a [f32],
}

impl<E: Stored> Heads<'_, E> {
    /// All new tokens of `row`, one head.
    fn attend(&self, s: &mut attend::Scratch<E>, row: &Row, head: usize, out: SendPtr<f32>) {
        let Widths { v, .. } = self.widths;
        let position = row.kv_len - row.len;
        self.load_queries(s, row, head);
        s.clear(row.len, self.widths);
        for first in (0..row.kv_len).step_by(KEYS) {
            let n = KEYS.min(row.kv_len - first);
            let keys = self.expand(s, row, head, first, n);
            // Queries before the tile see nothing of it.
            let unseeing = first.saturating_sub(position) / PANEL * PANEL;
            // SAFETY: the expanded keys are `qk_stride` long and stay where they are.
            unsafe {
                attend_tile(
                    self.isa,
                    s,
                    unseeing..row.len,
                    Keys { rows: &keys[..n], ahead: &[] },
                    self.widths,
                    self.dims.softmax_scale,
                    |query| (position + query + 1).saturating_sub(first),
                );
            }
        }
        for i in 0..row.len {
            let at = ((row.first + i) * self.dims.n_heads + head) * v;
            // SAFETY: an item has this head of these tokens to itself; within `out` as checked.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(at), v) };
            let inverse = 1.0 / s.sum[i];
            out.iter_mut().zip(&s.out[i * self.widths.v_stride()..]).for_each(|(o, x)| *o = x * inverse);
        }
    }

    fn load_queries(&self, s: &mut attend::Scratch<E>, row: &Row, head: usize) {
        let (width, rope) = (self.widths.qk, self.dims.qk_rope_head_dim);
        let view = &self.op.q;
        let stride = self.widths.qk_stride::<E>();
        for panel in 0..row.len.div_ceil(PANEL) {
            let n = PANEL.min(row.len - panel * PANEL);
            for i in 0..n {
                let t = row.first + panel * PANEL + i;
                let query = &mut s.query[..width];
                query.copy_from_slice(&view.buffer[view.offset + t * view.stride + head * width..][..width]);
                rotate_pairs(&mut query[width - rope..], &self.cos_sin[t * rope..][..rope]);
                E::convert(self.isa, query, &mut s.query_rows[i * stride..][..width]);
            }
            s.pack_queries(self.isa, panel, n, self.widths);
        }
    }

    /// Keys and values of one head for positions `first..first + n`: returns the keys, packs the values.
    fn expand(
        &self,
        s: &mut attend::Scratch<E>,
        row: &Row,
        head: usize,
        first: usize,
        n: usize,
    ) -> [*const E; KEYS] {
        let d = &self.dims;
        let (key_stride, value_stride) = (self.widths.qk_stride::<E>(), self.widths.v_stride());
        let mut latents = [std::ptr::null(); KEYS];
        let latents = &mut latents[..n];
        latent_rows(self.arena.get(), self.op.arena, self.op.layer, self.step, row.index, first, latents);
        for (chunk, group) in latents.chunks(MAX_VECTORS).enumerate() {
            self.product(self.w_k, head, group, &mut s.expanded);
            for (t, &latent) in group.iter().enumerate() {
                let from = &s.expanded[t * self.w_k.per_matrix * PANEL..][..d.qk_nope_head_dim];
                let key = &mut s.key_rows[(chunk * MAX_VECTORS + t) * key_stride..][..self.widths.qk];
                let (nope, rope) = key.split_at_mut(d.qk_nope_head_dim);
                E::convert(self.isa, from, nope);
                // SAFETY: a latent row ends with the rotary key.
                let k_pe =
                    unsafe { std::slice::from_raw_parts(latent.add(d.kv_lora_rank), d.qk_rope_head_dim) };
                rope.copy_from_slice(k_pe);
            }
            self.product(self.w_uv, head, group, &mut s.expanded);
            for t in 0..group.len() {
                let from = &s.expanded[t * self.w_uv.per_matrix * PANEL..][..d.v_head_dim];
                let at = (chunk * MAX_VECTORS + t) * value_stride;
                E::convert(self.isa, from, &mut s.value_rows[at..][..d.v_head_dim]);
            }
        }
        let rows = |base: *const E, stride: usize| -> [*const E; KEYS] {
            std::array::from_fn(|i| base.wrapping_add(i * stride))
        };
        let values = rows(s.value_rows.as_ptr(), value_stride);
        // SAFETY: KEYS rows of `v_stride`, written above and not moved by packing.
        unsafe { s.pack_values(self.isa, &values[..n], self.widths) };
        rows(s.key_rows.as_ptr(), key_stride)
    }

    /// `out[t] = w[head] x[t]`, rows of whole panels.
    fn product(&self, w: &Panels<E>, head: usize, x: &[*const E], out: &mut [f32]) {
        let out_stride = w.per_matrix * PANEL;
        assert!(x.len() <= MAX_VECTORS && x.len() * out_stride <= out.len());
        let tile = Tile {
            w: w.panel(head, 0),
            panel_stride: w.panel_len(),
            panels: w.per_matrix,
            k_steps: w.k_steps,
            x,
            out: out.as_mut_ptr(),
            out_stride,
            start: Start::Zero,
        };
        // SAFETY: `out` just checked; the matrix is whole; a latent row is longer than `kv_lora_rank`.
        unsafe { E::multiply(self.isa, tile) };
    }
}
