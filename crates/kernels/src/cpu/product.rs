//! Rows of weights times rows of activations.
//!
//! A dot product is defined once: element `i` is added to lane `i % 16` in the order of `i`, the rest of the last
//! vector counts as zeros, then the lanes are summed as a tree. One row decodes the weights in registers, many rows
//! share a few decoded rows of weights; both do the same sums, so that a row's result never depends on the rows
//! around it.

use std::marker::PhantomData;

use exotherm_tensor::DType;

use super::formats::{self, Format};
use super::simd::{Isa, Kernel, Level, WIDTH};

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

/// Rows of weights, all of one type, and where their products go.
pub(super) struct Product<'a> {
    pub dtype: DType,
    /// One packed row after another.
    pub weights: &'a [u8],
    pub row_bytes: usize,
    pub x: Rows<'a>,
    /// Room for [`decoded_floats`] decoded weights.
    pub decoded: &'a mut [f32],
    /// The product of weight row `c` and activation row `r` goes to `out[r * stride + c]`.
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// Floats of decoded weights that stay in the first-level cache beside the rows of activations.
const DECODED_FLOATS: usize = 8192;

/// Rows of weights decoded at a time for many rows of activations.
fn decoded_rows(n_in: usize) -> usize {
    (DECODED_FLOATS / n_in.next_multiple_of(WIDTH) / 4 * 4).clamp(4, 32)
}

/// Room that `Product::decoded` needs for rows of this width.
pub(super) fn decoded_floats(n_in: usize) -> Option<usize> {
    n_in.checked_next_multiple_of(WIDTH)?.checked_mul(decoded_rows(n_in))
}

impl Product<'_> {
    pub fn run(self, level: Level) {
        let dtype = self.dtype;
        by_dtype(level, dtype, Task::Product(self));
    }
}

/// What is done with weights of any type.
enum Task<'a> {
    Product(Product<'a>),
    Decode(Decode<'a>),
}

/// Whole rows of weights to floats, each row padded with zeros to whole vectors.
struct Decode<'a> {
    weights: &'a [u8],
    row_bytes: usize,
    out: &'a mut [f32],
}

/// Decodes rows of whole vectors.
#[cfg(test)]
pub(super) fn decode(level: Level, dtype: DType, weights: &[u8], row_bytes: usize, out: &mut [f32]) {
    by_dtype(level, dtype, Task::Decode(Decode { weights, row_bytes, out }));
}

fn by_dtype(level: Level, dtype: DType, task: Task) {
    match dtype {
        DType::F32 => typed::<formats::F32, 64, 16>(level, task),
        DType::F16 => typed::<formats::F16, 32, 16>(level, task),
        DType::BF16 => typed::<formats::BF16, 32, 16>(level, task),
        _ => unreachable!("quantized weights lie in panels"),
    }
}

fn typed<F: Format<BYTES, LEN>, const BYTES: usize, const LEN: usize>(level: Level, task: Task) {
    match task {
        Task::Product(product) if product.x.len() == 1 => {
            let Product { weights, row_bytes, x, out, .. } = product;
            level.run(OneRow::<F, BYTES, LEN> { weights, row_bytes, x: x.row(0), out, format: PhantomData });
        }
        Task::Product(product) => many_rows(level, product),
        Task::Decode(Decode { weights, row_bytes, out }) => {
            level.run(DecodeRows::<F, BYTES, LEN> { weights, row_bytes, out, format: PhantomData });
        }
    }
}

fn many_rows(level: Level, product: Product) {
    let Product { dtype, weights, row_bytes, x, decoded, out, stride } = product;
    let padded = x.width.next_multiple_of(WIDTH);
    let group = decoded_rows(x.width);
    for (i, weights) in weights.chunks(group * row_bytes).enumerate() {
        let decoded = &mut decoded[..weights.len() / row_bytes * padded];
        by_dtype(level, dtype, Task::Decode(Decode { weights, row_bytes, out: decoded }));
        level.run(Tiles { weights: decoded, x, out: &mut out[i * group..], stride });
    }
}

struct OneRow<'a, F, const BYTES: usize, const LEN: usize> {
    weights: &'a [u8],
    row_bytes: usize,
    x: &'a [f32],
    out: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Format<BYTES, LEN>, const BYTES: usize, const LEN: usize> Kernel for OneRow<'_, F, BYTES, LEN> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Several rows at once, because each row's sum is one chain of dependent additions.
        let mut fours = self.weights.chunks_exact(4 * self.row_bytes);
        let mut at = 0;
        for four in &mut fours {
            let rows = std::array::from_fn(|r| &four[r * self.row_bytes..][..self.row_bytes]);
            let sums = dots_of_one::<I, F, 4, BYTES, LEN>(isa, rows, self.x);
            self.out[at..at + 4].copy_from_slice(&sums);
            at += 4;
        }
        for row in fours.remainder().chunks_exact(self.row_bytes) {
            [self.out[at]] = dots_of_one::<I, F, 1, BYTES, LEN>(isa, [row], self.x);
            at += 1;
        }
    }
}

#[inline(always)]
fn dots_of_one<I: Isa, F: Format<BYTES, LEN>, const W: usize, const BYTES: usize, const LEN: usize>(
    isa: I,
    weights: [&[u8]; W],
    x: &[f32],
) -> [f32; W] {
    let mut sums = [isa.zero(); W];
    let (whole, rest) = x.as_chunks::<LEN>();
    let weights = weights.map(|w| w.as_chunks::<BYTES>().0);
    let fronts = weights.map(|w| &w[..whole.len()]);
    for (b, x) in whole.iter().enumerate() {
        let x = x.as_chunks::<WIDTH>().0;
        for w in 0..W {
            F::vectors(isa, &fronts[w][b], |i, v| sums[w] = isa.fma(v, isa.load(&x[i]), sums[w]));
        }
    }
    if !rest.is_empty() {
        // Only float types get here, whose block is one vector.
        for w in 0..W {
            F::vectors(isa, &weights[w][whole.len()], |i, v| {
                sums[w] = isa.fma(v, isa.load_at(rest, i * WIDTH), sums[w]);
            });
        }
    }
    // A loop, because the library's `map` over an array may end up as a call, which has to do without vectors.
    let mut dots = [0.0; W];
    for w in 0..W {
        dots[w] = isa.sum(sums[w]);
    }
    dots
}

struct DecodeRows<'a, F, const BYTES: usize, const LEN: usize> {
    weights: &'a [u8],
    row_bytes: usize,
    out: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Format<BYTES, LEN>, const BYTES: usize, const LEN: usize> Kernel for DecodeRows<'_, F, BYTES, LEN> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let per_row = self.row_bytes / BYTES;
        let rows =
            self.weights.chunks_exact(self.row_bytes).flat_map(|row| &row.as_chunks::<BYTES>().0[..per_row]);
        for (block, values) in rows.zip(self.out.as_chunks_mut::<LEN>().0) {
            let values = values.as_chunks_mut::<WIDTH>().0;
            F::vectors(isa, block, |i, v| isa.store(v, &mut values[i]));
        }
    }
}

struct Tiles<'a> {
    /// Decoded and padded.
    weights: &'a [f32],
    x: Rows<'a>,
    out: &'a mut [f32],
    stride: usize,
}

impl Kernel for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match I::MANY_REGISTERS {
            true => tiles::<I, 4, 4>(isa, self),
            false => tiles::<I, 2, 2>(isa, self),
        }
    }
}

/// Walks the rows of activations in groups of `X` and, for each group, the rows of weights in groups of `W`.
#[inline(always)]
fn tiles<I: Isa, const W: usize, const X: usize>(isa: I, t: Tiles) {
    let padded = t.x.width.next_multiple_of(WIDTH);
    let columns = t.weights.len() / padded;
    let weight = |c: usize| &t.weights[c * padded..][..padded];
    let mut row = 0;
    while row < t.x.len() {
        let full = row + X <= t.x.len();
        let (mut column, out) = (0, &mut t.out[row * t.stride..]);
        while column < columns {
            let wide = column + W <= columns;
            match (full, wide) {
                (true, true) => {
                    let (w, x) = (
                        std::array::from_fn(|i| weight(column + i)),
                        std::array::from_fn(|i| t.x.row(row + i)),
                    );
                    put(tile::<I, W, X>(isa, w, x), &mut out[column..], t.stride);
                }
                (true, false) => {
                    let x = std::array::from_fn(|i| t.x.row(row + i));
                    put(tile::<I, 1, X>(isa, [weight(column)], x), &mut out[column..], t.stride);
                }
                (false, true) => {
                    let w = std::array::from_fn(|i| weight(column + i));
                    put(tile::<I, W, 1>(isa, w, [t.x.row(row)]), &mut out[column..], t.stride);
                }
                (false, false) => {
                    put(tile::<I, 1, 1>(isa, [weight(column)], [t.x.row(row)]), &mut out[column..], t.stride);
                }
            }
            column += if wide { W } else { 1 };
        }
        row += if full { X } else { 1 };
    }
}

#[inline(always)]
fn put<const W: usize, const X: usize>(products: [[f32; W]; X], out: &mut [f32], stride: usize) {
    for (x, products) in products.iter().enumerate() {
        out[x * stride..][..W].copy_from_slice(products);
    }
}

#[inline(always)]
fn tile<I: Isa, const W: usize, const X: usize>(
    isa: I,
    weights: [&[f32]; W],
    x: [&[f32]; X],
) -> [[f32; W]; X] {
    let mut sums = [[isa.zero(); W]; X];
    let steps = x[0].len() / WIDTH;
    let whole_x = x.map(|x| &x.as_chunks::<WIDTH>().0[..steps]);
    let whole_w = weights.map(|w| &w.as_chunks::<WIDTH>().0[..steps]);
    for step in 0..steps {
        let mut w = [isa.zero(); W];
        for c in 0..W {
            w[c] = isa.load(&whole_w[c][step]);
        }
        for r in 0..X {
            let x = isa.load(&whole_x[r][step]);
            for c in 0..W {
                sums[r][c] = isa.fma(w[c], x, sums[r][c]);
            }
        }
    }
    let done = steps * WIDTH;
    if done < x[0].len() {
        let mut w = [isa.zero(); W];
        for c in 0..W {
            w[c] = isa.load_at(weights[c], done);
        }
        for r in 0..X {
            let x = isa.load_at(x[r], done);
            for c in 0..W {
                sums[r][c] = isa.fma(w[c], x, sums[r][c]);
            }
        }
    }
    let mut products = [[0.0; W]; X];
    for r in 0..X {
        for c in 0..W {
            products[r][c] = isa.sum(sums[r][c]);
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row and many at every level, against f64.
    #[test]
    fn every_level_makes_one_row_and_many_alike() {
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<f32>>();
        for (n_in, n_out, n) in
            [(1usize, 1, 2), (16, 5, 5), (31, 6, 7), (64, 9, 3), (100, 33, 4), (1000, 13, 9)]
        {
            let padded = n_in.next_multiple_of(WIDTH);
            let (weights, x) = (wave(padded * n_out, 0.37), wave(n_in * n, 0.71));
            let padding = |i: usize| i % padded >= n_in;
            let bytes: Vec<u8> = weights
                .iter()
                .enumerate()
                .flat_map(|(i, w)| if padding(i) { [0; 4] } else { w.to_le_bytes() })
                .collect();
            for level in Level::available() {
                let run = |x: Rows| {
                    let (mut decoded, mut out) =
                        (vec![0.0; decoded_floats(n_in).unwrap()], vec![0.0; n_out * x.len()]);
                    let (decoded, dtype) = (&mut decoded[..], DType::F32);
                    Product {
                        dtype,
                        weights: &bytes,
                        row_bytes: 4 * padded,
                        x,
                        decoded,
                        out: &mut out,
                        stride: n_out,
                    }
                    .run(level);
                    out
                };
                let together = run(Rows::new(&x, n_in, n_in, n));
                let alone: Vec<f32> = x.chunks(n_in).flat_map(|row| run(Rows::one(row))).collect();
                assert_eq!(together, alone, "{n_in} wide at {}", level.name());
                for (i, &have) in alone.iter().enumerate() {
                    let (w, x) = (&weights[i % n_out * padded..], &x[i / n_out * n_in..][..n_in]);
                    let want: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    assert!((f64::from(have) - want).abs() < 1e-6 * n_in as f64, "{have} is not {want}");
                }
            }
        }
    }
}
