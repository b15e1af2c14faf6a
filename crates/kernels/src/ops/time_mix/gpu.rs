use super::{DECAY, TimeMix};
use crate::backend::BackendError;
use crate::gpu::{Count, Kernel, Recorder, unrolled};

/// Lanes that share a head, at least and at most; each keeps a line of its state, or some where there are more lines.
const LANES: [usize; 2] = [32, 256];

pub(crate) fn record(op: &TimeMix, recorder: &mut Recorder) -> Result<(), BackendError> {
    let width = recorder.width(op.out);
    let size = width / op.heads;
    let (lanes, quads) = (size.next_power_of_two().clamp(LANES[0], LANES[1]), size.div_ceil(4));
    let vectors: Vec<_> = [op.k_k, op.k_a, op.r_k, op.norm.weight].into_iter().chain(op.norm.bias).collect();
    let vectors = recorder.joined(&vectors);
    let mut kernel = Kernel::new("time_mix", lanes);
    let (rkv, wagv, v_first) = (recorder.buf(op.rkv), recorder.buf(op.wagv), recorder.buf(op.v_first));
    let (state, out) = (recorder.state(op.state), recorder.buf(op.out));
    let in_quads = size.is_multiple_of(4);
    kernel.read("rkv", "f32", rkv);
    kernel.read("wagv", "f32", wagv);
    kernel.read("vectors", "f32", vectors);
    kernel.write("v_first", "f32", v_first);
    kernel.write("state", if in_quads { "vec4<f32>" } else { "f32" }, state);
    kernel.write("y", "f32", out);
    kernel.size("WIDTH", width);
    kernel.size("SIZE", size);
    kernel.size("QUADS", quads);
    kernel.size("WAGV_WIDTH", recorder.width(op.wagv));
    kernel.flag("IS_FIRST", op.is_first_layer);
    kernel.flag("HAS_BIAS", op.norm.bias.is_some());
    kernel.float("EPS", op.norm.eps);
    kernel.float("DECAY", DECAY);
    kernel.part(if in_quads { WHOLE_QUADS } else { PARTS_OF_QUADS });
    let counts = [("LINES", size.div_ceil(lanes)), ("QUADS", quads)];
    kernel.part(&unrolled(include_str!("time_mix.wgsl"), &counts));
    recorder.dispatch(&kernel, [Count::Fixed(op.heads), Count::Spans, Count::Fixed(1)]);
    Ok(())
}

/// How four elements of a line of the state are read and written.
const WHOLE_QUADS: &str = "\
fn state_quad(at: u32, i: u32) -> vec4<f32> { return state[at / 4u + i]; }
fn keep_quad(at: u32, i: u32, quad: vec4<f32>) { state[at / 4u + i] = quad; }";

const PARTS_OF_QUADS: &str = "\
fn state_quad(at: u32, i: u32) -> vec4<f32> {
    var quad = vec4<f32>(0.0);
    for (var k = 0u; k < min(4u, SIZE - 4u * i); k++) {
        quad[k] = state[at + 4u * i + k];
    }
    return quad;
}
fn keep_quad(at: u32, i: u32, quad: vec4<f32>) {
    for (var k = 0u; k < min(4u, SIZE - 4u * i); k++) {
        state[at + 4u * i + k] = quad[k];
    }
}";
