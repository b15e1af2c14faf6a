//! What the ops of a program take and what they have to do: the two halves of a profile.

use std::time::Duration;

use crate::backend::KvType;
use crate::batch::{Batch, Span};
use crate::ops::{Attention, Op};
use crate::program::{KvLayer, Program, Rows};
use crate::rounding::{Activations, Rounding};

/// Nanoseconds that one op took in the last run. The parts are those that a fused op tells apart; they never sum to
/// more than `total`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpTime {
    /// From the end of the op before to the end of this one.
    pub total: u64,
    pub qk_norm: u64,
    pub rope: u64,
    pub scores: u64,
    pub softmax: u64,
    pub values: u64,
}

/// What was handed to a device of its own since the executor was made, and how long the host was at it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DeviceWork {
    pub submissions: u64,
    /// Passes of kernels that run one after another.
    pub passes: u64,
    pub dispatches: u64,
    /// How often the host waited for the device.
    pub waits: u64,
    /// What came back.
    pub read_bytes: u64,
    /// Commands written down while the device had nothing else to do.
    pub encoding: Duration,
    /// Commands written down while the device was at work, for a step that may come next.
    pub foreseeing: Duration,
    pub submitting: Duration,
    pub waiting: Duration,
}

impl std::ops::Sub for DeviceWork {
    type Output = DeviceWork;

    /// What came after an earlier moment.
    fn sub(self, before: DeviceWork) -> DeviceWork {
        DeviceWork {
            submissions: self.submissions - before.submissions,
            passes: self.passes - before.passes,
            dispatches: self.dispatches - before.dispatches,
            waits: self.waits - before.waits,
            read_bytes: self.read_bytes - before.read_bytes,
            encoding: self.encoding - before.encoding,
            foreseeing: self.foreseeing - before.foreseeing,
            submitting: self.submitting - before.submitting,
            waiting: self.waiting - before.waiting,
        }
    }
}

/// What an op has to do in a step, counted from the program and not measured. Norms, biases and activation functions
/// are left out: next to the products they are nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Weight matrices, each counted once for the step however many rows meet it. Of experts those that could be
    /// routed to at most: as many as there are routes, and no more than there are experts.
    pub weight_bytes: u64,
    /// Keys, values and recurrent state, read and written, each counted once for a sequence.
    pub state_bytes: u64,
    /// Rows of the buffers that the op reads and writes. They are small and usually come from a cache.
    pub activation_bytes: u64,
    /// Multiplications and additions of small integers.
    pub integer_ops: u64,
    /// Of pairs of BF16.
    pub pair_ops: u64,
    pub float_ops: u64,
}

impl Work {
    /// What has to come from memory: weights and state, or the rows themselves where an op has nothing else.
    pub fn bytes(&self) -> u64 {
        match self.weight_bytes + self.state_bytes {
            0 => self.activation_bytes,
            bytes => bytes,
        }
    }

    pub fn ops(&self) -> u64 {
        self.integer_ops + self.pair_ops + self.float_ops
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.weight_bytes += other.weight_bytes;
        self.state_bytes += other.state_bytes;
        self.activation_bytes += other.activation_bytes;
        self.integer_ops += other.integer_ops;
        self.pair_ops += other.pair_ops;
        self.float_ops += other.float_ops;
    }
}

/// Tells the work of a program's ops in any batch. Keeps none of the weights.
pub struct WorkCounter {
    program: Program,
    kv_type: KvType,
    matrices: Vec<MatrixWork>,
}

/// Of the matrices of one op.
#[derive(Clone, Copy, Default)]
struct MatrixWork {
    /// What one row reads, and what there is to be read.
    bytes_of_row: u64,
    bytes: u64,
    /// For one row.
    integer_ops: u64,
    pair_ops: u64,
    float_ops: u64,
}

impl WorkCounter {
    /// For a backend that rounds activations so.
    pub fn new(program: &Program, kv_type: KvType, activations: Activations) -> WorkCounter {
        WorkCounter {
            matrices: program.ops().iter().map(|op| MatrixWork::of(op, program, activations)).collect(),
            program: program.without_weights(&|_| false),
            kv_type,
        }
    }

    /// The work of op `op` in a step.
    pub fn work(&self, op: usize, batch: &Batch) -> Work {
        let (matrices, op) = (&self.matrices[op], &self.program.ops()[op]);
        let rows_of = |rows| if rows == Rows::Batch { batch.rows() } else { batch.logit_rows().len() };
        let rows = rows_of(self.program.buffer(op.result()).rows) as u64;
        let mut activation_bytes = 0;
        op.for_each_buffer(&mut |buf| {
            let spec = self.program.buffer(buf);
            activation_bytes += 4 * (rows_of(spec.rows) * spec.width) as u64;
        });
        let (state_bytes, state_ops) = self.state(op, batch);
        Work {
            weight_bytes: matrices.bytes.min(rows * matrices.bytes_of_row),
            state_bytes,
            activation_bytes,
            integer_ops: rows * matrices.integer_ops,
            pair_ops: rows * matrices.pair_ops,
            float_ops: rows * matrices.float_ops + state_ops,
        }
    }

    /// Bytes of state that the op reads and writes, and the operations on them.
    fn state(&self, op: &Op, batch: &Batch) -> (u64, u64) {
        let rows = batch.rows() as u64;
        let width = |state: crate::RecId| self.program.state().recurrent[state.0 as usize] as u64;
        // A sequence that begins finds zeros, which are not read.
        let passes: u64 = batch.spans().iter().map(|s| if s.start == 0 { 1 } else { 2 }).sum();
        match op {
            Op::QkRopeWrite(op) => {
                let KvLayer { kv_heads, head_dim } = op.layer(&self.program);
                let rotated = op.rope.map_or(0, |rope| self.program.buffer(rope.table).width);
                // Six operations rotate two elements.
                (
                    rows * self.position_bytes(kv_heads, head_dim),
                    rows * ((op.heads + kv_heads) * rotated * 3) as u64,
                )
            }
            Op::Attention(op) => self.attention(op, batch),
            Op::TimeMix(op) => {
                let width = width(op.state);
                // For each element of the state: two for what it removes, five for decay, removal and the new
                // value, two for what is read.
                (4 * passes * width, 9 * rows * width)
            }
            Op::ShiftMix(op) => (4 * passes * width(op.state), 3 * rows * op.mixes as u64 * width(op.state)),
            Op::ChannelMix(op) => (4 * passes * width(op.state), 3 * rows * width(op.state)),
            _ => (0, 0),
        }
    }

    fn attention(&self, op: &Attention, batch: &Batch) -> (u64, u64) {
        let KvLayer { kv_heads, head_dim } = op.layer(&self.program);
        let (mut positions, mut pairs) = (0, 0);
        for &Span { start, rows, .. } in batch.spans() {
            let (start, end) = (start as usize, (start + rows) as usize);
            if start < end {
                positions += end - op.first_seen(start);
                pairs += (start..end).map(|p| p + 1 - op.first_seen(p)).sum::<usize>();
            }
        }
        // A row's query and a position: a product and a sum for each element of the key, and of the value.
        let ops = 4 * pairs as u64 * (op.heads * head_dim) as u64;
        (positions as u64 * self.position_bytes(kv_heads, head_dim), ops)
    }

    /// Bytes of the keys and values of a position in one layer.
    fn position_bytes(&self, kv_heads: usize, head_dim: usize) -> u64 {
        (2 * kv_heads * head_dim * self.kv_type.bytes()) as u64
    }
}

impl MatrixWork {
    fn of(op: &Op, program: &Program, activations: Activations) -> MatrixWork {
        let mut work = MatrixWork::default();
        op.for_each_matrix(program, &mut |id, rows_read| {
            let matrix = program.matrix(id);
            let part =
                |whole: usize| (whole as u128 * rows_read as u128 / matrix.n_out.max(1) as u128) as u64;
            work.bytes += matrix.bytes() as u64;
            work.bytes_of_row += part(matrix.bytes());
            // An embedding is looked up, not multiplied with.
            if matches!(op, Op::Embed(_)) {
                return;
            }
            for segment in &matrix.segments {
                let ops = part(2 * segment.n_rows() * segment.n_in());
                match activations.rounding(segment.dtype()) {
                    Rounding::Int8 => work.integer_ops += ops,
                    Rounding::Bf16 => work.pair_ops += ops,
                    Rounding::None | Rounding::F16 => work.float_ops += ops,
                }
            }
        });
        work
    }
}

/// Where in a program the attention of a layer is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttentionOps {
    pub layer: usize,
    /// The projection that makes queries, keys and values.
    pub qkv: Option<usize>,
    /// QK-norm, rotary embedding and the write to the cache.
    pub rope: Option<usize>,
    pub attention: usize,
    /// The projection of what attention makes.
    pub out: Option<usize>,
}

/// One for each attention of the program; none where there is only recurrent state.
pub fn attention_ops(program: &Program) -> Vec<AttentionOps> {
    let ops = program.ops();
    let find = |at: usize| {
        let Op::Attention(op) = &ops[at] else { return None };
        let before = |wanted: &dyn Fn(&Op) -> bool| (0..at).rev().find(|&i| wanted(&ops[i]));
        let after = |wanted: &dyn Fn(&Op) -> bool| (at + 1..ops.len()).find(|&i| wanted(&ops[i]));
        Some(AttentionOps {
            layer: op.kv.0 as usize,
            qkv: before(&|o| matches!(o, Op::NormLinear(o) if o.out == op.qkv)),
            rope: before(&|o| matches!(o, Op::QkRopeWrite(o) if o.kv == op.kv)),
            attention: at,
            out: after(&|o| matches!(o, Op::LinearResidual(o) if o.x == op.out)),
        })
    };
    (0..ops.len()).filter_map(find).collect()
}

/// What an op of a step is for, in the words that engines are compared in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// QK-norm, rotary embedding and the write to the cache, which are one op.
    KvWrite,
    /// Attention itself, or the recurrence of a time mix.
    Attention,
    /// What makes queries, keys and values (or the recurrence's inputs) and what takes the result back.
    Projections,
    FeedForward,
    /// The logits.
    Head,
    Other,
}

/// The part that each op of a program belongs to. A layer mixes positions, takes the result back to the residual, and
/// so does its feed-forward block after it.
pub fn parts(program: &Program) -> Vec<Part> {
    let mut mixes = true;
    let part = |op: &Op| {
        let part = match op {
            Op::Embed(_) | Op::RopeTable(_) => Part::Other,
            Op::Head(_) => Part::Head,
            Op::QkRopeWrite(_) => Part::KvWrite,
            Op::Attention(_) | Op::TimeMix(_) => Part::Attention,
            _ if mixes => Part::Projections,
            _ => Part::FeedForward,
        };
        if matches!(op, Op::LinearResidual(_) | Op::MoeDown(_)) {
            mixes = !mixes;
        }
        part
    };
    program.ops().iter().map(part).collect()
}
