//! The loops: one row of activations reads the panels as they lie in memory, several share a stretch of three panels
//! unpacked to vectors. Both do the same sums in the same order.

use super::layout::{Layout, panel_bytes};
use super::{FloatProduct, RUN};
use crate::cpu::groups::{GROUP, Groups};
use crate::cpu::simd::{Isa, Kernel, WIDTH, prefetch, prefetch_far};

/// How far ahead of the next columns of a panel a single row asks for weights in the second-level cache, in bytes.
const FAR: usize = 2 << 10;

/// Columns of activations in a cache line.
const BLOCK: usize = 16;

/// Columns that are unpacked at a time, of three panels: one column's vectors after the other's. They are a run, whose
/// products are one sum, and fill a quarter of a first-level cache.
#[repr(align(64))]
struct Stretch([[f32; WIDTH]; 3 * RUN]);

pub(super) struct Products<'a, L: Layout<BYTES>, const BYTES: usize> {
    product: FloatProduct<'a, L::X>,
}

impl<'a, L: Layout<BYTES>, const BYTES: usize> Products<'a, L, BYTES> {
    pub fn new(product: FloatProduct<'a, L::X>) -> Self {
        Products { product }
    }
}

impl<L: Layout<BYTES>, const BYTES: usize> Kernel for Products<'_, L, BYTES> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let FloatProduct { dtype, panels, n_in, x, out, stride } = self.product;
        let (pairs, _) = panels.as_chunks::<BYTES>();
        let per_panel = panel_bytes(dtype, n_in).expect("it was packed") / BYTES;
        match x.len() {
            0 => return,
            1 => return one_row::<I, L, BYTES>(isa, pairs, per_panel, x.group(0).0, out),
            _ => {}
        }
        let mut stretch = Stretch([[0.0; WIDTH]; 3 * RUN]);
        let (mut at, end) = (0, pairs.len() / per_panel);
        while at < end {
            let (panels, out) = (&pairs[at * per_panel..], &mut out[at * WIDTH..]);
            at += match end - at {
                // Without registers for more sums, one panel's are all that is kept.
                3.. if I::MANY_REGISTERS => {
                    many_rows::<I, L, BYTES, 3>(isa, panels, per_panel, x, &mut stretch, out, stride)
                }
                2 if I::MANY_REGISTERS => {
                    many_rows::<I, L, BYTES, 2>(isa, panels, per_panel, x, &mut stretch, out, stride)
                }
                _ => many_rows::<I, L, BYTES, 1>(isa, panels, per_panel, x, &mut stretch, out, stride),
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
    per_panel: usize,
    x: &[L::X],
    out: &mut [f32],
) {
    let (mut at, end) = (0, pairs.len() / per_panel);
    while at < end {
        let (panels, out) = (&pairs[at * per_panel..], &mut out[at * WIDTH..]);
        at += match end - at {
            4.. => row_of_panels::<I, L, BYTES, 4>(isa, panels, per_panel, x, out),
            2.. => row_of_panels::<I, L, BYTES, 2>(isa, panels, per_panel, x, out),
            _ => row_of_panels::<I, L, BYTES, 1>(isa, panels, per_panel, x, out),
        };
    }
}

#[inline(always)]
fn row_of_panels<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
    isa: I,
    panels: &[[u8; BYTES]],
    per_panel: usize,
    x: &[L::X],
    out: &mut [f32],
) -> usize {
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
            let x = [L::splat(isa, x[0]), L::splat(isa, x[1])];
            for w in 0..W {
                for line in ahead[w][pair].as_chunks::<64>().0 {
                    prefetch_far(line.as_ptr().wrapping_add(FAR));
                    prefetch(line);
                }
                let columns = L::columns(isa, &weights[w][pair]);
                sums[w] = L::add(isa, columns[0], x[0], sums[w]);
                sums[w] = L::add(isa, columns[1], x[1], sums[w]);
            }
        }
        if let [x] = last {
            for w in 0..W {
                let [column, _] = L::columns(isa, &weights[w][whole.len()]);
                sums[w] = L::add(isa, column, L::splat(isa, *x), sums[w]);
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

/// Up to three panels times all rows, a stretch (a run of columns) at a time. The totals are kept in `out`. Returns how many
/// panels they are.
#[inline(always)]
fn many_rows<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
    isa: I,
    panels: &[[u8; BYTES]],
    per_panel: usize,
    x: Groups<L::X>,
    stretch: &mut Stretch,
    out: &mut [f32],
    stride: usize,
) -> usize {
    let n_in = x.width();
    for first in (0..n_in).step_by(RUN) {
        let columns = RUN.min(n_in - first);
        let mut weights = [&panels[..0]; W];
        for w in 0..W {
            weights[w] = &panels[w * per_panel + first / 2..][..columns.div_ceil(2)];
        }
        unpack::<I, L, BYTES, W>(isa, weights, stretch);
        let next = next_part::<BYTES, W>(panels, per_panel, first / 2, weights);
        let (weights, _) = stretch.0.as_chunks::<W>();
        let part = Part { weights: &weights[..columns], is_first: first == 0, stride };
        let here = x.columns(first, columns);
        // After the last group comes the first again, with the next stretch.
        let then = if first + columns < n_in { first + columns } else { 0 };
        let after = x.columns(then, RUN.min(n_in - then)).group(0).0;
        let mut ahead = Ahead::<W>::new(next, x.len() * columns);
        for row in (0..x.len()).step_by(GROUP) {
            let (columns, members, used) = here.group(row);
            let next = if row + GROUP < x.len() { here.group(row + GROUP).0 } else { after };
            let out = &mut out[row * stride..];
            let group = Group { columns, next, first: 0, used };
            match members {
                GROUP if I::MANY_REGISTERS => {
                    part.rows::<I, L, BYTES, GROUP, GROUP>(isa, group, &mut ahead, out)
                }
                GROUP => {
                    part.rows::<I, L, BYTES, GROUP, 4>(isa, Group { used: 4, ..group }, &mut ahead, out);
                    let rest = Group { first: 4, used: used - 4, ..group };
                    part.rows::<I, L, BYTES, GROUP, 4>(isa, rest, &mut ahead, &mut out[4 * stride..]);
                }
                4 => part.rows::<I, L, BYTES, 4, 4>(isa, group, &mut ahead, out),
                _ => part.rows::<I, L, BYTES, 1, 1>(isa, group, &mut ahead, out),
            }
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
fn unpack<I: Isa, L: Layout<BYTES>, const BYTES: usize, const W: usize>(
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

/// Rows of a group, from `first` on: the first `used` of as many as there are registers for.
#[derive(Clone, Copy)]
struct Group<'a, X> {
    /// The columns of the stretch, of all rows of the group.
    columns: &'a [X],
    /// The same of the group that comes next, which is brought near meanwhile.
    next: &'a [X],
    first: usize,
    used: usize,
}

/// A stretch of `W` panels.
struct Part<'a, const W: usize> {
    weights: &'a [[[f32; WIDTH]; W]],
    /// Whether no columns come before it.
    is_first: bool,
    stride: usize,
}

impl<const W: usize> Part<'_, W> {
    /// Adds what the stretch has for `X` rows of a group of `R` to their totals.
    #[inline(always)]
    fn rows<I: Isa, L: Layout<BYTES>, const BYTES: usize, const R: usize, const X: usize>(
        &self,
        isa: I,
        group: Group<L::X>,
        ahead: &mut Ahead<W>,
        out: &mut [f32],
    ) {
        let Group { columns, next, first, used } = group;
        let columns = columns.as_chunks::<R>().0;
        let mut sums = [[isa.zero(); W]; X];
        let (blocks, last) = self.weights.as_chunks::<BLOCK>();
        let (blocks_of_x, last_of_x) = columns.as_chunks::<BLOCK>();
        for (block, (weights, x)) in blocks.iter().zip(blocks_of_x).enumerate() {
            ahead.advance(X);
            for line in 0..X {
                prefetch(next.as_ptr().wrapping_add(block * BLOCK * R + (first + line) * BLOCK));
            }
            // A constant number of times: else the compiler copies all sums once for every column.
            for c in 0..BLOCK {
                add_column::<I, L, BYTES, R, X, W>(isa, &weights[c], &x[c], first, &mut sums);
            }
        }
        for (weights, x) in last.iter().zip(last_of_x) {
            add_column::<I, L, BYTES, R, X, W>(isa, weights, x, first, &mut sums);
        }
        for r in 0..X.min(used) {
            let totals = out[r * self.stride..][..W * WIDTH].as_chunks_mut::<WIDTH>().0;
            for w in 0..W {
                let sum = sums[r][w];
                let total = if self.is_first { sum } else { isa.add(isa.load(&totals[w]), sum) };
                isa.store(total, &mut totals[w]);
            }
        }
    }
}

#[inline(always)]
fn add_column<
    I: Isa,
    L: Layout<BYTES>,
    const BYTES: usize,
    const R: usize,
    const X: usize,
    const W: usize,
>(
    isa: I,
    weights: &[[f32; WIDTH]; W],
    x: &[L::X; R],
    first: usize,
    sums: &mut [[I::V; W]; X],
) {
    let mut vectors = [isa.zero(); W];
    for w in 0..W {
        vectors[w] = isa.load(&weights[w]);
    }
    for r in 0..X {
        let x = L::splat(isa, x[first + r]);
        for w in 0..W {
            sums[r][w] = L::add(isa, vectors[w], x, sums[r][w]);
        }
    }
}
