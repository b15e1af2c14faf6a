use super::MoeRoute;
use crate::backend::BackendError;
use crate::gpu::in_step;
use crate::gpu::linear::{self, Input, Output};
use crate::gpu::{Count, Kernel, Recorder};
use crate::program::Rows;

/// Lanes that share a row; each scores some of the experts.
const LANES: usize = 64;

pub(crate) fn record(op: &MoeRoute, recorder: &mut Recorder) -> Result<(), BackendError> {
    let x = recorder.buf(op.x);
    let width = recorder.width(op.x);
    let input = Input { rows: x, width, at: 0, norm: Some(op.norm), of: Rows::Batch };
    if recorder.traits.in_step().is_some() {
        return score_and_choose(op, recorder, input);
    }
    let router = recorder.one_piece(op.router)?;
    let mut kernel = Kernel::new("moe_route", LANES);
    kernel.read("x", "f32", x);
    kernel.read("weights", "vec4<u32>", router.view);
    write_op(op, recorder, &mut kernel);
    kernel.size("UNITS", router.layout.units);
    kernel.size("STRIDE", router.layout.stride / 4);
    linear::write_input(recorder, &mut kernel, &input, width);
    kernel.part(&router.layout.decoder("weights", ""));
    kernel.part(include_str!("moe_route.wgsl"));
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(1), Count::Fixed(1)]);
    Ok(())
}

/// What is chosen, and where it goes.
fn write_op(op: &MoeRoute, recorder: &mut Recorder, kernel: &mut Kernel) {
    kernel.write("normed_row", "f32", recorder.buf(op.normed));
    kernel.write("routes", "f32", recorder.buf(op.routes));
    kernel.size("EXPERTS", recorder.program.matrix(op.router).n_out);
    kernel.size("TOP_K", op.top_k);
    kernel.flag("RENORMALIZE", op.renormalize);
}

/// The scores are a product like others: one workgroup alone would take far longer to read a router than another dispatch does.
fn score_and_choose(op: &MoeRoute, recorder: &mut Recorder, input: Input) -> Result<(), BackendError> {
    let experts = recorder.program.matrix(op.router).n_out;
    let scores = recorder.scratch(experts)?;
    // Which experts are visited is not to depend on the number of rows.
    linear::record_for_few(recorder, "moe_score", input, op.router, Output::plain(scores, experts))?;
    let mut kernel = Kernel::new("moe_choose", recorder.traits.tuning.lanes);
    kernel.read("scores", "f32", scores);
    write_op(op, recorder, &mut kernel);
    in_step::write_input(recorder, &mut kernel, &input, input.width);
    kernel.part(include_str!("moe_choose.wgsl"));
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(1), Count::Fixed(1)]);
    Ok(())
}
