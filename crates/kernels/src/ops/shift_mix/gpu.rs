use super::ShiftMix;
use crate::backend::BackendError;
use crate::gpu::{Count, Kernel, Recorder, View, linear};
use crate::ops::Norm;
use crate::program::{Buf, RecId, VecId};

const LANES: usize = 256;

/// So few rows share out their columns, for there would be too few workgroups: each of them norms the row anew.
const FEW: usize = 8;

pub(crate) fn record(op: &ShiftMix, recorder: &mut Recorder) -> Result<(), BackendError> {
    let out = recorder.buf(op.out);
    mixed(recorder, op.x, &op.norm, (op.mix, op.mixes), op.state, out);
    Ok(())
}

/// Rows normed and mixed with those before them, in `mixes` ways; the state is moved on.
pub(crate) fn mixed(
    recorder: &mut Recorder,
    x: Buf,
    norm: &Norm,
    (mix, mixes): (VecId, usize),
    state: RecId,
    out: View,
) {
    let width = recorder.width(x);
    let (x, mix, state) = (recorder.buf(x), recorder.vector(mix), recorder.state(state));
    for (rows, columns) in [(0..=FEW, LANES.min(width)), (FEW + 1..=usize::MAX, width)] {
        recorder.for_rows(rows, |recorder| {
            let mut kernel = Kernel::new("shift_mix", LANES);
            kernel.read("x", "f32", x);
            kernel.read("mix", "f32", mix);
            kernel.write("state", "f32", state);
            kernel.write("y", "f32", out);
            kernel.size("WIDTH", width);
            kernel.size("MIXES", mixes);
            kernel.size("COLUMNS", columns);
            kernel.part("fn raw_at(row: u32, i: u32) -> f32 { return x[row * WIDTH + i]; }");
            linear::write_norm(recorder, &mut kernel, Some(norm), "", "WIDTH");
            kernel.part(include_str!("shift_mix.wgsl"));
            let parts = width.div_ceil(columns);
            recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(parts), Count::Fixed(1)]);
        });
    }
}
