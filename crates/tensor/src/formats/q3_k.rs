//! Q3_K: 256 three-bit codes in 16 groups of 16, each group with a six-bit scale.
//! `value = d * (scale - 32) * (q - 4)`
//!
//! | bytes | field |
//! |---|---|
//! | 0..32 | the third bits: bit `b` of byte `i` belongs to `q[32b + i]` |
//! | 32..96 | the two lower bits in planes: byte `32h + i` holds `q[128h + i]`, `q[128h + 32 + i]`, … from the lowest bits up |
//! | 96..104 | the four lower bits of the scales: group `g` in the low nibbles, group `8 + g` in the high ones |
//! | 104..108 | the two upper bits of the scales: byte `i` holds groups `i`, `4 + i`, `8 + i`, `12 + i` from the lowest bits up |
//! | 108..110 | `d`, f16 |

use super::common::{
    clamp, each, encode_symmetric, f16_at, multiply, pack_two_bit_planes, put_bits, round_half_even,
    signed_peak, sums,
};

#[inline]
pub fn decode_block(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let scales = unpack_scales(block);
    let thirds = block[..32].as_chunks::<16>().0;
    let planes = block[32..96].as_chunks::<32>().0;
    for (g, group) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * scales[g] as f32;
        let (shift, bit) = (g / 2 % 4 * 2, g / 2);
        let lower = &planes[g / 8].as_chunks::<16>().0[g % 2];
        for ((value, &low), &third) in group.iter_mut().zip(lower).zip(&thirds[g % 2]) {
            let q = (low >> shift) & 3 | ((third >> bit) & 1) << 2;
            *value = scale * (q as i32 - 4) as f32;
        }
    }
}

/// The scales of the groups, their offset of 32 taken off.
#[inline]
pub fn unpack_scales(block: &[u8; 110]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let lower = (block[96 + g % 8] >> (g / 8 * 4)) & 15;
        let upper = (block[104 + g % 4] >> (g / 4 * 2)) & 3;
        (lower | upper << 4) as i8 - 32
    })
}

pub fn encode_block(values: &[f32; 256], block: &mut [u8; 110]) {
    let fitted = encode_symmetric(values, 32.0, 4.0, fit_scale);
    block.fill(0);
    for (i, &q) in fitted.codes.iter().enumerate() {
        block[i % 32] |= (q >> 2) << (i / 32);
    }
    block[32..96].copy_from_slice(&pack_two_bit_planes(&fitted.codes.map(|q| q & 3)));
    for (g, &scale) in fitted.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        block[96 + g % 8] |= (scale & 15) << (g / 8 * 4);
        block[104 + g % 4] |= (scale >> 4) << (g / 4 * 2);
    }
    put_bits(block, 108, fitted.d);
}

/// The scale of a group: from the codes that put the peak at -4, each code in turn is moved to where it fits best
/// while the others stay, as long as the fit gets better (errors weighted with the square of the value).
fn fit_scale(x: &[f32; 16]) -> f32 {
    let inverse = -4.0 / signed_peak(x);
    let mut codes = each(x, |v| clamp(round_half_even(inverse * v), -4.0, 3.0));
    let weights = multiply(x, x);
    let weighted_codes = multiply(&weights, &codes);
    let [mut xl] = sums(&weighted_codes, x, |wl, v| [wl * v]);
    let [mut ll] = sums(&weighted_codes, &codes, |wl, l| [wl * l]);
    for _ in 0..5 {
        let mut changed = false;
        for ((&v, &w), code) in x.iter().zip(&weights).zip(&mut codes) {
            let xl_others = xl - w * v * *code;
            let ll_others = ll - w * *code * *code;
            let new = clamp(round_half_even(v * ll_others / xl_others), -4.0, 3.0);
            if new == *code || xl_others <= 0.0 {
                continue;
            }
            let (xl_new, ll_new) = (xl_others + w * v * new, ll_others + w * new * new);
            if ll_new > 0.0 && xl_new * xl_new * ll > xl * xl * ll_new {
                (*code, xl, ll) = (new, xl_new, ll_new);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    xl / ll
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn packed_scales_unpack_in_order() {
        let mut block = [0; 110];
        block[96 + 3] = 0xA5;
        block[104 + 3] = 0b11_10_01_00;
        let scales = unpack_scales(&block);
        assert_eq!([scales[3], scales[7], scales[11], scales[15]], [5 - 32, 16 - 32, 42 - 32, 48 - 32]);
    }

    #[test]
    fn round_trip_errs_by_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q3K) < 1.05 / 4.0);
    }
}
