//! From a program to what a device does for it: buffers, kernels and dispatches, written down before any device is asked for
//! anything. So memory is known to the byte beforehand, dispatches are counted and kernels validated without a device.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use exotherm_tensor::Tensor;

use super::device::Traits;
use super::kernel::Kernel;
use super::rows::RowLayout;
use crate::backend::{BackendError, KvType, Limits, MemoryUse};
use crate::batch::BLOCK;
use crate::ops;
use crate::ops::Op;
use crate::program::{Buf, KvId, MatId, Program, RecId, Rows, VecId};
use crate::sampling;
use crate::sampling::gpu::Choice;

/// Offsets of bindings are multiples of this on every device.
const ALIGNMENT: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BufferId(pub usize);

/// A part of a buffer, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct View {
    pub buffer: BufferId,
    pub offset: usize,
    pub bytes: usize,
}

/// What a buffer's memory counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Weights,
    Kv,
    Recurrent,
    Scratch,
}

/// What a buffer holds from the start.
pub(crate) enum Fill {
    Zeros,
    Floats(Vec<f32>),
    /// Rows of weights, one after another.
    Rows {
        layout: RowLayout,
        parts: Vec<Tensor>,
    },
    /// Matrices, each from its own byte on.
    Matrices(Vec<Laid>),
}

/// A matrix of one type among others.
pub(crate) struct Laid {
    pub at: usize,
    pub layout: RowLayout,
    pub parts: Vec<Tensor>,
}

pub(crate) struct BufferSpec {
    pub bytes: usize,
    pub class: Class,
    pub fill: Fill,
}

/// How many workgroups there are in a direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Count {
    Fixed(usize),
    /// One for every so many rows of the batch.
    Rows(usize),
    /// One for every so many rows that want logits.
    LogitRows(usize),
    /// One for every so many of the batch's (row, expert) pairs, and one more for every expert that has any.
    Pairs {
        of_row: usize,
        per: usize,
        experts: usize,
    },
    Spans,
    /// One for every tile of rows that attention takes together.
    Tiles,
    /// One for every row that it takes alone, or stretch of one.
    Items,
    /// One for every row whose stretches it puts together afterwards.
    Splits,
    /// One for every choice that is asked for.
    Asked,
    /// One for every choice for which tokens are weighed.
    Weighed,
}

/// Beside which other ops of the program a dispatch is run: an op may do what the next one begins with, and must not where that is
/// run alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beside {
    Any,
    WithNext,
    WithoutNext,
    WithoutPrevious,
}

impl Beside {
    /// Whether a dispatch of this op is run where these ops are.
    pub fn fits(self, op: usize, ops: &Range<usize>) -> bool {
        match self {
            Beside::Any => true,
            Beside::WithNext => ops.contains(&(op + 1)),
            Beside::WithoutNext => !ops.contains(&(op + 1)),
            Beside::WithoutPrevious => op == 0 || !ops.contains(&(op - 1)),
        }
    }
}

pub(crate) struct Dispatch {
    /// The op that it is part of.
    pub op: usize,
    pub beside: Beside,
    pub kernel: usize,
    pub views: Vec<View>,
    pub counts: [Count; 3],
    /// Of how many rows: what is best for one is not for many.
    pub rows: RangeInclusive<usize>,
}

/// A kernel's text, and which of its bindings are written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct KernelText {
    pub label: &'static str,
    pub text: String,
    pub is_written: Vec<bool>,
}

/// Cosines and sines of a step's rows, which the host writes with the step.
pub(crate) struct Angles {
    pub inv_freq: VecId,
    pub magnitude: f32,
    /// Of a row.
    pub width: usize,
}

/// Rows of a matrix that are of one type and lie in one binding.
#[derive(Clone)]
pub(crate) struct Piece {
    pub layout: RowLayout,
    /// Rows of the matrix.
    pub rows: Range<usize>,
    pub view: View,
}

#[derive(Default)]
pub(crate) struct Recording {
    pub buffers: Vec<BufferSpec>,
    pub kernels: Vec<KernelText>,
    pub dispatches: Vec<Dispatch>,
    pub angles: Vec<Angles>,
    /// Where activations and state lie.
    pub slots: Vec<BufferId>,
    pub keys: Vec<BufferId>,
    pub values: Vec<BufferId>,
    pub recurrent: Vec<BufferId>,
    pub choice: Option<Choice>,
}

impl Recording {
    /// Cosines and sines that come with every row of a step.
    pub fn angles_of_row(&self) -> usize {
        self.angles.iter().map(|angles| angles.width).sum()
    }

    /// Dispatches of an op in a step of so many rows whose contexts are one stretch each, where all ops are run: each waits for the
    /// one before it, so their number decides how fast one row is.
    pub fn dispatches_of(&self, ops: usize, op: usize, rows: usize) -> usize {
        let of_others = |count: &Count| matches!(count, Count::Tiles | Count::Splits);
        let is_run = |dispatch: &&Dispatch| {
            dispatch.op == op
                && dispatch.beside.fits(op, &(0..ops))
                && dispatch.rows.contains(&rows)
                && !dispatch.counts.iter().any(of_others)
        };
        self.dispatches.iter().filter(is_run).count()
    }

    pub fn memory(&self) -> MemoryUse {
        let of = |class| {
            let buffers = self.buffers.iter().filter(|b| b.class == class);
            buffers.fold(0usize, |sum, b| sum.saturating_add(b.bytes))
        };
        MemoryUse {
            weights: of(Class::Weights),
            kv: of(Class::Kv),
            recurrent: of(Class::Recurrent),
            scratch: of(Class::Scratch),
        }
    }
}

/// What ops record themselves with.
pub(crate) struct Recorder<'a> {
    pub program: &'a Program,
    pub limits: &'a Limits,
    pub traits: &'a Traits,
    recording: Recording,
    op: usize,
    rows: RangeInclusive<usize>,
    beside: Beside,
    /// Room that ops have had for themselves, and which op has it at present.
    scratch: Vec<(BufferId, usize)>,
    vectors: HashMap<Vec<u32>, View>,
    vector_values: Vec<f32>,
    matrices: HashMap<u32, Vec<Piece>>,
    common: HashMap<&'static str, BufferId>,
    texts: HashMap<String, usize>,
}

/// Steps of any size.
pub(super) const ALL_ROWS: RangeInclusive<usize> = 0..=usize::MAX;

/// The buffer of all vectors.
const VECTORS: BufferId = BufferId(0);

/// Writes down what a program is on a device with these traits.
pub(crate) fn record(program: &Program, limits: &Limits, traits: &Traits) -> Result<Recording, BackendError> {
    let mut recorder = Recorder {
        program,
        limits,
        traits,
        recording: Recording::default(),
        op: 0,
        rows: ALL_ROWS,
        beside: Beside::Any,
        scratch: Vec::new(),
        vectors: HashMap::new(),
        vector_values: Vec::new(),
        matrices: HashMap::new(),
        common: HashMap::new(),
        texts: HashMap::new(),
    };
    recorder.buffer(0, Class::Weights, Fill::Zeros)?;
    recorder.take_state()?;
    for (i, op) in program.ops().iter().enumerate() {
        recorder.op = i;
        record_op(op, &mut recorder)?;
    }
    recorder.op = program.ops().len();
    recorder.recording.choice = Some(sampling::gpu::record(&mut recorder)?);
    let Recorder { mut recording, vector_values, .. } = recorder;
    let vectors = &mut recording.buffers[VECTORS.0];
    vectors.bytes = 4 * vector_values.len();
    vectors.fill = Fill::Floats(vector_values);
    Ok(recording)
}

fn record_op(op: &Op, recorder: &mut Recorder) -> Result<(), BackendError> {
    match op {
        Op::Embed(op) => ops::embed::gpu::record(op, recorder),
        Op::RopeTable(op) => ops::rope_table::gpu::record(op, recorder),
        Op::NormLinear(op) => ops::norm_linear::gpu::record(op, recorder),
        Op::QkRopeWrite(op) => ops::qk_rope_write::gpu::record(op, recorder),
        Op::Attention(op) => ops::attention::gpu::record(op, recorder),
        Op::LinearResidual(op) => ops::linear_residual::gpu::record(op, recorder),
        Op::MoeRoute(op) => ops::moe_route::gpu::record(op, recorder),
        Op::MoeGateUp(op) => ops::moe_gate_up::gpu::record(op, recorder),
        Op::MoeDown(op) => ops::moe_down::gpu::record(op, recorder),
        Op::ShiftMix(op) => ops::shift_mix::gpu::record(op, recorder),
        Op::GroupedLinear(op) => ops::grouped_linear::gpu::record(op, recorder),
        Op::Lora(op) => ops::lora::gpu::record(op, recorder),
        Op::TimeMix(op) => ops::time_mix::gpu::record(op, recorder),
        Op::ChannelMix(op) => ops::channel_mix::gpu::record(op, recorder),
        Op::Head(op) => ops::head::gpu::record(op, recorder),
    }
}

impl Recorder<'_> {
    fn take_state(&mut self) -> Result<(), BackendError> {
        let (program, limits) = (self.program, self.limits);
        for slot in program.plan().slots() {
            let rows = self.most_rows(slot.rows);
            let id = self.floats(&[slot.width, rows], Class::Scratch)?;
            self.recording.slots.push(id);
        }
        for layer in &program.state().kv {
            let words = kv_words(limits.kv_type, layer.head_dim);
            let sizes = [words, layer.kv_heads, BLOCK, limits.blocks];
            let (keys, values) = (self.floats(&sizes, Class::Kv)?, self.floats(&sizes, Class::Kv)?);
            self.recording.keys.push(keys);
            self.recording.values.push(values);
        }
        for &width in &program.state().recurrent {
            let id = self.floats(&[width, limits.slots], Class::Recurrent)?;
            self.recording.recurrent.push(id);
        }
        Ok(())
    }

    /// A buffer of as many words as the product of the sizes, zero at first.
    fn floats(&mut self, sizes: &[usize], class: Class) -> Result<BufferId, BackendError> {
        let bytes = sizes.iter().try_fold(4usize, |product, &size| product.checked_mul(size));
        self.buffer(bytes.unwrap_or(usize::MAX), class, Fill::Zeros)
    }

    /// Every buffer is bound as a whole, so none may be larger than a binding.
    fn buffer(&mut self, bytes: usize, class: Class, fill: Fill) -> Result<BufferId, BackendError> {
        if bytes > self.traits.max_binding {
            let what = match class {
                Class::Weights => "a layer's weights on the GPU",
                Class::Kv => "a layer's keys or values on the GPU",
                Class::Recurrent => "a layer's recurrent state on the GPU",
                Class::Scratch => "activations on the GPU",
            };
            return Err(BackendError::Memory { what, bytes });
        }
        self.recording.buffers.push(BufferSpec { bytes: bytes.max(4), class, fill });
        Ok(BufferId(self.recording.buffers.len() - 1))
    }

    fn whole(&self, buffer: BufferId) -> View {
        View { buffer, offset: 0, bytes: self.recording.buffers[buffer.0].bytes }
    }

    /// How many rows there are at most, of the batch or of those that want logits.
    pub fn most_rows(&self, of: Rows) -> usize {
        if of == Rows::Batch { self.limits.rows } else { self.limits.logit_rows }
    }

    /// Where a buffer of the program lies.
    pub fn buf(&self, buf: Buf) -> View {
        let slot = self.program.plan().slot_of(buf).expect("an op's buffer has a slot");
        self.whole(self.recording.slots[slot])
    }

    pub fn width(&self, buf: Buf) -> usize {
        self.program.buffer(buf).width
    }

    pub fn keys(&self, kv: KvId) -> View {
        self.whole(self.recording.keys[kv.0 as usize])
    }

    pub fn values(&self, kv: KvId) -> View {
        self.whole(self.recording.values[kv.0 as usize])
    }

    pub fn state(&self, state: RecId) -> View {
        self.whole(self.recording.recurrent[state.0 as usize])
    }

    /// Room for `width` floats of every row of the batch, of this op alone. What an op before this one had of the same size is
    /// this one's now, and holds what that one left there.
    pub fn scratch(&mut self, width: usize) -> Result<View, BackendError> {
        let (op, bytes) = (self.op, width.saturating_mul(self.limits.rows).saturating_mul(4).max(4));
        let buffers = &self.recording.buffers;
        let is_free = |(id, user): &&mut (BufferId, usize)| *user != op && buffers[id.0].bytes == bytes;
        if let Some((id, user)) = self.scratch.iter_mut().find(is_free) {
            *user = op;
            let id = *id;
            return Ok(self.whole(id));
        }
        let id = self.floats(&[width, self.limits.rows], Class::Scratch)?;
        self.scratch.push((id, op));
        Ok(self.whole(id))
    }

    /// Room for as many words as the product of the sizes that all ops which ask for it by this name share, one after another:
    /// each fills it before it reads it.
    pub fn common_scratch(&mut self, what: &'static str, sizes: &[usize]) -> Result<View, BackendError> {
        // Checked as every other buffer is, before it is compared with what is there.
        let made = self.floats(sizes, Class::Scratch)?;
        let Some(&known) = self.common.get(what) else {
            self.common.insert(what, made);
            return Ok(self.whole(made));
        };
        let bytes = self.recording.buffers.pop().map_or(0, |spec| spec.bytes);
        let largest = &mut self.recording.buffers[known.0].bytes;
        *largest = bytes.max(*largest);
        Ok(View { buffer: known, offset: 0, bytes })
    }

    /// Room for as many words as the product of the sizes, of this op alone.
    pub fn room(&mut self, sizes: &[usize]) -> Result<View, BackendError> {
        let id = self.floats(sizes, Class::Scratch)?;
        Ok(self.whole(id))
    }

    /// A vector of the program.
    pub fn vector(&mut self, id: VecId) -> View {
        self.joined(&[id])
    }

    /// Vectors of the program, one behind the other; uploaded once.
    pub fn joined(&mut self, ids: &[VecId]) -> View {
        let (program, values) = (self.program, &mut self.vector_values);
        let key: Vec<u32> = ids.iter().map(|id| id.0).collect();
        *self.vectors.entry(key).or_insert_with(|| {
            let offset = values.len().next_multiple_of(ALIGNMENT / 4);
            values.resize(offset, 0.0);
            ids.iter().for_each(|&id| values.extend_from_slice(program.vector(id)));
            View { buffer: VECTORS, offset: 4 * offset, bytes: 4 * (values.len() - offset) }
        })
    }

    /// A matrix that must be of one type and small enough for one binding.
    pub fn one_piece(&mut self, id: MatId) -> Result<Piece, BackendError> {
        match self.pieces(id)?.as_slice() {
            [piece] => Ok(piece.clone()),
            _ => Err(BackendError::Memory {
                what: "a table on the GPU",
                bytes: self.program.matrix(id).bytes(),
            }),
        }
    }

    /// The matrix in pieces of one type each.
    pub fn pieces(&mut self, id: MatId) -> Result<Vec<Piece>, BackendError> {
        if let Some(pieces) = self.matrices.get(&id.0) {
            return Ok(pieces.clone());
        }
        let matrix = self.program.matrix(id);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut first = 0;
        for run in matrix.segments.chunk_by(|a, b| a.dtype() == b.dtype()) {
            let layout = RowLayout::new(run[0].dtype(), matrix.n_in);
            let most = (self.traits.max_binding / layout.row_bytes()).max(1);
            for parts in split(run, most) {
                let rows = parts.iter().map(Tensor::n_rows).sum::<usize>();
                let bytes = rows.saturating_mul(layout.row_bytes());
                let buffer = self.buffer(bytes, Class::Weights, Fill::Rows { layout, parts })?;
                pieces.push(Piece { layout, rows: first..first + rows, view: self.whole(buffer) });
                first += rows;
            }
        }
        self.matrices.insert(id.0, pieces.clone());
        Ok(pieces)
    }

    /// Matrices one behind the other in one buffer, a piece for each; some of those that lie so already may be asked for. `None`
    /// where one of them is of several types or lies elsewhere, where all are more than a binding holds, and where activations are
    /// rounded for one, which only its own products do.
    pub fn together(&mut self, ids: &[MatId]) -> Result<Option<Vec<Piece>>, BackendError> {
        let known: Option<Vec<Piece>> = ids
            .iter()
            .map(|id| match self.matrices.get(&id.0).map(Vec::as_slice) {
                Some([piece]) => Some(piece.clone()),
                _ => None,
            })
            .collect();
        if let Some(pieces) = known {
            let are_together = pieces.windows(2).all(|two| two[0].view.buffer == two[1].view.buffer);
            return Ok(are_together.then_some(pieces));
        }
        let (mut laid, mut places) = (Vec::new(), Vec::new());
        let mut end = 0usize;
        for (i, id) in ids.iter().enumerate() {
            let matrix = self.program.matrix(*id);
            let dtype = matrix.segments[0].dtype();
            let is_one = matrix.segments.iter().all(|tensor| tensor.dtype() == dtype);
            let is_placed = self.matrices.contains_key(&id.0) || ids[..i].contains(id);
            if !is_one || is_placed || (self.traits.rounded && dtype.is_quantized()) {
                return Ok(None);
            }
            let layout = RowLayout::new(dtype, matrix.n_in);
            let at = end.next_multiple_of(ALIGNMENT);
            let bytes = matrix.n_out.saturating_mul(layout.row_bytes());
            end = at.saturating_add(bytes);
            if end > self.traits.max_binding {
                return Ok(None);
            }
            laid.push(Laid { at, layout, parts: matrix.segments.clone() });
            places.push((layout, matrix.n_out, at, bytes));
        }
        let buffer = self.buffer(end, Class::Weights, Fill::Matrices(laid))?;
        let piece = |(layout, rows, offset, bytes)| Piece {
            layout,
            rows: 0..rows,
            view: View { buffer, offset, bytes },
        };
        let pieces: Vec<Piece> = places.into_iter().map(piece).collect();
        let own = ids.iter().zip(&pieces).map(|(id, piece)| (id.0, vec![piece.clone()]));
        self.matrices.extend(own);
        Ok(Some(pieces))
    }

    /// Has a step's angles written with it; tells how many of each row come before them.
    pub fn angles(&mut self, inv_freq: VecId, magnitude: f32) -> usize {
        let before = self.recording.angles_of_row();
        let width = 2 * self.program.vector(inv_freq).len();
        self.recording.angles.push(Angles { inv_freq, magnitude, width });
        before
    }

    /// Records what is done in steps of so many rows alone, of the batch or of those that want logits. Within another such call
    /// it is for steps that both are for.
    pub fn for_rows<T>(&mut self, rows: RangeInclusive<usize>, record: impl FnOnce(&mut Self) -> T) -> T {
        let both = *rows.start().max(self.rows.start())..=*rows.end().min(self.rows.end());
        let before = std::mem::replace(&mut self.rows, both);
        let made = record(self);
        self.rows = before;
        made
    }

    /// Records what is done only where ops beside this one are run, too, or are not.
    pub fn beside<T>(&mut self, beside: Beside, record: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.beside, beside);
        let made = record(self);
        self.beside = before;
        made
    }

    /// The ops before and after this one.
    pub fn neighbours(&self) -> [Option<&Op>; 2] {
        let ops = self.program.ops();
        [self.op.checked_sub(1).and_then(|i| ops.get(i)), ops.get(self.op + 1)]
    }

    /// Records that a kernel is run in so many workgroups.
    pub fn dispatch(&mut self, kernel: &Kernel, counts: [Count; 3]) {
        let of_logits = counts.iter().any(|count| matches!(count, Count::LogitRows(_)));
        let most = if of_logits { self.limits.logit_rows } else { self.limits.rows };
        if self.rows.is_empty() || *self.rows.start() > most {
            // There is no such step.
            return;
        }
        let text = kernel.text();
        let is_written = kernel.bindings().iter().map(|b| b.is_written).collect();
        let kernels = &mut self.recording.kernels;
        let number = *self.texts.entry(text.clone()).or_insert_with(|| {
            kernels.push(KernelText { label: kernel.label, text, is_written });
            kernels.len() - 1
        });
        let views = kernel.bindings().iter().map(|b| b.view).collect();
        let (op, beside, rows) = (self.op, self.beside, self.rows.clone());
        self.recording.dispatches.push(Dispatch { op, beside, kernel: number, views, counts, rows });
    }
}

/// Words that a head's elements take in the cache.
pub(crate) fn kv_words(kv_type: KvType, head_dim: usize) -> usize {
    match kv_type {
        KvType::F32 => head_dim,
        KvType::F16 => head_dim.div_ceil(2),
    }
}

/// Tensors in groups of at most `most` rows together.
fn split(tensors: &[Tensor], most: usize) -> Vec<Vec<Tensor>> {
    let mut groups: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut room = most;
    for tensor in tensors {
        let mut start = 0;
        while start < tensor.n_rows() {
            if room == 0 {
                groups.push(Vec::new());
                room = most;
            }
            let end = tensor.n_rows().min(start + room);
            groups.last_mut().expect("there is one").push(tensor.rows(start..end));
            (room, start) = (room - (end - start), end);
        }
    }
    groups
}
