//! Whole files quantized: what changes, what stays, and how a job can fail.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use exotherm_tensor::DType;
use exotherm_weights::{
    Checkpoint, GgufWriter, NewValue, QuantizeOptions, QuantizeSummary, WeightsError, quantize_gguf,
};

const SHAPES: [(&str, &[usize]); 8] = [
    ("token_embd.weight", &[300, 512]),
    ("blk.0.attn_q.weight", &[96, 512]),
    ("blk.0.attn_q.bias", &[512]),
    ("blk.0.ffn_down.weight", &[64, 96]),
    ("blk.0.ffn_up_exps.weight", &[3, 32, 256]),
    ("blk.0.ffn_gate_inp.weight", &[4, 256]),
    ("blk.0.odd.weight", &[4, 33]),
    ("output_norm.weight", &[512]),
];

/// Smooth values that quantize well.
fn values(t: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| (((i * 37 + t * 11) % 1009) as f32 / 504.5 - 1.0) * 0.2).collect()
}

fn write_f32(path: &Path, value: &dyn Fn(usize, usize) -> Vec<f32>) {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", NewValue::Text(b"test"));
    writer.set("general.file_type", NewValue::U32(0));
    writer.set("tokenizer.ggml.tokens", NewValue::Texts(&[b"a", b"b"]));
    writer.set("split.count", NewValue::U32(1));
    for (name, shape) in SHAPES {
        writer.tensor(name, DType::F32, shape);
    }
    let mut sink = writer.create(path, false).expect("created");
    for (t, (_, shape)) in SHAPES.iter().enumerate() {
        let bytes: Vec<u8> = value(t, shape.iter().product()).iter().flat_map(|v| v.to_le_bytes()).collect();
        sink.write(&bytes).expect("written");
    }
    sink.finish().expect("finished");
}

fn quantize(from: &Path, out: &Path, to: DType, threads: usize) -> Result<QuantizeSummary, WeightsError> {
    let options = QuantizeOptions { to, threads, force: false };
    quantize_gguf(from, out, &options, &mut |_, _| {}, &AtomicBool::new(false))
}

#[test]
fn weight_matrices_are_stored_as_asked_and_keep_their_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("in.gguf");
    write_f32(&input, &values);
    for (to, narrow, tolerance) in [
        (DType::Q8_0, DType::Q8_0, 0.001),
        (DType::Q4_0, DType::Q4_0, 0.03),
        (DType::Q4K, DType::Q5_0, 0.03),
        (DType::Q6K, DType::Q8_0, 0.008),
        (DType::BF16, DType::BF16, 0.001),
    ] {
        let output = folder.path().join(format!("{to}.gguf"));
        let summary = quantize(&input, &output, to, 2).expect("quantized");
        let odd = if to == DType::BF16 { DType::BF16 } else { DType::F16 };
        assert_eq!((summary.tensors, summary.converted), (8, 5), "{to}");
        assert_eq!(summary.fell_back.len(), usize::from(narrow != to) + usize::from(odd != to), "{to}");
        let mut out = Checkpoint::open(&output).expect("opened");
        assert_eq!(summary.bytes_out, out.tensor_bytes());
        assert_eq!(out.metadata().u64("general.quantization_version"), Some(2));
        assert_eq!(out.metadata().strings("tokenizer.ggml.tokens").map(Iterator::count), Some(2));
        assert!(!out.metadata().contains("split.count"));
        for (t, (name, shape)) in SHAPES.into_iter().enumerate() {
            let tensor = out.take(name, shape).expect("taken");
            let expected = match name {
                "blk.0.ffn_down.weight" => narrow,
                "blk.0.odd.weight" => odd,
                "token_embd.weight" | "blk.0.attn_q.weight" | "blk.0.ffn_up_exps.weight" => to,
                _ => DType::F32,
            };
            assert_eq!(tensor.dtype(), expected, "{name} of {to}");
            let worst = tensor
                .to_f32()
                .iter()
                .zip(values(t, tensor.len()))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            let tolerance = if expected == DType::F32 { 0.0 } else { tolerance };
            assert!(worst <= tolerance, "{name} of {to} is off by {worst}");
        }
        out.finish(&|_| false).expect("all taken");
    }
}

#[test]
fn threads_do_not_change_a_byte_and_quantized_files_requantize() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    write_f32(&path("in.gguf"), &values);
    for (threads, name) in [(1, "one"), (2, "two"), (7, "seven")] {
        quantize(&path("in.gguf"), &path(name), DType::Q5_1, threads).expect("quantized");
    }
    let one = fs::read(path("one")).expect("read");
    assert!(one == fs::read(path("two")).expect("read") && one == fs::read(path("seven")).expect("read"));

    let summary = quantize(&path("one"), &path("again"), DType::Q8_0, 2).expect("requantized");
    assert_eq!(summary.converted, 4, "all but the one that cannot be q5_1");
    let mut again = Checkpoint::open(&path("again")).expect("opened");
    let embedding = again.take("token_embd.weight", &[300, 512]).expect("taken");
    assert_eq!(embedding.dtype(), DType::Q8_0);
    let off = embedding
        .to_f32()
        .iter()
        .zip(values(0, embedding.len()))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(off < 0.01, "off by {off}");
    let same = quantize(&path("one"), &path("same"), DType::Q5_1, 2).expect("copied");
    assert_eq!(same.converted, 0);
    assert!(fs::read(path("same")).expect("read") == one);
}

#[test]
fn refusals_leave_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    write_f32(&path("in.gguf"), &values);
    let error = quantize(&path("in.gguf"), &path("in.gguf"), DType::Q8_0, 1).expect_err("itself");
    assert!(matches!(error, WeightsError::OutputIsInput(_)), "{error}");
    fs::write(path("there.gguf"), b"precious").expect("written");
    let error = quantize(&path("in.gguf"), &path("there.gguf"), DType::Q8_0, 1).expect_err("there");
    assert!(matches!(error, WeightsError::OutputExists(_)), "{error}");
    let error = quantize(&path("in.gguf"), folder.path(), DType::Q8_0, 1).expect_err("a folder");
    assert!(error.to_string().contains("is a folder"), "{error}");
    write_f32(&path("nan.gguf"), &|t, n| {
        let mut v = values(t, n);
        if t == 4 {
            v[n - 1] = f32::NAN;
        }
        v
    });
    let error = quantize(&path("nan.gguf"), &path("out.gguf"), DType::Q8_0, 2).expect_err("not finite");
    assert!(error.to_string().contains("\"blk.0.ffn_up_exps.weight\" holds a value that is not finite"));
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    fs::write(path("a.safetensors"), common::safetensors(header, 8)).expect("written");
    let error = quantize(&path("a.safetensors"), &path("out.gguf"), DType::Q8_0, 1).expect_err("no GGUF");
    assert!(error.to_string().contains("is no GGUF file"), "{error}");

    assert_eq!(fs::read(path("there.gguf")).expect("read"), b"precious");
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 4, "the four files written here");
}

#[test]
fn progress_grows_to_the_total_and_cancelling_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    write_f32(&path("in.gguf"), &values);
    let options = QuantizeOptions { to: DType::Q4_0, threads: 1, force: true };
    let mut seen = vec![0];
    let mut progress = |done, total| {
        assert!(done > *seen.last().expect("never empty") && done <= total);
        seen.push(done);
    };
    fs::write(path("out.gguf"), b"old").expect("written");
    let never = AtomicBool::new(false);
    let summary = quantize_gguf(&path("in.gguf"), &path("out.gguf"), &options, &mut progress, &never)
        .expect("quantized");
    assert_eq!(seen.last(), Some(&summary.bytes_in));
    assert!(fs::read(path("out.gguf")).expect("read").starts_with(b"GGUF"), "replaced, as forced");

    let cancelled = AtomicBool::new(false);
    let mut cancel = |_, _| cancelled.store(true, Ordering::Relaxed);
    let error = quantize_gguf(&path("in.gguf"), &path("no.gguf"), &options, &mut cancel, &cancelled);
    assert!(matches!(error, Err(WeightsError::Cancelled)));
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 2);
}
