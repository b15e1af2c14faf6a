use super::Attention;
use crate::backend::{BackendError, KvType};
use crate::gpu::record::kv_words;
use crate::gpu::{Count, Kernel, Recorder};
use crate::program::KvLayer;

/// Lanes that share a row's head: each of them scores one of as many positions.
const LANES: usize = 64;

pub(crate) fn record(op: &Attention, recorder: &mut Recorder) -> Result<(), BackendError> {
    let KvLayer { kv_heads, head_dim } = op.layer(recorder.program);
    let mut kernel = Kernel::new("attention", LANES);
    let (qkv, out) = (recorder.buf(op.qkv), recorder.buf(op.out));
    let (keys, values) = (recorder.keys(op.kv), recorder.values(op.kv));
    kernel.read("qkv", "f32", qkv);
    kernel.read("keys", "u32", keys);
    kernel.read("values", "u32", values);
    kernel.write("y", "f32", out);
    kernel.size("WIDTH", recorder.width(op.qkv));
    kernel.size("HEADS", op.heads);
    kernel.size("KV_HEADS", kv_heads);
    kernel.size("DIM", head_dim);
    kernel.size("KV_WORDS", kv_words(recorder.limits.kv_type, head_dim));
    kernel.size("HELD", head_dim.div_ceil(LANES));
    kernel.float("SCALE", op.scale);
    // A window of as much as there can be is none.
    kernel.size("WINDOW", op.window.map_or(u32::MAX as usize, |window| window.min(u32::MAX as usize)));
    match op.soft_cap {
        Some(cap) => {
            kernel.float("CAP", cap);
            kernel.part("fn capped(score: f32) -> f32 { return soft_capped(score, CAP); }");
        }
        None => kernel.part("fn capped(score: f32) -> f32 { return score; }"),
    }
    kernel.flag("HAS_SINK", op.sinks.is_some());
    match op.sinks {
        Some(sinks) => {
            let sinks = recorder.vector(sinks);
            kernel.read("sinks", "f32", sinks);
            kernel.part("fn sink_of(head: u32) -> f32 { return sinks[head]; }");
        }
        None => kernel.part("fn sink_of(head: u32) -> f32 { return -3e38; }"),
    }
    kernel.part(match recorder.limits.kv_type {
        KvType::F32 => include_str!("cache_f32.wgsl"),
        KvType::F16 => include_str!("cache_f16.wgsl"),
    });
    kernel.part(include_str!("attention.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(op.heads), Count::Rows(1), Count::Fixed(1)]);
    Ok(())
}
