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

use super::in_step::Form;
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

    pub fn is_quantized(&self) -> bool {
        self.dtype.is_quantized()
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

    /// As `decoder`, but step by step as activations of a form ask for: `raw_of(at, g)` loads a step's `Raw`, `unit_from(raw)`
    /// makes a `Unit` of it, and `added(u, a, sum)` is the sum and its products with activations.
    pub fn step_decoder(&self, form: Form, weights: &str, prefix: &str) -> String {
        let decoder = match self.dtype {
            DType::F32 => float_steps(2, "bitcast<vec4<f32>>(r.v[{k}])"),
            DType::F16 => float_steps(1, "@halves(r.v[0], {k}u)"),
            DType::BF16 => float_steps(1, "@bhalves(r.v[0], {k}u)"),
            _ => self.quantized_decoder(weights, "@"),
        };
        let added = match form {
            Form::Codes => self.code_products(),
            Form::Quads(quads) => quad_products(quads),
        };
        (decoder + &added).replace("{w}", weights).replace('@', prefix)
    }

    /// Products of codes are exact; those that share a scale are added up before they are scaled.
    fn code_products(&self) -> String {
        let layout = Layout::of(self.dtype).expect("a quantized type has one");
        // Codes of a whole byte lie moved up, to where none is negative.
        let (back, middle) = if layout.bytes { (" ^ 0x80808080u", 0) } else { ("", layout.middle) };
        let half = |first: usize, of: &str| {
            let product = |k: usize| format!("dot4I8Packed(u.q[{}]{back}, a.{of}[{k}])", first + k);
            (0..4).map(product).collect::<Vec<_>>().join(" + ")
        };
        let (low, high) = (half(0, "low"), half(4, "high"));
        let mut out =
            "fn @added(u: @Unit, a: Activations, before: f32) -> f32 {\n    var sum = before;\n".to_string();
        out += &match layout.halves() {
            true => format!(
                "    let low = {low} - {middle} * a.sums.x;\n    let high = {high} - {middle} * a.sums.y;\n    \
                 sum = fma(f32(low), u.low.x * a.scale, sum);\n    sum = fma(f32(high), u.high.x * a.scale, sum);\n"
            ),
            false => format!(
                "    let all = {low} + {high} - {middle} * (a.sums.x + a.sums.y);\n    \
                 sum = fma(f32(all), u.low.x * a.scale, sum);\n"
            ),
        };
        out += match layout.scales {
            Scales::Symmetric | Scales::HalfSymmetric => "",
            Scales::HalfGrouped => {
                "    sum = fma(f32(a.sums.x), u.low.y * a.scale, sum);\n    \
                 sum = fma(f32(a.sums.y), u.high.y * a.scale, sum);\n"
            }
            Scales::Affine | Scales::Grouped => {
                "    sum = fma(f32(a.sums.x + a.sums.y), u.low.y * a.scale, sum);\n"
            }
        };
        out + "    return sum;\n}\n"
    }

    /// What is loaded of unit `g` of the row at `at`: names, types and loads.
    fn loads(&self, layout: &Layout, w: &str) -> Vec<(&'static str, &'static str, String)> {
        let mut raw = Vec::new();
        if layout.nibbles {
            raw.push(("n", "vec4<u32>", format!("{w}[at + {}u + g]", self.nibbles / VECTOR)));
        }
        if layout.pairs {
            raw.push(("p", "vec4<u32>", format!("{w}[at + {}u + (g >> 1u)]", self.pairs / VECTOR)));
        }
        if layout.bits {
            raw.push(("b", "u32", format!("@word_of(at + {}u, g)", self.bits / VECTOR)));
        }
        if layout.bytes {
            let at = self.bytes / VECTOR;
            raw.push(("lo", "vec4<u32>", format!("{w}[at + {at}u + 2u * g]")));
            raw.push(("hi", "vec4<u32>", format!("{w}[at + {at}u + 2u * g + 1u]")));
        }
        match layout.scales {
            Scales::Symmetric => {}
            Scales::Affine => raw.push(("head", "u32", "@word_of(at, g)".into())),
            _ => raw.push(("head", "u32", "@word_of(at, g >> 3u)".into())),
        }
        if layout.scales != Scales::Affine {
            raw.push(("two", "u32", format!("@word_of(at + {}u, g >> 1u)", self.unit_scales / VECTOR)));
        }
        raw
    }

    /// A unit is loaded as words and made of them apart, so that other units can be on their way in between.
    fn quantized_decoder(&self, w: &str, prefix: &str) -> String {
        let layout = Layout::of(self.dtype).expect("a quantized type has one");
        let raw = self.loads(&layout, w);
        let list = |part: &dyn Fn(&(&str, &str, String)) -> String| {
            raw.iter().map(part).collect::<Vec<_>>().join(", ")
        };
        let mut out = format!(
            "struct @Unit {{ q: array<u32, 8>, low: vec2<f32>, high: vec2<f32> }}\n\
             struct @Raw {{ {}, is_odd: bool }}\n\
             fn @word_of(at: u32, i: u32) -> u32 {{ return {w}[at + (i >> 2u)][i & 3u]; }}\n\
             fn @raw_of(at: u32, g: u32) -> @Raw {{ return @Raw({}, (g & 1u) == 1u); }}\n\
             fn @unit_of(at: u32, g: u32) -> @Unit {{ return @unit_from(@raw_of(at, g)); }}\n\
             fn @unit_from(r: @Raw) -> @Unit {{\n    var u: @Unit;\n",
            list(&|(name, of, _)| format!("{name}: {of}")),
            list(&|(_, _, load)| load.clone())
        );
        if layout.pairs {
            out += "    let p2 = select(r.p.xy, r.p.zw, r.is_odd);\n";
        }
        for k in 0..8 {
            let mut terms = Vec::new();
            if layout.nibbles {
                terms.push(format!("((r.n[{}] >> {}u) & 0x0f0f0f0fu)", k % 4, k / 4 * 4));
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
                terms.push(format!("(((r.b >> {k}u) & 0x01010101u) << {}u)", layout.bits_up()));
            }
            if layout.bytes {
                terms.push(format!("r.{}[{}]", if k < 4 { "lo" } else { "hi" }, k % 4));
            }
            out += &format!("    u.q[{k}] = {};\n", terms.join(" | "));
        }
        out += scales_of(&layout);
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
}

/// Statements that leave a unit's scale and what is added, for its lower and upper half.
fn scales_of(layout: &Layout) -> &'static str {
    match layout.scales {
        Scales::Symmetric => {
            "    let two = unpack2x16float(r.two);\n    \
             u.low = vec2<f32>(select(two.x, two.y, r.is_odd), 0.0);\n    u.high = u.low;\n"
        }
        Scales::Affine => "    u.low = unpack2x16float(r.head);\n    u.high = u.low;\n",
        Scales::Grouped => {
            "    let head = unpack2x16float(r.head);\n    let two = select(r.two, r.two >> 16u, r.is_odd);\n    \
             u.low = vec2<f32>(head.x * f32(two & 0xffu), -(head.y * f32((two >> 8u) & 0xffu)));\n    u.high = u.low;\n"
        }
        Scales::HalfGrouped => {
            "    let head = unpack2x16float(r.head);\n    let two = select(r.two, r.two >> 16u, r.is_odd);\n    \
             u.low = vec2<f32>(head.x * f32(two & 0xfu), -(head.y * f32((two >> 4u) & 0xfu)));\n    \
             u.high = vec2<f32>(head.x * f32((two >> 8u) & 0xfu), -(head.y * f32((two >> 12u) & 0xfu)));\n"
        }
        Scales::HalfSymmetric => {
            "    let head = unpack2x16float(r.head);\n    \
             let two = unpack4xI8(select(r.two, r.two >> 16u, r.is_odd));\n    \
             u.low = vec2<f32>(head.x * f32(two.x), 0.0);\n    u.high = vec2<f32>(head.x * f32(two.y), 0.0);\n"
        }
    }
}

/// Half of a vector's halves as floats.
const HALVES: &str = "fn @halves(v: vec4<u32>, second: u32) -> vec4<f32> {\n    \
    let two = select(v.xy, v.zw, second == 1u);\n    \
    return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));\n}\n\
    fn @bhalves(v: vec4<u32>, second: u32) -> vec4<f32> {\n    \
    let two = select(v.xy, v.zw, second == 1u);\n    \
    return bitcast<vec4<f32>>(vec4<u32>(two.x << 16u, two.x & 0xffff0000u, two.y << 16u, two.y & 0xffff0000u));\n}\n";

fn half(bytes: &[u8]) -> u32 {
    u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Steps of two quads in so many vectors; `quad` is the expression for quad `{k}` of `r`.
fn float_steps(vectors: usize, quad: &str) -> String {
    let loads: Vec<String> = (0..vectors).map(|v| format!("{{w}}[at + {vectors}u * g + {v}u]")).collect();
    let quads = ["0", "1"].map(|k| quad.replace("{k}", k)).join(", ");
    format!(
        "struct @Unit {{ v: array<vec4<f32>, 2> }}\nstruct @Raw {{ v: array<vec4<u32>, {vectors}> }}\n{HALVES}\
         fn @raw_of(at: u32, g: u32) -> @Raw {{ return @Raw(array<vec4<u32>, {vectors}>({})); }}\n\
         fn @unit_from(r: @Raw) -> @Unit {{ return @Unit(array<vec4<f32>, 2>({quads})); }}\n\
         fn @quad(u: @Unit, k: u32) -> vec4<f32> {{ return u.v[k]; }}\n",
        loads.join(", ")
    )
}

/// Products of so many quads, one after another.
fn quad_products(quads: usize) -> String {
    let one = |k: usize| {
        let add = |c: usize| format!("    sum = fma(w_{k}[{c}], a.v[{k}][{c}], sum);\n");
        format!("    let w_{k} = @quad(u, {k}u);\n{}", (0..4).map(add).collect::<String>())
    };
    format!(
        "fn @added(u: @Unit, a: Activations, before: f32) -> f32 {{\n    var sum = before;\n{}    return sum;\n}}\n",
        (0..quads).map(one).collect::<String>()
    )
}

/// `load` is the expression for quad `{k}` of the row at `at` of `{w}`.
fn float_decoder(w: &str, load: &str, prefix: &str) -> String {
    let mut out = format!(
        "struct @Unit {{ v: array<vec4<f32>, 8> }}\n{HALVES}fn @unit_of(at: u32, g: u32) -> @Unit {{\n    var u: @Unit;\n"
    );
    for k in 0..8 {
        out += &format!("    u.v[{k}] = {};\n", load.replace("{w}", w).replace("{k}", &k.to_string()));
    }
    out += "    return u;\n}\nfn @quad(u: @Unit, k: u32) -> vec4<f32> { return u.v[k]; }\n";
    out.replace('@', prefix)
}
