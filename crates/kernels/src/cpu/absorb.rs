//! Into latent space and back: one product a head, for the tokens of rows that stay in it.

use super::arena::Stored;
use super::matmul::{Item, Segment, matmul};
use super::packed::{PackedMatrices, SendPtr};
use super::{Cpu, same_precision};
use crate::backend::View;
use crate::error::Result;
use crate::ops::{AbsorbOutput, AbsorbQuery, rotate_pairs};

impl Cpu {
    pub(super) fn absorb_query_of<E: Stored>(&mut self, op: AbsorbQuery<'_, Self>) -> Result<()> {
        let d = op.dims;
        let (heads, head, latent) = (d.n_heads, d.qk_head_dim(), d.latent_width());
        self.product_a_head::<E>("absorb_query", op.w_uk, &op.q, head, op.out, latent)?;
        for &t in &self.absorbed {
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
        let d = op.dims;
        let latent = View::dense(op.latent, d.n_heads * d.kv_lora_rank);
        self.product_a_head::<E>("absorb_output", op.w_uv, &latent, d.kv_lora_rank, op.out, d.v_head_dim)
    }

    /// `out[t, h, ..rows] = w[h] x[t, h, ..cols]` for the absorbed tokens; heads lie `x_head` and `out_head`
    /// numbers apart, at least `cols` and `rows`.
    fn product_a_head<E: Stored>(
        &mut self,
        op: &'static str,
        w: &PackedMatrices,
        x: &View<'_, Self>,
        x_head: usize,
        out: &mut [f32],
        out_head: usize,
    ) -> Result<()> {
        let absorbed = &self.absorbed;
        if absorbed.is_empty() {
            return Ok(());
        }
        let [heads, rows, cols] = w.shape;
        assert!(cols <= x_head && rows <= out_head && self.step.n_tokens() * heads * out_head <= out.len());
        let panels = same_precision(E::panels(w), op)?;
        let operands = E::operands(&mut self.scratch);
        let x = operands.load(&mut self.pool, self.isa, x, self.step.n_tokens(), heads * x_head)?;
        let out = SendPtr::new(out.as_mut_ptr());
        let segments = &mut self.scratch.head_segments;
        segments.clear();
        segments.extend((0..heads).map(|h| Segment { matrix: h, first: 0, len: absorbed.len() }));
        let finish = |h: usize, i: usize, first: usize, values: &mut [f32]| {
            let n = values.len().min(rows.saturating_sub(first));
            let at = (absorbed[i] as usize * heads + h) * out_head + first;
            // SAFETY: each piece is finished once, and lies within `out` as asserted.
            unsafe { std::slice::from_raw_parts_mut(out.at(at), n) }.copy_from_slice(&values[..n]);
        };
        let vector = |h: usize, i: usize| x.at(absorbed[i] as usize, h * x_head);
        // SAFETY: `x` holds a row of all heads for each token, and room for a last step after it.
        unsafe { matmul(&mut self.pool, self.isa, panels, segments, Item::SegmentPanels, vector, finish) };
        Ok(())
    }
}
