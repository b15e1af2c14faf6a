//! Vectors of bytes at the levels of x86-64.

use std::arch::x86_64::*;

use super::bytes::{BYTES, ByteIsa, ByteKernel};
use super::x86::{Avx2, Avx512, Avx512Vnni};

impl Avx2 {
    #[inline(always)]
    pub fn run_bytes<K: ByteKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt")]
        fn enabled<K: ByteKernel>(isa: Avx2, kernel: K) {
            kernel.run(isa);
        }
        // SAFETY: `self` was made by `detect`.
        unsafe { enabled(self, kernel) }
    }
}

impl Avx512 {
    #[inline(always)]
    pub fn run_bytes<K: ByteKernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt")]
        fn enabled<K: ByteKernel>(isa: Avx512, kernel: K) {
            kernel.run(isa);
        }
        // SAFETY: `self` was made by `detect`.
        unsafe { enabled(self, kernel) }
    }
}

impl Avx512Vnni {
    #[inline(always)]
    pub fn run_bytes<K: ByteKernel>(self, kernel: K) {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi1,bmi2,lzcnt"
        )]
        fn enabled<K: ByteKernel>(isa: Avx512Vnni, kernel: K) {
            kernel.run(isa);
        }
        // SAFETY: `self` was made by `detect`.
        unsafe { enabled(self, kernel) }
    }
}

impl ByteIsa for Avx2 {
    type Floats = Avx2;
    type Bytes = [__m256i; 2];
    type Sums = [__m256i; 2];

    #[inline(always)]
    fn floats(self) -> Avx2 {
        self
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes {
        let (low, high) = from.split_at(BYTES / 2);
        // SAFETY: `self` was made by `detect`; each pointer has 32 bytes.
        unsafe { [_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())] }
    }

    #[inline(always)]
    fn field(self, bytes: Self::Bytes, right: i32, mask: u8) -> Self::Bytes {
        // SAFETY: `self` was made by `detect`. What a shift brings in from the neighbouring byte is masked away.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            let by = _mm_cvtsi32_si128(right.abs());
            let [low, high] = match right < 0 {
                true => [_mm256_sll_epi16(bytes[0], by), _mm256_sll_epi16(bytes[1], by)],
                false => [_mm256_srl_epi16(bytes[0], by), _mm256_srl_epi16(bytes[1], by)],
            };
            [_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)]
        }
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn splat_sum(self, value: i32) -> Self::Sums {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::Sums, codes: Self::Bytes, x: u32) -> Self::Sums {
        // SAFETY: `self` was made by `detect`.
        unsafe {
            let x = _mm256_set1_epi32(x as i32);
            let (low, high) = (products::<WIDE>(codes[0], x), products::<WIDE>(codes[1], x));
            [_mm256_add_epi32(sums[0], low), _mm256_add_epi32(sums[1], high)]
        }
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::Sums) -> [__m256; 2] {
        // SAFETY: `self` was made by `detect`.
        unsafe { [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])] }
    }
}

/// Two products of codes under 128 with −127 to 127 fit sixteen bits; larger codes are widened before.
#[inline]
#[target_feature(enable = "avx2")]
fn products<const WIDE: bool>(codes: __m256i, x: __m256i) -> __m256i {
    if WIDE {
        let even = _mm256_and_si256(codes, _mm256_set1_epi16(255));
        let odd = _mm256_srli_epi16::<8>(codes);
        let even_x = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
        let odd_x = _mm256_srai_epi16::<8>(x);
        return _mm256_add_epi32(_mm256_madd_epi16(even, even_x), _mm256_madd_epi16(odd, odd_x));
    }
    _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn wide_products<const WIDE: bool>(codes: __m512i, x: __m512i) -> __m512i {
    if WIDE {
        let even = _mm512_and_si512(codes, _mm512_set1_epi16(255));
        let odd = _mm512_srli_epi16::<8>(codes);
        let even_x = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
        let odd_x = _mm512_srai_epi16::<8>(x);
        return _mm512_add_epi32(_mm512_madd_epi16(even, even_x), _mm512_madd_epi16(odd, odd_x));
    }
    _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), _mm512_set1_epi16(1))
}

/// What the two levels with vectors of 64 bytes have in common.
macro_rules! of_64_bytes {
    ($level:ident, |$self:ident| $floats:expr, |$sums:ident, $codes:ident, $x:ident| $dot:expr) => {
        impl ByteIsa for $level {
            type Floats = Avx512;
            type Bytes = __m512i;
            type Sums = __m512i;

            #[inline(always)]
            fn floats($self) -> Avx512 {
                $floats
            }

            #[inline(always)]
            fn load_bytes(self, from: &[u8; BYTES]) -> __m512i {
                // SAFETY: `self` was made by `detect`; the pointer has 64 bytes.
                unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
            }

            #[inline(always)]
            fn field(self, bytes: __m512i, right: i32, mask: u8) -> __m512i {
                // SAFETY: `self` was made by `detect`. What a shift brings in from the neighbouring byte is masked
                // away.
                unsafe {
                    let by = _mm_cvtsi32_si128(right.abs());
                    let shifted = match right < 0 {
                        true => _mm512_sll_epi16(bytes, by),
                        false => _mm512_srl_epi16(bytes, by),
                    };
                    _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
                }
            }

            #[inline(always)]
            fn or(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: `self` was made by `detect`.
                unsafe { _mm512_or_si512(a, b) }
            }

            #[inline(always)]
            fn splat_sum(self, value: i32) -> __m512i {
                // SAFETY: `self` was made by `detect`.
                unsafe { _mm512_set1_epi32(value) }
            }

            #[inline(always)]
            fn dot<const WIDE: bool>(self, $sums: __m512i, $codes: __m512i, x: u32) -> __m512i {
                // SAFETY: `self` was made by `detect`.
                unsafe {
                    let $x = _mm512_set1_epi32(x as i32);
                    $dot
                }
            }

            #[inline(always)]
            fn sums_to_floats(self, sums: __m512i) -> __m512 {
                // SAFETY: `self` was made by `detect`.
                unsafe { _mm512_cvtepi32_ps(sums) }
            }
        }
    };
}

of_64_bytes!(Avx512, |self| self, |sums, codes, x| {
    _mm512_add_epi32(sums, wide_products::<WIDE>(codes, x))
});
of_64_bytes!(Avx512Vnni, |self| Avx512Vnni::floats(self), |sums, codes, x| _mm512_dpbusd_epi32(
    sums, codes, x
));
