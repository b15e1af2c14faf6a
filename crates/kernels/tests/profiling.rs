//! Executors time their ops, and the work of ops is counted.

use std::time::Instant;

use exotherm_kernels::conformance::programs::{self, Kind};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::profile::{Work, WorkCounter, attention_ops};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Activations, BLOCK, Backend, Batch, KvType, Limits, Op};
use exotherm_tensor::DType;

const KINDS: [Kind; 3] = [Kind::Dense, Kind::Experts, Kind::Recurrent];

fn limits() -> Limits {
    Limits { rows: 32, logit_rows: 2, blocks: 8, slots: 2, kv_type: KvType::F16 }
}

/// Two sequences of so many rows from a start on.
fn batch(start: u32, rows: usize) -> Batch {
    let tokens: Vec<u32> = (0..rows).map(|i| (i * 5 % programs::VOCAB) as u32).collect();
    let mut batch = Batch::default();
    for sequence in 0..2 {
        let table: Vec<u32> = (0..4).map(|i| 2 * i + sequence).collect();
        let first = batch.push_span(&tokens, start, &table, sequence);
        batch.want_logits(first + rows as u32 - 1);
    }
    batch
}

#[test]
fn every_op_is_timed_within_the_run_and_results_are_the_same() {
    let backends: [&dyn Backend; 3] = [&CpuBackend::new(1), &CpuBackend::new(3), &ReferenceBackend];
    for (backend, kind) in backends.into_iter().flat_map(|backend| KINDS.map(|kind| (backend, kind))) {
        let program = programs::draw(kind, 3);
        let mut plain = backend.compile(&program, &limits()).unwrap();
        let mut timed = backend.compile(&program, &limits()).unwrap();
        timed.set_profiling(true);
        for batch in [batch(0, 7), batch(7, 1)] {
            plain.run(&batch).unwrap();
            let begin = Instant::now();
            timed.run(&batch).unwrap();
            let wall = begin.elapsed().as_nanos() as u64;
            assert!(plain.op_times().is_empty());
            assert_eq!(plain.logits(), timed.logits());
            let times = timed.op_times();
            assert_eq!(times.len(), program.ops().len());
            assert!(times.iter().all(|time| time.total > 0), "{times:?}");
            assert!(times.iter().map(|time| time.total).sum::<u64>() <= wall, "{wall} {times:?}");
            for (time, op) in times.iter().zip(program.ops()) {
                let parts = time.qk_norm + time.rope + time.scores + time.softmax + time.values;
                assert!(parts <= time.total, "{time:?}");
                let has_parts = matches!(op, Op::QkRopeWrite(_) | Op::Attention(_));
                assert!(has_parts || parts == 0, "{} {time:?}", op.name());
            }
        }
        timed.run_ops(&batch(8, 1), 1..2).unwrap();
        let timed_ops: Vec<bool> = timed.op_times().iter().map(|time| time.total > 0).collect();
        assert_eq!(timed_ops, (0..program.ops().len()).map(|op| op == 1).collect::<Vec<_>>());
        timed.run(&Batch::default()).unwrap();
        // The reference goes through its ops with no rows.
        let nothing_ran = timed.op_times().iter().all(|time| time.total == 0);
        assert!(nothing_ran || backend.name() == "reference");
        timed.set_profiling(false);
        timed.run(&batch(9, 1)).unwrap();
        assert!(timed.op_times().is_empty());
    }
}

#[test]
fn attention_is_found_with_what_belongs_to_it() {
    for seed in 0..10 {
        let program = programs::draw(Kind::Dense, seed);
        let layers = attention_ops(&program);
        assert_eq!(layers.len(), program.state().kv.len());
        for (i, ops) in layers.iter().enumerate() {
            assert_eq!(ops.layer, i);
            let name = |op: Option<usize>| op.map(|op| program.ops()[op].name());
            assert_eq!(name(ops.qkv), Some("norm_linear"));
            assert_eq!(name(ops.rope), Some("qk_rope_write"));
            assert_eq!(name(Some(ops.attention)), Some("attention"));
            assert_eq!(name(ops.out), Some("linear_residual"));
            assert!(ops.qkv < ops.rope && ops.rope < Some(ops.attention) && Some(ops.attention) < ops.out);
        }
        assert!(attention_ops(&programs::draw(Kind::Recurrent, seed)).is_empty());
    }
}

#[test]
fn weights_are_counted_once_for_a_step_and_operations_for_every_row() {
    for kind in KINDS {
        let program = programs::draw(kind, 5);
        for activations in [Activations::Exact, Activations::Rounded, Activations::RoundedToBf16] {
            let counter = WorkCounter::new(&program, KvType::F16, activations);
            let work = |op: usize, batch: &Batch| counter.work(op, batch);
            let (one, many) = (batch(BLOCK as u32, 1), batch(BLOCK as u32, 12));
            for (i, op) in program.ops().iter().enumerate() {
                let (few, lots) = (work(i, &one), work(i, &many));
                let name = op.name();
                assert!(lots.activation_bytes >= few.activation_bytes && few.bytes() > 0, "{name}");
                match op {
                    // Rows of the table, experts, and what grows with the positions.
                    Op::Embed(_) | Op::MoeGateUp(_) | Op::MoeDown(_) => {
                        assert!(lots.weight_bytes > few.weight_bytes || name != "embed", "{name}");
                    }
                    // As many rows as want logits.
                    Op::Head(_) => assert_eq!(few, Work { activation_bytes: few.activation_bytes, ..lots }),
                    _ => assert_eq!(few.weight_bytes, lots.weight_bytes, "{name}"),
                }
                if matches!(
                    op,
                    Op::NormLinear(_) | Op::LinearResidual(_) | Op::GroupedLinear(_) | Op::Lora(_)
                ) {
                    assert_eq!(lots.ops(), 12 * few.ops(), "{name}");
                    let (mut weights, mut pairs) = (0, 0);
                    op.for_each_matrix(&program, &mut |id, _| {
                        let matrix = program.matrix(id);
                        weights += 2 * (matrix.n_in * matrix.n_out) as u64;
                        let bf16 = matrix.segments.iter().filter(|s| s.dtype() == DType::BF16);
                        pairs += bf16.map(|s| 2 * (s.n_in() * s.n_rows()) as u64).sum::<u64>();
                    });
                    let to_bf16 = activations == Activations::RoundedToBf16;
                    assert_eq!(few.pair_ops, if to_bf16 { 2 * pairs } else { 0 }, "{name}");
                    // Two sequences, a row each.
                    assert_eq!(few.ops(), 2 * weights, "{name}");
                }
                assert!(activations != Activations::Exact || few.integer_ops == 0, "{name}");
                assert!(activations == Activations::RoundedToBf16 || few.pair_ops == 0, "{name}");
            }
            assert_eq!(work(0, &Batch::default()), Work::default());
        }
    }
}
