use std::ops::Range;

use super::MoeGateUp;
use crate::backend::BackendError;
use crate::gpu::record::Piece;
use crate::gpu::{Count, Kernel, Recorder, experts, linear, many};

const LANES: usize = 64;
/// Lanes that share an output.
const SHARE: usize = 16;

pub(crate) fn record(op: &MoeGateUp, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (gates, ups) = (recorder.pieces(op.gate)?, recorder.pieces(op.up)?);
    if let Some(few) = many::few(recorder.traits) {
        recorder.for_rows(few, |recorder| {
            let pieces = experts::overlaps(&gates, &ups);
            pieces.iter().for_each(|(gate, up, rows)| few_rows(op, recorder, gate, up, rows));
        });
    }
    experts::gate_up(op, recorder)
}

/// Each row for itself: those of the weights' rows that lie in a piece of either.
pub(crate) fn few_rows(
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
    kernel.read("gates", "vec4<u32>", gate.view);
    kernel.read("ups", "vec4<u32>", up.view);
    kernel.write("y", "f32", out);
    kernel.size("SHARE", SHARE);
    kernel.size("TOP_K", op.top_k);
    kernel.size("HIDDEN", hidden);
    kernel.size("N_IN", recorder.width(op.normed));
    kernel.size("UNITS", gate.layout.units);
    kernel.size("FIRST", rows.start);
    kernel.size("END", rows.end);
    kernel.size("G_FIRST", gate.rows.start);
    kernel.size("U_FIRST", up.rows.start);
    kernel.size("G_STRIDE", gate.layout.stride / 4);
    kernel.size("U_STRIDE", up.layout.stride / 4);
    kernel.part(&gate.layout.decoder("gates", "g_"));
    kernel.part(&up.layout.decoder("ups", "u_"));
    let value = linear::activated(op.activation, "", "");
    kernel.part(&format!("fn gated(first: f32, second: f32) -> f32 {{ return {value}; }}"));
    kernel.part(include_str!("../moe_down/experts.wgsl"));
    kernel.part(include_str!("moe_gate_up.wgsl"));
    let groups = hidden.div_ceil(LANES / SHARE);
    recorder.dispatch(&kernel, [Count::Fixed(groups), Count::Rows(1), Count::Fixed(op.top_k)]);
}
