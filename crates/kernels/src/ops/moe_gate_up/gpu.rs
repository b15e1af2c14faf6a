use super::MoeGateUp;
use crate::backend::BackendError;
use crate::gpu::linear;
use crate::gpu::{Count, Kernel, Recorder};

const LANES: usize = 64;
/// Lanes that share an output.
const SHARE: usize = 16;

pub(crate) fn record(op: &MoeGateUp, recorder: &mut Recorder) -> Result<(), BackendError> {
    let hidden = op.hidden(recorder.program);
    let width = recorder.width(op.normed);
    let (gates, ups) = (recorder.pieces(op.gate)?, recorder.pieces(op.up)?);
    // Rows that lie in a piece of either.
    for gate in &gates {
        for up in &ups {
            let rows = gate.rows.start.max(up.rows.start)..gate.rows.end.min(up.rows.end);
            if rows.is_empty() {
                continue;
            }
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
            kernel.size("N_IN", width);
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
    }
    Ok(())
}
