//! Dot products of bytes out of registers, at each level's best: nothing but what the units do.

use std::hint::black_box;

use super::simd::Level;

/// Different codes and factors, so that no product is like another.
const CODES: usize = 6;
const FACTORS: usize = 2;
/// Bytes of a vector of the largest level; a smaller one takes several vectors.
const BYTES: usize = 64;

/// Products and sums in one turn.
pub(super) fn ops_per_turn(level: Level) -> usize {
    2 * match level {
        Level::Scalar(_) => BYTES,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => x86::AVX2_CHAINS * BYTES / 2,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) | Level::Avx512Vnni(_) => CODES * FACTORS * BYTES,
    }
}

/// So many turns of dot products.
pub(super) fn run(level: Level, turns: usize) {
    let codes: [[u8; BYTES]; CODES] =
        std::array::from_fn(|c| std::array::from_fn(|i| (c * 17 + i) as u8 & 15));
    let factors: [[i8; BYTES]; FACTORS] =
        std::array::from_fn(|f| std::array::from_fn(|i| (f * 5 + i) as i8 % 9));
    let (codes, factors) = (black_box(codes), black_box(factors));
    match level {
        Level::Scalar(_) => scalar(turns, &codes[0], &factors[0]),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was found on this processor.
        Level::Avx2(_) => unsafe { x86::avx2(turns, &codes, &factors) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512(_) => unsafe { x86::avx512(turns, &codes, &factors) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512Vnni(_) => unsafe { x86::avx512vnni(turns, &codes, &factors) },
    }
}

fn scalar(turns: usize, codes: &[u8; BYTES], factors: &[i8; BYTES]) {
    let mut sums = [0i32; BYTES / 4];
    for _ in 0..turns {
        // What does not change would be computed once.
        let (codes, factors) = (black_box(codes), black_box(factors));
        for (lane, sum) in sums.iter_mut().enumerate() {
            for i in 4 * lane..4 * lane + 4 {
                *sum = sum.wrapping_add(i32::from(codes[i]) * i32::from(factors[i]));
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{BYTES, CODES, FACTORS};

    /// There are sixteen registers: three codes and a factor leave room for six sums and what lies between.
    pub const AVX2_CHAINS: usize = 3;

    #[target_feature(enable = "avx2")]
    pub fn avx2(turns: usize, codes: &[[u8; BYTES]; CODES], factors: &[[i8; BYTES]; FACTORS]) {
        let mut sums = [_mm256_setzero_si256(); AVX2_CHAINS];
        let (ones, step) = (_mm256_set1_epi16(1), _mm256_set1_epi8(1));
        // SAFETY: the pointers have 32 bytes each.
        let mut factor = unsafe { _mm256_loadu_si256(factors[0].as_ptr().cast()) };
        let mut loaded = [ones; AVX2_CHAINS];
        for (vector, codes) in loaded.iter_mut().zip(codes) {
            // SAFETY: as above.
            *vector = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        }
        for _ in 0..turns {
            // Products that do not change, or come again soon, would be computed once.
            factor = _mm256_add_epi8(factor, step);
            for c in 0..AVX2_CHAINS {
                let products = _mm256_madd_epi16(_mm256_maddubs_epi16(loaded[c], factor), ones);
                sums[c] = _mm256_add_epi32(sums[c], products);
            }
        }
        black_box(sums);
    }

    /// The two levels with vectors of 64 bytes differ in how they add products to a sum.
    macro_rules! of_64_bytes {
        ($name:ident, $features:literal, |$sum:ident, $codes:ident, $factor:ident| $dot:expr) => {
            #[target_feature(enable = $features)]
            pub fn $name(turns: usize, codes: &[[u8; BYTES]; CODES], factors: &[[i8; BYTES]; FACTORS]) {
                let mut sums = [[_mm512_setzero_si512(); CODES]; FACTORS];
                let step = _mm512_set1_epi8(1);
                let mut loaded = [step; CODES];
                for (vector, codes) in loaded.iter_mut().zip(codes) {
                    // SAFETY: the pointer has 64 bytes.
                    *vector = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
                }
                let mut changing = [step; FACTORS];
                for (vector, factors) in changing.iter_mut().zip(factors) {
                    // SAFETY: as above.
                    *vector = unsafe { _mm512_loadu_si512(factors.as_ptr().cast()) };
                }
                for _ in 0..turns {
                    for f in 0..FACTORS {
                        // Products that do not change, or come again soon, would be computed once.
                        changing[f] = _mm512_add_epi8(changing[f], step);
                        for c in 0..CODES {
                            let ($sum, $codes, $factor) = (sums[f][c], loaded[c], changing[f]);
                            sums[f][c] = $dot;
                        }
                    }
                }
                black_box(sums);
            }
        };
    }

    of_64_bytes!(avx512, "avx512f,avx512bw", |sum, codes, factor| {
        let pairs = _mm512_maddubs_epi16(codes, factor);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    });

    of_64_bytes!(avx512vnni, "avx512f,avx512bw,avx512vnni", |sum, codes, factor| {
        _mm512_dpbusd_epi32(sum, codes, factor)
    });
}
