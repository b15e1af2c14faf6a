//! Q6_K: 256 six-bit codes in 16 groups of 16, each group with a signed byte as its scale.
//! `value = d * scale * (q - 32)`
//!
//! | bytes | field |
//! |---|---|
//! | 0..128 | the four lower bits: byte `64h + i` (`i < 64`) holds `q[128h + i]` low and `q[128h + 64 + i]` high |
//! | 128..192 | the two upper bits in planes: byte `32h + i` holds `q[128h + i]`, `q[128h + 32 + i]`, … from the lowest bits up |
//! | 192..208 | the scales, i8 |
//! | 208..210 | `d`, f16 |

use super::common::{
    clamp, each, encode_symmetric, f16_at, multiply, pack_two_bit_planes, put_bits, round_half_even,
    signed_peak, sums,
};

#[inline]
pub fn decode_block(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    let halves = out.as_chunks_mut::<128>().0;
    let (lowers, uppers) = (block[..128].as_chunks::<64>().0, block[128..192].as_chunks::<32>().0);
    for (h, ((half, lower), upper)) in halves.iter_mut().zip(lowers).zip(uppers).enumerate() {
        for (p, plane) in half.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let lower = &lower.as_chunks::<32>().0[p % 2];
            let codes: [u8; 32] =
                std::array::from_fn(|i| (lower[i] >> (p / 2 * 4)) & 15 | ((upper[i] >> (2 * p)) & 3) << 4);
            for (g, group) in plane.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let scale = d * (block[192 + 8 * h + 2 * p + g] as i8) as f32;
                for (value, &q) in group.iter_mut().zip(&codes[16 * g..]) {
                    *value = scale * (q as i32 - 32) as f32;
                }
            }
        }
    }
}

pub fn encode_block(values: &[f32; 256], block: &mut [u8; 210]) {
    let fitted = encode_symmetric(values, 128.0, 32.0, fit_scale);
    let halves = fitted.codes.as_chunks::<128>().0;
    for (packed, codes) in block[..128].as_chunks_mut::<64>().0.iter_mut().zip(halves) {
        let (low, high) = codes.split_at(64);
        for ((byte, low), high) in packed.iter_mut().zip(low).zip(high) {
            *byte = low & 15 | high << 4;
        }
    }
    block[128..192].copy_from_slice(&pack_two_bit_planes(&fitted.codes.map(|q| q >> 4)));
    block[192..208].copy_from_slice(&fitted.scales.map(|s| s as u8));
    put_bits(block, 208, fitted.d);
}

/// The scale of a group: of nineteen grids around the one that puts the peak at -32, each followed by a least-squares
/// fit with the squares of the values as weights, the one with the smallest sum of squared errors.
fn fit_scale(x: &[f32; 16]) -> f32 {
    let peak = signed_peak(x);
    let weights = multiply(x, x);
    let (mut best_scale, mut least) = (0.0, f32::INFINITY);
    // Less of a gain is noise. Where all grids fit, as for equal values, the plain one has to win, because it leaves
    // `encode_symmetric` the most choice.
    let noise = 1e-12 * peak * peak;
    for step in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let inverse = -(32.0 + 0.1 * step as f32) / peak;
        let codes = each(x, |v| clamp(round_half_even(inverse * v), -32.0, 31.0));
        let weighted_codes = multiply(&weights, &codes);
        let [xl] = sums(&weighted_codes, x, |wl, v| [wl * v]);
        let [ll] = sums(&weighted_codes, &codes, |wl, l| [wl * l]);
        let scale = xl / ll;
        let [error] = sums(x, &codes, |v, code| {
            let off = scale * code - v;
            [off * off]
        });
        if error + noise < least {
            (best_scale, least) = (scale, error);
        }
    }
    best_scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn lower_and_upper_bits_meet() {
        let mut block = [0; 210];
        put_bits(&mut block, 208, formats::f32_to_f16(1.0));
        block[192..208].fill(-1i8 as u8);
        (block[64 + 33], block[128 + 32 + 1]) = (0x5A, 0b11_00_01_00);
        let mut out = [0.0; 256];
        decode_block(&block, &mut out);
        assert_eq!([out[128 + 33], out[128 + 97]], [-(10.0 + 16.0 - 32.0), -(5.0 + 48.0 - 32.0)]);
    }

    #[test]
    fn round_trip_errs_by_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q6K) < 1.02 / 32.0);
    }
}
