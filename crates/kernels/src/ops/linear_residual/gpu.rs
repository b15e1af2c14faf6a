use super::LinearResidual;
use crate::backend::BackendError;
use crate::gpu::linear::{self, Input, Output};
use crate::gpu::{Count, Kernel, Recorder, View};
use crate::ops::Norm;
use crate::program::Rows;

const LANES: usize = 128;

pub(crate) fn record(op: &LinearResidual, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (x, y, width) = (recorder.buf(op.x), recorder.buf(op.residual), recorder.width(op.residual));
    let input = Input { rows: x, width: recorder.width(op.x), at: 0, norm: None, of: Rows::Batch };
    let Some(norm) = &op.post_norm else {
        let output = Output { bias: op.bias, adds: true, ..Output::plain(y, width) };
        return linear::record(recorder, "linear_residual", input, op.weight, output);
    };
    // The norm needs the whole row.
    let raw = recorder.scratch(width)?;
    let output = Output { bias: op.bias, ..Output::plain(raw, width) };
    linear::record(recorder, "linear", input, op.weight, output)?;
    add_normed(recorder, raw, norm, y, width);
    Ok(())
}

fn add_normed(recorder: &mut Recorder, raw: View, norm: &Norm, to: View, width: usize) {
    let mut kernel = Kernel::new("add_normed", LANES);
    kernel.read("x", "f32", raw);
    kernel.write("y", "f32", to);
    kernel.size("WIDTH", width);
    kernel.part("fn raw_at(row: u32, i: u32) -> f32 { return x[row * WIDTH + i]; }");
    linear::write_norm(recorder, &mut kernel, Some(norm), "", "WIDTH");
    kernel.part(
        "@compute @workgroup_size(WG)\n\
         fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {\n    \
         let s = statistics(lane, wg.x);\n    for (var i = lane; i < WIDTH; i += WG) {\n        \
         y[wg.x * WIDTH + i] += normed(raw_at(wg.x, i), s, i);\n    }\n}",
    );
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(1), Count::Fixed(1)]);
}
