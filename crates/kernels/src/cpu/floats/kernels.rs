//! The loops: one row of activations reads the panels as they lie in memory, several share a stretch of two panels
//! made floats. Both do the same sums in the same order.

use std::marker::PhantomData;

use super::layout::Layout;
use super::{FloatProduct, RUN};
use crate::cpu::rows::Rows;
use crate::cpu::simd::{Isa, Kernel, WIDTH, prefetch, prefetch_far};

/// Columns that are made floats at a time. Two panels of them fill a third of a first-level cache.
const STRETCH: usize = 2 * RUN;

/// How far ahead of the next columns of a panel a single row asks for weights in the second-level cache, in bytes.
const FAR: usize = 2 << 10;

/// Columns of activations in a cache line.
const BLOCK: usize = 16;

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
        let FloatProduct { panels, n_in, x, out, stride, .. } = self.product;
        let (pairs, _) = panels.as_chunks::<BYTES>();
        let per_panel = n_in.div_ceil(2);
        match x.len() {
            0 => return,
            1 => return one_row::<I, L, BYTES>(isa, pairs, x.row(0), out),
            _ => {}
        }
        let mut stretch = Stretch([[0.0; WIDTH]; 2 * STRETCH]);
        let (mut at, end) = (0, pairs.len() / per_panel);
        while at < end {
            let (panels, out) = (&pairs[at * per_panel..], &mut out[at * WIDTH..]);
            at += match end - at {
                // Without registers for more sums, one panel's are all that is kept.
                2.. if I::MANY_REGISTERS => {
                    many_rows::<I, L, BYTES, 2>(isa, panels, x, &mut stretch, out, stride)
                }
                _ => many_rows::<I, L, BYTES, 1>(isa, panels, x, &mut stretch, out, stride),
            };
        }
    }
}

/// What is read after `part`, from pair `first` of `W` panels on: as much of the same panels, or of the next ones.
/// (Nothing after the last: `part` itself.)
#[inline(always)]
fn next_part<'a, const BYTES: usize, const W: usize>(
    panels: &'a [[u8; BYTES]],
    per_panel: usize,
    first: usize,
    part: [&'a [[u8; BYTES]]; W],
) -> [&'a [[u8; BYTES]]; W] {
    let len = part[0].len();
    let next = if first + len < per_panel { first + len } else { W * per_panel };
    let mut ahead = part;
    for w in 0..W {
        ahead[w] = panels.get(w * per_panel + next..).and_then(|from| from.get(..len)).unwrap_or(part[w]);
    }
    ahead
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
        let ahead = next_part::<BYTES, W>(panels, per_panel, run * (RUN / 2), weights);
        let mut sums = [isa.zero(); W];
        for (pair, x) in whole.iter().enumerate() {
            let x = [isa.splat(x[0]), isa.splat(x[1])];
            for w in 0..W {
                for line in ahead[w][pair].as_chunks::<64>().0 {
                    prefetch_far(line.as_ptr().wrapping_add(FAR));
                    prefetch(line);
                }
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
    for (total, out) in totals.into_iter().zip(out.as_chunks_mut::<WIDTH>().0) {
        isa.store(total, out);
    }
    W
}

/// Two panels, or one, times all rows, a stretch of columns at a time. The totals are kept in `out`. Returns how many
/// panels they are.
#[inline(always)]
fn many_rows<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
    isa: I,
    panels: &[[u8; BYTES]],
    x: Rows,
    stretch: &mut Stretch,
    out: &mut [f32],
    stride: usize,
) -> usize {
    let n_in = x.row(0).len();
    let per_panel = n_in.div_ceil(2);
    for first in (0..n_in).step_by(STRETCH) {
        let columns = STRETCH.min(n_in - first);
        let mut weights = [&panels[..0]; W];
        for w in 0..W {
            weights[w] = &panels[w * per_panel + first / 2..][..columns.div_ceil(2)];
        }
        to_floats::<I, L, BYTES, W>(isa, weights, stretch);
        let next = next_part::<BYTES, W>(panels, per_panel, first / 2, weights);
        let (weights, _) = stretch.0.as_chunks::<W>();
        let part = Part { weights: &weights[..columns], first, x: x.columns(first, columns), stride };
        let mut ahead = Ahead::<W>::new(next, x.len() * columns);
        let (mut row, end) = (0, x.len());
        while row < end {
            let out = &mut out[row * stride..];
            row += match end - row {
                8.. if I::MANY_REGISTERS => part.rows::<I, 8>(isa, row, &mut ahead, out),
                6.. if !I::MANY_REGISTERS => part.rows::<I, 6>(isa, row, &mut ahead, out),
                4.. => part.rows::<I, 4>(isa, row, &mut ahead, out),
                2.. => part.rows::<I, 2>(isa, row, &mut ahead, out),
                _ => part.rows::<I, 1>(isa, row, &mut ahead, out),
            };
        }
    }
    W
}

/// The weights of the next stretch, which are brought near while the rows go over this one.
struct Ahead<'a, const W: usize> {
    lines: [&'a [[u8; 64]]; W],
    /// Lines of each panel for a row's block of columns.
    step: usize,
}

impl<'a, const W: usize> Ahead<'a, W> {
    #[inline(always)]
    fn new<const BYTES: usize>(next: [&'a [[u8; BYTES]]; W], products: usize) -> Ahead<'a, W> {
        let mut lines = [&[][..]; W];
        for w in 0..W {
            lines[w] = next[w].as_flattened().as_chunks::<64>().0;
        }
        Ahead { lines, step: (lines[0].len() * BLOCK).div_ceil(products) }
    }

    #[inline(always)]
    fn advance(&mut self, rows: usize) {
        for w in 0..W {
            let (now, later) = self.lines[w].split_at((self.step * rows).min(self.lines[w].len()));
            for line in now {
                prefetch(line);
            }
            self.lines[w] = later;
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
    fn rows<I: Isa, const X: usize>(
        &self,
        isa: I,
        row: usize,
        ahead: &mut Ahead<W>,
        out: &mut [f32],
    ) -> usize {
        let (mut x, mut next) = ([self.x.row(row); X], [self.x.row(row); X]);
        for r in 0..X {
            x[r] = self.x.row(row + r);
            next[r] = self.x.row((row + X + r).min(self.x.len() - 1));
        }
        for (run, weights) in self.weights.chunks(RUN).enumerate() {
            let mut sums = [[isa.zero(); W]; X];
            for (block, weights) in weights.chunks(BLOCK).enumerate() {
                let first = run * RUN + block * BLOCK;
                ahead.advance(X);
                let mut part = x;
                for r in 0..X {
                    prefetch(&next[r][first]);
                    part[r] = &x[r][first..][..weights.len()];
                }
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
