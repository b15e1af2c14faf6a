//! Panels: how quantized weights lie in memory for the kernels.
//!
//! A panel is sixteen rows of weights side by side, so that a lane of a vector belongs to one output. It is cut into
//! units of 32 columns, whose planes (see [`crate::layout`]) have vectors of 64 bytes with four neighbouring columns of each
//! of the sixteen rows. Scales stay as they are in the file, but that those of six bits take a byte. They lie before the codes:
//! `d` (and `m`) as 16 f16 in every unit, or, for the K-quants, in a head before every 8 units, followed in each unit
//! by the 16 rows' scales and minima in bytes.

use exotherm_tensor::DType;
use exotherm_tensor::formats::common::unpack_scales_and_mins;
use exotherm_tensor::formats::f16_to_f32;

use super::simd::WIDTH;
use crate::layout::{Layout, Scales, UNIT, codes_of, half_scale, halves_of};

impl Layout {
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
    if !head.is_empty() {
        put_halves(halves_of(dtype, block), row, head);
    }
    let (scales, mins) = match dtype {
        DType::Q4K | DType::Q5K => unpack_scales_and_mins(&block[4..16]),
        _ => ([0; 8], [0; 8]),
    };
    for (u, unit) in units.chunks_exact_mut(layout.unit_bytes()).enumerate() {
        let (to, planes) = unit.split_at_mut(layout.scale_bytes());
        match layout.scales {
            Scales::Symmetric | Scales::Affine => put_halves(halves_of(dtype, block), row, to),
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

fn put_halves((d, min): (&[u8], Option<&[u8]>), row: usize, to: &mut [u8]) {
    put_half(&mut to[..2 * WIDTH], row, d);
    if let Some(min) = min {
        put_half(&mut to[2 * WIDTH..], row, min);
    }
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
        let down = layout.pairs_up();
        put(2, &|v, c| (0..4).fold(0, |byte, k| byte | ((codes[16 * v + 4 * k + c] >> down) & 3) << (2 * k)));
    }
    if layout.bits {
        let down = layout.bits_up();
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
        let (plane, up) = (take(2), layout.pairs_up());
        or(&|k, c| ((plane(k / 4, c) >> (k % 4 * 2)) & 3) << up);
    }
    if layout.bits {
        let (plane, up) = (take(1), layout.bits_up());
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
