//! What the quantized formats have in common: a row is units of 32 codes, and a weight is `s · code + o`.
//!
//! A unit's codes, never negative, are split into planes; "quad" `k` of a unit is columns `4k..4k + 4`, and byte `c` of a
//! plane's vector belongs to column `c` of its quads:
//!
//! | plane | vectors | what a byte holds |
//! |---|---|---|
//! | nibbles | 4 | of vector `j`: quad `j` low, quad `4 + j` high |
//! | pairs | 2 | of vector `v`: quads `4v..4v + 4` from the lowest bits up |
//! | bits | 1 | quad `k` in bit `k` |
//! | bytes | 8 | of vector `k`: quad `k` |
//!
//! Backends lay the planes out in memory each in its own way.

use exotherm_tensor::DType;
use exotherm_tensor::formats::q3_k;

/// Columns of a unit.
pub(crate) const UNIT: usize = 32;

/// Units of a K-quant's block.
pub(crate) const SPAN: usize = 8;

/// What makes a weight of a code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// d · (code − middle)
    Symmetric,
    /// d · code + m
    Affine,
    /// d · scale · code − d_min · min, for 32 weights
    Grouped,
    /// The same for 16 weights, scale and min in one byte.
    HalfGrouped,
    /// d · scale · (code − middle), for 16 weights
    HalfSymmetric,
}

/// How a format's units are laid out.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub scales: Scales,
    pub nibbles: bool,
    pub pairs: bool,
    pub bits: bool,
    pub bytes: bool,
    /// The power of two that is taken off a code where the format is symmetric.
    pub middle: u32,
}

impl Layout {
    /// `None` for the float types.
    pub(crate) const fn of(dtype: DType) -> Option<Layout> {
        let (scales, planes, middle) = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => return None,
            DType::Q8_0 => (Scales::Symmetric, "bytes", 128),
            DType::Q4_0 => (Scales::Symmetric, "nibbles", 8),
            DType::Q4_1 => (Scales::Affine, "nibbles", 0),
            DType::Q5_0 => (Scales::Symmetric, "nibbles bits", 16),
            DType::Q5_1 => (Scales::Affine, "nibbles bits", 0),
            DType::Q2K => (Scales::HalfGrouped, "pairs", 0),
            DType::Q3K => (Scales::HalfSymmetric, "pairs bits", 4),
            DType::Q4K => (Scales::Grouped, "nibbles", 0),
            DType::Q5K => (Scales::Grouped, "nibbles bits", 0),
            DType::Q6K => (Scales::HalfSymmetric, "nibbles pairs", 32),
        };
        Some(Layout {
            scales,
            nibbles: has(planes, "nibbles"),
            pairs: has(planes, "pairs"),
            bits: has(planes, "bits"),
            bytes: has(planes, "bytes"),
            middle,
        })
    }

    /// Whether the groups have 16 weights.
    pub(crate) const fn halves(&self) -> bool {
        matches!(self.scales, Scales::HalfGrouped | Scales::HalfSymmetric)
    }

    /// Where in a code the bits of the pairs and the single bits stand: above those of the planes before them.
    pub(crate) const fn pairs_up(&self) -> usize {
        if self.nibbles { 4 } else { 0 }
    }

    pub(crate) const fn bits_up(&self) -> usize {
        if self.nibbles { 4 } else { 2 }
    }

    /// Units behind one head.
    pub(crate) const fn span(&self) -> usize {
        if matches!(self.scales, Scales::Symmetric | Scales::Affine) { 1 } else { SPAN }
    }
}

const fn has(planes: &str, plane: &str) -> bool {
    let (planes, plane) = (planes.as_bytes(), plane.as_bytes());
    let mut at = 0;
    while at + plane.len() <= planes.len() {
        let mut same = 0;
        while same < plane.len() && planes[at + same] == plane[same] {
            same += 1;
        }
        if same == plane.len() {
            return true;
        }
        at += 1;
    }
    false
}

/// The f16 that a block's weights are scaled with, and the one for what is added to them where there is such, as bytes.
#[inline(always)]
pub(crate) fn halves_of(dtype: DType, block: &[u8]) -> (&[u8], Option<&[u8]>) {
    match dtype {
        DType::Q2K => (&block[80..82], Some(&block[82..84])),
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => (&block[..2], Some(&block[2..4])),
        DType::Q3K => (&block[108..110], None),
        DType::Q6K => (&block[208..210], None),
        _ => (&block[..2], None),
    }
}

/// The byte that a group of 16 is scaled with.
pub(crate) fn half_scale(dtype: DType, block: &[u8], group: usize) -> u8 {
    match dtype {
        DType::Q2K => block[group],
        DType::Q6K => block[192 + group],
        _ => q3_k::unpack_scales(block.first_chunk().expect("a whole block"))[group] as u8,
    }
}

/// The codes of a unit as they are in a file's block, but those of Q8_0 moved up to where none is negative.
#[inline(always)]
pub(crate) fn codes_of(dtype: DType, block: &[u8], unit: usize) -> [u8; UNIT] {
    let half = unit / 4;
    match dtype {
        DType::Q8_0 => {
            let codes: &[u8; UNIT] = block[2..].first_chunk().expect("a whole block");
            codes.map(|code| code ^ 0x80)
        }
        DType::Q4_0 => nibbles(&block[2..]),
        DType::Q4_1 => nibbles(&block[4..]),
        DType::Q5_0 => with_fifth(nibbles(&block[6..]), &block[2..6]),
        DType::Q5_1 => with_fifth(nibbles(&block[8..]), &block[4..8]),
        DType::Q2K => fields(&block[16 + 32 * half..], 2 * (unit % 4), 3, 0),
        DType::Q3K => {
            let low = fields(&block[32 + 32 * half..], 2 * (unit % 4), 3, 0);
            joined(low, fields(block, unit, 1, 2))
        }
        DType::Q4K => fields(&block[16 + 32 * (unit / 2)..], 4 * (unit % 2), 15, 0),
        DType::Q5K => {
            let low = fields(&block[48 + 32 * (unit / 2)..], 4 * (unit % 2), 15, 0);
            joined(low, fields(&block[16..], unit, 1, 4))
        }
        DType::Q6K => {
            let low = fields(&block[64 * half + 32 * (unit % 2)..], 4 * (unit % 4 / 2), 15, 0);
            joined(low, fields(&block[128 + 32 * half..], 2 * (unit % 4), 3, 4))
        }
        DType::F32 | DType::F16 | DType::BF16 => [0; UNIT],
    }
}

#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; UNIT] {
    let bytes: &[u8; UNIT / 2] = bytes.first_chunk().expect("a whole block");
    let mut codes = [0; UNIT];
    for (i, byte) in bytes.iter().enumerate() {
        (codes[i], codes[UNIT / 2 + i]) = (byte & 15, byte >> 4);
    }
    codes
}

/// Bits `mask` of 32 bytes after a shift to the right, moved to the left by `up`.
#[inline(always)]
fn fields(bytes: &[u8], shift: usize, mask: u8, up: usize) -> [u8; UNIT] {
    let bytes: &[u8; UNIT] = bytes.first_chunk().expect("a block's fields lie inside it");
    let mut codes = [0; UNIT];
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code = ((byte >> shift) & mask) << up;
    }
    codes
}

#[inline(always)]
fn joined(mut a: [u8; UNIT], b: [u8; UNIT]) -> [u8; UNIT] {
    for (a, b) in a.iter_mut().zip(b) {
        *a |= b;
    }
    a
}

#[inline(always)]
fn with_fifth(mut codes: [u8; UNIT], fifth: &[u8]) -> [u8; UNIT] {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((fifth[i / 8] >> (i % 8)) & 1) << 4;
    }
    codes
}
