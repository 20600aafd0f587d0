//! Products of packed matrices with vectors, shared out over the threads.

use super::isa::Isa;
use super::packed::Panels;
use super::pool::Pool;
use super::tile::{Elem, MAX_PANELS, MAX_VECTORS, PANEL, Start, Tile};

/// Vectors `first..first + len` go through matrix `matrix` of the stack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub matrix: usize,
    pub first: usize,
    pub len: usize,
}

/// What one thread takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// Some panels of one segment's matrix.
    SegmentPanels,
    /// The same panels of every segment's matrix, in the order of the segments: for outputs that
    /// several segments add to.
    Panels,
}

/// Most values of one vector that `finish` gets at a time.
const GROUP: usize = MAX_PANELS * PANEL;

/// For each segment and each of its vectors: `W x`, handed in pieces to
/// `finish(segment, vector, first_row, values)`, `values` being rows `first_row..` of the packed
/// matrix (pad rows at its end included) and a multiple of 32 wherever the matrix has that many.
///
/// `vector(segment, i)` points to vector `i` (of all, not of the segment): `k_steps * PAIR` readable
/// elements.
///
/// # Safety
/// The pointers that `vector` returns are valid for that long.
pub(super) unsafe fn matmul<E: Elem>(
    pool: &mut Pool,
    isa: Isa,
    w: &Panels<E>,
    segments: &[Segment],
    item: Item,
    vector: impl Fn(usize, usize) -> *const E + Sync,
    finish: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
) {
    let n_segments = if item == Item::Panels { 1 } else { segments.len() };
    let group = group_of(w.per_matrix, n_segments, segments, pool.threads());
    let groups = w.per_matrix.div_ceil(group);
    let run_segment = |s: usize, first_panel: usize, panels: usize| {
        let Segment { matrix, first, len } = segments[s];
        let base = w.panel(matrix, first_panel);
        let _last = w.panel(matrix, first_panel + panels - 1); // checks the range
        let mut out = [0.0f32; MAX_VECTORS * GROUP];
        let mut done = 0;
        while done < len {
            let n = even_share(len - done);
            let x: [*const E; MAX_VECTORS] = std::array::from_fn(|t| vector(s, first + done + t.min(n - 1)));
            let width = panels * PANEL;
            let tile = Tile {
                w: base,
                panel_stride: w.panel_len(),
                panels,
                k_steps: w.k_steps,
                x: &x[..n],
                out: out.as_mut_ptr(),
                out_stride: width,
                start: Start::Zero,
            };
            // SAFETY: the panels are in range, the vectors by the caller's promise, `out` holds
            // `MAX_VECTORS * GROUP >= n * width`.
            unsafe { E::multiply(isa, tile) };
            for (t, values) in out[..n * width].chunks_exact_mut(width).enumerate() {
                finish(s, first + done + t, first_panel * PANEL, values);
            }
            done += n;
        }
    };
    pool.run(n_segments * groups, &|_, i| {
        let first_panel = i % groups * group;
        let panels = group.min(w.per_matrix - first_panel);
        match item {
            Item::SegmentPanels => run_segment(i / groups, first_panel, panels),
            Item::Panels => (0..segments.len()).for_each(|s| run_segment(s, first_panel, panels)),
        }
    });
}

/// Vectors of the next tile: full tiles, but the rest in tiles of like size (7 = 4 + 3, not 6 + 1).
fn even_share(left: usize) -> usize {
    if left <= MAX_VECTORS {
        left
    } else if left < 2 * MAX_VECTORS {
        left.div_ceil(2)
    } else {
        MAX_VECTORS
    }
}

/// Panels an item: many where a matrix is only streamed through, fewer where there would be too few
/// items for the threads, or where several vectors come back to them (so that they stay in L2).
fn group_of(per_matrix: usize, n_segments: usize, segments: &[Segment], threads: usize) -> usize {
    let longest = segments.iter().map(|s| s.len).max().unwrap_or(0);
    let mut group = if longest > 2 * MAX_VECTORS { MAX_PANELS / 2 } else { MAX_PANELS };
    while group > 2 && n_segments * per_matrix.div_ceil(group) < 4 * threads {
        group /= 2;
    }
    group
}
