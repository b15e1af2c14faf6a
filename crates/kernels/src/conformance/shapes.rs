//! The shapes that the cases of matrix ops go through.

use exotherm_tensor::DType;

/// A matrix and how many rows it is multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtype: DType,
    pub n_out: usize,
    pub n_in: usize,
    pub rows: usize,
}

impl Shape {
    pub fn name(&self) -> String {
        format!("{}-{}x{}-rows{}", self.dtype.name(), self.n_out, self.n_in, self.rows)
    }

    /// A seed of its own.
    pub fn seed(&self) -> u64 {
        let parts = [self.dtype as usize, self.n_out, self.n_in, self.rows];
        parts.iter().fold(0, |seed, &part| seed * 1009 + part as u64)
    }
}

fn of(dtype: DType, sizes: &[(usize, usize, usize)]) -> impl Iterator<Item = Shape> {
    sizes.iter().map(move |&(n_out, n_in, rows)| Shape { dtype, n_out, n_in, rows })
}

/// Every type; widths that fit no vector width for floats, one block and several for the quantized.
pub fn all() -> Vec<Shape> {
    let awkward = [(1, 1, 1), (7, 33, 2), (33, 7, 5), (36, 36, 3), (52, 97, 17), (97, 52, 33), (70, 130, 1)];
    let shapes = DType::all().flat_map(|dtype| {
        let block = dtype.block_len();
        let blocks =
            [(1, block, 1), (5, 2 * block, 3), (36, 3 * block, 17), (70, 5 * block, 1), (7, block, 33)];
        of(dtype, if dtype.is_quantized() { &blocks } else { &awkward }).collect::<Vec<_>>()
    });
    shapes.collect()
}

/// Every type, one shape each.
pub fn one_per_type() -> Vec<Shape> {
    let shape = |dtype: DType| {
        let n_in = if dtype.is_quantized() { dtype.block_len() } else { 36 };
        Shape { dtype, n_out: 10, n_in, rows: 2 }
    };
    DType::all().map(shape).collect()
}

/// Plain floats of awkward widths.
pub fn floats() -> Vec<Shape> {
    of(DType::F32, &[(1, 1, 2), (33, 7, 5), (36, 36, 3), (52, 97, 17)]).collect()
}
