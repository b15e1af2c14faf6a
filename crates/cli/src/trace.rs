//! The times of attention, told after every step when `RUST_LOG` asks for them.

use std::io::Stderr;

use exotherm_kernels::profile::{AttentionOps, OpTime, attention_ops};
use exotherm_kernels::{Backend, BackendError, Batch, Executor, Wrapped, Wrapper};
use exotherm_observe::{AttentionTimes, Lines, wants_attention};

/// The backend, or one that does the same and tells what its attention took.
pub fn traced(backend: Box<dyn Backend>) -> Box<dyn Backend> {
    if !wants_attention() {
        return backend;
    }
    Box::new(Wrapped::new(backend, |mut inner, program| {
        inner.set_profiling(true);
        Traced { inner, layers: attention_ops(program), lines: Lines::new(std::io::stderr()) }
    }))
}

struct Traced {
    inner: Box<dyn Executor>,
    layers: Vec<AttentionOps>,
    lines: Lines<Stderr>,
}

impl Wrapper for Traced {
    fn inner(&self) -> &dyn Executor {
        self.inner.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.inner.as_mut()
    }

    /// A part of a step is no step: of `run_ops` nothing is told.
    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.inner.run(batch)?;
        let times = self.inner.op_times();
        self.lines.attention(self.layers.iter().map(|layer| attention_times(layer, times)));
        Ok(())
    }

    /// Profiling stays on: the next step is told of too.
    fn set_profiling(&mut self, _on: bool) {}
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
