use super::{DECAY, TimeMix};
use crate::backend::BackendError;
use crate::gpu::{Count, Kernel, Recorder};

/// Lanes that share a head; each keeps some lines of its state.
const LANES: usize = 64;

pub(crate) fn record(op: &TimeMix, recorder: &mut Recorder) -> Result<(), BackendError> {
    let width = recorder.width(op.out);
    let size = width / op.heads;
    let vectors: Vec<_> = [op.k_k, op.k_a, op.r_k, op.norm.weight].into_iter().chain(op.norm.bias).collect();
    let vectors = recorder.joined(&vectors);
    let mut kernel = Kernel::new("time_mix", LANES);
    let (rkv, wagv, v_first) = (recorder.buf(op.rkv), recorder.buf(op.wagv), recorder.buf(op.v_first));
    let (state, out) = (recorder.state(op.state), recorder.buf(op.out));
    kernel.read("rkv", "f32", rkv);
    kernel.read("wagv", "f32", wagv);
    kernel.read("vectors", "f32", vectors);
    kernel.write("v_first", "f32", v_first);
    kernel.write("state", "f32", state);
    kernel.write("y", "f32", out);
    kernel.size("WIDTH", width);
    kernel.size("SIZE", size);
    kernel.size("LINES", size.div_ceil(LANES));
    kernel.size("WAGV_WIDTH", recorder.width(op.wagv));
    kernel.flag("IS_FIRST", op.is_first_layer);
    kernel.flag("HAS_BIAS", op.norm.bias.is_some());
    kernel.float("EPS", op.norm.eps);
    kernel.float("DECAY", DECAY);
    kernel.part(include_str!("time_mix.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(op.heads), Count::Spans, Count::Fixed(1)]);
    Ok(())
}
