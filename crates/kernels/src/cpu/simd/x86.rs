//! AVX2 with FMA and F16C, AVX-512, and AVX-512 with its sums of products of bytes (VNNI) and of pairs of BF16.

use std::arch::x86_64::*;

use super::{Isa, Kernel, WIDTH, software};
use crate::cpu::math::{EXP2, EXP2_LOWEST};

/// Made by `detect` alone, so that who has one may use the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// With the instructions for BF16 or without.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool = false>(());

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

/// AVX-512 with VNNI and BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16 {
    bytes: Avx512Vnni,
    pairs: Avx512<true>,
}

impl Avx512Bf16 {
    pub fn detect() -> Option<Avx512Bf16> {
        let bytes = Avx512Vnni::detect().filter(|_| is_x86_feature_detected!("avx512bf16"))?;
        Some(Avx512Bf16 { bytes, pairs: Avx512(()) })
    }

    /// Whether a processor that has them multiplies pairs faster than floats. AMD's start as many instructions of either
    /// kind, say the tables that are published of Zen 4 and 5, so they make twice as many products; an Emerald Rapids of
    /// Intel's was measured to make half as many. (Not measured when it starts: what it computes would depend on that.)
    pub fn pays() -> bool {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    }

    /// The level whose vectors of bytes and floats these are.
    pub fn without_pairs(self) -> Avx512Vnni {
        self.bytes
    }

    /// Vectors of floats with the instructions for pairs of BF16.
    pub fn pairs(self) -> Avx512<true> {
        self.pairs
    }
}

impl Avx512Vnni {
    pub fn detect() -> Option<Avx512Vnni> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Avx512Vnni)
    }

    /// The level whose vectors of floats these are.
    pub fn floats(self) -> Avx512 {
        self.0
    }
}

impl Avx2 {
    pub fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        has.then_some(Avx2(()))
    }

    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt")]
        fn enabled<K: Kernel>(isa: Avx2, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: `self` was made by `detect`.
        unsafe { enabled(self, kernel) }
    }
}

impl Avx512<true> {
    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2,lzcnt"
        )]
        fn enabled<K: Kernel>(isa: Avx512<true>, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: `self` was made by `Avx512Bf16::detect`.
        unsafe { enabled(self, kernel) }
    }
}

impl Avx512 {
    pub fn detect() -> Option<Avx512> {
        let has = Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Avx512(()))
    }

    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt")]
        fn enabled<K: Kernel>(isa: Avx512, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: `self` was made by `detect`.
        unsafe { enabled(self, kernel) }
    }
}

/// The first half of sixteen elements as a pointer for a load of a whole register, and the second.
#[inline(always)]
fn halves<T>(of: &[T; WIDTH]) -> (*const T, *const T) {
    (of[..8].as_ptr(), of[8..].as_ptr())
}

/// The sum of eight lanes: lane i with lane i + 4, then + 2, + 1.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_eight(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The largest of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn largest_of_eight(v: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

/// 2^x of eight lanes, with the arithmetic of `math::exp2`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp2_of_eight(x: __m256) -> __m256 {
    let lowest = _mm256_set1_ps(EXP2_LOWEST);
    let is_large = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, lowest);
    let x = _mm256_max_ps(lowest, x);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let r = _mm256_sub_ps(x, n);
    let mut p = _mm256_set1_ps(EXP2[EXP2.len() - 1]);
    for &c in EXP2[..EXP2.len() - 1].iter().rev() {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(power));
    _mm256_and_ps(_mm256_mul_ps(p, power), is_large)
}

impl Isa for Avx2 {
    type V = [__m256; 2];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::V {
        let (low, high) = halves(from);
        // SAFETY: `self` was made by `detect`; each pointer has eight elements.
        unsafe { [_mm256_loadu_ps(low), _mm256_loadu_ps(high)] }
    }

    #[inline(always)]
    fn store(self, value: Self::V, to: &mut [f32; WIDTH]) {
        let (low, high) = to.split_at_mut(8);
        // SAFETY: `self` was made by `detect`; each pointer has eight elements.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), value[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: `self` was made by `detect`.
        unsafe { sum_of_eight(_mm256_add_ps(v[0], v[1])) }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        // SAFETY: `self` was made by `detect`.
        unsafe { largest_of_eight(_mm256_max_ps(v[0], v[1])) }
    }

    #[inline(always)]
    fn exp2(self, v: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [exp2_of_eight(v[0]), exp2_of_eight(v[1])] }
    }

    #[inline(always)]
    fn store_halves(self, value: Self::V, to: &mut [u16; WIDTH]) {
        let (low, high) = to.split_at_mut(8);
        // SAFETY: `self` was made by `detect`; each pointer has eight elements of two bytes.
        unsafe {
            _mm_storeu_si128(low.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]));
            _mm_storeu_si128(
                high.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]),
            );
        }
    }

    #[inline(always)]
    fn halves_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        let (low, high) = halves(bits);
        // SAFETY: `self` was made by `detect`; each pointer has eight elements of two bytes.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(low.cast())), _mm256_cvtph_ps(_mm_loadu_si128(high.cast()))]
        }
    }

    #[inline(always)]
    fn bf16_pairs_to_floats(self, pairs: &[u32; WIDTH]) -> [Self::V; 2] {
        let (first, second) = halves(pairs);
        // SAFETY: `self` was made by `detect`; each pointer has eight elements of four bytes.
        unsafe {
            let words = [_mm256_loadu_si256(first.cast()), _mm256_loadu_si256(second.cast())];
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            [
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words[0])),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words[1])),
                ],
                [
                    _mm256_castsi256_ps(_mm256_and_si256(words[0], high)),
                    _mm256_castsi256_ps(_mm256_and_si256(words[1], high)),
                ],
            ]
        }
    }

    #[inline(always)]
    fn i8s_to_floats(self, bytes: &[u8; WIDTH]) -> Self::V {
        let (low, high) = halves(bytes);
        // SAFETY: `self` was made by `detect`; each pointer has eight bytes.
        unsafe {
            [low, high].map(|half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(half.cast()))))
        }
    }

    #[inline(always)]
    fn rounded(self, v: Self::V) -> ([u32; 4], i32) {
        // SAFETY: `self` was made by `detect`; the words have sixteen bytes.
        unsafe {
            let (low, high) = (_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            // Halves of the two come in turn.
            let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            let mut words = [0; 4];
            _mm_storeu_si128(words.as_mut_ptr().cast(), bytes);
            let eight = _mm256_add_epi32(low, high);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10_11_10>(four));
            (words, _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two))))
        }
    }
}

impl<const BF16: bool> Isa for Avx512<BF16> {
    type V = __m512;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::V {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: Self::V, to: &mut [f32; WIDTH]) {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: `self` was made by `detect`.
        unsafe { sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        // SAFETY: `self` was made by `detect`.
        unsafe { largest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }

    #[inline(always)]
    fn exp2(self, v: Self::V) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe {
            let lowest = _mm512_set1_ps(EXP2_LOWEST);
            let is_large = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(v, lowest);
            let x = _mm512_max_ps(lowest, v);
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let r = _mm512_sub_ps(x, n);
            let mut p = _mm512_set1_ps(EXP2[EXP2.len() - 1]);
            for &c in EXP2[..EXP2.len() - 1].iter().rev() {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
            }
            _mm512_maskz_scalef_ps(is_large, p, n)
        }
    }

    #[inline(always)]
    fn store_halves(self, value: Self::V, to: &mut [u16; WIDTH]) {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements of two bytes.
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn halves_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements of two bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) }
    }

    #[inline(always)]
    fn bf16_pairs_to_floats(self, pairs: &[u32; WIDTH]) -> [Self::V; 2] {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements of four bytes.
        unsafe {
            let words = _mm512_loadu_si512(pairs.as_ptr().cast());
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(high)]
        }
    }

    #[inline(always)]
    fn bf16_pairs(self, from: &[f32; WIDTH]) -> [u32; WIDTH / 2] {
        if !BF16 {
            return software::bf16_pairs(from);
        }
        // SAFETY: `self` was made by `Avx512Bf16::detect`; sixteen halves have as many bits as eight words.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(self.load(from))) }
    }

    #[inline(always)]
    fn dot_bf16_pairs(self, a: Self::V, b: Self::V, sums: Self::V) -> Self::V {
        if !BF16 {
            return software::dot_bf16_pairs(self, a, b, sums);
        }
        // SAFETY: `self` was made by `Avx512Bf16::detect`; vectors of 512 bits have the same bits, whatever their elements.
        unsafe {
            let (a, b) =
                (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
            _mm512_dpbf16_ps(sums, a, b)
        }
    }

    #[inline(always)]
    fn i8s_to_floats(self, bytes: &[u8; WIDTH]) -> Self::V {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn rounded(self, v: Self::V) -> ([u32; 4], i32) {
        // SAFETY: `self` was made by `detect`; the words have sixteen bytes.
        unsafe {
            let codes = _mm512_cvtps_epi32(v);
            let mut words = [0; 4];
            _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(codes));
            (words, _mm512_reduce_add_epi32(codes))
        }
    }
}
