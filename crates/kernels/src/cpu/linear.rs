//! Products into dense rows: the linear layers and the output head.

use super::arena::Stored;
use super::matmul::{Item, Segment, matmul};
use super::packed::{Panels, SendPtr};
use super::tile::Elem;
use super::{Cpu, lanes, same_precision};
use crate::backend::View;
use crate::error::{Result, require};
use crate::ops::{Linear, LmHead};

impl Cpu {
    pub(super) fn linear_of<E: Stored>(
        &mut self,
        op: Linear<'_, Self>,
        tokens: usize,
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        let w = same_precision(E::panels(op.weight), "linear")?;
        let x = E::operands(&mut self.scratch).load(&mut self.pool, self.isa, &op.x, tokens, cols)?;
        // SAFETY: `x` holds `tokens` rows of at least `cols`.
        unsafe { self.product(w, tokens, |t| x.row(t), rows, op.out, op.accumulate) };
        Ok(())
    }

    /// `out[t] = W x[t]`, or `out[t] += W x[t]`, for `n` vectors and the one matrix of `w`; rows of `out` are
    /// dense and `rows` wide.
    ///
    /// # Safety
    /// `vector(t)` points to as many readable elements as a row of `w` has, rounded up to whole steps.
    pub(super) unsafe fn product<E: Elem>(
        &mut self,
        w: &Panels<E>,
        n: usize,
        vector: impl Fn(usize) -> *const E + Sync,
        rows: usize,
        out: &mut [f32],
        accumulate: bool,
    ) {
        assert!(n * rows <= out.len());
        let out = SendPtr::new(out.as_mut_ptr());
        let segments = [Segment { matrix: 0, first: 0, len: n }];
        let finish = |_: usize, t: usize, first: usize, values: &mut [f32]| {
            // Without the rows that fill up the last panel.
            let n = values.len().min(rows.saturating_sub(first));
            // SAFETY: each piece of each row of `out` is finished once, and lies within it as asserted.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(t * rows + first), n) };
            if accumulate {
                out.iter_mut().zip(values).for_each(|(o, v)| *o += *v);
            } else {
                out.copy_from_slice(&values[..n]);
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            matmul(&mut self.pool, self.isa, w, &segments, Item::SegmentPanels, |_, t| vector(t), finish)
        };
    }

    pub(super) fn lm_head_of<E: Stored>(
        &mut self,
        op: LmHead<'_, Self>,
        logits: &mut [f32],
        vocab: usize,
        hidden: usize,
    ) -> Result<()> {
        let outputs = self.step.outputs.len();
        let w = same_precision(E::panels(op.weight), "lm_head")?;
        require(outputs * hidden <= self.scratch.normed.len(), "lm_head", || format!("{outputs} outputs"))?;
        let mut normed = std::mem::take(&mut self.scratch.normed);
        for (out, &t) in normed.chunks_exact_mut(hidden).zip(&self.step.outputs) {
            lanes::rms_norm(self.isa, &op.x[t as usize * hidden..][..hidden], op.norm, op.eps, out);
        }
        let view = View::<Self>::dense(&normed, hidden);
        let x = E::operands(&mut self.scratch).load(&mut self.pool, self.isa, &view, outputs, hidden);
        self.scratch.normed = normed;
        let x = x?;
        // SAFETY: `x` holds `outputs` rows of `hidden`, in scratch memory that nobody touches meanwhile.
        unsafe { self.product(w, outputs, |t| x.row(t), vocab, logits, false) };
        Ok(())
    }
}
