//! A stack of matrices in panels of 16 rows (see [`super::tile`]), in memory that prefers huge pages.

use super::pool::Pool;
use super::tile::{Elem, PANEL};
use crate::dtype::Precision;
use crate::error::{KernelError, Result, require};
use crate::matrix::{Matrix, Parts};
use half::bf16;
use memmap2::MmapMut;
use std::marker::PhantomData;

/// Zeroed memory that costs nothing until it is touched and then lies in huge pages if it is large: a
/// decode step streams through gigabytes, and with 4 KiB pages a tenth of its time goes into page walks.
pub(super) struct Huge<T> {
    memory: MmapMut,
    /// From the start of `memory` to the first element.
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Huge<T> {
    const PAGE: usize = 2 << 20;

    pub(super) fn zeroed(len: usize, what: &'static str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>()).max(1);
        let large = bytes >= Self::PAGE;
        let room = bytes.saturating_add(if large { Self::PAGE } else { 0 });
        let memory = MmapMut::map_anon(room).map_err(|_| KernelError::Memory { what, bytes })?;
        let offset = if large { memory.as_ptr().align_offset(Self::PAGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if large {
            // A kernel that refuses only leaves small pages.
            let _ = memory.advise_range(memmap2::Advice::HugePage, offset, bytes);
        }
        Ok(Self { memory, offset, len, element: PhantomData })
    }

    pub(super) fn as_ptr(&self) -> *const T {
        self.memory.as_ptr().wrapping_add(self.offset).cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.memory.as_mut_ptr().wrapping_add(self.offset).cast()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// Panels of one element type.
pub(super) struct Panels<E> {
    pub data: Huge<E>,
    /// k-steps of a panel: `ceil(cols / PAIR)`.
    pub k_steps: usize,
    /// Panels of one matrix of the stack.
    pub per_matrix: usize,
}

impl<E: Elem> Panels<E> {
    /// Elements of a panel.
    pub(super) fn panel_len(&self) -> usize {
        self.k_steps * PANEL * E::PAIR
    }

    /// First element of panel `panel` of matrix `matrix`.
    pub(super) fn panel(&self, matrix: usize, panel: usize) -> *const E {
        debug_assert!(panel < self.per_matrix);
        let at = (matrix * self.per_matrix + panel) * self.panel_len();
        assert!(at + self.panel_len() <= self.data.len());
        // SAFETY: just checked.
        unsafe { self.data.as_ptr().add(at) }
    }

    /// Element `(row, col)` of matrix 0.
    fn at(&self, row: usize, col: usize) -> E {
        let lane = (col / E::PAIR) * PANEL * E::PAIR + row % PANEL * E::PAIR + col % E::PAIR;
        assert!(row / PANEL < self.per_matrix && col < self.k_steps * E::PAIR);
        // SAFETY: within the panel by the assertion.
        unsafe { *self.panel(0, row / PANEL).add(lane) }
    }

    /// Copies row `row` of matrix 0 out as f32.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        for (col, o) in out.iter_mut().enumerate() {
            *o = self.at(row, col).to_f32();
        }
    }
}

pub(super) enum Elements {
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
}

/// A stack of matrices `[stack, rows, cols]`. A [`Parts::GateUp`] matrix has its gate and up rows in
/// alternate panels, so that a tile computes both halves of the same 16 middle rows.
pub struct PackedMatrices {
    pub(super) shape: [usize; 3],
    /// Packed as [`Parts::GateUp`].
    pub(super) gated: bool,
    pub(super) elements: Elements,
}

impl PackedMatrices {
    pub(super) fn pack(pool: &mut Pool, stack: &[Parts<'_>], precision: Precision) -> Result<Self> {
        let first = stack.first().map(Parts::shape).transpose()?;
        let [rows, cols] = first.unwrap_or_default();
        require(rows > 0 && cols > 0, "pack", || format!("an empty stack of [{rows}, {cols}]"))?;
        let is_gated = |parts: &Parts<'_>| matches!(parts, Parts::GateUp { .. });
        let gated = stack.first().is_some_and(is_gated);
        for parts in stack {
            let shape = parts.shape()?;
            require(shape == [rows, cols], "pack", || format!("{shape:?} in a stack of [{rows}, {cols}]"))?;
            require(is_gated(parts) == gated, "pack", || "a gated MLP in a stack of others".into())?;
        }
        let elements = match precision {
            Precision::F32 => Elements::F32(pack(pool, stack, cols)?),
            Precision::Bf16 => Elements::Bf16(pack(pool, stack, cols)?),
        };
        Ok(Self { shape: [stack.len(), rows, cols], gated, elements })
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.elements {
            Elements::F32(p) => p.data.len() * 4,
            Elements::Bf16(p) => p.data.len() * 2,
        }
    }
}

/// Where the 16 rows of a panel come from: `(matrix, row)` each, or nothing (zeros).
type PanelRows<'a> = [Option<(Matrix<'a>, usize)>; PANEL];

fn panel_rows<'a>(parts: &Parts<'a>) -> Vec<PanelRows<'a>> {
    let chunks = |m: &Matrix<'a>| -> Vec<PanelRows<'a>> {
        let m = *m;
        let rows = m.shape()[0];
        (0..rows.div_ceil(PANEL))
            .map(|p| std::array::from_fn(|lane| Some(p * PANEL + lane).filter(|&r| r < rows).map(|r| (m, r))))
            .collect()
    };
    match parts {
        Parts::GateUp { gate, up } => {
            chunks(gate).into_iter().zip(chunks(up)).flat_map(|(g, u)| [g, u]).collect()
        }
        Parts::Rows(parts) => {
            let rows: Vec<_> = parts.iter().flat_map(|m| (0..m.shape()[0]).map(|r| (*m, r))).collect();
            rows.chunks(PANEL).map(|c| std::array::from_fn(|lane| c.get(lane).copied())).collect()
        }
    }
}

fn pack<E: Elem>(pool: &mut Pool, stack: &[Parts<'_>], cols: usize) -> Result<Panels<E>> {
    let sources: Vec<PanelRows<'_>> = stack.iter().flat_map(panel_rows).collect();
    let k_steps = cols.div_ceil(E::PAIR);
    let panel_len = k_steps * PANEL * E::PAIR;
    let mut data = Huge::<E>::zeroed(sources.len() * panel_len, "weights")?;
    let out = SendPtr::new(data.as_mut_ptr());
    pool.run(sources.len(), &|_, panel| {
        // SAFETY: panels do not overlap, and each is one item.
        let out = unsafe { std::slice::from_raw_parts_mut(out.at(panel * panel_len), panel_len) };
        pack_panel(&sources[panel], cols, out);
    });
    Ok(Panels { data, k_steps, per_matrix: sources.len() / stack.len() })
}

/// One panel: `out[k / PAIR][lane][k % PAIR]`.
fn pack_panel<E: Elem>(rows: &PanelRows<'_>, cols: usize, out: &mut [E]) {
    let step = PANEL * E::PAIR;
    if let Some((matrix, first)) = rows[0].filter(|(m, _)| m.is_transposed()) {
        // Stored column by column already: one stored row is one k. All 16 rows are of one matrix.
        let mut lanes = [0.0; PANEL];
        let lanes = &mut lanes[..rows.iter().flatten().count()];
        for k in 0..cols {
            matrix.read_stored(k, first, lanes);
            for (lane, &v) in lanes.iter().enumerate() {
                out[k / E::PAIR * step + lane * E::PAIR + k % E::PAIR] = E::from_f32(v);
            }
        }
        return;
    }
    let mut values = vec![0.0; cols];
    for (lane, row) in rows.iter().enumerate() {
        let Some((matrix, row)) = row else { continue };
        if E::copy_row(matrix, *row, lane, out) {
            continue;
        }
        matrix.read_stored(*row, 0, &mut values);
        for (o, pair) in out.chunks_exact_mut(step).zip(values.chunks(E::PAIR)) {
            for (o, &v) in o[lane * E::PAIR..].iter_mut().zip(pair) {
                *o = E::from_f32(v);
            }
        }
    }
}

/// A pointer that may cross threads; each use says why its range is its own.
pub(super) struct SendPtr<T>(*mut T);

impl<T> Clone for SendPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SendPtr<T> {}

// SAFETY: only a number until somebody dereferences it.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    pub(super) fn new(at: *mut T) -> Self {
        Self(at)
    }

    /// A method, so that a closure captures the wrapper and not the pointer in it.
    pub(super) fn get(self) -> *mut T {
        self.0
    }

    /// # Safety
    /// `offset` lies within the allocation.
    pub(super) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}
