//! Cases of one op: its inputs and weights are drawn while the op is put together.

use exotherm_tensor::DType;

use super::data::{Numbers, Piece, Sequences};
use super::{Case, Step, Tolerance};
use crate::backend::{KvType, Place};
use crate::batch::Batch;
use crate::ops::{Norm, NormKind, Op};
use crate::program::{Buf, KvId, MatId, ProgramBuilder, RecId, VecId};

/// Tokens that a case's steps may hold.
pub const VOCAB: usize = 11;

/// The spread of the elements of a row that a norm is about to level out, for each row in turn: the small one
/// is where a norm's epsilon counts.
const ROW_MAGNITUDES: [f32; 4] = [1.0, 0.004, 30.0, 0.5];

/// The recording of a case.
pub struct OneOp {
    pub builder: ProgramBuilder,
    pub numbers: Numbers,
    sequences: Sequences,
    steps: Vec<Vec<Piece>>,
    inputs: Vec<Vec<(Place, Vec<f32>)>>,
    logit_rows: Vec<u32>,
}

impl OneOp {
    /// One step of `rows` rows of one sequence.
    pub fn with_rows(seed: u64, rows: usize) -> OneOp {
        OneOp::with_steps(seed, KvType::F32, vec![vec![(0, 0, rows)]])
    }

    /// Steps over pieces of sequences.
    pub fn with_steps(seed: u64, kv_type: KvType, steps: Vec<Vec<Piece>>) -> OneOp {
        let pieces = || steps.iter().flatten();
        let mut lengths = vec![0; pieces().map(|p| p.0 + 1).max().unwrap_or(0)];
        pieces().for_each(|&(s, start, rows)| lengths[s] = lengths[s].max(start + rows));
        let rows = steps.iter().map(|step| step.iter().map(|p| p.2).sum()).max().unwrap_or(0);
        let mut numbers = Numbers::new(seed);
        let sequences = Sequences::scattered(&lengths, rows, kv_type, &mut numbers);
        let inputs = steps.iter().map(|_| Vec::new()).collect();
        OneOp { builder: ProgramBuilder::new(), numbers, sequences, steps, inputs, logit_rows: Vec::new() }
    }

    /// The rows whose logits are wanted.
    pub fn want_logits(&mut self, rows: &[u32]) {
        self.logit_rows = rows.to_vec();
        self.sequences.limits.logit_rows = rows.len() + 3;
    }

    /// Rows that a step may have.
    pub fn room(&self) -> usize {
        self.sequences.limits.rows
    }

    /// Slots of state that there are.
    pub fn slots(&self) -> usize {
        self.sequences.limits.slots
    }

    /// Blocks of the KV pool.
    pub fn blocks(&self) -> usize {
        self.sequences.limits.blocks
    }

    /// A buffer that holds new values up to `magnitude` before every step.
    pub fn input(&mut self, width: usize, magnitude: f32) -> Buf {
        let buf = self.builder.buffer("input", width);
        self.fill_each_step(Place::Buffer(buf), |numbers, rows| numbers.signed(rows * width, magnitude));
        buf
    }

    /// A buffer whose rows differ much in magnitude and do not centre on zero, for a norm to level out.
    pub fn uneven_input(&mut self, width: usize) -> Buf {
        let buf = self.builder.buffer("input", width);
        self.fill_each_step(Place::Buffer(buf), |numbers, rows| {
            let row = |r: usize| {
                let magnitude = ROW_MAGNITUDES[r % ROW_MAGNITUDES.len()];
                numbers.around(width, 0.4 * magnitude, magnitude)
            };
            (0..rows).flat_map(row).collect()
        });
        buf
    }

    /// Gives a place the values that `values` makes for all rows there is room for, anew before every step.
    pub fn fill_each_step(&mut self, place: Place, mut values: impl FnMut(&mut Numbers, usize) -> Vec<f32>) {
        let rows = self.room();
        for inputs in &mut self.inputs {
            inputs.push((place, values(&mut self.numbers, rows)));
        }
    }

    /// Gives a place these values before the first step.
    pub fn fill(&mut self, place: Place, values: Vec<f32>) {
        self.inputs[0].push((place, values));
    }

    pub fn output(&mut self, width: usize) -> Buf {
        self.builder.buffer("output", width)
    }

    /// A matrix of weights up to 1.
    pub fn matrix(&mut self, dtype: DType, n_out: usize, n_in: usize) -> MatId {
        self.mixed_matrix(&[(dtype, n_out)], n_in)
    }

    /// A matrix of segments, each of its own type.
    pub fn mixed_matrix(&mut self, segments: &[(DType, usize)], n_in: usize) -> MatId {
        let tensor = |&(dtype, n_out): &(DType, usize)| self.numbers.tensor(dtype, n_out, n_in, 1.0);
        let tensors = segments.iter().map(tensor).collect();
        self.builder.matrix("weights", tensors)
    }

    pub fn vector(&mut self, n: usize, centre: f32, spread: f32) -> VecId {
        let values = self.numbers.around(n, centre, spread);
        self.builder.vector(values)
    }

    pub fn norm(&mut self, kind: NormKind, width: usize, eps: f32) -> Norm {
        let weight = self.vector(width, 1.0, 0.5);
        let bias = (kind == NormKind::Layer).then(|| self.vector(width, 0.0, 0.5));
        Norm { kind, weight, bias, eps }
    }

    pub fn kv_layer(&mut self, kv_heads: usize, head_dim: usize) -> KvId {
        self.builder.kv_layer(kv_heads, head_dim)
    }

    /// A KV layer whose whole pool holds values up to the magnitudes.
    pub fn filled_kv_layer(&mut self, kv_heads: usize, head_dim: usize, key: f32, value: f32) -> KvId {
        let kv = self.kv_layer(kv_heads, head_dim);
        let n = self.blocks() * crate::BLOCK * kv_heads * head_dim;
        let (keys, values) = (self.numbers.signed(n, key), self.numbers.signed(n, value));
        self.fill(Place::Keys(kv), keys);
        self.fill(Place::Values(kv), values);
        kv
    }

    /// Recurrent state whose slots all hold something, also those of sequences that begin.
    pub fn recurrent(&mut self, width: usize, magnitude: f32) -> RecId {
        let state = self.builder.recurrent(width);
        let values = self.numbers.signed(width * self.slots(), magnitude);
        self.fill(Place::Recurrent(state), values);
        state
    }

    pub fn case(mut self, name: impl Into<String>, op: impl Into<Op>, tolerance: Tolerance) -> Case {
        let op = op.into();
        let logits = match &op {
            Op::Head(head) => head.logits,
            _ => self.builder.logits_buffer(1),
        };
        self.builder.push(op);
        let batches: Vec<Batch> = self
            .steps
            .iter()
            .map(|step| one_step(&self.sequences, step, &self.logit_rows, &mut self.numbers))
            .collect();
        let steps =
            batches.into_iter().zip(self.inputs).map(|(batch, inputs)| Step { inputs, batch }).collect();
        let program = self.builder.finish(logits, VOCAB);
        Case { name: name.into(), program, limits: self.sequences.limits, steps, tolerance }
    }
}

fn one_step(sequences: &Sequences, pieces: &[Piece], logit_rows: &[u32], numbers: &mut Numbers) -> Batch {
    let mut batch = sequences.batch(pieces, |_, _| numbers.below(VOCAB) as u32);
    logit_rows.iter().for_each(|&row| batch.want_logits(row));
    batch
}
