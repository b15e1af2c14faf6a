use super::MoeRoute;
use crate::backend::BackendError;
use crate::gpu::linear::{self, Input};
use crate::gpu::{Count, Kernel, Recorder};
use crate::program::Rows;

/// Lanes that share a row; each scores some of the experts.
const LANES: usize = 64;

pub(crate) fn record(op: &MoeRoute, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (width, experts) = (recorder.width(op.x), recorder.program.matrix(op.router).n_out);
    let router = recorder.one_piece(op.router)?;
    let mut kernel = Kernel::new("moe_route", LANES);
    let (x, normed, routes) = (recorder.buf(op.x), recorder.buf(op.normed), recorder.buf(op.routes));
    kernel.read("x", "f32", x);
    kernel.read("weights", "vec4<u32>", router.view);
    kernel.write("normed_row", "f32", normed);
    kernel.write("routes", "f32", routes);
    kernel.size("EXPERTS", experts);
    kernel.size("TOP_K", op.top_k);
    kernel.size("UNITS", router.layout.units);
    kernel.size("STRIDE", router.layout.stride / 4);
    kernel.flag("RENORMALIZE", op.renormalize);
    let input = Input { rows: x, width, at: 0, norm: Some(op.norm), of: Rows::Batch };
    linear::write_input(recorder, &mut kernel, &input, width);
    kernel.part(&router.layout.decoder("weights", ""));
    kernel.part(include_str!("moe_route.wgsl"));
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(1), Count::Fixed(1)]);
    Ok(())
}
