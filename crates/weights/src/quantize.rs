//! Which type a weight is stored as, and the conversion of a whole GGUF file, tensor by tensor in memory that
//! does not grow with the file.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use exotherm_tensor::{DType, formats};

use crate::table::{Element, Entry};
use crate::writer::{GgufSink, GgufWriter, NewValue};
use crate::{Checkpoint, Format, WeightsError};

/// Elements that one thread converts at a time: a whole number of blocks of every type.
const PIECE: usize = 64 << 10;
/// Pieces per thread between two visits to the disk.
const PIECES_A_ROUND: usize = 8;

/// Names of matrices that stay as they are: small, or read element by element, or more sensitive than large.
/// llama.cpp's own quantizer leaves the same ones alone.
const KEPT: [&str; 27] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "position_embd.",
    "token_types.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g0.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp",
    "channel_mix_lerp",
];

/// The type that a weight matrix with rows of `n_in` elements, stored as `current`, gets where `wanted` was
/// asked for. Rows that are no whole number of `wanted`'s blocks fall back to a type of shorter blocks, and
/// to f16 if those do not fit either, but never to one that takes more room than `current` does.
pub fn storage_type(current: DType, n_in: usize, wanted: DType) -> DType {
    let fits = |dtype: DType| n_in.is_multiple_of(dtype.block_len());
    if fits(wanted) {
        return wanted;
    }
    let shorter = match wanted {
        DType::Q2K | DType::Q3K => DType::Q4_0,
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        other => other,
    };
    let fallback = if fits(shorter) { shorter } else { DType::F16 };
    let bits = |dtype: DType| dtype.block_bytes() * 256 / dtype.block_len();
    if bits(fallback) < bits(current) { fallback } else { current }
}

/// Whether a tensor is a weight matrix, which quantizing is about.
pub fn is_weight_matrix(name: &str, shape: &[usize]) -> bool {
    let n_dims = shape.iter().skip_while(|&&n| n == 1).count();
    n_dims >= 2 && name.ends_with(".weight") && !KEPT.iter().any(|kept| name.contains(kept))
}

#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions {
    pub to: DType,
    pub threads: usize,
    /// Replace a file that is there already.
    pub force: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuantizeSummary {
    pub tensors: usize,
    /// Tensors that changed their type.
    pub converted: usize,
    /// Weight matrices that could not take the type asked for, and what they are stored as.
    pub fell_back: Vec<(String, DType)>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Writes `input`, a GGUF file or any part of a split one, to `output` with its weight matrices stored as
/// asked. `progress` is told the bytes done and the bytes in all. Cancelled or failed, it leaves no file.
pub fn quantize_gguf(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(u64, u64),
    cancelled: &AtomicBool,
) -> Result<QuantizeSummary, WeightsError> {
    let source = Checkpoint::open(input)?;
    if source.format() != Format::Gguf {
        return Err(WeightsError::not_a_model(
            input,
            "is no GGUF file; only those can be quantized to a file",
        ));
    }
    refuse_output(&source, output, options.force)?;
    let mut writer = GgufWriter::new();
    writer.copy_metadata(source.metadata(), |key| key.starts_with("split."));
    writer.set("general.file_type", NewValue::U32(file_type(options.to)));
    writer.set("general.quantization_version", NewValue::U32(2));
    let mut summary = QuantizeSummary { bytes_in: source.tensor_bytes(), ..QuantizeSummary::default() };
    let mut targets = Vec::with_capacity(source.entries().len());
    for entry in source.entries() {
        let (from, to) = target(entry, options.to, &mut summary);
        writer.tensor(&*entry.name, to, &entry.shape);
        targets.push((entry, from, to));
    }
    let mut job = Job {
        sink: writer.create(output, options.force)?,
        buffer: Vec::new(),
        threads: options.threads.max(1),
        done: 0,
        total: summary.bytes_in,
        progress,
        cancelled,
    };
    for (entry, from, to) in targets {
        let bytes = source.raw(entry);
        summary.bytes_out += job.convert(bytes, from, to).map_err(|e| match e {
            Failure::NotFinite => {
                WeightsError::NotFinite { path: input.to_path_buf(), name: entry.name.to_string() }
            }
            Failure::Weights(e) => e,
        })?;
        source.give_back_tensor(entry);
    }
    job.sink.finish()?;
    Ok(summary)
}

fn refuse_output(source: &Checkpoint, output: &Path, force: bool) -> Result<(), WeightsError> {
    // A file that is not there yet has no canonical path and cannot be one of the inputs.
    let Ok(target) = fs::canonicalize(output) else { return Ok(()) };
    if source.files().any(|file| fs::canonicalize(file).is_ok_and(|file| file == target)) {
        return Err(WeightsError::OutputIsInput(output.to_path_buf()));
    }
    if target.is_dir() {
        let reason = "it is a folder; give the name of the new file".to_string();
        return Err(WeightsError::Write { path: output.to_path_buf(), reason });
    }
    match force {
        true => Ok(()),
        false => Err(WeightsError::OutputExists(output.to_path_buf())),
    }
}

/// The types a tensor has and gets.
fn target(entry: &Entry, wanted: DType, summary: &mut QuantizeSummary) -> (DType, DType) {
    let Element::Weight(from) = entry.element else {
        unreachable!("a GGUF file with another element was refused when it was opened")
    };
    summary.tensors += 1;
    let n_in = entry.shape.last().copied().unwrap_or(1);
    if !is_weight_matrix(&entry.name, &entry.shape) {
        return (from, from);
    }
    let to = storage_type(from, n_in, wanted);
    if to != wanted {
        summary.fell_back.push((entry.name.to_string(), to));
    }
    summary.converted += usize::from(to != from);
    (from, to)
}

/// The number by which llama.cpp knows a file of mostly this type.
fn file_type(to: DType) -> u32 {
    match to {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2K => 10,
        DType::Q3K => 11,
        DType::Q4K => 14,
        DType::Q5K => 16,
        DType::Q6K => 18,
        DType::BF16 => 32,
    }
}

enum Failure {
    NotFinite,
    Weights(WeightsError),
}

impl From<WeightsError> for Failure {
    fn from(e: WeightsError) -> Failure {
        Failure::Weights(e)
    }
}

struct Job<'a> {
    sink: GgufSink,
    buffer: Vec<u8>,
    threads: usize,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
    cancelled: &'a AtomicBool,
}

impl Job<'_> {
    /// Converts one tensor round by round and gives the bytes written. Blocks lie along rows and rows are whole
    /// blocks, so a tensor may be cut wherever a block of either type ends, whatever its shape.
    fn convert(&mut self, bytes: &[u8], from: DType, to: DType) -> Result<u64, Failure> {
        let piece_in = PIECE / from.block_len() * from.block_bytes();
        let mut written = 0;
        for round in bytes.chunks(piece_in * PIECES_A_ROUND * self.threads) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(WeightsError::Cancelled.into());
            }
            if from == to {
                self.sink.write(round)?;
                written += round.len() as u64;
            } else {
                let n = round.len() / from.block_bytes() * from.block_len();
                self.buffer.resize(n / to.block_len() * to.block_bytes(), 0);
                if !convert_round(round, from, &mut self.buffer, to, self.threads) {
                    return Err(Failure::NotFinite);
                }
                self.sink.write(&self.buffer)?;
                written += self.buffer.len() as u64;
            }
            self.done += round.len() as u64;
            (self.progress)(self.done, self.total);
        }
        Ok(written)
    }
}

/// Converts a round on all threads; false if it met a value that is not finite and cannot be quantized.
fn convert_round(bytes: &[u8], from: DType, out: &mut [u8], to: DType, threads: usize) -> bool {
    let pieces = (bytes.len() / from.block_bytes() * from.block_len()).div_ceil(PIECE);
    let elements = pieces.div_ceil(threads) * PIECE;
    let (share_in, share_out) =
        (elements / from.block_len() * from.block_bytes(), elements / to.block_len() * to.block_bytes());
    std::thread::scope(|scope| {
        let shares = bytes.chunks(share_in).zip(out.chunks_mut(share_out));
        let workers: Vec<_> =
            shares.map(|(bytes, out)| scope.spawn(move || convert_share(bytes, from, out, to))).collect();
        // A panic in a worker is a bug of ours; treating it as a failure leaves no file behind.
        workers.into_iter().map(|w| w.join().unwrap_or(false)).fold(true, |all, fine| all & fine)
    })
}

fn convert_share(bytes: &[u8], from: DType, out: &mut [u8], to: DType) -> bool {
    let (piece_in, piece_out) =
        (PIECE / from.block_len() * from.block_bytes(), PIECE / to.block_len() * to.block_bytes());
    let mut values = vec![0.0f32; PIECE];
    for (bytes, out) in bytes.chunks(piece_in).zip(out.chunks_mut(piece_out)) {
        let values = &mut values[..bytes.len() / from.block_bytes() * from.block_len()];
        formats::decode(from, bytes, values);
        if to.is_quantized() && !values.iter().all(|v| v.is_finite()) {
            return false;
        }
        formats::encode(to, values, out);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        for (wanted, shorter) in [
            (DType::Q2K, DType::Q4_0),
            (DType::Q3K, DType::Q4_0),
            (DType::Q4K, DType::Q5_0),
            (DType::Q5K, DType::Q5_1),
            (DType::Q6K, DType::Q8_0),
        ] {
            assert_eq!(storage_type(DType::F32, 512, wanted), wanted);
            assert_eq!(storage_type(DType::F32, 96, wanted), shorter);
            assert_eq!(storage_type(DType::F32, 33, wanted), DType::F16);
        }
        assert_eq!(storage_type(DType::F32, 33, DType::Q8_0), DType::F16);
        assert_eq!(storage_type(DType::F32, 33, DType::BF16), DType::BF16);
    }

    #[test]
    fn a_fallback_never_takes_more_room() {
        assert_eq!(storage_type(DType::BF16, 33, DType::Q8_0), DType::BF16);
        assert_eq!(storage_type(DType::F16, 33, DType::Q8_0), DType::F16);
        assert_eq!(storage_type(DType::Q4_0, 96, DType::Q4K), DType::Q4_0);
        assert_eq!(storage_type(DType::Q4_1, 96, DType::Q6K), DType::Q4_1);
        assert_eq!(storage_type(DType::Q4_1, 96, DType::Q8_0), DType::Q8_0, "what fits is done as asked");
    }

    #[test]
    fn only_weight_matrices_are_quantized() {
        assert!(is_weight_matrix("blk.0.attn_q.weight", &[64, 64]));
        assert!(is_weight_matrix("blk.0.ffn_down_exps.weight", &[4, 64, 64]));
        assert!(is_weight_matrix("token_embd.weight", &[100, 64]));
        for name in ["blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight", "position_embd.weight"] {
            assert!(!is_weight_matrix(name, &[64, 64]), "{name}");
        }
        for name in ["blk.3.time_mix_w1.weight", "blk.3.time_mix_lerp_fused.weight", "blk.0.attn_q.bias"] {
            assert!(!is_weight_matrix(name, &[64, 64]), "{name}");
        }
        assert!(!is_weight_matrix("blk.0.channel.weight", &[1, 1, 64]));
    }
}
