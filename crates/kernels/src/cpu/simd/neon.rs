//! NEON with sums of products of bytes (SDOT): every 64-bit Arm processor since about 2018.
//!
//! SDOT and the conversions of half floats are written as assembly, because the language has no stable intrinsics
//! for them.

#![expect(clippy::needless_range_loop, reason = "loops over registers are plain, so that they are unrolled")]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::bytes::{BYTES, ByteIsa, ByteKernel};
use super::{Isa, Kernel, WIDTH};

/// Made by `detect` alone, so that who has one may use the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub fn detect() -> Option<Neon> {
        is_aarch64_feature_detected!("dotprod").then_some(Neon(()))
    }

    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }

    #[inline(always)]
    pub fn run_bytes<K: ByteKernel>(self, kernel: K) {
        #[target_feature(enable = "neon,dotprod")]
        fn enabled<K: ByteKernel>(isa: Neon, kernel: K) {
            kernel.run(isa);
        }
        // SAFETY: `self` was made by `detect`.
        unsafe { enabled(self, kernel) }
    }
}

/// Registers that a vector of sixteen floats takes.
const PARTS: usize = WIDTH / 4;

/// Four half floats as floats. The instruction is there on every 64-bit Arm processor.
#[inline(always)]
fn four_halves(bits: uint16x4_t) -> float32x4_t {
    let floats;
    // SAFETY: touches registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) floats, in(vreg) bits, options(pure, nomem, nostack));
    }
    floats
}

/// Four floats as half floats, rounded to the nearest.
#[inline(always)]
fn to_four_halves(floats: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: touches registers only.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) floats, options(pure, nomem, nostack));
    }
    halves
}

/// To every lane's sum its four products of signed bytes.
#[inline(always)]
fn sdot(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: touches registers only; whoever comes here has a `Neon`, which is proof of the instruction.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

impl Isa for Neon {
    type V = [float32x4_t; PARTS];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: every 64-bit Arm processor has NEON.
        [unsafe { vdupq_n_f32(value) }; PARTS]
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::V {
        let parts = from.as_chunks::<4>().0;
        let mut v = self.splat(0.0);
        for i in 0..PARTS {
            // SAFETY: as above; each part has four floats.
            v[i] = unsafe { vld1q_f32(parts[i].as_ptr()) };
        }
        v
    }

    #[inline(always)]
    fn store(self, value: Self::V, to: &mut [f32; WIDTH]) {
        let parts = to.as_chunks_mut::<4>().0;
        for i in 0..PARTS {
            // SAFETY: as above; each part has four floats.
            unsafe { vst1q_f32(parts[i].as_mut_ptr(), value[i]) };
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        let mut v = a;
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vaddq_f32(a[i], b[i]) };
        }
        v
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        let mut v = a;
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vmulq_f32(a[i], b[i]) };
        }
        v
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut v = c;
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vfmaq_f32(c[i], a[i], b[i]) };
        }
        v
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn halves_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        let parts = bits.as_chunks::<4>().0;
        let mut v = self.splat(0.0);
        for i in 0..PARTS {
            // SAFETY: as above; each part has four halves.
            v[i] = four_halves(unsafe { vld1_u16(parts[i].as_ptr()) });
        }
        v
    }

    #[inline(always)]
    fn bf16_pairs_to_floats(self, pairs: &[u32; WIDTH]) -> [Self::V; 2] {
        let parts = pairs.as_chunks::<4>().0;
        let (mut low, mut high) = (self.splat(0.0), self.splat(0.0));
        for i in 0..PARTS {
            // SAFETY: as above; each part has four words.
            unsafe {
                let words = vld1q_u32(parts[i].as_ptr());
                low[i] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(words));
                high[i] = vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff_0000)));
            }
        }
        [low, high]
    }

    #[inline(always)]
    fn i8s_to_floats(self, bytes: &[u8; WIDTH]) -> Self::V {
        // SAFETY: as above; there are sixteen bytes.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(bytes.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        }
    }

    #[inline(always)]
    fn rounded(self, v: Self::V) -> ([u32; 4], i32) {
        // SAFETY: as above; the pointer has room for sixteen bytes.
        unsafe {
            let low = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[0])), vmovn_s32(vcvtnq_s32_f32(v[1])));
            let high = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[2])), vmovn_s32(vcvtnq_s32_f32(v[3])));
            let codes = vcombine_s8(vmovn_s16(low), vmovn_s16(high));
            let mut words = [0; 4];
            vst1q_u32(words.as_mut_ptr(), vreinterpretq_u32_s8(codes));
            (words, i32::from(vaddlvq_s8(codes)))
        }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        let mut v = a;
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) };
        }
        v
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        let mut v = a;
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]) };
        }
        v
    }

    #[inline(always)]
    fn store_halves(self, value: Self::V, to: &mut [u16; WIDTH]) {
        let parts = to.as_chunks_mut::<4>().0;
        for i in 0..PARTS {
            // SAFETY: as above; each part has room for four halves.
            unsafe { vst1_u16(parts[i].as_mut_ptr(), to_four_halves(value[i])) };
        }
    }
}

impl ByteIsa for Neon {
    type Floats = Neon;
    type Bytes = [uint8x16_t; PARTS];
    type Sums = [int32x4_t; PARTS];

    #[inline(always)]
    fn floats(self) -> Neon {
        self
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes {
        let parts = from.as_chunks::<16>().0;
        // SAFETY: every 64-bit Arm processor has NEON; each part has sixteen bytes.
        unsafe {
            [
                vld1q_u8(parts[0].as_ptr()),
                vld1q_u8(parts[1].as_ptr()),
                vld1q_u8(parts[2].as_ptr()),
                vld1q_u8(parts[3].as_ptr()),
            ]
        }
    }

    #[inline(always)]
    fn field(self, bytes: Self::Bytes, right: i32, mask: u8) -> Self::Bytes {
        let mut fields = bytes;
        for i in 0..PARTS {
            // SAFETY: as above. A shift by a negative number is one to the right.
            fields[i] = unsafe { vandq_u8(vshlq_u8(bytes[i], vdupq_n_s8(-right as i8)), vdupq_n_u8(mask)) };
        }
        fields
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        let mut v = a;
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vorrq_u8(a[i], b[i]) };
        }
        v
    }

    #[inline(always)]
    fn splat_sum(self, value: i32) -> Self::Sums {
        // SAFETY: as above.
        [unsafe { vdupq_n_s32(value) }; PARTS]
    }

    /// The instruction knows signed bytes only: a wide code is taken as itself − 128, and what that leaves out,
    /// 128 times the sum of `x`, is added as twice the products with 64.
    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::Sums, codes: Self::Bytes, x: u32) -> Self::Sums {
        let mut sums = sums;
        // SAFETY: as above.
        unsafe {
            let x = vreinterpretq_s8_u32(vdupq_n_u32(x));
            let below = sdot(vdupq_n_s32(0), x, vdupq_n_s8(64));
            for i in 0..PARTS {
                sums[i] = if WIDE {
                    let codes = vreinterpretq_s8_u8(veorq_u8(codes[i], vdupq_n_u8(128)));
                    sdot(vaddq_s32(sums[i], vshlq_n_s32::<1>(below)), codes, x)
                } else {
                    sdot(sums[i], vreinterpretq_s8_u8(codes[i]), x)
                };
            }
        }
        sums
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::Sums) -> [float32x4_t; PARTS] {
        let mut v = self.splat(0.0);
        for i in 0..PARTS {
            // SAFETY: as above.
            v[i] = unsafe { vcvtq_f32_s32(sums[i]) };
        }
        v
    }
}
