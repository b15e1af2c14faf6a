use super::RopeTable;
use crate::backend::BackendError;
use crate::gpu::{Count, Kernel, Recorder};

const LANES: usize = 64;

/// The host computes the angles, because few devices have sines that are good enough far from zero; they come with the step.
pub(crate) fn record(op: &RopeTable, recorder: &mut Recorder) -> Result<(), BackendError> {
    let width = recorder.width(op.out);
    let mut kernel = Kernel::new("rope_table", LANES);
    let (before, out) = (recorder.angles(op.inv_freq, op.magnitude), recorder.buf(op.out));
    kernel.write("y", "f32", out);
    kernel.size("WIDTH", width);
    kernel.size("BEFORE", before);
    kernel.part(
        "@compute @workgroup_size(WG)\n\
         fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {\n    \
         let start = BEFORE * batch_rows() + WIDTH * wg.x;\n    \
         for (var i = lane; i < WIDTH; i += WG) { y[wg.x * WIDTH + i] = angle(start + i); }\n}",
    );
    recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(1), Count::Fixed(1)]);
    Ok(())
}
