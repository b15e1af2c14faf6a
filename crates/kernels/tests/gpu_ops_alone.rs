//! Ops of the GPU backend that share a dispatch with the one beside them do the same where they are run by themselves, as
//! `selfcheck` and profiles do.

#[path = "gpu_at_hand/mod.rs"]
mod gpu_at_hand;

use exotherm_kernels::Backend;
use exotherm_kernels::conformance::data::{Numbers, Sequences};
use exotherm_kernels::conformance::programs::{self, Kind};
use exotherm_kernels::{Batch, KvType, Program};

fn bits(backend: &dyn Backend, program: &Program, one_by_one: bool) -> Vec<u32> {
    let places = Sequences::scattered(&[23, 1], 24, KvType::F32, &mut Numbers::new(5));
    let mut executor = backend.compile(program, &places.limits).unwrap();
    let mut all = Vec::new();
    for step in [vec![(0, 0, 20)], vec![(0, 20, 1), (1, 0, 1)], vec![(0, 21, 1)]] {
        let mut batch: Batch = places.batch(&step, |s, p| (7 * s + p) as u32 % programs::VOCAB as u32);
        (0..batch.rows() as u32).for_each(|row| batch.want_logits(row));
        match one_by_one {
            false => executor.run(&batch).unwrap(),
            true => (0..program.ops().len()).for_each(|op| executor.run_ops(&batch, op..op + 1).unwrap()),
        }
        all.extend(executor.logits().iter().map(|v| v.to_bits()));
    }
    all
}

#[test]
fn ops_run_one_by_one_give_the_same_bits() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    for (kind, seed) in [(Kind::Recurrent, 1), (Kind::Recurrent, 2), (Kind::Recurrent, 3), (Kind::Dense, 1)] {
        let program = programs::draw(kind, seed);
        let (together, alone) = (bits(gpu, &program, false), bits(gpu, &program, true));
        assert!(together == alone, "{kind:?} {seed}");
    }
}
