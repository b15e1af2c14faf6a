//! A tensor: a type, a shape and bytes that may lie in a mapped file.

use std::ops::Range;
use std::sync::Arc;

use crate::{DType, formats};

/// Where the bytes of tensors lie: a mapped file or memory of our own.
pub trait Storage: Send + Sync {
    fn bytes(&self) -> &[u8];

    /// Tells the storage that `range` was copied elsewhere and will hardly be read again, so that a mapped
    /// file can give the pages back. Reading it again stays correct.
    fn give_back(&self, _range: Range<usize>) {}
}

/// Bytes of our own.
pub struct Owned(pub Vec<u8>);

impl Storage for Owned {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    #[error("{dtype} rows hold whole blocks of {block} elements, not {n}", block = dtype.block_len())]
    PartialBlock { dtype: DType, n: usize },
    #[error("shape {shape:?} of {dtype} needs more bytes than can be addressed")]
    TooLarge { dtype: DType, shape: Vec<usize> },
    #[error("shape {shape:?} of {dtype} needs {need} bytes at {offset}, the storage holds {have}")]
    OutOfBounds { dtype: DType, shape: Vec<usize>, need: usize, offset: usize, have: usize },
    #[error("shape {0:?} has a zero or no dimension")]
    Empty(Vec<usize>),
}

/// A dense tensor; cheap to clone. `shape` runs from the outermost dimension to the innermost (the row), so a
/// weight matrix is `[n_out, n_in]` and quantized blocks lie along `n_in`.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Arc<dyn Storage>,
    range: Range<usize>,
}

impl Tensor {
    pub fn new(
        dtype: DType,
        shape: &[usize],
        storage: Arc<dyn Storage>,
        offset: usize,
    ) -> Result<Tensor, TensorError> {
        let need = byte_size(dtype, shape)?;
        let have = storage.bytes().len();
        let end = offset.checked_add(need).filter(|&end| end <= have);
        match end {
            Some(end) => Ok(Tensor { dtype, shape: shape.to_vec(), storage, range: offset..end }),
            None => Err(TensorError::OutOfBounds { dtype, shape: shape.to_vec(), need, offset, have }),
        }
    }

    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Tensor, TensorError> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::F32, shape, Arc::new(Owned(bytes)), 0)
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements in a row (the innermost dimension).
    pub fn n_in(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Rows: the product of all dimensions but the innermost.
    pub fn n_rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    pub fn len(&self) -> usize {
        self.n_rows() * self.n_in()
    }

    pub fn is_empty(&self) -> bool {
        false // no constructor lets a zero dimension through
    }

    pub fn row_bytes(&self) -> usize {
        self.bytes().len() / self.n_rows()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    /// The same bytes as a matrix of `rows`, a view.
    pub fn rows(&self, rows: Range<usize>) -> Tensor {
        assert!(rows.start < rows.end && rows.end <= self.n_rows(), "rows {rows:?} of {}", self.n_rows());
        let per_row = self.row_bytes();
        let start = self.range.start + rows.start * per_row;
        Tensor {
            dtype: self.dtype,
            shape: vec![rows.len(), self.n_in()],
            storage: self.storage.clone(),
            range: start..start + rows.len() * per_row,
        }
    }

    /// Decodes row `row` into `out`, which holds `n_in` elements.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let per_row = self.row_bytes();
        formats::decode(self.dtype, &self.bytes()[row * per_row..(row + 1) * per_row], out);
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        formats::decode(self.dtype, self.bytes(), &mut out);
        out
    }

    /// A float matrix `[a, b]` as `[b, a]` (GPT-2's Conv1D stores its weights so), copied.
    pub fn transposed(&self) -> Tensor {
        assert!(!self.dtype.is_quantized() && self.shape.len() == 2, "only float matrices are transposed");
        let (rows, cols, size) = (self.shape[0], self.shape[1], self.dtype.block_bytes());
        let from = self.bytes();
        let mut to = vec![0u8; from.len()];
        for r in 0..rows {
            for c in 0..cols {
                let (a, b) = ((r * cols + c) * size, (c * rows + r) * size);
                to[b..b + size].copy_from_slice(&from[a..a + size]);
            }
        }
        let range = 0..to.len();
        Tensor { dtype: self.dtype, shape: vec![cols, rows], storage: Arc::new(Owned(to)), range }
    }

    /// The same matrix stored as `to`; `None` if its rows are no whole number of `to`'s blocks.
    pub fn encoded(&self, to: DType) -> Option<Tensor> {
        let row_bytes = to.row_bytes(self.n_in())?;
        let mut bytes = vec![0u8; row_bytes * self.n_rows()];
        let mut row = vec![0.0f32; self.n_in()];
        for (i, chunk) in bytes.chunks_exact_mut(row_bytes).enumerate() {
            self.decode_row(i, &mut row);
            formats::encode(to, &row, chunk);
        }
        let range = 0..bytes.len();
        Some(Tensor { dtype: to, shape: self.shape.clone(), storage: Arc::new(Owned(bytes)), range })
    }

    /// Passes on to the storage that these bytes were copied.
    pub fn give_back(&self) {
        self.storage.give_back(self.range.clone());
    }
}

/// Bytes of a tensor, all products checked.
pub(crate) fn byte_size(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
    let Some((&n_in, outer)) = shape.split_last() else { return Err(TensorError::Empty(shape.to_vec())) };
    if shape.contains(&0) {
        return Err(TensorError::Empty(shape.to_vec()));
    }
    let too_large = || TensorError::TooLarge { dtype, shape: shape.to_vec() };
    if !n_in.is_multiple_of(dtype.block_len()) {
        return Err(TensorError::PartialBlock { dtype, n: n_in });
    }
    let row = dtype.row_bytes(n_in).ok_or_else(too_large)?;
    outer.iter().try_fold(row, |size, &n| size.checked_mul(n)).ok_or_else(too_large)
}
