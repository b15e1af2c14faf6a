//! AVX2 with FMA and F16C, and AVX-512.

use std::arch::x86_64::*;

use super::{Isa, Kernel, WIDTH};
use crate::cpu::math::{EXP2, EXP2_LOWEST};

/// Made by `detect` alone, so that who has one may use the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx2 {
    pub fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt")]
        fn enabled<K: Kernel>(isa: Avx2, kernel: K) -> K::Out {
            kernel.run(isa)
        }
        // SAFETY: `self` was made by `detect`; no x86 processor has AVX2 and not the bit instructions.
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
        // SAFETY: `self` was made by `detect`; no x86 processor has AVX2 and not the bit instructions.
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
    fn half_to_float(self, bits: u16) -> f32 {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    fn splat_half(self, bits: u16) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_cvtph_ps(_mm_set1_epi16(bits as i16)); 2] }
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
    fn bf16s_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        let (low, high) = halves(bits);
        // SAFETY: `self` was made by `detect`; each pointer has eight elements of two bytes.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(low.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(high.cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
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
    fn nibbles(
        self,
        bytes: &[u8; WIDTH],
        low: impl Fn(Self::V) -> Self::V,
        high: impl Fn(Self::V) -> Self::V,
    ) -> (Self::V, Self::V) {
        let (first, second) = halves(bytes);
        // SAFETY: `self` was made by `detect`; each pointer has eight bytes.
        let (low_codes, high_codes) = unsafe {
            let first = _mm256_cvtepu8_epi32(_mm_loadl_epi64(first.cast()));
            let second = _mm256_cvtepu8_epi32(_mm_loadl_epi64(second.cast()));
            let lowest = _mm256_set1_epi32(15);
            (
                [
                    _mm256_cvtepi32_ps(_mm256_and_si256(first, lowest)),
                    _mm256_cvtepi32_ps(_mm256_and_si256(second, lowest)),
                ],
                [
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(first)),
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(second)),
                ],
            )
        };
        (low(low_codes), high(high_codes))
    }
}

impl Isa for Avx512 {
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
    fn half_to_float(self, bits: u16) -> f32 {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    fn splat_half(self, bits: u16) -> Self::V {
        // SAFETY: `self` was made by `detect`.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(bits as i16)) }
    }

    #[inline(always)]
    fn halves_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements of two bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) }
    }

    #[inline(always)]
    fn bf16s_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen elements of two bytes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bits.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn i8s_to_floats(self, bytes: &[u8; WIDTH]) -> Self::V {
        // SAFETY: `self` was made by `detect`; the pointer has sixteen bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    /// Tables of the sixteen values and permutations by the codes, of which they read the four lowest bits.
    #[inline(always)]
    fn nibbles(
        self,
        bytes: &[u8; WIDTH],
        low: impl Fn(Self::V) -> Self::V,
        high: impl Fn(Self::V) -> Self::V,
    ) -> (Self::V, Self::V) {
        const CODES: [f32; WIDTH] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        let codes = self.load(&CODES);
        let (low_table, high_table) = (low(codes), high(codes));
        // SAFETY: `self` was made by `detect`; the pointer has sixteen bytes.
        unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            let high_codes = _mm512_srli_epi32::<4>(codes);
            (_mm512_permutexvar_ps(codes, low_table), _mm512_permutexvar_ps(high_codes, high_table))
        }
    }
}
