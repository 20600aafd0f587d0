//! Attention with each head's keys and values expanded from the latent rows.

use super::arena::{KeysOf, Stored};
use super::attend::{self, KEYS, Keys, Widths, attend_tile};
use super::packed::{Panels, SendPtr};
use super::tile::{MAX_VECTORS, PANEL, Start, Tile};
use super::{Cpu, Isa, same_precision};
use crate::backend::MlaDims;
use crate::error::{Result, require};
use crate::ops::{AttendExpanded, rotate_pairs};
use crate::step::{Row, StepState};

impl Cpu {
    pub(super) fn attend_expanded_of<E: Stored>(&mut self, op: AttendExpanded<'_, Self>) -> Result<()> {
        let expanded = |row: &&Row| row.expanded;
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
            op: &op,
            step: &self.step,
            cos_sin: &self.cos_sin,
        };
        require(E::PRECISION == op.arena.precision, what, || "weights and cache differ in precision".into())?;
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

/// What all items of `attend_expanded` share.
struct Heads<'a, E> {
    isa: Isa,
    dims: MlaDims,
    widths: Widths,
    w_k: &'a Panels<E>,
    w_uv: &'a Panels<E>,
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
                    Keys { rows: &keys[..n], ahead: &[], ahead_bytes: 0 },
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
        let keys = KeysOf { layer: self.op.layer, step: self.step, row: row.index, first };
        self.op.arena.rows(self.isa, keys, &mut s.latents, latents);
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
