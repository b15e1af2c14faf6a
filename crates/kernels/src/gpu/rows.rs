//! How a row of weights lies in a device's memory: in words of 32 bits, four of them in a vector.
//!
//! A quantized row is its scales and then its planes (see [`crate::layout`]), each from a whole vector on, so that one load
//! brings the nibbles of a unit. A row of floats is the floats, padded with zeros to whole units.
//!
//! | scales of | words |
//! |---|---|
//! | symmetric formats | `d` as f16, two units a word |
//! | affine ones | `d` and `m` as f16, a word for each unit |
//! | K-quants | the block's `d` and `d_min`, a word for each 8 units; then two bytes for each unit: scale and minimum, or those of its halves |

use exotherm_tensor::DType;
use exotherm_tensor::formats::common::unpack_scales_and_mins;

use crate::layout::{Layout, SPAN, Scales, UNIT, codes_of, half_scale, halves_of};

/// Words of a vector.
const VECTOR: usize = 4;

/// Where the parts of a row begin, in words, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RowLayout {
    pub dtype: DType,
    pub units: usize,
    /// The bytes of the K-quants' units; the heads lie at 0.
    unit_scales: usize,
    nibbles: usize,
    pairs: usize,
    bits: usize,
    bytes: usize,
    pub stride: usize,
}

impl RowLayout {
    pub fn new(dtype: DType, n_in: usize) -> RowLayout {
        let units = n_in.div_ceil(UNIT);
        let mut at = 0;
        let mut part = |words: usize| {
            let start = at;
            at += words.next_multiple_of(VECTOR);
            start
        };
        let Some(layout) = Layout::of(dtype) else {
            // Units of floats are whole vectors.
            let stride = units * UNIT * dtype.block_bytes() / 4;
            return RowLayout {
                dtype,
                units,
                unit_scales: 0,
                nibbles: 0,
                pairs: 0,
                bits: 0,
                bytes: 0,
                stride,
            };
        };
        let unit_scales = match layout.scales {
            Scales::Symmetric => part(units.div_ceil(2)),
            Scales::Affine => part(units),
            _ => {
                part(units.div_ceil(SPAN));
                part(units.div_ceil(2))
            }
        };
        let mut plane = |is_there: bool, words: usize| if is_there { part(words * units) } else { 0 };
        let nibbles = plane(layout.nibbles, 4);
        let pairs = plane(layout.pairs, 2);
        let bits = plane(layout.bits, 1);
        let bytes = plane(layout.bytes, 8);
        RowLayout { dtype, units, unit_scales, nibbles, pairs, bits, bytes, stride: at }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        4 * self.stride
    }

    /// Lays a file's row out in `to`, which is zero before.
    pub fn pack(&self, row: &[u8], to: &mut [u32]) {
        let Some(layout) = Layout::of(self.dtype) else { return self.pack_floats(row, to) };
        for (b, block) in row.chunks_exact(self.dtype.block_bytes()).enumerate() {
            let (d, min) = halves_of(self.dtype, block);
            let (d, min) = (half(d), min.map_or(0, half));
            let (scales, mins) = match self.dtype {
                DType::Q4K | DType::Q5K => unpack_scales_and_mins(&block[4..16]),
                _ => ([0; SPAN], [0; SPAN]),
            };
            if layout.span() == SPAN {
                to[b] = d | min << 16;
            }
            for u in 0..layout.span() {
                let unit = b * layout.span() + u;
                let two = match layout.scales {
                    Scales::Symmetric => d,
                    Scales::Affine => {
                        to[unit] = d | min << 16;
                        0
                    }
                    Scales::Grouped => u32::from(scales[u]) | u32::from(mins[u]) << 8,
                    Scales::HalfGrouped | Scales::HalfSymmetric => {
                        let scale = |i| u32::from(half_scale(self.dtype, block, 2 * u + i));
                        scale(0) | scale(1) << 8
                    }
                };
                if layout.scales != Scales::Affine {
                    to[self.unit_scales + unit / 2] |= two << (16 * (unit % 2));
                }
                self.pack_codes(&layout, &codes_of(self.dtype, block, u), unit, to);
            }
        }
    }

    fn pack_codes(&self, layout: &Layout, codes: &[u8; UNIT], unit: usize, to: &mut [u32]) {
        let mut put = |at: usize, byte: &dyn Fn(usize, usize) -> u8, words: usize| {
            for (v, word) in to[at + words * unit..][..words].iter_mut().enumerate() {
                *word = u32::from_le_bytes(std::array::from_fn(|c| byte(v, c)));
            }
        };
        if layout.nibbles {
            put(self.nibbles, &|v, c| codes[4 * v + c] & 15 | codes[16 + 4 * v + c] << 4, 4);
        }
        if layout.pairs {
            let down = layout.pairs_up();
            let pairs = |v: usize, c: usize| {
                (0..4).fold(0, |byte, k| byte | ((codes[16 * v + 4 * k + c] >> down) & 3) << (2 * k))
            };
            put(self.pairs, &pairs, 2);
        }
        if layout.bits {
            let down = layout.bits_up();
            put(self.bits, &|_, c| (0..8).fold(0, |byte, k| byte | ((codes[4 * k + c] >> down) & 1) << k), 1);
        }
        if layout.bytes {
            put(self.bytes, &|v, c| codes[4 * v + c], 8);
        }
    }

    fn pack_floats(&self, row: &[u8], to: &mut [u32]) {
        for (word, bytes) in to.iter_mut().zip(row.chunks(4)) {
            let mut whole = [0; 4];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_le_bytes(whole);
        }
    }

    /// WGSL that takes unit `g` out of the row at vector `at` of `weights`: `unit_of(at, g)` gives a `Unit`, and
    /// `quad(u, k)` its quad `k` as floats. All names begin with `prefix`.
    pub fn decoder(&self, weights: &str, prefix: &str) -> String {
        let floats = match self.dtype {
            DType::F32 => Some("bitcast<vec4<f32>>({w}[at + 8u * g + {k}u])"),
            DType::F16 => Some("@halves({w}[at + 4u * g + {k}u / 2u], {k}u % 2u)"),
            DType::BF16 => Some("@bhalves({w}[at + 4u * g + {k}u / 2u], {k}u % 2u)"),
            _ => None,
        };
        match floats {
            Some(load) => float_decoder(weights, load, prefix),
            None => self.quantized_decoder(weights, prefix),
        }
    }

    fn quantized_decoder(&self, w: &str, prefix: &str) -> String {
        let layout = Layout::of(self.dtype).expect("a quantized type has one");
        let mut out = format!(
            "struct @Unit {{ q: array<u32, 8>, low: vec2<f32>, high: vec2<f32> }}\n\
             fn @word_of(at: u32, i: u32) -> u32 {{ return {w}[at + (i >> 2u)][i & 3u]; }}\n\
             fn @unit_of(at: u32, g: u32) -> @Unit {{\n    var u: @Unit;\n"
        );
        if layout.nibbles {
            out += &format!("    let n = {w}[at + {}u + g];\n", self.nibbles / VECTOR);
        }
        if layout.pairs {
            out += &format!("    let p = {w}[at + {}u + (g >> 1u)];\n", self.pairs / VECTOR);
            out += "    let p2 = select(p.xy, p.zw, (g & 1u) == 1u);\n";
        }
        if layout.bits {
            out += &format!("    let b = @word_of(at + {}u, g);\n", self.bits / VECTOR);
        }
        if layout.bytes {
            let at = self.bytes / VECTOR;
            out += &format!(
                "    let lo = {w}[at + {at}u + 2u * g];\n    let hi = {w}[at + {at}u + 2u * g + 1u];\n"
            );
        }
        for k in 0..8 {
            let mut terms = Vec::new();
            if layout.nibbles {
                terms.push(format!("((n[{}] >> {}u) & 0x0f0f0f0fu)", k % 4, k / 4 * 4));
            }
            if layout.pairs {
                terms.push(format!(
                    "(((p2[{}] >> {}u) & 0x03030303u) << {}u)",
                    k / 4,
                    k % 4 * 2,
                    layout.pairs_up()
                ));
            }
            if layout.bits {
                terms.push(format!("(((b >> {k}u) & 0x01010101u) << {}u)", layout.bits_up()));
            }
            if layout.bytes {
                terms.push(format!("{}[{}]", if k < 4 { "lo" } else { "hi" }, k % 4));
            }
            out += &format!("    u.q[{k}] = {};\n", terms.join(" | "));
        }
        out += &self.scales(&layout);
        out += "    return u;\n}\n";
        out += &format!(
            "fn @quad(u: @Unit, k: u32) -> vec4<f32> {{\n    \
             let s = select(u.low, u.high, k >= 4u);\n    \
             let code = vec4<f32>(vec4<i32>(unpack4xU8(u.q[k])) - vec4<i32>({}));\n    \
             return fma(vec4<f32>(s.x), code, vec4<f32>(s.y));\n}}\n",
            layout.middle
        );
        out.replace('@', prefix)
    }

    /// Statements that leave a unit's scale and what is added, for its lower and upper half.
    fn scales(&self, layout: &Layout) -> String {
        let two = format!("(@word_of(at + {}u, g >> 1u) >> (16u * (g & 1u)))", self.unit_scales / VECTOR);
        match layout.scales {
            Scales::Symmetric => format!(
                "    u.low = vec2<f32>(unpack2x16float({two} & 0xffffu).x, 0.0);\n    u.high = u.low;\n"
            ),
            Scales::Affine => "    u.low = unpack2x16float(@word_of(at, g));\n    u.high = u.low;\n".into(),
            Scales::Grouped => format!(
                "    let head = unpack2x16float(@word_of(at, g >> 3u));\n    let two = {two};\n    \
                 u.low = vec2<f32>(head.x * f32(two & 0xffu), -(head.y * f32((two >> 8u) & 0xffu)));\n    u.high = u.low;\n"
            ),
            Scales::HalfGrouped => format!(
                "    let head = unpack2x16float(@word_of(at, g >> 3u));\n    let two = {two};\n    \
                 u.low = vec2<f32>(head.x * f32(two & 0xfu), -(head.y * f32((two >> 4u) & 0xfu)));\n    \
                 u.high = vec2<f32>(head.x * f32((two >> 8u) & 0xfu), -(head.y * f32((two >> 12u) & 0xfu)));\n"
            ),
            Scales::HalfSymmetric => format!(
                "    let head = unpack2x16float(@word_of(at, g >> 3u));\n    let two = unpack4xI8({two});\n    \
                 u.low = vec2<f32>(head.x * f32(two.x), 0.0);\n    u.high = vec2<f32>(head.x * f32(two.y), 0.0);\n"
            ),
        }
    }
}

fn half(bytes: &[u8]) -> u32 {
    u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// `load` is the expression for quad `{k}` of the row at `at` of `{w}`.
fn float_decoder(w: &str, load: &str, prefix: &str) -> String {
    let mut out = "struct @Unit { v: array<vec4<f32>, 8> }\n\
        fn @halves(v: vec4<u32>, second: u32) -> vec4<f32> {\n    \
        let two = select(v.xy, v.zw, second == 1u);\n    \
        return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));\n}\n\
        fn @bhalves(v: vec4<u32>, second: u32) -> vec4<f32> {\n    \
        let two = select(v.xy, v.zw, second == 1u);\n    \
        return bitcast<vec4<f32>>(vec4<u32>(two.x << 16u, two.x & 0xffff0000u, two.y << 16u, two.y & 0xffff0000u));\n}\n\
        fn @unit_of(at: u32, g: u32) -> @Unit {\n    var u: @Unit;\n"
        .to_string();
    for k in 0..8 {
        out += &format!("    u.v[{k}] = {};\n", load.replace("{w}", w).replace("{k}", &k.to_string()));
    }
    out += "    return u;\n}\nfn @quad(u: @Unit, k: u32) -> vec4<f32> { return u.v[k]; }\n";
    out.replace('@', prefix)
}
