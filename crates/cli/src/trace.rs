//! The times of attention, told after every step when `RUST_LOG` asks for them.

use std::io::Stderr;
use std::ops::Range;

use exotherm_kernels::profile::{AttentionOps, OpTime, attention_ops};
use exotherm_kernels::{
    Activations, Backend, BackendError, Batch, Executor, Limits, MemoryUse, Place, Program, SampleRow,
    Sampled,
};
use exotherm_observe::{AttentionTimes, Lines, wants_attention};

/// The backend, or one that does the same and tells what its attention took.
pub fn traced(backend: Box<dyn Backend>) -> Box<dyn Backend> {
    if wants_attention() { Box::new(Traced(backend)) } else { backend }
}

struct Traced(Box<dyn Backend>);

struct TracedExecutor {
    inner: Box<dyn Executor>,
    layers: Vec<AttentionOps>,
    lines: Lines<Stderr>,
}

impl Backend for Traced {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn activations(&self) -> Activations {
        self.0.activations()
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        self.0.memory(program, limits)
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        let mut inner = self.0.compile(program, limits)?;
        inner.set_profiling(true);
        let lines = Lines::new(std::io::stderr());
        Ok(Box::new(TracedExecutor { inner, layers: attention_ops(program), lines }))
    }
}

impl Executor for TracedExecutor {
    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.inner.run(batch)?;
        let times = self.inner.op_times();
        self.lines.attention(self.layers.iter().map(|layer| attention_times(layer, times)));
        Ok(())
    }

    /// A part of a step is no step: nothing is told of it.
    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        self.inner.run_ops(batch, ops)
    }

    fn logits(&self) -> &[f32] {
        self.inner.logits()
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        self.inner.logits_of(row)
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        self.inner.sample(rows, out)
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.inner.copy_block(from, to);
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        self.inner.copy_slot(from, to);
    }

    /// Profiling stays on: the next step is told of too.
    fn set_profiling(&mut self, _on: bool) {}

    fn op_times(&self) -> &[OpTime] {
        self.inner.op_times()
    }

    fn read(&self, place: Place) -> Vec<f32> {
        self.inner.read(place)
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        self.inner.write(place, values);
    }
}

fn attention_times(ops: &AttentionOps, times: &[OpTime]) -> AttentionTimes {
    let time = |op: Option<usize>| op.and_then(|op| times.get(op)).copied().unwrap_or_default();
    let (qkv, rope, attention, out) =
        (time(ops.qkv), time(ops.rope), time(Some(ops.attention)), time(ops.out));
    AttentionTimes {
        layer: ops.layer,
        qkv: qkv.total,
        qk_norm: rope.qk_norm,
        rope: rope.rope,
        scores: attention.scores,
        softmax: attention.softmax,
        values: attention.values,
        out: out.total,
        total: qkv.total + rope.total + attention.total + out.total,
    }
}
