//! Weights in the layouts of `csrc/weights.h`.

use super::super::{CudaBackend, Device, Held, Ptr};
use crate::dtype::Precision;
use crate::error::{KernelError, Result, require};
use crate::matrix::{Matrix, Parts};
use half::bf16;
use std::thread;

/// Bytes put together on the host at a time.
const PIECE: usize = 32 << 20;
const PANEL_ROWS: usize = 16;
const UNIT_COLS: usize = 32;
/// Rows and columns of a cell with one fp8 scale.
const SCALE_ROWS: usize = 8;
const SCALE_COLS: usize = 128;

/// Elements on the device; its numbers are `WEIGHT_*` of `csrc/weights.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32 = 0,
    Bf16 = 1,
    Fp8 = 2,
}

/// A stack of matrices of one shape in the layout of its kernels.
pub struct CudaWeight<D: Device> {
    held: Held<D>,
    /// f32 `[stack, 2 panels, ceil(cols / 128)]`, of fp8 weights.
    scales: Option<Held<D>>,
    shape: [usize; 3],
    layout: Layout,
}

impl<D: Device> CudaWeight<D> {
    /// `[stack, rows, cols]`
    pub(crate) fn shape(&self) -> [usize; 3] {
        self.shape
    }

    pub(crate) fn bytes(&self) -> usize {
        D::bytes(self.held.get()) + self.scales.as_ref().map_or(0, |scales| D::bytes(scales.get()))
    }

    pub(crate) fn kind(&self) -> Kind {
        self.layout.kind
    }

    /// Packed from gate and up.
    pub(crate) fn gated(&self) -> bool {
        self.layout.gated
    }

    /// The first matrix.
    pub(crate) fn ptr(&self) -> Ptr {
        self.held.ptr()
    }

    /// Scales of the first matrix; none but for fp8.
    pub(crate) fn scales(&self) -> Ptr {
        self.scales.as_ref().map_or(Ptr::NONE, Held::ptr)
    }

    /// Panels of 16 rows of a matrix, gate and up together.
    pub(crate) fn panels(&self) -> usize {
        self.layout.panels
    }

    /// Units of 32 columns of a panel.
    pub(crate) fn units(&self) -> usize {
        self.layout.units
    }

    /// From one matrix to the next.
    pub(crate) fn matrix_bytes(&self) -> usize {
        self.layout.matrix_bytes()
    }
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    kind: Kind,
    gated: bool,
    rows: usize,
    cols: usize,
    panels: usize,
    units: usize,
}

impl Layout {
    fn new(kind: Kind, gated: bool, [rows, cols]: [usize; 2]) -> Self {
        let panels = if gated { (rows / 2).div_ceil(PANEL_ROWS / 2) } else { rows.div_ceil(PANEL_ROWS) };
        Self { kind, gated, rows, cols, panels, units: cols.div_ceil(UNIT_COLS) }
    }

    /// Rows of a piece that is put together at a time: a panel, or in f32 a row.
    fn strip_rows(&self) -> usize {
        if self.kind == Kind::F32 { 1 } else { PANEL_ROWS }
    }

    fn strips(&self) -> usize {
        if self.kind == Kind::F32 { self.rows } else { self.panels }
    }

    fn strip_bytes(&self) -> usize {
        match self.kind {
            Kind::F32 => 4 * self.cols,
            Kind::Bf16 => self.units * PANEL_ROWS * UNIT_COLS * 2,
            Kind::Fp8 => self.units * PANEL_ROWS * UNIT_COLS,
        }
    }

    fn matrix_bytes(&self) -> usize {
        self.strips() * self.strip_bytes()
    }

    /// f32 scales of a matrix.
    fn scales(&self) -> usize {
        2 * self.panels * self.cols.div_ceil(SCALE_COLS)
    }
}

/// The rows of one matrix of a stack, in the order in which the parts are joined.
struct Joined<'a> {
    parts: Vec<Matrix<'a>>,
    /// All values, where a part is transposed.
    values: Option<Vec<f32>>,
}

impl<'a> Joined<'a> {
    fn new(parts: &Parts<'a>) -> Self {
        let parts = match parts {
            Parts::Rows(parts) => parts.clone(),
            Parts::GateUp { gate, up } => vec![*gate, *up],
        };
        let transposed = parts.iter().any(Matrix::is_transposed);
        let values = transposed.then(|| parts.iter().flat_map(|m| m.to_f32()).collect());
        Self { parts, values }
    }

    /// The part that holds joined row `row`, and the row in it.
    fn locate(&self, mut row: usize) -> (Matrix<'a>, usize) {
        for part in &self.parts {
            let [rows, _] = part.shape();
            if row < rows {
                return (*part, row);
            }
            row -= rows;
        }
        unreachable!("a row beyond the parts");
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        if let Some(values) = &self.values {
            return out.copy_from_slice(&values[row * out.len()..][..out.len()]);
        }
        let (part, row) = self.locate(row);
        part.read_stored(row, 0, out);
    }

    fn read_bf16(&self, row: usize, scratch: &mut [f32], out: &mut [u16]) {
        if self.values.is_none() {
            let (part, row) = self.locate(row);
            if let Some(bytes) = part.bf16_row(row) {
                let stored = bytes.as_chunks::<2>().0;
                return out.iter_mut().zip(stored).for_each(|(o, b)| *o = u16::from_le_bytes(*b));
            }
        }
        self.read(row, scratch);
        out.iter_mut().zip(scratch).for_each(|(o, x)| *o = bf16::from_f32(*x).to_bits());
    }
}

/// Joined row of packed row `row`; none for padding.
fn joined_row(layout: &Layout, row: usize) -> Option<usize> {
    if !layout.gated || layout.kind == Kind::F32 {
        return (row < layout.rows).then_some(row);
    }
    let half = PANEL_ROWS / 2;
    let in_half = row / PANEL_ROWS * half + row % half;
    let first = if row % PANEL_ROWS < half { 0 } else { layout.rows / 2 };
    (in_half < layout.rows / 2).then_some(first + in_half)
}

/// Place of each column of a unit's row, in elements, for bf16: see `weight_at_bf16`.
fn places_bf16(row: usize) -> [usize; UNIT_COLS] {
    std::array::from_fn(|col| (col >> 4) * 256 + lane(row, col) * 8 + register(row, col) * 2 + (col & 1))
}

/// The same for fp8: see `weight_at_fp8`.
fn places_fp8(row: usize) -> [usize; UNIT_COLS] {
    std::array::from_fn(|col| {
        let register = register(row, col);
        lane(row, col) * 16 + (col >> 4) * 8 + (register >> 1) * 4 + (register & 1) + (col & 1) * 2
    })
}

fn lane(row: usize, col: usize) -> usize {
    (row & 7) * 4 + ((col & 7) >> 1)
}

fn register(row: usize, col: usize) -> usize {
    ((row >> 3) & 1) | ((col >> 2) & 2)
}

/// Puts `values` of packed row `row` where they belong in a zeroed panel.
fn scatter<T: Copy>(panel: &mut [T], values: &[T], places: &[usize; UNIT_COLS]) {
    let units = panel.chunks_exact_mut(PANEL_ROWS * UNIT_COLS).zip(values.chunks(UNIT_COLS));
    for (unit, values) in units {
        values.iter().zip(places).for_each(|(&value, &place)| unit[place] = value);
    }
}

/// Fills one zeroed strip (see [`Layout::strip_rows`]).
fn fill(layout: &Layout, from: &Joined<'_>, strip: usize, bytes: &mut [u8]) {
    let mut values = vec![0.0; layout.cols];
    let mut halves = vec![0; layout.cols];
    let first = strip * layout.strip_rows();
    for row in first..first + layout.strip_rows() {
        let Some(joined) = joined_row(layout, row) else { continue };
        match layout.kind {
            Kind::F32 => {
                from.read(joined, &mut values);
                let out = bytes.as_chunks_mut::<4>().0;
                out.iter_mut().zip(&values).for_each(|(o, v)| *o = v.to_ne_bytes());
            }
            Kind::Bf16 => {
                from.read_bf16(joined, &mut values, &mut halves);
                let halves: Vec<[u8; 2]> = halves.iter().map(|h: &u16| h.to_ne_bytes()).collect();
                scatter(bytes.as_chunks_mut::<2>().0, &halves, &places_bf16(row));
            }
            Kind::Fp8 => {
                let (part, row_in_part) = from.locate(joined);
                let stored = part.fp8_row(row_in_part).expect("checked by `kind_of`");
                scatter(bytes, stored, &places_fp8(row));
            }
        }
    }
}

/// Scales of fp8 as the device has them.
fn scales(layout: &Layout, from: &Joined<'_>) -> Vec<u8> {
    let cells = (0..2 * layout.panels).flat_map(|cell| {
        let joined = joined_row(layout, cell * SCALE_ROWS);
        (0..layout.cols).step_by(SCALE_COLS).map(move |col| {
            let of = |row| {
                let (part, row) = from.locate(row);
                part.scale(row, col)
            };
            joined.map_or(0.0, of)
        })
    });
    cells.flat_map(f32::to_ne_bytes).collect()
}

/// Whether the device can hold these parts in fp8: a cell of 8 packed rows x 128 columns must have one scale.
fn fits_fp8(parts: &Parts<'_>) -> bool {
    let (parts, gated) = match parts {
        Parts::Rows(parts) => (parts.clone(), false),
        Parts::GateUp { gate, up } => (vec![*gate, *up], true),
    };
    parts.iter().enumerate().all(|(i, part)| {
        let [rows, cols] = part.shape();
        let joined_aligned = gated || i + 1 == parts.len() || rows % SCALE_ROWS == 0;
        joined_aligned
            && part.fp8_blocks().is_some_and(|[first_row, block_rows, block_cols]| {
                first_row % SCALE_ROWS == 0
                    && block_rows % SCALE_ROWS == 0
                    && (block_cols % SCALE_COLS == 0 || block_cols >= cols)
            })
            && (0..rows).all(|row| part.fp8_row(row).is_some_and(|q| q.iter().all(|b| b & 0x7f != 0x7f)))
    })
}

fn kind_of(stack: &[Parts<'_>], precision: Precision) -> Kind {
    match precision {
        Precision::F32 => Kind::F32,
        Precision::Bf16 if !stack.is_empty() && stack.iter().all(fits_fp8) => Kind::Fp8,
        Precision::Bf16 => Kind::Bf16,
    }
}

/// An fp8 checkpoint stays fp8 where its blocks allow, other weights become `precision`.
pub(crate) fn pack<D: Device>(
    b: &mut CudaBackend<D>,
    stack: &[Parts<'_>],
    precision: Precision,
) -> Result<CudaWeight<D>> {
    let shape = stack.first().map_or(Ok([0, 0]), Parts::shape)?;
    let gated = |parts: &Parts<'_>| matches!(parts, Parts::GateUp { .. });
    let first_gated = stack.first().is_some_and(gated);
    for parts in stack {
        require(parts.shape()? == shape && gated(parts) == first_gated, "pack", || {
            "shapes differ in a stack".into()
        })?;
    }
    let layout = Layout::new(kind_of(stack, precision), first_gated, shape);
    let too_large = KernelError::Memory { what: "weights", bytes: usize::MAX };
    let bytes = layout.matrix_bytes().checked_mul(stack.len()).ok_or(too_large)?;
    let held = b.hold(bytes, "weights")?;
    let mut all_scales = Vec::new();
    for (i, parts) in stack.iter().enumerate() {
        let from = Joined::new(parts);
        write_matrix(&b.device, held.get(), i * layout.matrix_bytes(), &layout, &from)?;
        if layout.kind == Kind::Fp8 {
            all_scales.extend(scales(&layout, &from));
        }
    }
    let scales = if all_scales.is_empty() {
        None
    } else {
        debug_assert_eq!(all_scales.len(), 4 * layout.scales() * stack.len());
        let held = b.hold(all_scales.len(), "scales of weights")?;
        b.device.write(held.get(), 0, &all_scales)?;
        Some(held)
    };
    Ok(CudaWeight { held, scales, shape: [stack.len(), shape[0], shape[1]], layout })
}

/// Packs piece by piece, on all cores: a model of 30 GB is 10^10 numbers.
fn write_matrix<D: Device>(
    device: &D,
    to: &D::Memory,
    at: usize,
    layout: &Layout,
    from: &Joined<'_>,
) -> Result<()> {
    let strip_bytes = layout.strip_bytes();
    if strip_bytes == 0 {
        return Ok(());
    }
    let per_piece = (PIECE / strip_bytes).max(1);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut piece = Vec::new();
    for first in (0..layout.strips()).step_by(per_piece) {
        let strips = per_piece.min(layout.strips() - first);
        piece.clear();
        piece.resize(strips * strip_bytes, 0);
        // A thread is worth its start from about a megabyte on.
        let per_thread = strips.div_ceil(threads).max((1 << 20) / strip_bytes).max(1);
        thread::scope(|scope| {
            for (i, part) in piece.chunks_mut(per_thread * strip_bytes).enumerate() {
                let mut work = move || {
                    for (j, strip) in part.chunks_exact_mut(strip_bytes).enumerate() {
                        fill(layout, from, first + i * per_thread + j, strip);
                    }
                };
                if strips <= per_thread { work() } else { drop(scope.spawn(work)) }
            }
        });
        device.write(to, at + first * strip_bytes, &piece)?;
    }
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::cuda::sim::{Emulator, Mode};
    use crate::dtype::DType;
    use crate::matrix::BlockScales;

    #[test]
    fn fp8_stays_so_where_its_blocks_allow() {
        let scales = [0; 4 * 8];
        let stored = |bytes, block_rows, block_cols| {
            let scales = &scales[..4 * 256usize.div_ceil(block_rows) * 128usize.div_ceil(block_cols)];
            let scales = BlockScales { bytes: scales, block_rows, block_cols };
            Matrix::new(DType::F8E4M3, bytes, [256, 128], Some(scales)).unwrap()
        };
        let (numbers, mut with_nan) = (vec![0x7e; 256 * 128], vec![0; 256 * 128]);
        with_nan[1234] = 0xff;
        let blocks = stored(&numbers, 128, 128);
        let plain = Matrix::new(DType::F8E4M3, &numbers, [256, 128], None).unwrap();
        let gate_up = |gate, up| Parts::GateUp { gate, up };
        let rows = Parts::Rows;
        for (parts, kind) in [
            (rows(vec![blocks]), Kind::Fp8),
            (gate_up(blocks, blocks), Kind::Fp8),
            (rows(vec![blocks.rows_at(64, 24), blocks]), Kind::Fp8),
            // 8 rows would have two scales.
            (rows(vec![blocks.rows_at(0, 20), blocks]), Kind::Bf16),
            (rows(vec![blocks.rows_at(4, 128)]), Kind::Bf16),
            (rows(vec![stored(&numbers, 100, 128)]), Kind::Bf16),
            // As 128 columns would.
            (rows(vec![stored(&numbers, 128, 64)]), Kind::Bf16),
            (rows(vec![blocks.transposed()]), Kind::Bf16),
            // The device has no NaN.
            (gate_up(blocks, stored(&with_nan, 128, 128)), Kind::Bf16),
            (rows(vec![plain]), Kind::Bf16),
        ] {
            assert_eq!(kind_of(std::slice::from_ref(&parts), Precision::Bf16), kind, "{parts:?}");
            assert_eq!(kind_of(&[parts], Precision::F32), Kind::F32);
        }
    }

    #[test]
    fn stacks_of_different_shapes_are_refused() {
        let zeros = [0; 4 * 32];
        let matrix = |rows: usize| Matrix::new(DType::F32, &zeros[..16 * rows], [rows, 4], None).unwrap();
        let mut b = CudaBackend::new(Emulator::new(Mode::FAST, 90), Precision::F32);
        let gate_up = Parts::GateUp { gate: matrix(1), up: matrix(1) };
        for stack in [[matrix(1).into(), matrix(2).into()], [matrix(2).into(), gate_up]] {
            assert!(pack(&mut b, &stack, Precision::F32).is_err());
        }
        let weight = pack(&mut b, &[matrix(3).into(), matrix(3).into()], Precision::Bf16).unwrap();
        assert_eq!((weight.shape(), weight.panels(), weight.units()), ([2, 3, 4], 1, 1));
    }
}
