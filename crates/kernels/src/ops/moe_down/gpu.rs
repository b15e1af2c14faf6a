use super::MoeDown;
use crate::backend::BackendError;
use crate::gpu::record::Piece;
use crate::gpu::{Count, Kernel, Recorder, experts, many};

const LANES: usize = 64;
/// Lanes that share an output.
const SHARE: usize = 16;

pub(crate) fn record(op: &MoeDown, recorder: &mut Recorder) -> Result<(), BackendError> {
    // Every piece adds what its experts make.
    let pieces = recorder.pieces(op.down)?;
    if let Some(few) = many::few(recorder.traits) {
        recorder.for_rows(few, |recorder| pieces.iter().for_each(|piece| few_rows(op, recorder, piece)));
    }
    experts::down(op, recorder)
}

/// Each row for itself.
pub(crate) fn few_rows(op: &MoeDown, recorder: &mut Recorder, piece: &Piece) {
    let width = recorder.width(op.residual);
    let n_in = recorder.program.matrix(op.down).n_in;
    let mut kernel = Kernel::new("moe_down", LANES);
    let (x, routes, y) = (recorder.buf(op.hidden), recorder.buf(op.routes), recorder.buf(op.residual));
    kernel.read("x", "f32", x);
    kernel.read("routes", "f32", routes);
    kernel.read("weights", "vec4<u32>", piece.view);
    kernel.write("y", "f32", y);
    kernel.size("SHARE", SHARE);
    kernel.size("TOP_K", op.top_k);
    kernel.size("WIDTH", width);
    kernel.size("N_IN", n_in);
    kernel.size("UNITS", piece.layout.units);
    kernel.size("STRIDE", piece.layout.stride / 4);
    kernel.size("FIRST", piece.rows.start);
    kernel.size("END", piece.rows.end);
    kernel.part(&piece.layout.decoder("weights", ""));
    kernel.part(include_str!("experts.wgsl"));
    kernel.part(include_str!("moe_down.wgsl"));
    let groups = width.div_ceil(LANES / SHARE);
    recorder.dispatch(&kernel, [Count::Fixed(groups), Count::Rows(1), Count::Fixed(1)]);
}
