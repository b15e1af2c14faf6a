//! Products of rows with several matrices in one dispatch. The matrices lie one behind the other in one buffer, and a workgroup
//! finds from its number whose outputs it makes.
//!
//! `LANES` lanes share an output: each adds up every so-many-th vector of floats or unit of quantized weights, and their sums are
//! added up in order, so that what a row gets depends on neither the rows beside it nor their number.

use std::ops::RangeInclusive;

use exotherm_tensor::DType;

use super::kernel::Kernel;
use super::linear::{self, Input, Output, activated};
use super::many;
use super::record::{Count, Piece, Recorder, View};
use super::rows::RowLayout;
use super::unrolled::unrolled;
use crate::backend::BackendError;
use crate::ops::Activation;
use crate::program::{MatId, Rows, VecId};

/// Lanes of a workgroup.
const WG: usize = 128;
/// Rows of the batch that share the weights a workgroup reads: one where there is but one.
const TILES: [(RangeInclusive<usize>, usize); 2] = [(0..=1, 1), (2..=usize::MAX, 4)];
/// Rows that are multiplied with all members at once. With more of them each member has products of its own, as matrices alone
/// have, which may add up in another order.
const MOST_ROWS: usize = usize::MAX;
/// Outputs that share the activations a lane reads.
const OUTS: usize = 4;
/// Vectors of a row of floats that a lane reads before it uses them.
const STEPS: usize = 4;

const SIDES: [&str; 2] = ["y", "z"];

/// A matrix, the columns of the rows that it is multiplied with, and what becomes of the products.
#[derive(Clone, Copy)]
pub(crate) struct Member {
    /// Where in a row the columns begin.
    pub x_at: usize,
    pub weight: MatId,
    /// Which of the sides takes them, and where in a row they begin there.
    pub side: usize,
    pub y_at: usize,
    pub bias: Option<VecId>,
    pub activation: Activation,
}

/// Rows of a width.
#[derive(Clone, Copy)]
pub(crate) struct Side {
    pub rows: View,
    pub width: usize,
}

/// One dispatch where the matrices can lie together, and a product for each where they cannot. No activation may be gated, and
/// there are two sides at most.
pub(crate) fn record(
    recorder: &mut Recorder,
    label: &'static str,
    x: Side,
    members: &[Member],
    y: &[Side],
) -> Result<(), BackendError> {
    let ids: Vec<MatId> = members.iter().map(|member| member.weight).collect();
    let few = many::few(recorder.traits).map(|few| *few.end().min(&MOST_ROWS));
    let (Some(pieces), Some(most)) = (recorder.together(&ids)?, few) else {
        return one_by_one(recorder, label, x, members, y);
    };
    let parts = parts_of(recorder, members, &pieces);
    recorder.for_rows(0..=most, |recorder| {
        for (rows, tile) in TILES {
            recorder.for_rows(rows, |recorder| products(recorder, label, x, &parts, y, tile));
        }
    });
    match most.checked_add(1).filter(|&more| more <= recorder.limits.rows) {
        None => Ok(()),
        Some(more) => {
            recorder.for_rows(more..=usize::MAX, |recorder| one_by_one(recorder, label, x, members, y))
        }
    }
}

fn one_by_one(
    recorder: &mut Recorder,
    label: &'static str,
    x: Side,
    members: &[Member],
    y: &[Side],
) -> Result<(), BackendError> {
    for &Member { x_at, weight, side, y_at, bias, activation } in members {
        let y = y[side];
        let input = Input { rows: x.rows, width: x.width, at: x_at, norm: None, of: Rows::Batch };
        let output = Output { at: y_at, bias, activation, ..Output::plain(y.rows, y.width) };
        linear::record(recorder, label, input, weight, output)?;
    }
    Ok(())
}

/// A member in its place.
struct Part {
    member: Member,
    dtype: DType,
    layout: RowLayout,
    columns: usize,
    outs: usize,
    /// Where its rows begin, in vectors, from the first member's.
    at: usize,
    view: View,
}

impl Part {
    /// Vectors of floats, or units, that lanes share out.
    fn steps(&self) -> usize {
        if self.dtype.is_quantized() { self.layout.units } else { self.layout.stride / 4 }
    }
}

fn parts_of(recorder: &Recorder, members: &[Member], pieces: &[Piece]) -> Vec<Part> {
    let first = pieces.iter().map(|piece| piece.view.offset).min().unwrap_or(0);
    let part = |(&member, piece): (&Member, &Piece)| Part {
        member,
        dtype: recorder.program.matrix(member.weight).segments[0].dtype(),
        layout: piece.layout,
        columns: recorder.program.matrix(member.weight).n_in,
        outs: piece.rows.len(),
        at: (piece.view.offset - first) / 16,
        view: piece.view,
    };
    members.iter().zip(pieces).map(part).collect()
}

fn products(recorder: &mut Recorder, label: &'static str, x: Side, parts: &[Part], y: &[Side], tile: usize) {
    let steps = parts.iter().map(Part::steps).max().unwrap_or(1);
    let lanes = steps.next_power_of_two().clamp(4, 32);
    let per_group = WG / lanes * OUTS;
    let mut kernel = Kernel::new(label, WG);
    let in_quads =
        parts.iter().flat_map(|part| [x.width, part.member.x_at, part.columns]).all(|n| n % 4 == 0);
    kernel.read("x", if in_quads { "vec4<f32>" } else { "f32" }, x.rows);
    kernel.read("weights", "vec4<u32>", around(parts));
    for (side, name) in y.iter().zip(SIDES) {
        kernel.write(name, "f32", side.rows);
    }
    kernel.size("LANES", lanes);
    kernel.size("TILE", tile);
    kernel.size("OUTS", OUTS);
    kernel.size("STEPS", STEPS);
    kernel.size("X_WIDTH", x.width);
    let biases: Vec<VecId> = parts.iter().filter_map(|part| part.member.bias).collect();
    if !biases.is_empty() {
        let biases = recorder.joined(&biases);
        kernel.read("biases", "f32", biases);
    }
    let mut layouts: Vec<&Part> = Vec::new();
    let (mut group, mut bias_at) = (0, 0);
    let (mut which, mut values) = (String::new(), String::new());
    for (i, part) in parts.iter().enumerate() {
        let known = layouts.iter().position(|known| known.layout == part.layout).unwrap_or(layouts.len());
        if known == layouts.len() {
            layouts.push(part);
        }
        let groups = part.outs.div_ceil(per_group);
        let Member { x_at, side, y_at, bias, activation, .. } = part.member;
        let fields = [i, known, group, part.outs, part.columns, x_at, part.at, y_at, bias_at];
        let fields = fields.map(|n| format!("{n}u")).join(", ");
        group += groups;
        which += &format!("    if (group < {group}u) {{\n        return Part({fields});\n    }}\n");
        let own = if bias.is_some() { " + biases[part.bias_at + out]" } else { "" };
        values += &format!(
            "        case {i}u: {{ {}[row * {}u + part.y_at + out] = {}; }}\n",
            SIDES[side],
            y[side].width,
            activated(activation, own, "")
        );
        bias_at += if bias.is_some() { part.outs } else { 0 };
    }
    write_choice(&mut kernel, &which, &values);
    kernel.part(if in_quads { QUADS } else { COLUMNS });
    kernel.part(include_str!("wgsl/grouped.wgsl"));
    let mut cases = String::new();
    for (i, part) in layouts.iter().enumerate() {
        write_sums(&mut kernel, part, &format!("of{i}_"), tile);
        cases +=
            &format!("        case {i}u: {{ of{i}_add_up(part, lane, first_out, first_row, count); }}\n");
    }
    kernel.part(&format!(
        "fn add_up(part: Part, lane: u32, first_out: u32, first_row: u32, count: u32) {{\n    \
         switch part.kind {{\n{cases}        default: {{}}\n    }}\n}}"
    ));
    recorder.dispatch(&kernel, [Count::Fixed(group), Count::Rows(tile), Count::Fixed(1)]);
}

/// `part_of` and `leave`: which part a workgroup is of, and where its products go.
fn write_choice(kernel: &mut Kernel, which: &str, values: &str) {
    kernel.part(&format!(
        "fn part_of(group: u32) -> Part {{\n{which}    return Part(0u, 0u, 0u, 0u, 0u, 0u, 0u, 0u, 0u);\n}}"
    ));
    kernel.part(&format!(
        "fn leave(part: Part, row: u32, out: u32, first: f32) {{\n    switch part.number {{\n{values}        \
         default: {{}}\n    }}\n}}"
    ));
}

/// `add_up` for matrices of one layout.
fn write_sums(kernel: &mut Kernel, part: &Part, prefix: &str, tile: usize) {
    kernel.size(&format!("{prefix}UNITS"), part.layout.units);
    kernel.size(&format!("{prefix}STRIDE"), part.layout.stride / 4);
    kernel.size(&format!("{prefix}VECTORS"), part.layout.stride / 4);
    let floats = |two: [&str; 2]| match part.dtype {
        DType::F16 => format!("vec4<f32>(unpack2x16float(v.{}), unpack2x16float(v.{}))", two[0], two[1]),
        _ => {
            let [a, b] = two;
            format!(
                "bitcast<vec4<f32>>(vec4<u32>(v.{a} << 16u, v.{a} & 0xffff0000u, v.{b} << 16u, v.{b} & 0xffff0000u))"
            )
        }
    };
    let parts = match part.dtype {
        DType::F32 => vec!["bitcast<vec4<f32>>(v)".to_string()],
        _ => vec![floats(["x", "y"]), floats(["z", "w"])],
    };
    let counts = [("OUTS", OUTS), ("TILE", tile), ("STEPS", STEPS), ("PARTS", parts.len())];
    let text = if part.dtype.is_quantized() {
        kernel.part(&part.layout.decoder("weights", prefix));
        include_str!("wgsl/grouped_units.wgsl")
    } else {
        for (p, floats) in parts.iter().enumerate() {
            kernel.part(&format!("fn {prefix}floats_{p}(v: vec4<u32>) -> vec4<f32> {{ return {floats}; }}"));
        }
        include_str!("wgsl/grouped_floats.wgsl")
    };
    let parts = format!("{}u", parts.len());
    kernel.part(&unrolled(text, &counts).replace('#', prefix).replace("PARTS", &parts));
}

/// Four columns of a row; those past the end are zero.
const QUADS: &str = "\
fn input_quad(part: Part, row: u32, i: u32) -> vec4<f32> {
    if (i < part.columns) {
        return x[(row * X_WIDTH + part.x_at + i) / 4u];
    }
    return vec4<f32>(0.0);
}";

const COLUMNS: &str = "\
fn input_quad(part: Part, row: u32, i: u32) -> vec4<f32> {
    let at = row * X_WIDTH + part.x_at + i;
    var quad = vec4<f32>(0.0);
    for (var k = 0u; k < 4u; k++) {
        if (i + k < part.columns) {
            quad[k] = x[at + k];
        }
    }
    return quad;
}";

/// The part of the buffer in which all of them lie.
fn around(parts: &[Part]) -> View {
    let first =
        parts.iter().map(|part| part.view).min_by_key(|view| view.offset).expect("a group has members");
    let end = parts.iter().map(|part| part.view.offset + part.view.bytes).max();
    View { bytes: end.unwrap_or(first.offset) - first.offset, ..first }
}
