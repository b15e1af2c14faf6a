//! The suite is only as good as what it notices: the reference with one thing wrong must fail, each time.

use exotherm_kernels::backend::{Backend, BackendError, Executor, Limits, MemoryUse, Place};
use exotherm_kernels::conformance::{self, Case, check, check_copies};
use exotherm_kernels::ops::RopeStyle;
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{
    Activation, Batch, MatId, Norm, NormKind, Op, Program, ProgramBuilder, VecId, Wrapper,
};

/// What is changed: the recorded op, the batch before it runs, memory after it ran, or how state is copied.
type ChangeOp = fn(&mut Op, &mut Edit);
type ChangeBatch = fn(&Batch) -> Batch;
type ChangeMemory = fn(&mut dyn Executor, &Program, &Batch);
type ChangeCopy = fn(&mut dyn Executor, u32, u32);

/// The program that is being changed.
struct Edit<'a> {
    program: &'a Program,
    builder: ProgramBuilder,
}

impl Edit<'_> {
    fn map_vector(&mut self, id: &mut VecId, change: impl Fn(f32) -> f32) {
        let values = self.program.vector(*id).iter().map(|&v| change(v)).collect();
        *id = self.builder.vector(values);
    }

    /// The matrix with its decoded rows changed.
    fn map_rows(&mut self, id: &mut MatId, change: impl Fn(&mut [Vec<f32>])) {
        let m = self.program.matrix(*id);
        let mut rows = vec![vec![0.0; m.n_in]; m.n_out];
        rows.iter_mut().enumerate().for_each(|(i, row)| m.decode_row(i, row));
        change(&mut rows);
        let values: Vec<f32> = rows.concat();
        let tensor = exotherm_tensor::Tensor::from_f32(&[m.n_out, m.n_in], &values).unwrap();
        *id = self.builder.matrix("changed", vec![tensor]);
    }
}

struct Mutant {
    op: ChangeOp,
    batch: ChangeBatch,
    memory: ChangeMemory,
    copy_block: ChangeCopy,
    copy_slot: ChangeCopy,
}

impl Mutant {
    /// Changes nothing.
    const HARMLESS: Mutant = Mutant {
        op: |_, _| (),
        batch: Batch::clone,
        memory: |_, _, _| (),
        copy_block: |executor, from, to| executor.copy_block(from, to),
        copy_slot: |executor, from, to| executor.copy_slot(from, to),
    };
}

struct Running {
    inner: Box<dyn Executor>,
    program: Program,
    batch: ChangeBatch,
    memory: ChangeMemory,
    copy_block: ChangeCopy,
    copy_slot: ChangeCopy,
}

impl Backend for Mutant {
    fn name(&self) -> &'static str {
        "mutant"
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        ReferenceBackend.memory(program, limits)
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        let mut op = program.ops()[0].clone();
        let mut edit = Edit { program, builder: ProgramBuilder::reopen(program) };
        (self.op)(&mut op, &mut edit);
        edit.builder.ops_mut()[0] = op;
        let program = edit.builder.finish(program.logits(), program.vocab());
        let inner = ReferenceBackend.compile(&program, limits)?;
        let Mutant { batch, memory, copy_block, copy_slot, .. } = *self;
        Ok(Box::new(Running { inner, program, batch, memory, copy_block, copy_slot }))
    }
}

impl Wrapper for Running {
    fn inner(&self) -> &dyn Executor {
        self.inner.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.inner.as_mut()
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.inner.run(&(self.batch)(batch))?;
        (self.memory)(self.inner.as_mut(), &self.program, batch);
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        (self.copy_block)(self.inner.as_mut(), from, to);
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        (self.copy_slot)(self.inner.as_mut(), from, to);
    }
}

/// Asserts that the mutant fails at least one case of the op.
fn assert_caught(op: &str, cases: &[Case], what: &str, mutant: &Mutant) {
    assert!(cases.iter().any(|case| check(mutant, case).is_err()), "{op}: nobody notices: {what}");
}

/// Asserts that each change of an op's arguments fails at least one case of its op.
fn assert_noticed(op: &str, changes: &[(&str, ChangeOp)]) {
    let cases = conformance::cases_of(op);
    for case in cases.iter().step_by(7) {
        check(&Mutant::HARMLESS, case).unwrap_or_else(|failure| panic!("fails unchanged: {failure}"));
    }
    for (what, change) in changes {
        assert_caught(op, &cases, what, &Mutant { op: *change, ..Mutant::HARMLESS });
    }
}

/// The op's arguments under their own type.
macro_rules! change {
    ($variant:ident, |$op:ident, $edit:ident| $body:expr) => {
        |op: &mut Op, $edit: &mut Edit| {
            let Op::$variant($op) = op else { unreachable!("a case of another op") };
            let _ = &$edit;
            $body;
        }
    };
}

fn ten_times_eps(norm: &mut Norm) {
    norm.eps *= 10.0;
}

fn other_kind(norm: &mut Norm) {
    norm.kind = if norm.kind == NormKind::Rms { NormKind::Layer } else { NormKind::Rms };
}

fn other_activation(activation: &mut Activation) {
    *activation = match *activation {
        Activation::SiluGlu => Activation::GeluTanhGlu,
        Activation::GeluTanhGlu => Activation::SiluGlu,
        Activation::GeluTanh => Activation::GeluErf,
        Activation::GeluErf => Activation::GeluTanh,
        other => other,
    };
}

/// Every weight off by a thousandth, as a scale rounded to bf16 would be by more.
fn thousandth(rows: &mut [Vec<f32>]) {
    rows.iter_mut().flatten().for_each(|v| *v *= 1.001);
}

fn swapped_halves(rows: &mut [Vec<f32>]) {
    let half = rows.len() / 2;
    rows.rotate_left(half);
}

#[test]
fn embed_mutants() {
    assert_noticed(
        "embed",
        &[
            ("scale", change!(Embed, |op, edit| op.scale *= 1.001)),
            ("positions dropped", change!(Embed, |op, edit| op.positions = None)),
            ("norm dropped", change!(Embed, |op, edit| op.norm = None)),
            ("norm's eps", change!(Embed, |op, edit| op.norm.iter_mut().for_each(ten_times_eps))),
            ("weights", change!(Embed, |op, edit| edit.map_rows(&mut op.table, thousandth))),
        ],
    );
}

#[test]
fn rope_mutants() {
    assert_noticed(
        "rope_table",
        &[
            ("magnitude", change!(RopeTable, |op, edit| op.magnitude *= 1.01)),
            ("frequency", change!(RopeTable, |op, edit| edit.map_vector(&mut op.inv_freq, |f| f * 1.00001))),
        ],
    );
    assert_noticed(
        "qk_rope_write",
        &[
            (
                "style",
                change!(QkRopeWrite, |op, edit| op.rope.iter_mut().for_each(|r| r.style = match r.style {
                    RopeStyle::Halves => RopeStyle::Pairs,
                    RopeStyle::Pairs => RopeStyle::Halves,
                })),
            ),
            ("q norm dropped", change!(QkRopeWrite, |op, edit| op.q_norm = None)),
            ("k norm dropped", change!(QkRopeWrite, |op, edit| op.k_norm = None)),
            ("q norm's eps", change!(QkRopeWrite, |op, edit| op.q_norm.iter_mut().for_each(ten_times_eps))),
            (
                "norms swapped",
                change!(QkRopeWrite, |op, edit| std::mem::swap(&mut op.q_norm, &mut op.k_norm)),
            ),
        ],
    );
}

#[test]
fn attention_mutants() {
    assert_noticed(
        "attention",
        &[
            ("scale", change!(Attention, |op, edit| op.scale *= 1.01)),
            ("window + 1", change!(Attention, |op, edit| op.window = op.window.map(|w| w + 1))),
            ("window - 1", change!(Attention, |op, edit| op.window = op.window.map(|w| (w - 1).max(1)))),
            ("window dropped", change!(Attention, |op, edit| op.window = None)),
            ("soft cap dropped", change!(Attention, |op, edit| op.soft_cap = None)),
            ("soft cap", change!(Attention, |op, edit| op.soft_cap = op.soft_cap.map(|cap| cap * 1.01))),
            ("sinks dropped", change!(Attention, |op, edit| op.sinks = None)),
            (
                "sinks",
                change!(Attention, |op, edit| op
                    .sinks
                    .iter_mut()
                    .for_each(|s| edit.map_vector(s, |v| v * 1.01))),
            ),
        ],
    );
}

#[test]
fn linear_mutants() {
    assert_noticed(
        "norm_linear",
        &[
            ("norm dropped", change!(NormLinear, |op, edit| op.norm = None)),
            ("norm's eps", change!(NormLinear, |op, edit| op.norm.iter_mut().for_each(ten_times_eps))),
            ("norm's kind", change!(NormLinear, |op, edit| op.norm.iter_mut().for_each(other_kind))),
            (
                "norm's bias dropped",
                change!(NormLinear, |op, edit| op.norm.iter_mut().for_each(|n| n.bias = None)),
            ),
            ("bias dropped", change!(NormLinear, |op, edit| op.bias = None)),
            ("activation", change!(NormLinear, |op, edit| other_activation(&mut op.activation))),
            (
                "gate and up swapped",
                change!(NormLinear, |op, edit| edit.map_rows(&mut op.weight, swapped_halves)),
            ),
            ("weights", change!(NormLinear, |op, edit| edit.map_rows(&mut op.weight, thousandth))),
        ],
    );
    assert_noticed(
        "linear_residual",
        &[
            ("bias dropped", change!(LinearResidual, |op, edit| op.bias = None)),
            ("post norm dropped", change!(LinearResidual, |op, edit| op.post_norm = None)),
            (
                "norm's eps",
                change!(LinearResidual, |op, edit| op.post_norm.iter_mut().for_each(ten_times_eps)),
            ),
            ("weights", change!(LinearResidual, |op, edit| edit.map_rows(&mut op.weight, thousandth))),
        ],
    );
}

#[test]
fn mutants_of_several_matrices_and_heads() {
    assert_noticed(
        "grouped_linear",
        &[
            (
                "inputs swapped",
                change!(GroupedLinear, |op, edit| {
                    let last = op.groups.len() - 1;
                    let (a, b) = (op.groups[0].0, op.groups[last].0);
                    (op.groups[0].0, op.groups[last].0) = (b, a);
                }),
            ),
            ("weights", change!(GroupedLinear, |op, edit| edit.map_rows(&mut op.groups[1].1, thousandth))),
        ],
    );
    assert_noticed(
        "lora",
        &[
            ("biases dropped", change!(Lora, |op, edit| op.pairs.iter_mut().for_each(|p| p.bias = None))),
            (
                "middle",
                change!(Lora, |op, edit| op.pairs.iter_mut().for_each(|p| p.middle = Activation::None)),
            ),
            ("outer", change!(Lora, |op, edit| op.pairs.iter_mut().for_each(|p| p.out = Activation::None))),
            ("input", change!(Lora, |op, edit| op.pairs.iter_mut().for_each(|p| p.x_at = 0))),
            ("down", change!(Lora, |op, edit| edit.map_rows(&mut op.pairs[0].down, thousandth))),
            ("up", change!(Lora, |op, edit| edit.map_rows(&mut op.pairs[0].up, thousandth))),
        ],
    );
    assert_noticed(
        "head",
        &[
            ("norm's eps", change!(Head, |op, edit| ten_times_eps(&mut op.norm))),
            ("norm's bias dropped", change!(Head, |op, edit| op.norm.bias = None)),
            ("soft cap dropped", change!(Head, |op, edit| op.soft_cap = None)),
            ("soft cap", change!(Head, |op, edit| op.soft_cap = op.soft_cap.map(|cap| cap * 1.01))),
            ("weights", change!(Head, |op, edit| edit.map_rows(&mut op.weight, thousandth))),
        ],
    );
}

#[test]
fn moe_mutants() {
    assert_noticed(
        "moe_route",
        &[
            ("renormalize", change!(MoeRoute, |op, edit| op.renormalize = !op.renormalize)),
            ("norm's eps", change!(MoeRoute, |op, edit| ten_times_eps(&mut op.norm))),
            ("weights", change!(MoeRoute, |op, edit| edit.map_rows(&mut op.router, thousandth))),
        ],
    );
    assert_noticed(
        "moe_gate_up",
        &[
            ("swapped", change!(MoeGateUp, |op, edit| std::mem::swap(&mut op.gate, &mut op.up))),
            ("activation", change!(MoeGateUp, |op, edit| other_activation(&mut op.activation))),
            ("gate", change!(MoeGateUp, |op, edit| edit.map_rows(&mut op.gate, thousandth))),
            ("up", change!(MoeGateUp, |op, edit| edit.map_rows(&mut op.up, thousandth))),
        ],
    );
    assert_noticed(
        "moe_down",
        &[("weights", change!(MoeDown, |op, edit| edit.map_rows(&mut op.down, thousandth)))],
    );
}

#[test]
fn rwkv_mutants() {
    assert_noticed(
        "shift_mix",
        &[
            ("mix", change!(ShiftMix, |op, edit| edit.map_vector(&mut op.mix, |v| v * 1.01))),
            ("norm's eps", change!(ShiftMix, |op, edit| ten_times_eps(&mut op.norm))),
            ("norm's bias dropped", change!(ShiftMix, |op, edit| op.norm.bias = None)),
        ],
    );
    assert_noticed(
        "channel_mix",
        &[
            ("mix", change!(ChannelMix, |op, edit| edit.map_vector(&mut op.mix, |v| v * 1.01))),
            ("norm's eps", change!(ChannelMix, |op, edit| ten_times_eps(&mut op.norm))),
            ("weights", change!(ChannelMix, |op, edit| edit.map_rows(&mut op.weight, thousandth))),
        ],
    );
    assert_noticed(
        "time_mix",
        &[
            ("k_a zero", change!(TimeMix, |op, edit| edit.map_vector(&mut op.k_a, |_| 0.0))),
            ("k_a", change!(TimeMix, |op, edit| edit.map_vector(&mut op.k_a, |v| v * 1.01))),
            ("k_k", change!(TimeMix, |op, edit| edit.map_vector(&mut op.k_k, |v| v + 0.01))),
            ("r_k", change!(TimeMix, |op, edit| edit.map_vector(&mut op.r_k, |v| v * 1.01))),
            ("norm's eps", change!(TimeMix, |op, edit| ten_times_eps(&mut op.norm))),
            ("norm's bias dropped", change!(TimeMix, |op, edit| op.norm.bias = None)),
            (
                "norm's weight",
                change!(TimeMix, |op, edit| edit.map_vector(&mut op.norm.weight, |v| v * 1.001)),
            ),
        ],
    );
}

/// The batch with every span's start and block table changed, and no logits wanted.
fn respanned(batch: &Batch, change: impl Fn(u32, &mut Vec<u32>) -> u32) -> Batch {
    let mut changed = Batch::default();
    for span in batch.spans() {
        let mut table = batch.block_table(span).to_vec();
        let start = change(span.start, &mut table);
        changed.push_span(&batch.tokens()[span.row_range()], start, &table, span.slot);
    }
    changed
}

#[test]
fn changed_batches_are_noticed() {
    let state_kept: ChangeBatch = |batch| respanned(batch, |start, _| start.max(1));
    let state_lost: ChangeBatch = |batch| respanned(batch, |_, _| 0);
    let blocks_reversed: ChangeBatch = |batch| {
        respanned(batch, |start, table| {
            table.reverse();
            start
        })
    };
    let sorted_logits: ChangeBatch = |batch| {
        let mut wanted = batch.logit_rows().to_vec();
        wanted.sort_unstable();
        let mut changed = respanned(batch, |start, _| start);
        wanted.iter().for_each(|&row| changed.want_logits(row));
        changed
    };
    let changes: [(&str, &str, ChangeBatch); 9] = [
        ("shift_mix", "state kept at the start", state_kept),
        ("shift_mix", "state lost", state_lost),
        ("channel_mix", "state kept at the start", state_kept),
        ("channel_mix", "state lost", state_lost),
        ("time_mix", "state kept at the start", state_kept),
        ("time_mix", "state lost", state_lost),
        ("attention", "blocks in another order", blocks_reversed),
        ("qk_rope_write", "blocks in another order", blocks_reversed),
        ("head", "logits in the order of the rows", sorted_logits),
    ];
    for (op, what, batch) in changes {
        assert_caught(op, &conformance::cases_of(op), what, &Mutant { batch, ..Mutant::HARMLESS });
    }
}

/// Adds `add` to the last element of a place, which belongs to nobody in most cases.
fn touch_last(executor: &mut dyn Executor, place: Place, add: f32) {
    let mut values = executor.read(place);
    if let Some(last) = values.last_mut() {
        *last += add;
    }
    executor.write(place, &values);
}

#[test]
fn stray_writes_are_noticed() {
    // The row after the batch's last one.
    let row_past_the_end: ChangeMemory = |executor, program, batch| {
        let result = program.ops()[0].result();
        let mut values = executor.read(Place::Buffer(result));
        let spare = values.len() / batch.rows();
        values.extend(std::iter::repeat_n(0.0, spare));
        executor.write(Place::Buffer(result), &values);
    };
    let keys: ChangeMemory = |executor, program, _| {
        let Op::QkRopeWrite(op) = &program.ops()[0] else { unreachable!() };
        touch_last(executor, Place::Keys(op.kv), 1.0);
    };
    let values: ChangeMemory = |executor, program, _| {
        let Op::QkRopeWrite(op) = &program.ops()[0] else { unreachable!() };
        touch_last(executor, Place::Values(op.kv), 1.0);
    };
    let state: ChangeMemory = |executor, program, _| {
        let Op::TimeMix(op) = &program.ops()[0] else { unreachable!() };
        touch_last(executor, Place::Recurrent(op.state), 1.0);
    };
    let input: ChangeMemory = |executor, program, _| {
        let Op::NormLinear(op) = &program.ops()[0] else { unreachable!() };
        touch_last(executor, Place::Buffer(op.x), 0.5);
    };
    let order: ChangeMemory = |executor, program, _| {
        let Op::MoeRoute(op) = &program.ops()[0] else { unreachable!() };
        let mut routes = executor.read(Place::Buffer(op.routes));
        if op.top_k > 1 {
            routes.chunks_mut(2 * op.top_k).for_each(|row| {
                row.swap(0, 1);
                row.swap(op.top_k, op.top_k + 1);
            });
        }
        executor.write(Place::Buffer(op.routes), &routes);
    };
    let changes: [(&str, &str, ChangeMemory); 8] = [
        ("norm_linear", "a row past the end", row_past_the_end),
        ("attention", "a row past the end", row_past_the_end),
        ("time_mix", "a row past the end", row_past_the_end),
        ("qk_rope_write", "a key of nobody's", keys),
        ("qk_rope_write", "a value of nobody's", values),
        ("time_mix", "the state of nobody's", state),
        ("norm_linear", "the input", input),
        ("moe_route", "the second expert first", order),
    ];
    for (op, what, memory) in changes {
        assert_caught(op, &conformance::cases_of(op), what, &Mutant { memory, ..Mutant::HARMLESS });
    }
}

#[test]
fn wrong_copies_are_noticed() {
    check_copies(&Mutant::HARMLESS).expect("nothing is changed");
    let nothing: ChangeCopy = |_, _, _| ();
    let backwards: [ChangeCopy; 2] = [
        |executor, from, to| executor.copy_block(to, from),
        |executor, from, to| executor.copy_slot(to, from),
    ];
    for copy_block in [nothing, backwards[0]] {
        check_copies(&Mutant { copy_block, ..Mutant::HARMLESS }).expect_err("blocks are not copied");
    }
    for copy_slot in [nothing, backwards[1]] {
        check_copies(&Mutant { copy_slot, ..Mutant::HARMLESS }).expect_err("slots are not copied");
    }
    // One more than was asked for.
    let too_much: ChangeCopy = |executor, from, to| {
        executor.copy_block(from, to);
        executor.copy_block(from, 1);
    };
    check_copies(&Mutant { copy_block: too_much, ..Mutant::HARMLESS }).expect_err("another block is changed");
}
