//! The loops: one row of activations reads the panels as they lie in memory, several share a stretch of two panels
//! made floats. Both do the same sums in the same order.

use std::marker::PhantomData;

use super::layout::Layout;
use super::{FloatProduct, RUN};
use crate::cpu::product::Rows;
use crate::cpu::simd::{Isa, Kernel, WIDTH};

/// Columns that are made floats at a time. Two panels of them fill a third of a first-level cache.
const STRETCH: usize = 2 * RUN;

/// Two panels' columns as floats: one column's vectors after the other's.
#[repr(align(64))]
struct Stretch([[f32; WIDTH]; 2 * STRETCH]);

pub(super) struct Products<'a, L, const BYTES: usize> {
    product: FloatProduct<'a>,
    layout: PhantomData<L>,
}

impl<'a, L: Layout<BYTES>, const BYTES: usize> Products<'a, L, BYTES> {
    pub fn new(product: FloatProduct<'a>) -> Self {
        Products { product, layout: PhantomData }
    }
}

impl<L: Layout<BYTES>, const BYTES: usize> Kernel for Products<'_, L, BYTES> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let FloatProduct { panels, n_in, x, mut out, stride, .. } = self.product;
        let (pairs, _) = panels.as_chunks::<BYTES>();
        let per_panel = n_in.div_ceil(2);
        if x.len() == 1 {
            return one_row::<I, L, BYTES>(isa, pairs, x.row(0), out);
        }
        let mut stretch = Stretch([[0.0; WIDTH]; 2 * STRETCH]);
        let mut panels = pairs.chunks_exact(per_panel);
        // Without registers for more sums, one panel's are all that is kept.
        if I::MANY_REGISTERS {
            let mut twos = pairs.chunks_exact(2 * per_panel);
            for two in &mut twos {
                let (first, second) = two.split_at(per_panel);
                many_rows::<I, L, BYTES, 2>(isa, [first, second], x, &mut stretch, out, stride);
                out = out.get_mut(2 * WIDTH..).unwrap_or_default();
            }
            panels = twos.remainder().chunks_exact(per_panel);
        }
        for panel in panels {
            many_rows::<I, L, BYTES, 1>(isa, [panel], x, &mut stretch, out, stride);
            out = out.get_mut(WIDTH..).unwrap_or_default();
        }
    }
}

/// Several panels at once, because a panel's sums are one chain of dependent additions.
#[inline(always)]
fn one_row<I: Isa, L: Layout<BYTES>, const BYTES: usize>(
    isa: I,
    pairs: &[[u8; BYTES]],
    x: &[f32],
    out: &mut [f32],
) {
    let per_panel = x.len().div_ceil(2);
    let (mut at, end) = (0, pairs.len() / per_panel);
    while at < end {
        let (panels, out) = (&pairs[at * per_panel..], &mut out[at * WIDTH..]);
        at += match end - at {
            4.. => row_of_panels::<I, L, BYTES, 4>(isa, panels, x, out),
            2.. => row_of_panels::<I, L, BYTES, 2>(isa, panels, x, out),
            _ => row_of_panels::<I, L, BYTES, 1>(isa, panels, x, out),
        };
    }
}

#[inline(always)]
fn row_of_panels<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
    isa: I,
    panels: &[[u8; BYTES]],
    x: &[f32],
    out: &mut [f32],
) -> usize {
    let per_panel = x.len().div_ceil(2);
    let mut totals = [isa.zero(); W];
    for (run, x) in x.chunks(RUN).enumerate() {
        let (whole, last) = x.as_chunks::<2>();
        let mut weights = [&panels[..0]; W];
        for w in 0..W {
            weights[w] = &panels[w * per_panel + run * (RUN / 2)..][..x.len().div_ceil(2)];
        }
        let mut sums = [isa.zero(); W];
        for (pair, x) in whole.iter().enumerate() {
            let x = [isa.splat(x[0]), isa.splat(x[1])];
            for w in 0..W {
                let columns = L::columns(isa, &weights[w][pair]);
                sums[w] = isa.fma(columns[0], x[0], sums[w]);
                sums[w] = isa.fma(columns[1], x[1], sums[w]);
            }
        }
        if let [x] = last {
            for w in 0..W {
                sums[w] = isa.fma(L::columns(isa, &weights[w][whole.len()])[0], isa.splat(*x), sums[w]);
            }
        }
        for w in 0..W {
            totals[w] = if run == 0 { sums[w] } else { isa.add(totals[w], sums[w]) };
        }
    }
    for w in 0..W {
        isa.store_at(totals[w], &mut out[..W * WIDTH], w * WIDTH);
    }
    W
}

/// Two panels, or one, times all rows, a stretch of columns at a time. The totals are kept in `out`.
#[inline(always)]
fn many_rows<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
    isa: I,
    panels: [&[[u8; BYTES]]; W],
    x: Rows,
    stretch: &mut Stretch,
    out: &mut [f32],
    stride: usize,
) {
    let n_in = x.row(0).len();
    for first in (0..n_in).step_by(STRETCH) {
        let columns = STRETCH.min(n_in - first);
        let mut weights = panels;
        for w in 0..W {
            weights[w] = &panels[w][first / 2..][..columns.div_ceil(2)];
        }
        to_floats::<I, L, BYTES, W>(isa, weights, stretch);
        let (weights, _) = stretch.0.as_chunks::<W>();
        let part = Part { weights: &weights[..columns], first, x: x.columns(first, columns), stride };
        let (mut row, end) = (0, x.len());
        while row < end {
            let out = &mut out[row * stride..];
            row += match end - row {
                8.. if I::MANY_REGISTERS => part.rows::<I, 8>(isa, row, out),
                6.. if !I::MANY_REGISTERS => part.rows::<I, 6>(isa, row, out),
                4.. => part.rows::<I, 4>(isa, row, out),
                2.. => part.rows::<I, 2>(isa, row, out),
                _ => part.rows::<I, 1>(isa, row, out),
            };
        }
    }
}

#[inline(always)]
fn to_floats<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
    isa: I,
    weights: [&[[u8; BYTES]]; W],
    stretch: &mut Stretch,
) {
    let (columns, _) = stretch.0.as_chunks_mut::<W>();
    let (pairs, _) = columns.as_chunks_mut::<2>();
    for (i, pair) in pairs[..weights[0].len()].iter_mut().enumerate() {
        for w in 0..W {
            let [even, odd] = L::columns(isa, &weights[w][i]);
            isa.store(even, &mut pair[0][w]);
            isa.store(odd, &mut pair[1][w]);
        }
    }
}

/// A stretch of `W` panels and the same columns of the activations.
struct Part<'a, const W: usize> {
    weights: &'a [[[f32; WIDTH]; W]],
    /// The first column.
    first: usize,
    x: Rows<'a>,
    stride: usize,
}

impl<const W: usize> Part<'_, W> {
    /// Adds what the stretch has for `X` rows to their totals; returns how many they are.
    #[inline(always)]
    fn rows<I: Isa, const X: usize>(&self, isa: I, row: usize, out: &mut [f32]) -> usize {
        let mut x = [self.x.row(row); X];
        for r in 1..X {
            x[r] = self.x.row(row + r);
        }
        for (run, weights) in self.weights.chunks(RUN).enumerate() {
            let mut part = x;
            for r in 0..X {
                part[r] = &x[r][run * RUN..][..weights.len()];
            }
            let mut sums = [[isa.zero(); W]; X];
            for (column, weights) in weights.iter().enumerate() {
                let mut vectors = [isa.zero(); W];
                for w in 0..W {
                    vectors[w] = isa.load(&weights[w]);
                }
                for r in 0..X {
                    let x = isa.splat(part[r][column]);
                    for w in 0..W {
                        sums[r][w] = isa.fma(vectors[w], x, sums[r][w]);
                    }
                }
            }
            let is_first = self.first + run == 0;
            for r in 0..X {
                let totals = out[r * self.stride..][..W * WIDTH].as_chunks_mut::<WIDTH>().0;
                for w in 0..W {
                    let total = if is_first { sums[r][w] } else { isa.add(isa.load(&totals[w]), sums[r][w]) };
                    isa.store(total, &mut totals[w]);
                }
            }
        }
        X
    }
}
