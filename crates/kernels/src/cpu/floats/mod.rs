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

mod kernels;
mod layout;
#[cfg(test)]
mod tests;

use exotherm_tensor::DType;

use super::groups::FloatRows;
use super::simd::Level;
use kernels::Products;

pub(super) use layout::{decode_panel_row, pack_panel, panel_bytes};

/// Columns whose products are one chain of sums.
const RUN: usize = 64;

/// Panels of weights of one type times rows of activations.
pub(super) struct FloatProduct<'a> {
    pub dtype: DType,
    /// Whole panels, one after another.
    pub panels: &'a [u8],
    pub n_in: usize,
    pub x: FloatRows<'a>,
    /// The product of activation row `r` and lane `l` of panel `p` goes to `out[r * stride + 16 * p + l]`.
    pub out: &'a mut [f32],
    pub stride: usize,
}

pub(super) fn product(level: Level, product: FloatProduct) {
    match product.dtype {
        DType::F32 => level.run(Products::<layout::F32, 128>::new(product)),
        DType::F16 => level.run(Products::<layout::F16, 64>::new(product)),
        DType::BF16 => level.run(Products::<layout::BF16, 64>::new(product)),
        other => unreachable!("{other} has panels of its own"),
    }
}
