//! F32: IEEE 754 single precision, little-endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | the value |

#[inline(always)]
pub fn decode_block(block: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*block);
}

#[inline(always)]
pub fn encode_block(values: &[f32; 1], block: &mut [u8; 4]) {
    *block = values[0].to_le_bytes();
}

#[cfg(test)]
mod tests {
    use crate::{DType, formats};

    #[test]
    fn round_trip_is_exact() {
        assert_eq!(formats::round_trip_error(DType::F32), 0.0);
    }
}
