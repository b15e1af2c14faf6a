//! Products of rows with matrices, in the forms that the ops need.
//!
//! A workgroup makes `SUBS × OUTS` outputs of `TILE` rows. `LANES` lanes share an output: each adds up every so-many-th unit of
//! 32 columns, and their sums are added up in order, so that what a row gets depends on neither the rows beside it nor their
//! number.

use super::in_step;
use super::kernel::Kernel;
use super::many;
use super::record::{Count, Piece, Recorder, View};
use crate::backend::BackendError;
use crate::layout::UNIT;
use crate::ops::{Activation, Norm, NormKind};
use crate::program::{MatId, Rows, VecId};

/// Lanes of a workgroup.
const WG: usize = 64;
/// Rows of the batch that share the weights a workgroup reads.
const TILE: usize = 4;
/// Outputs (or pairs of gate and up) that share the activations a lane reads.
const OUTS: usize = 4;

/// What the rows are made of.
#[derive(Clone, Copy)]
pub(crate) struct Input {
    pub rows: View,
    pub width: usize,
    /// Where in a row the columns begin.
    pub at: usize,
    pub norm: Option<Norm>,
    /// Whether only those rows are taken that want logits.
    pub of: Rows,
}

/// What becomes of the outputs.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub to: View,
    pub width: usize,
    /// Where in a row the outputs begin.
    pub at: usize,
    pub bias: Option<VecId>,
    pub activation: Activation,
    pub soft_cap: Option<f32>,
    /// Whether they are added to what is there.
    pub adds: bool,
}

impl Output {
    /// Outputs that are stored as they are.
    pub fn plain(to: View, width: usize) -> Output {
        let (bias, activation, soft_cap) = (None, Activation::None, None);
        Output { to, width, at: 0, bias, activation, soft_cap, adds: false }
    }
}

/// Rows of a matrix, and what becomes of their products.
pub(crate) struct Part {
    pub piece: Piece,
    pub outs: usize,
    /// Two where these are as many gates and then their ups.
    pub halves: usize,
    pub output: Output,
}

/// Rows times a matrix.
pub(crate) fn record(
    recorder: &mut Recorder,
    label: &'static str,
    input: Input,
    weight: MatId,
    output: Output,
) -> Result<(), BackendError> {
    if let Some(few) = many::few(recorder.traits) {
        recorder.for_rows(few, |recorder| record_for_few(recorder, label, input, weight, output))?;
    }
    many::record(recorder, label, input, weight, output)
}

/// The same with the kernels for few rows, whatever their number.
pub(crate) fn record_for_few(
    recorder: &mut Recorder,
    label: &'static str,
    input: Input,
    weight: MatId,
    output: Output,
) -> Result<(), BackendError> {
    let n_in = recorder.program.matrix(weight).n_in;
    each_product(recorder, weight, output, &mut |recorder, parts| {
        few_rows(recorder, label, input, n_in, parts)
    })
}

/// Records the products with parts of a matrix.
pub(super) type Products<'a> = dyn FnMut(&mut Recorder, &[Part]) -> Result<(), BackendError> + 'a;

/// Calls `product` with all parts of the matrix and what becomes of their products.
pub(super) fn each_product(
    recorder: &mut Recorder,
    weight: MatId,
    output: Output,
    product: &mut Products,
) -> Result<(), BackendError> {
    let n_out = recorder.program.matrix(weight).n_out;
    let pieces = recorder.pieces(weight)?;
    let all = |output: Output| {
        let part = |piece: &Piece| Part { piece: piece.clone(), outs: piece.rows.len(), halves: 1, output };
        pieces.iter().map(part).collect::<Vec<_>>()
    };
    if !output.activation.is_gated() {
        return product(recorder, &all(output));
    }
    if let [piece] = pieces.as_slice() {
        let part = Part { piece: piece.clone(), outs: n_out / 2, halves: 2, output };
        return product(recorder, &[part]);
    }
    // Gates and ups of different types come from kernels of their own.
    let raw = recorder.common_scratch("gates and ups", &[n_out, recorder.limits.rows])?;
    product(recorder, &all(Output { bias: output.bias, ..Output::plain(raw, n_out) }))?;
    gate(recorder, raw, (n_out / 2, 1), output);
    Ok(())
}

fn few_rows(
    recorder: &mut Recorder,
    label: &'static str,
    input: Input,
    n_in: usize,
    parts: &[Part],
) -> Result<(), BackendError> {
    if recorder.traits.in_step().is_some() {
        return in_step::record(recorder, label, &input, n_in, parts);
    }
    parts.iter().for_each(|part| product(recorder, label, input, n_in, part));
    Ok(())
}

/// Workgroups, one for so many of the rows.
pub(super) fn counts(rows: Rows, x: usize, tile: usize) -> [Count; 3] {
    let y = if rows == Rows::Batch { Count::Rows(tile) } else { Count::LogitRows(tile) };
    [Count::Fixed(x), y, Count::Fixed(1)]
}

pub(super) fn product(recorder: &mut Recorder, label: &'static str, input: Input, n_in: usize, part: &Part) {
    let Part { piece, outs, halves, output } = part;
    let units = n_in.div_ceil(UNIT);
    let lanes = (units.next_power_of_two()).clamp(4, 32);
    let mut kernel = Kernel::new(label, WG);
    kernel.read("x", "f32", input.rows);
    kernel.read("weights", "vec4<u32>", piece.view);
    kernel.size("LANES", lanes);
    kernel.size("TILE", TILE);
    kernel.size("OUTS", OUTS);
    kernel.size("HALVES", *halves);
    kernel.size("N_IN", n_in);
    kernel.size("N_OUT", *outs);
    kernel.size("FIRST_OUT", piece.rows.start);
    kernel.size("UNITS", units);
    kernel.size("STRIDE", piece.layout.stride / 4);
    write_input(recorder, &mut kernel, &input, n_in);
    write_output(recorder, &mut kernel, output);
    kernel.part(&piece.layout.decoder("weights", ""));
    kernel.part(include_str!("wgsl/linear.wgsl"));
    recorder.dispatch(&kernel, counts(input.of, outs.div_ceil(WG / lanes * OUTS), TILE));
}

/// `input_rows`, `input_row`, `column` and `input_quad`, and what [`write_norm`] writes.
pub(crate) fn write_input(recorder: &mut Recorder, kernel: &mut Kernel, input: &Input, n_in: usize) {
    kernel.size("X_WIDTH", input.width);
    kernel.size("X_AT", input.at);
    kernel.size("X_COLUMNS", n_in);
    kernel.part(match input.of {
        Rows::Batch => "fn input_rows() -> u32 { return batch_rows(); }\nfn input_row(i: u32) -> u32 { return i; }",
        Rows::Logits => "fn input_rows() -> u32 { return logit_rows(); }\nfn input_row(i: u32) -> u32 { return logit_row(i); }",
    });
    kernel.part(include_str!("wgsl/input.wgsl"));
    write_norm(recorder, kernel, input.norm.as_ref(), "", "X_COLUMNS");
}

/// `statistics(lane, row)`, which takes the whole workgroup, of the `columns` of a row that `raw_at` gives, and
/// `normed(value, statistics, column)`; both names begin with `prefix`.
pub(crate) fn write_norm(
    recorder: &mut Recorder,
    kernel: &mut Kernel,
    norm: Option<&Norm>,
    prefix: &'static str,
    columns: &str,
) {
    let Some(norm) = norm else {
        kernel.part(&format!(
            "fn {prefix}statistics(lane: u32, row: u32) -> vec2<f32> {{ return vec2<f32>(0.0, 1.0); }}\n\
             fn {prefix}normed(value: f32, s: vec2<f32>, i: u32) -> f32 {{ return value; }}"
        ));
        return;
    };
    // Weights, then biases.
    let vectors: Vec<VecId> = [norm.weight].into_iter().chain(norm.bias).collect();
    let vectors = recorder.joined(&vectors);
    kernel.read(if prefix == "k_" { "k_norm" } else { "norm" }, "f32", vectors);
    let (name, eps) = if prefix == "k_" { ("k_norm", "K_EPS") } else { ("norm", "EPS") };
    kernel.float(eps, norm.eps);
    let bias = if norm.bias.is_some() { format!("{name}[{columns} + i]") } else { "0.0".into() };
    let mean = match norm.kind {
        NormKind::Rms => "let mean = 0.0;".to_string(),
        NormKind::Layer => format!(
            "var sum = 0.0;\n    for (var i = lane; i < {columns}; i += WG) {{ sum += raw_at(row, i); }}\n    \
             let mean = group_sum(lane, sum) / f32({columns});"
        ),
    };
    kernel.part(&format!(
        "fn {prefix}statistics(lane: u32, row: u32) -> vec2<f32> {{\n    {mean}\n    var squares = 0.0;\n    \
         for (var i = lane; i < {columns}; i += WG) {{\n        let d = raw_at(row, i) - mean;\n        \
         squares = fma(d, d, squares);\n    }}\n    \
         return vec2<f32>(mean, 1.0 / sqrt(group_sum(lane, squares) / f32({columns}) + {eps}));\n}}\n\
         fn {prefix}normed(value: f32, s: vec2<f32>, i: u32) -> f32 {{\n    \
         return fma((value - s.x) * s.y, {name}[i], {bias});\n}}"
    ));
}

/// `finish(row, out, first, second)`: where the output number `out` of a row goes; `second` is the up of a gate.
pub(crate) fn write_output(recorder: &mut Recorder, kernel: &mut Kernel, output: &Output) {
    kernel.write("y", "f32", output.to);
    kernel.size("Y_WIDTH", output.width);
    kernel.size("Y_AT", output.at);
    let bias = |of: &str| match output.bias {
        Some(_) => format!(" + bias[{of}]"),
        None => String::new(),
    };
    if let Some(id) = output.bias {
        let view = recorder.vector(id);
        kernel.read("bias", "f32", view);
    }
    let mut value = activated(output.activation, &bias("out"), &bias("out + N_OUT"));
    if let Some(cap) = output.soft_cap {
        kernel.float("CAP", cap);
        value = format!("soft_capped({value}, CAP)");
    }
    let add = if output.adds { "y[at] + " } else { "" };
    kernel.part(&format!(
        "fn finish(row: u32, out: u32, first: f32, second: f32) {{\n    let at = row * Y_WIDTH + Y_AT + out;\n    \
         y[at] = {add}{value};\n}}"
    ));
}

/// The expression for an output of `first` (and `second`) after their biases.
pub(crate) fn activated(activation: Activation, bias: &str, second_bias: &str) -> String {
    let (x, up) = (format!("(first{bias})"), format!("(second{second_bias})"));
    match activation {
        Activation::None => x,
        Activation::GeluTanh => format!("gelu_tanh_{x}"),
        Activation::GeluErf => format!("gelu_erf_{x}"),
        // What is no number is not less than zero.
        Activation::SquaredRelu => format!("select({x} * {x}, 0.0, {x} <= 0.0)"),
        Activation::Tanh => format!("tanh_{x}"),
        Activation::Sigmoid => format!("sigmoid_{x}"),
        Activation::SiluGlu => format!("({x} * sigmoid_{x} * {up})"),
        Activation::GeluTanhGlu => format!("(gelu_tanh_{x} * {up})"),
    }
}

/// Gates and ups that lie side by side in `raw`, their biases added: so many of each, so many times in a row.
pub(crate) fn gate(recorder: &mut Recorder, raw: View, (outs, times): (usize, usize), output: Output) {
    let mut kernel = Kernel::new("gate", WG);
    kernel.read("x", "f32", raw);
    kernel.size("N_OUT", outs);
    kernel.size("TIMES", times);
    write_output(recorder, &mut kernel, &Output { bias: None, ..output });
    kernel.part(
        "@compute @workgroup_size(WG)\nfn main(@builtin(global_invocation_id) id: vec3<u32>) {\n    \
         if (id.x < N_OUT) {\n        let row = id.y * TIMES + id.z;\n        \
         let at = row * 2u * N_OUT + id.x;\n        finish(row, id.x, x[at], x[at + N_OUT]);\n    }\n}",
    );
    recorder.dispatch(&kernel, [Count::Fixed(outs.div_ceil(WG)), Count::Rows(1), Count::Fixed(times)]);
}
