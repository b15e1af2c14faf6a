//! Panels: how quantized weights lie in memory for the kernels.
//!
//! A panel is sixteen rows of weights side by side, so that a lane of a vector belongs to one output. It is cut into
//! units of 32 columns. A unit's codes, never negative, are split into planes whose vectors of 64 bytes hold four
//! neighbouring columns of each of the sixteen rows: "quad" `k` of a unit is columns `4k..4k + 4`.
//!
//! | plane | vectors | what a byte holds |
//! |---|---|---|
//! | nibbles | 4 | of vector `j`: quad `j` low, quad `4 + j` high |
//! | pairs | 2 | of vector `v`: quads `4v..4v + 4` from the lowest bits up |
//! | bits | 1 | quad `k` in bit `k` |
//! | bytes | 8 | of vector `k`: quad `k` |
//!
//! A weight is `s · code + o` with an `s` and an `o` for each row and unit, or half unit where the format's groups have
//! 16 weights. Scales stay as they are in the file, but that those of six bits take a byte. They lie before the codes:
//! `d` (and `m`) as 16 f16 in every unit, or, for the K-quants, in a head before every 8 units, followed in each unit
//! by the 16 rows' scales and minima in bytes.

use exotherm_tensor::DType;
use exotherm_tensor::formats::common::unpack_scales_and_mins;
use exotherm_tensor::formats::{f16_to_f32, q3_k};

use super::simd::WIDTH;

/// Columns of a unit.
pub(super) const UNIT: usize = 32;

/// Units of a K-quant's block.
const SPAN: usize = 8;

/// What makes a weight of a code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
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
pub(super) struct Layout {
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
    pub const fn of(dtype: DType) -> Option<Layout> {
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
    pub const fn halves(&self) -> bool {
        matches!(self.scales, Scales::HalfGrouped | Scales::HalfSymmetric)
    }

    /// Units behind one head.
    pub const fn span(&self) -> usize {
        if matches!(self.scales, Scales::Symmetric | Scales::Affine) { 1 } else { SPAN }
    }

    pub const fn head_bytes(&self) -> usize {
        match self.scales {
            Scales::Symmetric | Scales::Affine => 0,
            Scales::Grouped | Scales::HalfGrouped => 4 * WIDTH,
            Scales::HalfSymmetric => 2 * WIDTH,
        }
    }

    /// Bytes of a unit's scales.
    pub const fn scale_bytes(&self) -> usize {
        if matches!(self.scales, Scales::Affine) { 4 * WIDTH } else { 2 * WIDTH }
    }

    const fn vectors(&self) -> usize {
        4 * self.nibbles as usize + 2 * self.pairs as usize + self.bits as usize + 8 * self.bytes as usize
    }

    pub const fn unit_bytes(&self) -> usize {
        self.scale_bytes() + self.vectors() * 4 * WIDTH
    }

    /// Bytes of a head and the units behind it.
    pub const fn span_bytes(&self) -> usize {
        self.head_bytes() + self.span() * self.unit_bytes()
    }

    /// Bytes of a panel of rows of `n_in` weights, which fill whole blocks.
    pub fn panel_bytes(&self, n_in: usize) -> Option<usize> {
        (n_in / (UNIT * self.span())).checked_mul(self.span_bytes())
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

/// Lays up to sixteen rows of a file's blocks out as a panel, which is zero before.
pub(super) fn pack_panel(dtype: DType, rows: &[&[u8]], panel: &mut [u8]) {
    let layout = Layout::of(dtype).expect("float types have no such panels");
    for (row, bytes) in rows.iter().enumerate() {
        let blocks = bytes.chunks_exact(dtype.block_bytes());
        for (block, span) in blocks.zip(panel.chunks_exact_mut(layout.span_bytes())) {
            put_block(dtype, &layout, block, row, span);
        }
    }
}

/// One row's block into the span of its panel.
#[inline(always)]
fn put_block(dtype: DType, layout: &Layout, block: &[u8], row: usize, span: &mut [u8]) {
    let (head, units) = span.split_at_mut(layout.head_bytes());
    put_head(dtype, block, row, head);
    let (scales, mins) = match dtype {
        DType::Q4K | DType::Q5K => unpack_scales_and_mins(&block[4..16]),
        _ => ([0; 8], [0; 8]),
    };
    for (u, unit) in units.chunks_exact_mut(layout.unit_bytes()).enumerate() {
        let (to, planes) = unit.split_at_mut(layout.scale_bytes());
        match layout.scales {
            Scales::Symmetric => put_half(to, row, &block[..2]),
            Scales::Affine => {
                put_half(&mut to[..2 * WIDTH], row, &block[..2]);
                put_half(&mut to[2 * WIDTH..], row, &block[2..4]);
            }
            Scales::Grouped => (to[row], to[WIDTH + row]) = (scales[u], mins[u]),
            Scales::HalfGrouped | Scales::HalfSymmetric => {
                for half in 0..2 {
                    to[half * WIDTH + row] = half_scale(dtype, block, 2 * u + half);
                }
            }
        }
        put_codes(layout, &codes_of(dtype, block, u), row, planes);
    }
}

fn put_half(to: &mut [u8], row: usize, half: &[u8]) {
    to[2 * row..2 * row + 2].copy_from_slice(half);
}

fn put_head(dtype: DType, block: &[u8], row: usize, head: &mut [u8]) {
    match dtype {
        DType::Q2K => {
            put_half(&mut head[..2 * WIDTH], row, &block[80..82]);
            put_half(&mut head[2 * WIDTH..], row, &block[82..84]);
        }
        DType::Q4K | DType::Q5K => {
            put_half(&mut head[..2 * WIDTH], row, &block[..2]);
            put_half(&mut head[2 * WIDTH..], row, &block[2..4]);
        }
        DType::Q3K => put_half(head, row, &block[108..110]),
        DType::Q6K => put_half(head, row, &block[208..210]),
        _ => {}
    }
}

/// The byte that a group of 16 is scaled with.
fn half_scale(dtype: DType, block: &[u8], group: usize) -> u8 {
    match dtype {
        DType::Q2K => block[group],
        DType::Q6K => block[192 + group],
        _ => q3_k::unpack_scales(block.first_chunk().expect("a whole block"))[group] as u8,
    }
}

/// The codes of a unit as they are in a file's block, but those of Q8_0 moved up to where none is negative.
#[inline(always)]
fn codes_of(dtype: DType, block: &[u8], unit: usize) -> [u8; UNIT] {
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

/// A row's codes of a unit into the planes of its panel.
#[inline(always)]
fn put_codes(layout: &Layout, codes: &[u8; UNIT], row: usize, mut planes: &mut [u8]) {
    let mut put = |vectors: usize, byte: &dyn Fn(usize, usize) -> u8| {
        let (plane, rest) = std::mem::take(&mut planes).split_at_mut(vectors * 4 * WIDTH);
        for (v, vector) in plane.chunks_exact_mut(4 * WIDTH).enumerate() {
            for (c, to) in vector[4 * row..4 * row + 4].iter_mut().enumerate() {
                *to = byte(v, c);
            }
        }
        planes = rest;
    };
    if layout.nibbles {
        put(4, &|v, c| codes[4 * v + c] & 15 | codes[16 + 4 * v + c] << 4);
    }
    if layout.pairs {
        // Above the nibbles where there are some.
        let down = if layout.nibbles { 4 } else { 0 };
        put(2, &|v, c| (0..4).fold(0, |byte, k| byte | ((codes[16 * v + 4 * k + c] >> down) & 3) << (2 * k)));
    }
    if layout.bits {
        let down = if layout.nibbles { 4 } else { 2 };
        put(1, &|_, c| (0..8).fold(0, |byte, k| byte | ((codes[4 * k + c] >> down) & 1) << k));
    }
    if layout.bytes {
        put(8, &|v, c| codes[4 * v + c]);
    }
}

/// A row's codes of a unit out of the planes of its panel.
fn take_codes(layout: &Layout, mut planes: &[u8], row: usize) -> [u8; UNIT] {
    let mut codes = [0; UNIT];
    let mut take = |vectors: usize| {
        let (plane, rest) = planes.split_at(vectors * 4 * WIDTH);
        planes = rest;
        move |vector: usize, c: usize| plane[vector * 4 * WIDTH + 4 * row + c]
    };
    let mut or = |get: &dyn Fn(usize, usize) -> u8| {
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= get(i / 4, i % 4);
        }
    };
    if layout.nibbles {
        let plane = take(4);
        or(&|k, c| (plane(k % 4, c) >> (k / 4 * 4)) & 15);
    }
    if layout.pairs {
        let (plane, up) = (take(2), if layout.nibbles { 4 } else { 0 });
        or(&|k, c| ((plane(k / 4, c) >> (k % 4 * 2)) & 3) << up);
    }
    if layout.bits {
        let (plane, up) = (take(1), if layout.nibbles { 4 } else { 2 });
        or(&|k, c| ((plane(0, c) >> k) & 1) << up);
    }
    if layout.bytes {
        let plane = take(8);
        or(&|k, c| plane(k, c));
    }
    codes
}

/// Decodes a row of a panel, bit for bit as the file's blocks decode.
pub(super) fn decode_panel_row(dtype: DType, panel: &[u8], row: usize, out: &mut [f32]) {
    let layout = Layout::of(dtype).expect("float types have no such panels");
    let half = |bytes: &[u8], at: usize| {
        f16_to_f32(u16::from_le_bytes([bytes[2 * at + 2 * row], bytes[2 * at + 2 * row + 1]]))
    };
    let spans = out.chunks_exact_mut(UNIT * layout.span()).zip(panel.chunks_exact(layout.span_bytes()));
    for (out, span) in spans {
        let (head, units) = span.split_at(layout.head_bytes());
        for (out, unit) in out.chunks_exact_mut(UNIT).zip(units.chunks_exact(layout.unit_bytes())) {
            let (scales, planes) = unit.split_at(layout.scale_bytes());
            let codes = take_codes(&layout, planes, row);
            for (i, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                let byte = |at: usize| scales[at * WIDTH + row];
                let group = i / 16;
                let centred = (i32::from(code) - layout.middle as i32) as f32;
                // The products of a scale with its factors and a code are exact, so only the sums need the order
                // that the formats define.
                *out = match layout.scales {
                    Scales::Symmetric => half(scales, 0) * centred,
                    Scales::Affine => half(scales, 0) * centred + half(scales, WIDTH),
                    Scales::Grouped => {
                        let min = half(head, WIDTH) * f32::from(byte(1));
                        half(head, 0) * f32::from(byte(0)) * centred - min
                    }
                    Scales::HalfGrouped => {
                        let min = half(head, WIDTH) * f32::from(byte(group) >> 4);
                        half(head, 0) * f32::from(byte(group) & 15) * centred - min
                    }
                    Scales::HalfSymmetric => half(head, 0) * f32::from(byte(group) as i8) * centred,
                };
            }
        }
    }
}
