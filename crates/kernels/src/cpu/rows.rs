//! Rows of activations.

/// Rows of activations, each of the same width.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
    n: usize,
    /// Which rows these are, where they are not the first `n`.
    index: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    pub fn new(data: &'a [f32], stride: usize, width: usize, n: usize) -> Rows<'a> {
        Rows { data, stride, width, n, index: None }
    }

    pub fn none() -> Rows<'a> {
        Rows::new(&[], 0, 0, 0)
    }

    pub fn one(row: &'a [f32]) -> Rows<'a> {
        Rows::new(row, row.len(), row.len(), 1)
    }

    pub fn picked(self, index: &'a [u32]) -> Rows<'a> {
        Rows { n: index.len(), index: Some(index), ..self }
    }

    /// Every row as `parts` rows, one after another. The rows must fill their stride.
    pub fn split(self, parts: usize) -> Rows<'a> {
        assert!(self.stride == self.width && self.width.is_multiple_of(parts) && self.index.is_none());
        let width = self.width / parts;
        Rows { stride: width, width, n: self.n * parts, ..self }
    }

    /// Elements `at..at + width` of every row.
    pub fn columns(self, at: usize, width: usize) -> Rows<'a> {
        assert!(at + width <= self.width);
        Rows { data: &self.data[at..], width, ..self }
    }

    pub fn len(&self) -> usize {
        self.n
    }

    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [f32] {
        let i = self.index.map_or(i, |index| index[i] as usize);
        &self.data[i * self.stride..][..self.width]
    }
}
