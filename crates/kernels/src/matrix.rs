//! A checkpoint's matrix as it lies in the file, on its way to a backend's own layout.

use crate::dtype::{DType, decode};
use crate::error::{Result, require};

/// Scales of a block-quantised matrix: `weight[i, j] = q[i, j] * scale[i / rows, j / cols]`
/// (DeepSeek-V3's `weight_scale_inv`; blocks at the edges may be partial).
#[derive(Debug, Clone, Copy)]
pub struct BlockScales<'a> {
    /// f32, little-endian, `[ceil(rows / block_rows), ceil(cols / block_cols)]`
    pub bytes: &'a [u8],
    pub block_rows: usize,
    pub block_cols: usize,
}

/// A row-major matrix `[rows, cols]`, perhaps some rows of a larger one, perhaps transposed.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    dtype: DType,
    /// The whole stored matrix, of which this is a part.
    bytes: &'a [u8],
    stored_cols: usize,
    first_row: usize,
    stored_rows: usize,
    scales: Option<BlockScales<'a>>,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    pub fn new(
        dtype: DType,
        bytes: &'a [u8],
        [rows, cols]: [usize; 2],
        scales: Option<BlockScales<'a>>,
    ) -> Result<Self> {
        let len = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        require(len == Some(bytes.len()), "matrix", || {
            format!("{} bytes for [{rows}, {cols}] of {dtype:?}", bytes.len())
        })?;
        if let Some(s) = scales {
            require(s.block_rows > 0 && s.block_cols > 0, "matrix", || "blocks of nothing".into())?;
            let want = rows.div_ceil(s.block_rows) * cols.div_ceil(s.block_cols) * 4;
            require(s.bytes.len() == want, "matrix", || {
                format!("{} bytes of scales, {want} expected", s.bytes.len())
            })?;
        }
        Ok(Self {
            dtype,
            bytes,
            stored_cols: cols,
            first_row: 0,
            stored_rows: rows,
            scales,
            transposed: false,
        })
    }

    /// Rows `first..first + n` of a matrix that is not transposed.
    pub fn rows_at(self, first: usize, n: usize) -> Self {
        assert!(!self.transposed && first + n <= self.stored_rows);
        Self { first_row: self.first_row + first, stored_rows: n, ..self }
    }

    pub fn transposed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// `[rows, cols]` as a user of this matrix sees them.
    pub fn shape(&self) -> [usize; 2] {
        if self.transposed {
            [self.stored_cols, self.stored_rows]
        } else {
            [self.stored_rows, self.stored_cols]
        }
    }

    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The stored bytes of stored row `row`, if they are plain bf16.
    pub(crate) fn bf16_row(&self, row: usize) -> Option<&'a [u8]> {
        (self.dtype == DType::Bf16 && self.scales.is_none()).then(|| self.stored_row_bytes(row))
    }

    /// The stored bytes of stored row `row`, if they are e4m3 with scales and not transposed.
    pub(crate) fn fp8_row(&self, row: usize) -> Option<&'a [u8]> {
        self.fp8_blocks().map(|_| self.stored_row_bytes(row))
    }

    /// `[place of the first row among the rows that blocks are counted from, rows, columns of a block]`, where
    /// [`Self::fp8_row`] is something.
    pub(crate) fn fp8_blocks(&self) -> Option<[usize; 3]> {
        let scales = self.scales.filter(|_| self.dtype == DType::F8E4M3 && !self.transposed)?;
        Some([self.first_row, scales.block_rows, scales.block_cols])
    }

    /// Scale of stored element (row, col).
    pub(crate) fn scale(&self, row: usize, col: usize) -> f32 {
        let Some(s) = self.scales else { return 1.0 };
        let block = (self.first_row + row) / s.block_rows * self.stored_cols.div_ceil(s.block_cols);
        f32::from_le_bytes(s.bytes.as_chunks::<4>().0[block + col / s.block_cols])
    }

    fn stored_row_bytes(&self, row: usize) -> &'a [u8] {
        let width = self.stored_cols * self.dtype.size();
        &self.bytes[(self.first_row + row) * width..][..width]
    }

    /// Reads columns `first..first + out.len()` of stored row `row` as f32.
    pub(crate) fn read_stored(&self, row: usize, first: usize, out: &mut [f32]) {
        decode(self.dtype, &self.stored_row_bytes(row)[first * self.dtype.size()..], out);
        let Some(s) = self.scales else { return };
        let block_row = (self.first_row + row) / s.block_rows;
        let per_row = self.stored_cols.div_ceil(s.block_cols);
        let scales = &s.bytes.as_chunks::<4>().0[block_row * per_row..];
        for (col, x) in (first..).zip(out) {
            *x *= f32::from_le_bytes(scales[col / s.block_cols]);
        }
    }

    /// The whole matrix as f32, row-major, in the shape that [`Self::shape`] names.
    pub fn to_f32(self) -> Vec<f32> {
        let [rows, cols] = self.shape();
        let mut stored = vec![0.0; rows * cols];
        for (r, out) in stored.chunks_mut(self.stored_cols).enumerate() {
            self.read_stored(r, 0, out);
        }
        if !self.transposed {
            return stored;
        }
        (0..rows * cols).map(|i| stored[(i % cols) * self.stored_cols + i / cols]).collect()
    }
}

/// One matrix of a stack, as the ops want it.
#[derive(Debug, Clone)]
pub enum Parts<'a> {
    /// Matrices of one width, one below the other: several projections of one input in one pass.
    /// A transposed one stands alone.
    Rows(Vec<Matrix<'a>>),
    /// The two halves of a gated MLP, of one shape.
    GateUp { gate: Matrix<'a>, up: Matrix<'a> },
}

impl<'a> From<Matrix<'a>> for Parts<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::Rows(vec![matrix])
    }
}

impl Parts<'_> {
    /// `[rows, cols]` of the joined matrix.
    pub fn shape(&self) -> Result<[usize; 2]> {
        let parts: Vec<[usize; 2]> = match self {
            Self::Rows(parts) => {
                let joined_columns = parts.len() > 1 && parts.iter().any(Matrix::is_transposed);
                require(!joined_columns, "weight", || "a transposed matrix cannot be joined".into())?;
                parts.iter().map(Matrix::shape).collect()
            }
            Self::GateUp { gate, up } => {
                require(gate.shape() == up.shape(), "weight", || "gate and up differ in shape".into())?;
                vec![gate.shape(), up.shape()]
            }
        };
        let cols = parts.first().map_or(0, |p| p[1]);
        require(cols > 0 && parts.iter().all(|p| p[1] == cols), "weight", || {
            format!("parts of shapes {parts:?} cannot be joined")
        })?;
        Ok([parts.iter().map(|p| p[0]).sum(), cols])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn partial_blocks_take_their_own_scale() {
        // 3 x 5 of ones in blocks of 2 x 2: scales 1..6
        let scales = bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let ones = [0x38; 15];
        let scales = BlockScales { bytes: &scales, block_rows: 2, block_cols: 2 };
        let m = Matrix::new(DType::F8E4M3, &ones, [3, 5], Some(scales)).unwrap();
        let rows = [[1.0, 1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0, 3.0], [4.0, 4.0, 5.0, 5.0, 6.0]];
        assert_eq!(m.to_f32(), rows.concat());
        // A slice of rows keeps its place among the blocks.
        assert_eq!(m.rows_at(2, 1).to_f32(), rows[2]);
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let data = bytes(&[0.0; 4]);
        let scales = BlockScales { bytes: &[], block_rows: 0, block_cols: 1 };
        assert!(Matrix::new(DType::F32, &data, [2, 2], Some(scales)).is_err());
        let square = Matrix::new(DType::F32, &data, [2, 2], None).unwrap();
        assert_eq!(Parts::Rows(vec![square, square]).shape(), Ok([4, 2]));
        assert!(Parts::Rows(vec![square.transposed(), square]).shape().is_err());
        assert!(Parts::Rows(vec![square, square.transposed()]).shape().is_err());
    }

    #[test]
    fn transposed_rows() {
        let data = bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let m = Matrix::new(DType::F32, &data, [3, 2], None).unwrap();
        assert_eq!(m.rows_at(1, 2).transposed().to_f32(), [3.0, 5.0, 4.0, 6.0]);
    }
}
