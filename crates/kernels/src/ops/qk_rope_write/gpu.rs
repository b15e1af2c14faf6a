use super::{QkRopeWrite, RopeStyle};
use crate::backend::{BackendError, KvType};
use crate::gpu::record::kv_words;
use crate::gpu::{Count, Kernel, Recorder, linear};
use crate::program::KvLayer;

/// Lanes that share a head.
const LANES: usize = 64;

pub(crate) fn record(op: &QkRopeWrite, recorder: &mut Recorder) -> Result<(), BackendError> {
    let KvLayer { kv_heads, head_dim } = op.layer(recorder.program);
    let mut kernel = Kernel::new("qk_rope_write", LANES);
    let (qkv, keys, values) = (recorder.buf(op.qkv), recorder.keys(op.kv), recorder.values(op.kv));
    kernel.write("qkv", "f32", qkv);
    kernel.write("keys", "u32", keys);
    kernel.write("values", "u32", values);
    kernel.size("WIDTH", recorder.width(op.qkv));
    kernel.size("HEADS", op.heads);
    kernel.size("KV_HEADS", kv_heads);
    kernel.size("DIM", head_dim);
    kernel.size("KV_WORDS", kv_words(recorder.limits.kv_type, head_dim));
    kernel.flag("IS_HALF", recorder.limits.kv_type == KvType::F16);
    kernel.part(
        "var<private> head: u32;\n\
         fn raw_at(row: u32, i: u32) -> f32 { return qkv[row * WIDTH + head * DIM + i]; }",
    );
    linear::write_norm(recorder, &mut kernel, op.q_norm.as_ref(), "q_", "DIM");
    linear::write_norm(recorder, &mut kernel, op.k_norm.as_ref(), "k_", "DIM");
    match op.rope {
        Some(rope) => {
            let (table, width) = (recorder.buf(rope.table), recorder.width(rope.table));
            kernel.read("table", "f32", table);
            kernel.size("PAIRS", width / 2);
            kernel.part(
                "fn cos_sin(row: u32, i: u32) -> vec2<f32> {\n    \
                 return vec2<f32>(table[2u * PAIRS * row + i], table[2u * PAIRS * row + PAIRS + i]);\n}",
            );
        }
        None => {
            kernel.size("PAIRS", 0);
            kernel.part("fn cos_sin(row: u32, i: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }");
        }
    }
    kernel.flag("IN_HALVES", op.rope.is_some_and(|rope| rope.style == RopeStyle::Halves));
    kernel.part(include_str!("qk_rope_write.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(op.heads + kv_heads), Count::Rows(1), Count::Fixed(1)]);
    Ok(())
}
