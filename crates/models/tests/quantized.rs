//! Quantizing at load gives what quantizing the file gives, bit for bit, for every type and both kinds of layers.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::{Expected, logits};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_models::{LoadOptions, load};
use exotherm_tensor::DType;
use exotherm_weights::{Checkpoint, GgufWriter, NewValue, QuantizeOptions, quantize_gguf};

const WIDTH: usize = 64;
const HIDDEN: usize = 256;
const VOCAB: usize = 96;
const EXPERTS: usize = 3;

/// A number that follows from where it stands, spread evenly over -1..1.
fn value(seed: u64) -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x >> 40) as f32) / (1u64 << 23) as f32 - 1.0
}

fn tensors(is_moe: bool) -> Vec<(String, Vec<usize>)> {
    let mut all =
        vec![("token_embd.weight".into(), vec![VOCAB, WIDTH]), ("output_norm.weight".into(), vec![WIDTH])];
    for layer in 0..2 {
        let mut add =
            |name: &str, shape: &[usize]| all.push((format!("blk.{layer}.{name}.weight"), shape.to_vec()));
        for (name, rows) in
            [("attn_q", WIDTH), ("attn_k", WIDTH / 2), ("attn_v", WIDTH / 2), ("attn_output", WIDTH)]
        {
            add(name, &[rows, WIDTH]);
        }
        add("attn_norm", &[WIDTH]);
        add("ffn_norm", &[WIDTH]);
        if is_moe {
            add("attn_q_norm", &[16]);
            add("attn_k_norm", &[16]);
            add("ffn_gate_inp", &[EXPERTS, WIDTH]);
            add("ffn_gate_exps", &[EXPERTS, HIDDEN, WIDTH]);
            add("ffn_up_exps", &[EXPERTS, HIDDEN, WIDTH]);
            add("ffn_down_exps", &[EXPERTS, WIDTH, HIDDEN]);
        } else {
            add("ffn_gate", &[HIDDEN, WIDTH]);
            add("ffn_up", &[HIDDEN, WIDTH]);
            add("ffn_down", &[WIDTH, HIDDEN]);
        }
    }
    all
}

fn write_model(path: &Path, is_moe: bool) {
    let arch = if is_moe { "qwen3moe" } else { "llama" };
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", NewValue::Text(arch.as_bytes()));
    let counts = [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", WIDTH),
        ("feed_forward_length", HIDDEN),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("expert_count", EXPERTS),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", HIDDEN),
    ];
    for (key, n) in counts {
        writer.set(format!("{arch}.{key}"), NewValue::U32(n as u32));
    }
    writer.set(format!("{arch}.attention.layer_norm_rms_epsilon"), NewValue::F32(1e-5));
    let tensors = tensors(is_moe);
    for (name, shape) in &tensors {
        writer.tensor(name, DType::F32, shape);
    }
    let mut sink = writer.create(path, false).expect("a new file");
    for (at, (_, shape)) in tensors.iter().enumerate() {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| match shape.len() {
            1 => 1.0 + 0.1 * value((at << 32 | i) as u64),
            _ => value((at << 32 | i) as u64) / 4.0,
        });
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        sink.write(&bytes).expect("room on the disk");
    }
    sink.finish().expect("room on the disk");
}

fn logits_of(path: &Path, quantize: Option<DType>) -> Vec<Vec<f32>> {
    let options = LoadOptions { quantize, progress: None };
    let model = load(&mut Checkpoint::open(path).expect("opens"), &options).expect("loads");
    let want =
        Expected { tokens: vec![3, 1, 4, 1, 5, 9, 2, 6], positions: (0..8).collect(), logits: Vec::new() };
    logits(&CpuBackend::new(2), &model.program, &want, 5)
}

#[test]
fn quantizing_at_load_equals_quantizing_the_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for is_moe in [false, true] {
        let plain = dir.path().join(format!("{is_moe}.gguf"));
        write_model(&plain, is_moe);
        let exact = logits_of(&plain, None);
        for to in DType::all() {
            let file = dir.path().join(format!("{is_moe}-{to}.gguf"));
            let options = QuantizeOptions { to, threads: 2, force: false };
            quantize_gguf(&plain, &file, &options, &mut |_, _| {}, &AtomicBool::new(false))
                .expect("quantizes");
            let (from_file, at_load) = (logits_of(&file, None), logits_of(&plain, Some(to)));
            assert_eq!(from_file, at_load, "{to}");
            let far = exact.iter().flatten().zip(at_load.iter().flatten()).map(|(a, b)| (a - b).abs());
            let far = far.fold(0.0, f32::max);
            assert_eq!(far == 0.0, to == DType::F32, "{to} is {far} from f32");
            assert!(far < 4.0, "{to} is {far} from f32");
        }
    }
}
