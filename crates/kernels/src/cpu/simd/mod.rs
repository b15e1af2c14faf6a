//! Vectors of sixteen floats at the instruction levels a processor may have.
//!
//! A kernel is written once, generic over [`Isa`], and compiled once per level; which one runs is found out when
//! the backend is made. The order of every sum is the same at every level; only whether a product is rounded before
//! it is added depends on the level.

mod bytes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod software;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_bytes;

pub(crate) use bytes::{BYTES, ByteIsa, ByteKernel};

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16, Avx512Vnni};

use exotherm_tensor::formats::f32_to_f16;

use super::math;

/// Elements of a vector. Element `i` of a row always goes to lane `i % WIDTH`.
pub(crate) const WIDTH: usize = 16;

/// Asks for memory that is read soon. Any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    bring::<T, false>(at);
}

/// Asks for memory that is read a while later, in the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_far<T>(at: *const T) {
    bring::<T, true>(at);
}

/// Into the first cache, or, if it is far ahead, into the second.
#[inline(always)]
fn bring<T, const FAR: bool>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and it does not fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match FAR {
            true => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            false => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every aarch64 processor has the instruction, and it does not fault.
    unsafe {
        use std::arch::asm;
        match FAR {
            true => asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, nomem, preserves_flags)),
            false => asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, nomem, preserves_flags)),
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// What a kernel is written in. A value of an implementing type proves that the processor has its instructions.
pub(crate) trait Isa: Copy {
    type V: Copy;
    /// Whether the processor has registers for 24 vectors of sums and what they are made of.
    const MANY_REGISTERS: bool;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &[f32; WIDTH]) -> Self::V;
    fn store(self, value: Self::V, to: &mut [f32; WIDTH]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once where the level can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of all lanes: lane i with lane i + 8, then + 4, + 2, + 1.
    fn sum(self, v: Self::V) -> f32;
    fn halves_to_floats(self, bits: &[u16; WIDTH]) -> Self::V;
    /// The low halves and the high halves of sixteen words.
    fn bf16_pairs_to_floats(self, pairs: &[u32; WIDTH]) -> [Self::V; 2];
    fn i8s_to_floats(self, bytes: &[u8; WIDTH]) -> Self::V;
    /// The nearest BF16 of each, as `rounding::bf16` rounds, in pairs: the first of a pair in the low half of its word.
    #[inline(always)]
    fn bf16_pairs(self, from: &[f32; WIDTH]) -> [u32; WIDTH / 2] {
        software::bf16_pairs(from)
    }
    /// Adds the products of pairs of BF16 that the lanes of `a` and `b` are made of, the second one's first; either sum
    /// is rounded, and what is less than all normal numbers counts as zero. (So says Intel's manual, and so its processors
    /// did; that others do the same to the last bit is not asked for.)
    #[inline(always)]
    fn dot_bf16_pairs(self, a: Self::V, b: Self::V, sums: Self::V) -> Self::V {
        software::dot_bf16_pairs(self, a, b, sums)
    }
    /// The nearest integers (the even one of two) of values of about −127 to 127 as bytes, four to a word, and their sum.
    /// What is no such value gives something unspecified.
    fn rounded(self, v: Self::V) -> ([u32; 4], i32);

    /// The larger of each pair of lanes; that of `b` where one is no number.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        let (mut left, mut right) = ([0.0; WIDTH], [0.0; WIDTH]);
        self.store(a, &mut left);
        self.store(b, &mut right);
        for i in 0..WIDTH {
            left[i] = if left[i] > right[i] { left[i] } else { right[i] };
        }
        self.load(&left)
    }

    /// The smaller of each pair of lanes; that of `b` where one is no number.
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        let (mut left, mut right) = ([0.0; WIDTH], [0.0; WIDTH]);
        self.store(a, &mut left);
        self.store(b, &mut right);
        for i in 0..WIDTH {
            left[i] = if left[i] < right[i] { left[i] } else { right[i] };
        }
        self.load(&left)
    }

    /// The largest of all lanes.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; WIDTH];
        self.store(v, &mut lanes);
        // In halves, so that it takes four steps of vector code.
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }

    /// 2^v for v up to 127 as [`math::exp2`] makes it, but for products that are rounded with their sums.
    #[inline(always)]
    fn exp2(self, v: Self::V) -> Self::V {
        let mut lanes = [0.0; WIDTH];
        self.store(v, &mut lanes);
        for lane in &mut lanes {
            *lane = math::exp2(*lane);
        }
        self.load(&lanes)
    }

    /// Stores half floats, rounded to the nearest.
    #[inline(always)]
    fn store_halves(self, value: Self::V, to: &mut [u16; WIDTH]) {
        let mut lanes = [0.0; WIDTH];
        self.store(value, &mut lanes);
        for i in 0..WIDTH {
            to[i] = f32_to_f16(lanes[i]);
        }
    }

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// Elements `at..at + 16`, with zeros past the end of the slice.
    #[inline(always)]
    fn load_at(self, from: &[f32], at: usize) -> Self::V {
        match from[at..].first_chunk() {
            Some(chunk) => self.load(chunk),
            None => {
                let mut chunk = [0.0; WIDTH];
                chunk[..from.len() - at].copy_from_slice(&from[at..]);
                self.load(&chunk)
            }
        }
    }

    /// Stores to elements `at..at + 16`, as far as the slice goes.
    #[inline(always)]
    fn store_at(self, value: Self::V, to: &mut [f32], at: usize) {
        match to[at..].first_chunk_mut() {
            Some(chunk) => self.store(value, chunk),
            None => {
                let mut chunk = [0.0; WIDTH];
                self.store(value, &mut chunk);
                let rest = to.len() - at;
                to[at..].copy_from_slice(&chunk[..rest]);
            }
        }
    }

    /// The dot product of two slices of one length: lane by lane, then the lanes' sum.
    #[inline(always)]
    fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
        let mut sums = self.zero();
        for (a, b) in a.iter().zip(b) {
            sums = self.fma(self.load(a), self.load(b), sums);
        }
        if !a_rest.is_empty() {
            sums = self.fma(self.load_at(a_rest, 0), self.load_at(b_rest, 0), sums);
        }
        self.sum(sums)
    }
}

/// Work to be compiled for every level. `run` and what it calls must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Out;
    fn run<I: Isa>(self, isa: I) -> Self::Out;
}

/// The instruction level that kernels run at.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Scalar(Scalar),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    /// What a level with pairs does, on any processor.
    #[cfg(test)]
    ScalarPairs(Scalar),
}

impl Level {
    /// All levels that this processor has, from the plainest on.
    pub fn available() -> impl Iterator<Item = Level> {
        let levels = [
            Some(Level::Scalar(Scalar)),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Level::Neon),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Level::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Level::Avx512),
            #[cfg(target_arch = "x86_64")]
            Avx512Vnni::detect().map(Level::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            Avx512Bf16::detect().map(Level::Avx512Bf16),
        ];
        levels.into_iter().flatten()
    }

    /// The fastest.
    pub fn best() -> Level {
        Level::available().filter(|level| level.pays()).last().unwrap_or(Level::Scalar(Scalar))
    }

    /// Whether it is faster than those before it.
    fn pays(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(_) => Avx512Bf16::pays(),
            _ => true,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar(_) => "scalar",
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => "neon",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(_) => "avx512bf16",
            #[cfg(test)]
            Level::ScalarPairs(_) => "scalar with pairs",
        }
    }

    /// The same without instructions that want activations as BF16.
    pub fn without_pairs(self) -> Level {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(isa) => Level::Avx512Vnni(isa.without_pairs()),
            other => other,
        }
    }

    /// Whether activations become BF16 where weights are.
    pub fn has_pairs(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(_) => true,
            #[cfg(test)]
            Level::ScalarPairs(_) => true,
            _ => false,
        }
    }

    /// The level of this name, if this processor has it.
    pub fn named(name: &str) -> Option<Level> {
        Level::available().find(|level| level.name() == name)
    }

    /// For kernels over vectors of bytes.
    #[inline(always)]
    pub fn run_bytes<K: ByteKernel>(self, kernel: K) {
        match self {
            Level::Scalar(isa) => kernel.run(isa),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(isa) => isa.run_bytes(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(isa) => isa.run_bytes(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(isa) => isa.run_bytes(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni(isa) => isa.run_bytes(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(isa) => isa.without_pairs().run_bytes(kernel),
            #[cfg(test)]
            Level::ScalarPairs(isa) => kernel.run(isa),
        }
    }

    /// For kernels over pairs of BF16; without the instructions for them they are slow.
    #[inline(always)]
    pub fn run_pairs<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(isa) => isa.pairs().run(kernel),
            // Any level will do where there are no instructions: the one that was compiled anyway.
            _ => kernel.run(Scalar),
        }
    }

    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            Level::Scalar(isa) => kernel.run(isa),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(isa) => isa.run(kernel),
            // What vectors of floats do is the same with the instructions for bytes.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni(isa) => isa.floats().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(isa) => isa.without_pairs().floats().run(kernel),
            #[cfg(test)]
            Level::ScalarPairs(isa) => kernel.run(isa),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounding::bf16;
    use exotherm_tensor::formats::{bf16_to_f32, f16_to_f32};

    struct Everything;

    impl Kernel for Everything {
        type Out = ();

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let values = |v: I::V| {
                let mut out = [0.0; WIDTH];
                isa.store(v, &mut out);
                out
            };
            for first in (0..=u16::MAX).step_by(WIDTH) {
                let bits: [u16; WIDTH] = std::array::from_fn(|i| first + i as u16);
                let same = |a: [f32; WIDTH], b: [f32; WIDTH]| {
                    assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits), "from {first:#x}");
                };
                same(values(isa.halves_to_floats(&bits)), bits.map(f16_to_f32));
                let others = bits.map(|b| b ^ 0x5a5a);
                let pairs = std::array::from_fn(|i| u32::from(bits[i]) | u32::from(others[i]) << 16);
                let [low, high] = isa.bf16_pairs_to_floats(&pairs);
                same(values(low), bits.map(bf16_to_f32));
                same(values(high), others.map(bf16_to_f32));
            }
            let bytes: [u8; WIDTH] = std::array::from_fn(|i| (i * 37 + 200) as u8);
            assert_eq!(values(isa.i8s_to_floats(&bytes)), bytes.map(|b| f32::from(b as i8)));
            let near: [f32; WIDTH] =
                std::array::from_fn(|i| i as f32 * 16.5 - 123.75 + if i == 3 { 0.25 } else { 0.0 });
            let codes = near.map(|v| v.round_ties_even() as i8);
            let (words, sum) = isa.rounded(isa.load(&near));
            assert_eq!(words.map(u32::to_le_bytes).as_flattened(), codes.map(|c| c as u8));
            assert_eq!(sum, codes.iter().map(|&c| i32::from(c)).sum::<i32>());
            let terms: [f32; WIDTH] =
                std::array::from_fn(|i| (i as f32 * 1.7).sin() * 10f32.powi(i as i32 % 5));
            let mut tree = terms.to_vec();
            while tree.len() > 1 {
                let half = tree.split_off(tree.len() / 2);
                tree.iter_mut().zip(half).for_each(|(a, b)| *a += b);
            }
            assert_eq!(isa.sum(isa.load(&terms)), tree[0]);
            assert_eq!(values(isa.load_at(&terms, 13))[..4], [terms[13], terms[14], terms[15], 0.0]);
            assert_eq!(isa.largest(isa.load(&terms)), terms.iter().copied().fold(f32::MIN, f32::max));
            let reversed: [f32; WIDTH] = std::array::from_fn(|i| terms[WIDTH - 1 - i]);
            let larger: [f32; WIDTH] = std::array::from_fn(|i| terms[i].max(reversed[i]));
            assert_eq!(values(isa.max(isa.load(&terms), isa.load(&reversed))), larger);
            let smaller: [f32; WIDTH] = std::array::from_fn(|i| terms[i].min(reversed[i]));
            assert_eq!(values(isa.min(isa.load(&terms), isa.load(&reversed))), smaller);
            let (nan, one) = (isa.splat(f32::NAN), isa.splat(1.0));
            assert_eq!(values(isa.max(nan, one)), values(isa.min(nan, one)));
            assert!(values(isa.max(one, nan)).iter().chain(&values(isa.min(one, nan))).all(|v| v.is_nan()));
            rounds_halves(isa);
            raises_two(isa);
            rounds_to_pairs(isa);
        }
    }

    /// BF16 between all neighbours, one bit to either side of them, and what is no number.
    #[inline(always)]
    fn rounds_to_pairs<I: Isa>(isa: I) {
        for bits in 0..=u16::MAX {
            let middle = (u32::from(bits) << 16) + 0x8000;
            // What becomes of numbers less than all normal ones and of what is none is for the processor to say.
            if !f32::from_bits(middle).is_normal() {
                continue;
            }
            let near = [middle, middle - 1, middle.wrapping_add(1), middle - 0x8000];
            let floats: [f32; WIDTH] =
                std::array::from_fn(|i| f32::from_bits(near[i % 4] ^ (i as u32 & 4) << 29));
            let have = isa.bf16_pairs(&floats);
            let want: [u32; WIDTH / 2] = std::array::from_fn(|i| {
                u32::from(bf16(floats[2 * i])) | u32::from(bf16(floats[2 * i + 1])) << 16
            });
            assert_eq!(have, want, "{floats:?}");
        }
    }

    /// Halves between all neighbours, one bit to either side of them, and what is no number.
    #[inline(always)]
    fn rounds_halves<I: Isa>(isa: I) {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            let middle = value.to_bits().wrapping_add(1 << 12);
            let mut floats = [value; WIDTH];
            for (float, bits) in floats[1..4].iter_mut().zip(middle.wrapping_sub(1)..) {
                *float = f32::from_bits(bits);
            }
            floats[4] = value * 0.75;
            let mut halves = [0; WIDTH];
            isa.store_halves(isa.load(&floats), &mut halves);
            assert_eq!(halves, floats.map(f32_to_f16), "{floats:?}");
        }
    }

    #[inline(always)]
    fn raises_two<I: Isa>(isa: I) {
        for first in (-2520..2064).step_by(WIDTH) {
            let x: [f32; WIDTH] = std::array::from_fn(|i| (first + i as i32) as f32 * 0.0613);
            let mut have = [0.0; WIDTH];
            isa.store(isa.exp2(isa.load(&x)), &mut have);
            for (&x, have) in x.iter().zip(have) {
                let want = f64::from(x).exp2();
                // What is no normal number is 0.
                let allowed = 1.2e-7 * want + f64::from(f32::MIN_POSITIVE);
                assert!((f64::from(have) - want).abs() <= allowed, "2^{x} is {want}, not {have}");
            }
        }
        let mut have = [0.0; WIDTH];
        let special = [0.0, f32::NEG_INFINITY, -1e30, -151.0, f32::NAN, 1.0, -1.0, -126.0];
        isa.store(isa.exp2(isa.load_at(&special, 0)), &mut have);
        assert_eq!(have[..4], [1.0, 0.0, 0.0, 0.0]);
        assert!(have[4].is_nan());
        assert_eq!(have[5..8], [2.0, 0.5, f32::MIN_POSITIVE]);
    }

    #[test]
    fn every_level_does_the_same() {
        Level::available().for_each(|level| level.run(Everything));
        Level::available().last().expect("there is always one").run_pairs(Everything);
    }
}
