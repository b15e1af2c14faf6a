//! Products with weights of F32, F16 and BF16 in panels of sixteen rows.
//!
//! Inside a panel a lane stands for an output: the sixteen weights of a column lie together, and one vector of them
//! times one activation, in all lanes, goes to sixteen sums at once. No sum has to be put together from lanes at the
//! end, and the vectors of weights are shared by as many rows of activations as there are registers for sums.
//!
//! The order of a sum is that of the columns, in runs of [`RUN`]: a run's products are added up from zero, one after
//! another, and the sums of the runs one after another. It depends on the number of columns alone. A product passes
//! through `RUN + n_in / RUN` roundings at most; that is as good as sixteen partial sums of every sixteenth column
//! from about 1,300 columns on, and a third of their worst case at 16,384.
//!
//! Where the processor multiplies pairs of BF16, activations that meet weights of BF16 are rounded to it, and what is said
//! above of columns holds for pairs, each of which is two roundings.

mod kernels;
mod layout;
#[cfg(test)]
mod tests;

use exotherm_tensor::DType;

use super::groups::Groups;
use super::simd::{Isa, Kernel, Level, WIDTH};
use kernels::Products;

pub(super) use layout::{decode_panel_row, pack_panel, panel_bytes};

/// Columns whose products are one chain of sums.
const RUN: usize = 64;

/// Panels of weights of one type times rows of activations, which are floats or pairs of BF16.
pub(super) struct FloatProduct<'a, X> {
    pub dtype: DType,
    /// Whole panels, one after another.
    pub panels: &'a [u8],
    pub n_in: usize,
    pub x: Groups<'a, X>,
    /// The product of activation row `r` and lane `l` of panel `p` goes to `out[r * stride + 16 * p + l]`.
    pub out: &'a mut [f32],
    pub stride: usize,
}

pub(super) fn product(level: Level, product: FloatProduct<f32>) {
    match product.dtype {
        DType::F32 => level.run(Products::<layout::F32, 128>::new(product)),
        DType::F16 => level.run(Products::<layout::F16, 64>::new(product)),
        DType::BF16 => level.run(Products::<layout::BF16, 64>::new(product)),
        other => unreachable!("{other} has panels of its own"),
    }
}

/// The same for weights of BF16 and rows of pairs.
pub(super) fn pair_product(level: Level, product: FloatProduct<u32>) {
    assert_eq!(product.dtype, DType::BF16, "only weights of BF16 are multiplied in pairs");
    level.run_pairs(Products::<layout::BF16Pairs, 128>::new(product));
}

/// Writes row `member` of a group of `members` rows as pairs.
pub(super) fn to_pairs(level: Level, x: &[f32], group: &mut [u32], members: usize, member: usize) {
    level.run_pairs(ToPairs { x, group, members, member });
}

/// Words of a row of this width.
pub(super) fn pairs_of(width: usize) -> usize {
    width.div_ceil(2)
}

struct ToPairs<'a> {
    x: &'a [f32],
    group: &'a mut [u32],
    members: usize,
    member: usize,
}

impl Kernel for ToPairs<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (whole, rest) = self.x.as_chunks::<WIDTH>();
        let mut columns = self.group.chunks_exact_mut(self.members);
        for chunk in whole {
            for word in isa.bf16_pairs(chunk) {
                columns.next().expect("a column for every pair")[self.member] = word;
            }
        }
        let mut last = [0.0; WIDTH];
        last[..rest.len()].copy_from_slice(rest);
        for (column, word) in columns.zip(isa.bf16_pairs(&last)) {
            column[self.member] = word;
        }
    }
}
