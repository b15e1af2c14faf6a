//! The number of threads changes no bit, and the threads end with those who use them.

use exotherm_kernels::conformance::programs::{self, Kind};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{Backend, Batch, Executor, KvType, Limits};

const LIMITS: Limits = Limits { rows: 40, logit_rows: 40, blocks: 8, slots: 2, kv_type: KvType::F16 };

/// The bits of all logits of a prompt in two chunks, with a second sequence beside it, and some single rows.
fn logits(executor: &mut dyn Executor) -> Vec<u32> {
    let mut all = Vec::new();
    for spans in [&[(0, 0, 19)][..], &[(0, 19, 14), (1, 0, 20)], &[(0, 33, 1), (1, 20, 1)], &[(1, 21, 1)]] {
        let mut batch = Batch::default();
        for &(sequence, start, rows) in spans {
            let tokens: Vec<u32> = (start..start + rows).map(|p| p * 5 % programs::VOCAB as u32).collect();
            let table: Vec<u32> = (0..4).map(|i| 2 * i + sequence).collect();
            let first = batch.push_span(&tokens, start, &table, sequence);
            (first..first + rows).for_each(|row| batch.want_logits(row));
        }
        executor.run(&batch).unwrap();
        all.extend(executor.logits().iter().map(|v| v.to_bits()));
    }
    all
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let levels = CpuBackend::levels().count() as u64;
    for (i, level) in (0..).zip(CpuBackend::levels()) {
        let backends = [1, 2, 3, 5, 16].map(|threads| CpuBackend::with_level(threads, level).unwrap());
        for kind in [Kind::Dense, Kind::Experts, Kind::Recurrent] {
            // Each level has other programs, so that all together are not many more than one level alone would have.
            for seed in (i..6u64.max(2 * levels)).step_by(levels as usize) {
                let program = programs::draw(kind, seed);
                let on = |backend: &CpuBackend| logits(backend.compile(&program, &LIMITS).unwrap().as_mut());
                let one = on(&backends[0]);
                for backend in &backends[1..] {
                    let threads = backend.threads();
                    assert!(on(backend) == one, "{kind:?} {seed} differs on {threads} threads at {level}");
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn threads_end_with_the_last_program() {
    let lanes = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        tasks.filter_map(name).filter(|name| name.starts_with("cpu lane 4")).count()
    };
    // Lanes 4 and 40 to 47; of them only lane 4 is also there in the other test, twice at most.
    let backend = CpuBackend::new(48);
    let mut executor = backend.compile(&programs::draw(Kind::Dense, 1), &LIMITS).unwrap();
    assert!(lanes() >= 8, "{} lanes from 40 on", lanes());
    drop(backend);
    logits(executor.as_mut());
    let many = lanes();
    drop(executor);
    assert!(many >= 8 && lanes() <= 2, "{many} lanes before, {} after", lanes());
}
