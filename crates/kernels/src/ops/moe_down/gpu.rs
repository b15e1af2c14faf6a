use super::MoeDown;
use crate::backend::BackendError;
use crate::gpu::in_step::{self, Form, Main};
use crate::gpu::linear::Input;
use crate::gpu::record::Piece;
use crate::gpu::{Count, Kernel, Recorder, experts, many};
use crate::program::Rows;

const LANES: usize = 64;
/// Lanes that share an output.
const SHARE: usize = 16;

pub(crate) fn record(op: &MoeDown, recorder: &mut Recorder) -> Result<(), BackendError> {
    // Every piece adds what its experts make.
    let pieces = recorder.pieces(op.down)?;
    let is_in_step = recorder.traits.in_step().is_some();
    if let Some(few) = many::few(recorder.traits) {
        recorder.for_rows(few, |recorder| {
            pieces.iter().for_each(|piece| match is_in_step {
                true => product(op, recorder, piece),
                false => any_device(op, recorder, piece),
            });
        });
    }
    experts::down(op, recorder)
}

fn product(op: &MoeDown, recorder: &mut Recorder, piece: &Piece) {
    let matrix = recorder.program.matrix(op.down);
    let (n_in, weight_rows) = (matrix.n_in, matrix.n_out);
    let form = Form::of(&piece.layout, recorder.traits.rounded);
    let steps = form.steps(piece.layout.units);
    let mut kernel = Kernel::new("moe_down", recorder.traits.tuning.lanes);
    kernel.read("routes", "f32", recorder.buf(op.routes));
    kernel.read("weights", "vec4<u32>", piece.view);
    kernel.write("y", "f32", recorder.buf(op.residual));
    kernel.size("TOP_K", op.top_k);
    kernel.size("EXPERTS", op.experts);
    kernel.size("SLOT_STEPS", steps);
    kernel.size("STRIDE", piece.layout.stride / 4);
    kernel.size("FIRST", piece.rows.start);
    kernel.size("END", piece.rows.end);
    kernel.size("FIRST_OUT", 0);
    kernel.flag("IS_WHOLE", piece.rows.len() == weight_rows);
    // Each choice has a row of its own.
    let input = Input { rows: recorder.buf(op.hidden), width: n_in, at: 0, norm: None, of: Rows::Batch };
    in_step::write_input(recorder, &mut kernel, &input, n_in);
    kernel.part(&piece.layout.step_decoder(form, "weights", ""));
    kernel.part(include_str!("visits.wgsl"));
    let main = Main {
        form,
        steps: op.top_k * steps,
        n_out: recorder.width(op.residual),
        halves: 1,
        tile: 1,
        times: 1,
        is_held: true,
    };
    let groups = in_step::write_main(recorder, &mut kernel, &main);
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(groups), Count::Fixed(1)]);
}

/// For devices whose lanes cannot exchange values.
pub(crate) fn any_device(op: &MoeDown, recorder: &mut Recorder, piece: &Piece) {
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
