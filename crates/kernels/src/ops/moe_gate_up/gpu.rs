use std::ops::Range;

use super::MoeGateUp;
use crate::backend::BackendError;
use crate::gpu::in_step::{self, Form, Main};
use crate::gpu::linear::{self, Input, Output};
use crate::gpu::record::Piece;
use crate::gpu::{Count, Kernel, Recorder, View, experts, many};
use crate::program::Rows;

const LANES: usize = 64;
/// Lanes that share an output.
const SHARE: usize = 16;

pub(crate) fn record(op: &MoeGateUp, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (gates, ups) = (recorder.pieces(op.gate)?, recorder.pieces(op.up)?);
    if let Some(few) = many::few(recorder.traits) {
        recorder.for_rows(few, |recorder| few_rows(op, recorder, &gates, &ups))?;
    }
    experts::gate_up(op, recorder)
}

/// Each row for itself.
fn few_rows(
    op: &MoeGateUp,
    recorder: &mut Recorder,
    gates: &[Piece],
    ups: &[Piece],
) -> Result<(), BackendError> {
    let pairs = experts::overlaps(gates, ups);
    if recorder.traits.in_step().is_none() {
        pairs.iter().for_each(|(gate, up, rows)| any_device(op, recorder, gate, up, rows));
        return Ok(());
    }
    let rounded = recorder.traits.rounded;
    let form = |piece: &Piece| Form::of(&piece.layout, rounded);
    let out = recorder.buf(op.out);
    if pairs.iter().all(|(gate, up, _)| form(gate) == form(up)) {
        let value = linear::activated(op.activation, "", "");
        let finish = format!("y[row * N_OUT + out] = {value};");
        pairs.iter().for_each(|(gate, up, rows)| product(op, recorder, &[gate, up], rows, out, &finish));
        return Ok(());
    }
    // Gates and ups that meet activations in different forms come from kernels of their own.
    let hidden = op.hidden(recorder.program);
    let raw = recorder.scratch(2 * op.top_k * hidden)?;
    for (pieces, at) in [(gates, 0), (ups, hidden)] {
        let finish = format!("y[row * 2u * N_OUT + {at}u + out] = first;");
        pieces.iter().for_each(|piece| product(op, recorder, &[piece], &piece.rows, raw, &finish));
    }
    let output = Output { activation: op.activation, ..Output::plain(out, hidden) };
    linear::gate(recorder, raw, (hidden, op.top_k), output);
    Ok(())
}

/// Products with rows of one matrix, or of two; `finish` says where the sums `first` and `second` go.
fn product(
    op: &MoeGateUp,
    recorder: &mut Recorder,
    pieces: &[&Piece],
    rows: &Range<usize>,
    to: View,
    finish: &str,
) {
    let width = recorder.width(op.normed);
    let form = Form::of(&pieces[0].layout, recorder.traits.rounded);
    let mut kernel = Kernel::new("moe_gate_up", recorder.traits.tuning.lanes);
    kernel.read("routes", "f32", recorder.buf(op.routes));
    kernel.write("y", "f32", to);
    kernel.size("TOP_K", op.top_k);
    kernel.size("EXPERTS", op.experts);
    kernel.size("FIRST", rows.start);
    kernel.size("END", rows.end);
    kernel.size("FIRST_OUT", 0);
    let input = Input { rows: recorder.buf(op.normed), width, at: 0, norm: None, of: Rows::Batch };
    in_step::write_input(recorder, &mut kernel, &input, width);
    for (piece, (name, weights)) in pieces.iter().zip([("first", "gates"), ("second", "ups")]) {
        kernel.read(weights, "vec4<u32>", piece.view);
        kernel.part(&piece.layout.step_decoder(form, weights, &format!("{name}_")));
        kernel.part(&format!(
            "fn {name}_raw(out: u32, g: u32) -> {name}_Raw {{\n    \
             return {name}_raw_of(weight_row(out, {}u, {}u) * {}u, g);\n}}\n\
             fn {name}_unit(r: {name}_Raw) -> {name}_Unit {{ return {name}_unit_from(r); }}",
            piece.rows.start,
            piece.rows.end,
            piece.layout.stride / 4
        ));
    }
    kernel.part(include_str!("visits.wgsl"));
    kernel.part(&format!("fn finish(row: u32, out: u32, first: f32, second: f32) {{\n    {finish}\n}}"));
    let main = Main {
        form,
        steps: form.steps(pieces[0].layout.units),
        n_out: op.hidden(recorder.program),
        halves: pieces.len(),
        tile: 1,
        times: op.top_k,
        is_held: true,
    };
    let groups = in_step::write_main(recorder, &mut kernel, &main);
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(groups), Count::Fixed(op.top_k)]);
}

/// The pieces' weights, with what takes them apart.
pub(crate) fn read_weights(kernel: &mut Kernel, gate: &Piece, up: &Piece) {
    kernel.read("gates", "vec4<u32>", gate.view);
    kernel.read("ups", "vec4<u32>", up.view);
    kernel.size("G_FIRST", gate.rows.start);
    kernel.size("U_FIRST", up.rows.start);
    kernel.size("G_STRIDE", gate.layout.stride / 4);
    kernel.size("U_STRIDE", up.layout.stride / 4);
    kernel.part(&gate.layout.decoder("gates", "g_"));
    kernel.part(&up.layout.decoder("ups", "u_"));
}

/// For devices whose lanes cannot exchange values: those of the weights' rows that lie in a piece of either.
pub(crate) fn any_device(
    op: &MoeGateUp,
    recorder: &mut Recorder,
    gate: &Piece,
    up: &Piece,
    rows: &Range<usize>,
) {
    let hidden = op.hidden(recorder.program);
    let mut kernel = Kernel::new("moe_gate_up", LANES);
    let (x, routes, out) = (recorder.buf(op.normed), recorder.buf(op.routes), recorder.buf(op.out));
    kernel.read("x", "f32", x);
    kernel.read("routes", "f32", routes);
    read_weights(&mut kernel, gate, up);
    kernel.write("y", "f32", out);
    kernel.size("SHARE", SHARE);
    kernel.size("TOP_K", op.top_k);
    kernel.size("HIDDEN", hidden);
    kernel.size("N_IN", recorder.width(op.normed));
    kernel.size("UNITS", gate.layout.units);
    kernel.size("FIRST", rows.start);
    kernel.size("END", rows.end);
    let value = linear::activated(op.activation, "", "");
    kernel.part(&format!("fn gated(first: f32, second: f32) -> f32 {{ return {value}; }}"));
    kernel.part(include_str!("../moe_down/experts.wgsl"));
    kernel.part(include_str!("moe_gate_up.wgsl"));
    let groups = hidden.div_ceil(LANES / SHARE);
    recorder.dispatch(&kernel, [Count::Fixed(groups), Count::Rows(1), Count::Fixed(op.top_k)]);
}
