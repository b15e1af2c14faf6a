//! A program: the flat list of fused operations that a model is, with its weights and the state it keeps.

use std::sync::Arc;

use exotherm_tensor::{DType, Tensor};

use crate::ops::Op;
use crate::plan::Plan;

/// An activation: rows of `width` f32 values, as many rows as the step has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Buf(pub(crate) u32);

/// A weight matrix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MatId(pub(crate) u32);

/// A vector of f32: norm weights, biases, mixing coefficients.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VecId(pub(crate) u32);

/// A layer of the KV cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KvId(pub(crate) u32);

/// A piece of recurrent state, one per slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecId(pub(crate) u32);

/// How many rows a buffer has in a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// All rows of the batch.
    Batch,
    /// The rows that want logits.
    Logits,
}

#[derive(Clone, Debug)]
pub struct BufferSpec {
    pub name: &'static str,
    pub width: usize,
    pub rows: Rows,
}

/// A matrix of `n_out` rows of `n_in` weights; the rows of the segments follow one another, so that several
/// projections of one input (Q, K, V; gate, up; the experts of a layer) are one matrix, each of its own type.
#[derive(Clone)]
pub struct Matrix {
    pub name: String,
    pub n_in: usize,
    pub n_out: usize,
    pub segments: Vec<Tensor>,
}

impl Matrix {
    /// Decodes row `row` into `out`.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (segment, row) = self.segment_of(row);
        segment.decode_row(row, out);
    }

    pub fn dtype_of_row(&self, row: usize) -> DType {
        self.segment_of(row).0.dtype()
    }

    /// The segment that has a row, and which of its rows it is.
    fn segment_of(&self, mut row: usize) -> (&Tensor, usize) {
        for segment in &self.segments {
            if row < segment.n_rows() {
                return (segment, row);
            }
            row -= segment.n_rows();
        }
        panic!("row {row} is past the end of matrix {}", self.name);
    }

    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|s| s.bytes().len()).sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvLayer {
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// The state that sequences keep between steps.
#[derive(Clone, Default, Debug)]
pub struct StateSpec {
    pub kv: Vec<KvLayer>,
    /// Floats per slot of each piece of recurrent state.
    pub recurrent: Vec<usize>,
}

impl StateSpec {
    /// Elements of keys and values that one token takes in all layers.
    pub fn kv_elements_per_token(&self) -> usize {
        self.kv.iter().map(|l| 2 * l.kv_heads * l.head_dim).sum()
    }

    pub fn recurrent_elements_per_slot(&self) -> usize {
        self.recurrent.iter().sum()
    }
}

/// Recorded once per model, valid for any batch. Cheap to clone: weights are shared.
#[derive(Clone)]
pub struct Program {
    ops: Arc<[Op]>,
    buffers: Arc<[BufferSpec]>,
    matrices: Arc<[Matrix]>,
    vectors: Arc<[Vec<f32>]>,
    state: StateSpec,
    plan: Arc<Plan>,
    logits: Buf,
    vocab: usize,
    max_positions: Option<usize>,
}

impl Program {
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    pub fn buffer(&self, buf: Buf) -> &BufferSpec {
        &self.buffers[buf.0 as usize]
    }

    pub fn matrix(&self, id: MatId) -> &Matrix {
        &self.matrices[id.0 as usize]
    }

    pub fn matrices(&self) -> &[Matrix] {
        &self.matrices
    }

    /// The program with its matrices' sizes but, save for those that `keep`, without their weights: what is needed
    /// of it once a backend has copied them, so that weights made at load are not held twice.
    pub fn without_weights(&self, keep: &dyn Fn(MatId) -> bool) -> Program {
        let kept = |(i, m): (usize, &Matrix)| match keep(MatId(i as u32)) {
            true => m.clone(),
            false => Matrix { name: m.name.clone(), n_in: m.n_in, n_out: m.n_out, segments: Vec::new() },
        };
        Program { matrices: self.matrices.iter().enumerate().map(kept).collect(), ..self.clone() }
    }

    pub fn vector(&self, id: VecId) -> &[f32] {
        &self.vectors[id.0 as usize]
    }

    pub fn state(&self) -> &StateSpec {
        &self.state
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The buffer that holds the logits after a run.
    pub fn logits(&self) -> Buf {
        self.logits
    }

    /// Tokens that may be given: the rows of the embedding.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Positions there are, where they are learned; `None` where any position can be had.
    pub fn max_positions(&self) -> Option<usize> {
        self.max_positions
    }

    /// Bytes of weights, matrices and vectors.
    pub fn weight_bytes(&self) -> usize {
        let vectors: usize = self.vectors.iter().map(|v| 4 * v.len()).sum();
        vectors + self.matrices.iter().map(Matrix::bytes).sum::<usize>()
    }

    /// Floats of activations per row of the batch and per row of logits, after buffers share memory.
    pub fn scratch_widths(&self) -> (usize, usize) {
        self.plan.widths()
    }
}

/// Records a program.
#[derive(Default)]
pub struct ProgramBuilder {
    ops: Vec<Op>,
    buffers: Vec<BufferSpec>,
    matrices: Vec<Matrix>,
    vectors: Vec<Vec<f32>>,
    state: StateSpec,
    max_positions: Option<usize>,
}

impl ProgramBuilder {
    pub fn new() -> ProgramBuilder {
        ProgramBuilder::default()
    }

    /// The recording that made `program`, to be changed and finished anew. Handles into it stay valid.
    pub fn reopen(program: &Program) -> ProgramBuilder {
        ProgramBuilder {
            ops: program.ops.to_vec(),
            buffers: program.buffers.to_vec(),
            matrices: program.matrices.to_vec(),
            vectors: program.vectors.to_vec(),
            state: program.state.clone(),
            max_positions: program.max_positions,
        }
    }

    /// The ops recorded so far.
    pub fn ops_mut(&mut self) -> &mut [Op] {
        &mut self.ops
    }

    pub fn buffer(&mut self, name: &'static str, width: usize) -> Buf {
        self.add_buffer(name, width, Rows::Batch)
    }

    pub fn logits_buffer(&mut self, width: usize) -> Buf {
        self.add_buffer("logits", width, Rows::Logits)
    }

    fn add_buffer(&mut self, name: &'static str, width: usize, rows: Rows) -> Buf {
        self.buffers.push(BufferSpec { name, width, rows });
        Buf(self.buffers.len() as u32 - 1)
    }

    /// Adds a matrix of the rows of `segments`, one after another. All must have the same `n_in`.
    pub fn matrix(&mut self, name: impl Into<String>, segments: Vec<Tensor>) -> MatId {
        let n_in = segments[0].n_in();
        let name = name.into();
        assert!(segments.iter().all(|s| s.n_in() == n_in), "the segments of {name} differ in width");
        let n_out = segments.iter().map(Tensor::n_rows).sum();
        self.matrices.push(Matrix { name, n_in, n_out, segments });
        MatId(self.matrices.len() as u32 - 1)
    }

    pub fn vector(&mut self, values: Vec<f32>) -> VecId {
        self.vectors.push(values);
        VecId(self.vectors.len() as u32 - 1)
    }

    pub fn kv_layer(&mut self, kv_heads: usize, head_dim: usize) -> KvId {
        self.state.kv.push(KvLayer { kv_heads, head_dim });
        KvId(self.state.kv.len() as u32 - 1)
    }

    pub fn recurrent(&mut self, width: usize) -> RecId {
        self.state.recurrent.push(width);
        RecId(self.state.recurrent.len() as u32 - 1)
    }

    /// Positions end at `n` (learned position embeddings).
    pub fn limit_positions(&mut self, n: usize) {
        self.max_positions = Some(n);
    }

    pub fn buffer_width(&self, buf: Buf) -> usize {
        self.buffers[buf.0 as usize].width
    }

    pub fn matrix_dims(&self, id: MatId) -> (usize, usize) {
        let m = &self.matrices[id.0 as usize];
        (m.n_out, m.n_in)
    }

    pub fn push(&mut self, op: impl Into<Op>) {
        self.ops.push(op.into());
    }

    /// Ends the recording. `logits` is what `Executor::logits` gives; it is read after the last op.
    /// Panics where an op's widths do not fit together: that is a bug in the model's file.
    pub fn finish(self, logits: Buf, vocab: usize) -> Program {
        let plan = Plan::new(&self.ops, &self.buffers, logits);
        let program = Program {
            ops: self.ops.into(),
            buffers: self.buffers.into(),
            matrices: self.matrices.into(),
            vectors: self.vectors.into(),
            state: self.state,
            plan: Arc::new(plan),
            logits,
            vocab,
            max_positions: self.max_positions,
        };
        for (i, op) in program.ops.iter().enumerate() {
            if let Err(why) = op.check(&program) {
                panic!("op {i} ({}): {why}", op.name());
            }
        }
        program
    }
}
