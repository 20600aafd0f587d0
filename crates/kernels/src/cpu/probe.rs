//! What this machine can do at most: the roofs over a decode step and a prefill.

use super::arena::Stored;
use super::matmul::{Item, Segment, matmul};
use super::packed::{Huge, PackedMatrices, SendPtr};
use super::{Cpu, by_element, lanes, same_precision};
use crate::error::Result;
use crate::matrix::{Matrix, Parts};
use crate::{DType, Precision};
use std::time::Instant;

/// Measurements of which the best counts.
const ROUNDS: usize = 5;

impl Cpu {
    /// Bytes a second that all threads together read from `bytes` of memory, which should be far more
    /// than the caches hold.
    pub fn read_bandwidth(&mut self, bytes: usize) -> Result<f64> {
        let chunk = 1 << 18;
        let chunks = (bytes / 4).div_ceil(chunk);
        let mut data = Huge::<f32>::zeroed(chunks * chunk, "the bandwidth probe")?;
        let base = SendPtr::new(data.as_mut_ptr());
        // SAFETY: chunks are disjoint and lie within `data`.
        let at = |i: usize| unsafe { std::slice::from_raw_parts_mut(base.at(i * chunk), chunk) };
        self.pool.run(chunks, &|_, i| at(i).fill(1.0));
        let isa = self.isa;
        let seconds = best_of(|| {
            self.pool.run(chunks, &|_, i| {
                std::hint::black_box(lanes::sum(isa, at(i)));
            });
        });
        Ok((chunks * chunk * 4) as f64 / seconds)
    }

    /// Operations a second of products in this backend's precision whose operands stay in cache.
    pub fn peak_flops(&mut self) -> Result<f64> {
        let (rows, cols, vectors, repeats) = (512, 512, 48, 40);
        let ones = vec![0x3f; rows * cols * Precision::Bf16.size()];
        let matrix = Matrix::new(DType::Bf16, &ones, [rows, cols], None)?;
        let w = PackedMatrices::pack(&mut self.pool, &[Parts::from(matrix)], self.precision)?;
        let seconds = by_element!(w, E => self.products::<E>(&w, cols, vectors, repeats)?);
        Ok((2 * rows * cols * vectors * repeats) as f64 / seconds)
    }

    fn products<E: Stored>(
        &mut self,
        w: &PackedMatrices,
        cols: usize,
        vectors: usize,
        repeats: usize,
    ) -> Result<f64> {
        let panels = same_precision(E::panels(w), "peak_flops")?;
        let x: Vec<E> = vec![E::from_f32(1.0); vectors * cols];
        let segments: Vec<Segment> =
            (0..repeats).map(|_| Segment { matrix: 0, first: 0, len: vectors }).collect();
        let x = SendPtr::new(x.as_ptr().cast_mut());
        Ok(best_of(|| {
            let row = |_: usize, i: usize| x.get().wrapping_add(i * cols).cast_const();
            // SAFETY: `x` holds `vectors` rows of `cols`.
            unsafe {
                matmul(&mut self.pool, self.isa, panels, &segments, Item::SegmentPanels, row, |_, _, _, _| ())
            };
        }))
    }
}

fn best_of(mut run: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}
