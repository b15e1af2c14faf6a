//! The element types of weights, numbered and laid out as GGUF does.

use std::fmt;

/// How the elements of a tensor are stored. A quantized type stores blocks of elements along a row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

struct Layout {
    dtype: DType,
    name: &'static str,
    ggml_id: u32,
    block_len: usize,
    block_bytes: usize,
}

const fn layout(
    dtype: DType,
    name: &'static str,
    ggml_id: u32,
    block_len: usize,
    block_bytes: usize,
) -> Layout {
    Layout { dtype, name, ggml_id, block_len, block_bytes }
}

/// One line a type, in the order of the enum's variants.
const LAYOUTS: [Layout; 13] = [
    layout(DType::F32, "f32", 0, 1, 4),
    layout(DType::F16, "f16", 1, 1, 2),
    layout(DType::BF16, "bf16", 30, 1, 2),
    layout(DType::Q8_0, "q8_0", 8, 32, 34),
    layout(DType::Q4_0, "q4_0", 2, 32, 18),
    layout(DType::Q4_1, "q4_1", 3, 32, 20),
    layout(DType::Q5_0, "q5_0", 6, 32, 22),
    layout(DType::Q5_1, "q5_1", 7, 32, 24),
    layout(DType::Q2K, "q2_k", 10, 256, 84),
    layout(DType::Q3K, "q3_k", 11, 256, 110),
    layout(DType::Q4K, "q4_k", 12, 256, 144),
    layout(DType::Q5K, "q5_k", 13, 256, 176),
    layout(DType::Q6K, "q6_k", 14, 256, 210),
];

impl DType {
    /// Every supported type.
    pub fn all() -> impl Iterator<Item = DType> {
        LAYOUTS.iter().map(|l| l.dtype)
    }

    fn layout(self) -> &'static Layout {
        &LAYOUTS[self as usize]
    }

    /// The name used on the command line and in messages, such as `q4_k`.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Parses a name as `name` prints it, in any case.
    pub fn from_name(name: &str) -> Option<DType> {
        LAYOUTS.iter().find(|l| l.name.eq_ignore_ascii_case(name)).map(|l| l.dtype)
    }

    /// The number GGUF files give this type.
    pub fn ggml_id(self) -> u32 {
        self.layout().ggml_id
    }

    pub fn from_ggml_id(id: u32) -> Option<DType> {
        LAYOUTS.iter().find(|l| l.ggml_id == id).map(|l| l.dtype)
    }

    /// Elements per block; 1 for the float types.
    pub fn block_len(self) -> usize {
        self.layout().block_len
    }

    pub fn block_bytes(self) -> usize {
        self.layout().block_bytes
    }

    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `n` elements; `None` if `n` is no whole number of blocks or the size overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_stand_in_enum_order() {
        for (i, l) in LAYOUTS.iter().enumerate() {
            assert_eq!(l.dtype as usize, i);
            assert_eq!(DType::from_ggml_id(l.ggml_id), Some(l.dtype));
            assert_eq!(DType::from_name(&l.name.to_uppercase()), Some(l.dtype));
        }
    }

    #[test]
    fn row_bytes_refuses_partial_blocks_and_overflow() {
        assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DType::Q4_0.row_bytes(33), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }
}
