//! A recording's buffers on a device: made, filled, read and written.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use exotherm_tensor::Tensor;
use exotherm_tensor::formats::{f16_to_f32, f32_to_f16};

use super::device::Gpu;
use super::record::{BufferId, BufferSpec, Class, Fill, Laid};
use super::rows::RowLayout;
use crate::backend::{BackendError, KvType};

/// Bytes of weights that are laid out before they are handed over.
pub(super) const PORTION: usize = 16 << 20;

/// How long it may take to be told of what has happened.
const TELLING: Duration = Duration::from_secs(20);

const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// Makes a buffer, zero at first.
pub(super) fn buffer(gpu: &Gpu, bytes: usize) -> wgpu::Buffer {
    let size = (bytes as u64).next_multiple_of(4);
    let wanted = wgpu::BufferDescriptor { label: None, size, usage: USAGE, mapped_at_creation: false };
    gpu.device.create_buffer(&wanted)
}

/// Makes a buffer through which the host reads.
pub(super) fn staging(gpu: &Gpu, size: u64) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    gpu.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

/// What there was no room for, and what would have needed less of it.
fn no_room(class: Class, had: usize, need: usize) -> BackendError {
    let (what, less) = match class {
        Class::Weights => ("the weights", "type of weights (--quantize, or another file)"),
        Class::Kv => ("keys and values", "--ctx or --max-seqs"),
        Class::Recurrent => ("recurrent states", "--max-seqs"),
        Class::Scratch => ("activations", "--max-seqs or --ctx"),
    };
    BackendError::NoRoom { what, had, need, less }
}

/// Makes all buffers of a recording and fills them.
pub(super) fn make(gpu: &Gpu, specs: &[BufferSpec]) -> Result<Vec<wgpu::Buffer>, BackendError> {
    let (mut made, mut had) = (Vec::new(), 0usize);
    // What failed before is not this.
    gpu.faults.are_of_memory();
    let need = specs.iter().fold(0usize, |sum, spec| sum.saturating_add(spec.bytes));
    // Everything is had before anything is brought, which takes long.
    for spec in specs {
        made.push(buffer(gpu, spec.bytes));
        if let Err(fault) = gpu.faults.check() {
            return Err(if gpu.faults.are_of_memory() { no_room(spec.class, had, need) } else { fault });
        }
        had += spec.bytes;
    }
    let of_weights = specs.iter().filter(|spec| matches!(spec.fill, Fill::Rows { .. } | Fill::Matrices(_)));
    let mut loading = Loading::new(gpu, of_weights.map(|spec| spec.bytes).sum());
    for (spec, made_here) in specs.iter().zip(&made) {
        match &spec.fill {
            Fill::Zeros => {}
            Fill::Floats(values) if values.is_empty() => {}
            Fill::Floats(values) => write_words(gpu, made_here, 0, values.iter().map(|v| v.to_bits())),
            Fill::Rows { layout, parts } => loading.upload(made_here, 0, layout, parts)?,
            Fill::Matrices(laid) => {
                for Laid { at, layout, parts } in laid {
                    loading.upload(made_here, *at as u64, layout, parts)?;
                }
            }
        }
    }
    gpu.wait()?;
    Ok(made)
}

/// Writes from a byte on.
pub(super) fn write_words(gpu: &Gpu, to: &wgpu::Buffer, at: u64, words: impl Iterator<Item = u32>) {
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    gpu.queue.write_buffer(to, at, &bytes);
}

/// Weights on their way to the device.
struct Loading<'a> {
    gpu: &'a Gpu,
    /// The portion that is being copied while the next is laid out.
    before: Option<wgpu::SubmissionIndex>,
    done: usize,
    total: usize,
}

impl Loading<'_> {
    fn new(gpu: &Gpu, total: usize) -> Loading<'_> {
        let loading = Loading { gpu, before: None, done: 0, total };
        loading.tell();
        loading
    }

    fn tell(&self) {
        if let Some(progress) = &self.gpu.progress {
            progress(self.done, self.total);
        }
    }

    /// Lays rows of weights out and hands them over, portion by portion, from a byte on.
    fn upload(
        &mut self,
        to: &wgpu::Buffer,
        mut at: u64,
        layout: &RowLayout,
        parts: &[Tensor],
    ) -> Result<(), BackendError> {
        let most = (PORTION / layout.row_bytes()).max(1);
        for part in parts {
            for start in (0..part.n_rows()).step_by(most) {
                let rows = part.rows(start..part.n_rows().min(start + most));
                let bytes = packed(&rows, layout);
                self.gpu.queue.write_buffer(to, at, &bytes);
                at += bytes.len() as u64;
                rows.give_back();
                // So that what is handed over does not pile up.
                if let Some(before) = self.before.replace(self.gpu.queue.submit([])) {
                    self.gpu.wait_for(before)?;
                }
                self.done += bytes.len();
                self.tell();
            }
        }
        Ok(())
    }
}

/// Rows as they lie on the device, laid out by all of the machine's threads.
fn packed(rows: &Tensor, layout: &RowLayout) -> Vec<u8> {
    let (stride, per_row, bytes) = (layout.row_bytes(), rows.row_bytes(), rows.bytes());
    let mut out = vec![0u8; stride * rows.n_rows()];
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let share = rows.n_rows().div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (to, from) in out.chunks_mut(share * stride).zip(bytes.chunks(share * per_row)) {
            scope.spawn(move || {
                let mut words = vec![0u32; layout.stride];
                for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(per_row)) {
                    words.fill(0);
                    layout.pack(from, &mut words);
                    for (bytes, word) in to.chunks_exact_mut(4).zip(&words) {
                        bytes.copy_from_slice(&word.to_le_bytes());
                    }
                }
            });
        }
    });
    out
}

/// The first `bytes` of a buffer, once everything before is done. They come in pieces, so that little memory is taken twice.
pub(super) fn read_words(gpu: &Gpu, from: &wgpu::Buffer, bytes: usize) -> Result<Vec<u32>, BackendError> {
    let mut words = Vec::with_capacity(bytes / 4);
    for start in (0..bytes).step_by(PORTION) {
        let size = PORTION.min(bytes - start) as u64;
        let staging = staging(gpu, size);
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(from, start as u64, &staging, 0, size);
        gpu.queue.submit([encoder.finish()]);
        take(gpu, &staging, size, &mut words)?;
    }
    Ok(words)
}

/// Maps a buffer that work already handed over writes, and takes its words.
pub(super) fn take(
    gpu: &Gpu,
    staging: &wgpu::Buffer,
    bytes: u64,
    words: &mut Vec<u32>,
) -> Result<(), BackendError> {
    let (tell, told) = mpsc::channel();
    staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |mapped| {
        // Nobody listens where waiting failed.
        let _ = tell.send(mapped);
    });
    let taken = gpu.wait().and_then(|()| {
        let failed = |why: String| BackendError::Device(format!("its memory cannot be read: {why}"));
        // Another thread that waits for the device may be about to tell.
        let mapped = told.recv_timeout(TELLING).map_err(|error| failed(error.to_string()))?;
        mapped.map_err(|error| failed(error.to_string()))?;
        let view = staging.slice(..bytes).get_mapped_range().map_err(|error| failed(error.to_string()))?;
        words.extend(view.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().expect("four bytes"))));
        Ok(())
    });
    // Also where that failed: a buffer that stays mapped cannot be written again.
    staging.unmap();
    taken
}

/// Keys or values as they are stored, as floats; heads of an odd size are padded where two elements share a word.
pub(super) fn kv_floats(kv_type: KvType, head_dim: usize, words: &[u32]) -> Vec<f32> {
    match kv_type {
        KvType::F32 => words.iter().map(|&w| f32::from_bits(w)).collect(),
        KvType::F16 => {
            let two = |w: &u32| [f16_to_f32(*w as u16), f16_to_f32((*w >> 16) as u16)];
            let head = |words: &[u32]| words.iter().flat_map(two).take(head_dim).collect::<Vec<_>>();
            words.chunks(head_dim.div_ceil(2)).flat_map(head).collect()
        }
    }
}

pub(super) fn kv_words(kv_type: KvType, head_dim: usize, values: &[f32]) -> Vec<u32> {
    match kv_type {
        KvType::F32 => values.iter().map(|v| v.to_bits()).collect(),
        KvType::F16 => {
            let two = |pair: &[f32]| {
                let half = |i: usize| pair.get(i).map_or(0, |&v| u32::from(f32_to_f16(v)));
                half(0) | half(1) << 16
            };
            values.chunks(head_dim).flat_map(|head| head.chunks(2).map(two)).collect()
        }
    }
}

/// Which of the recorded buffers something is.
pub(super) fn at(buffers: &[wgpu::Buffer], id: BufferId) -> &wgpu::Buffer {
    &buffers[id.0]
}
