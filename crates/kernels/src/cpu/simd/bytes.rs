//! Vectors of bytes: sixteen lanes of four codes each, and the sums of their products with four integers.

use super::{Isa, WIDTH};

/// Bytes of a vector: four for each lane.
pub(crate) const BYTES: usize = 4 * WIDTH;

/// What kernels over quantized weights are written in. All levels give the same bits.
pub(crate) trait ByteIsa: Copy {
    /// The level's vectors of floats.
    type Floats: Isa;
    type Bytes: Copy;
    /// Sixteen i32.
    type Sums: Copy;

    fn floats(self) -> Self::Floats;

    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes;

    /// The bits `mask` of every byte after a shift to the right (to the left where `right` is negative).
    fn field(self, bytes: Self::Bytes, right: i32, mask: u8) -> Self::Bytes;

    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    fn splat_sum(self, value: i32) -> Self::Sums;

    /// To every lane's sum the products of its four codes (not negative) with the four signed bytes of `x`. Codes of
    /// 128 and more need `WIDE`.
    fn dot<const WIDE: bool>(self, sums: Self::Sums, codes: Self::Bytes, x: u32) -> Self::Sums;

    fn sums_to_floats(self, sums: Self::Sums) -> <Self::Floats as Isa>::V;

    /// a · b + c, rounded once at every level.
    #[inline(always)]
    fn fused(
        self,
        a: <Self::Floats as Isa>::V,
        b: <Self::Floats as Isa>::V,
        c: <Self::Floats as Isa>::V,
    ) -> <Self::Floats as Isa>::V {
        self.floats().fma(a, b, c)
    }
}

/// Work over bytes to be compiled for every level. `run` and what it calls must be `#[inline(always)]`.
pub(crate) trait ByteKernel {
    fn run<I: ByteIsa>(self, isa: I);
}
