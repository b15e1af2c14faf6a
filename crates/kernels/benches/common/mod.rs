//! What the benches share: programs of one op over and over, the machine's limits, and how far a time is from them.

// Every bench compiles this for itself and uses a part of it.
#![allow(dead_code)]

mod limits;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{Backend, Batch, Executor, KvType, Limits, Program};

pub use limits::Machine;

/// What a run of a batch takes at least.
#[derive(Clone, Copy)]
pub struct Work {
    /// Bytes of weights, keys, values and state that must be read or written.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
    pub units: Units,
}

/// What makes the operations.
#[derive(Clone, Copy)]
pub enum Units {
    Floats,
    Integers,
    /// Of BF16.
    Pairs,
}

pub struct Bench {
    criterion: Criterion,
    machine: Machine,
}

impl Bench {
    pub fn new() -> Bench {
        let criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_millis(1000))
            .without_plots()
            .configure_from_args();
        Bench { criterion, machine: Machine::measure() }
    }

    /// Times runs of the batch; prints the speed and its shares of what was measured at the start.
    pub fn run(&mut self, group: &str, name: &str, executor: &mut dyn Executor, batch: &Batch, work: Work) {
        self.time(group, name, work, || executor.run(batch).expect("the batch fits"));
    }

    /// The same with whatever does the work.
    pub fn time(&mut self, group: &str, name: &str, work: Work, mut run: impl FnMut()) {
        let times = RefCell::new(Vec::new());
        let mut benches = self.criterion.benchmark_group(group);
        benches.throughput(Throughput::BytesDecimal(work.bytes as u64));
        benches.bench_function(name, |bencher| {
            bencher.iter_custom(|runs| {
                let begin = Instant::now();
                for _ in 0..runs {
                    run();
                }
                let time = begin.elapsed();
                times.borrow_mut().push(time.as_secs_f64() / runs as f64);
                time
            });
        });
        benches.finish();
        let mut times = times.into_inner();
        if times.is_empty() {
            // Left out by a filter.
            return;
        }
        times.sort_unstable_by(f64::total_cmp);
        println!("{:24}{}\n", "", self.machine.shares(work, times[times.len() / 2]));
    }

    pub fn backend(&self) -> CpuBackend {
        CpuBackend::new(self.machine.threads)
    }

    pub fn end(self) {
        self.criterion.final_summary();
    }
}

/// Compiles a program with room for `rows` rows, as many sequences, and so many blocks of f16 keys and values.
pub fn compile(bench: &Bench, program: &Program, rows: usize, blocks: usize) -> Box<dyn Executor> {
    let limits = Limits { rows, logit_rows: 1, blocks, slots: rows, kv_type: KvType::F16 };
    bench.backend().compile(program, &limits).expect("there is memory for it")
}

/// Values between −1 and 1 that repeat only after a long while.
pub fn values(n: usize) -> Vec<f32> {
    let value = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (1..=n as u32).map(value).collect()
}
