//! Attention of the CPU backend over contexts of several parts of 256 positions: against the reference, and the same
//! bits for a row whether it comes alone, in chunks of any size or beside other sequences, on any number of threads.

mod long_contexts;

use exotherm_kernels::KvType;
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::reference::ReferenceBackend;

use long_contexts::{ALLOWED, LENGTHS, Model, PLAIN, Results, Work};

/// Holds all ways to run it to one another bit for bit and to the reference within `allowed`.
fn check_levels(work: &Work, levels: &[&str], allowed: f32) {
    let oracle = work.run(&ReferenceBackend, &work.alone());
    levels.iter().for_each(|level| check_level(work, level, &oracle, allowed));
}

fn check_level(work: &Work, level: &str, oracle: &Results, allowed: f32) {
    let backends = [1, 2, 3].map(|threads| CpuBackend::with_level(threads, level).unwrap());
    let alone = work.run(&backends[0], &work.alone());
    work.agree(&alone, oracle, allowed, &format!("at {level}"));
    for (backend, (rows, singles)) in backends.iter().zip([(1000, 3), (117, 9), (50, 70)]) {
        let chunked = work.run(backend, &work.chunked(rows, singles));
        let threads = backend.threads();
        work.are_same(&chunked, &alone, &format!("at {level} in chunks of {rows} on {threads} threads"));
    }
    work.are_same(&work.run(&backends[2], &work.alone()), &alone, &format!("at {level} on 3 threads"));
}

/// The same, past one border: work goes with the square of the longest, and there are several levels.
const SHORTER: [usize; 3] = [257, 380, 40];

/// At the best level with those lengths, at every other with shorter ones.
fn check(model: Model, lengths: &[usize], allowed: f32) {
    let best = CpuBackend::new(1).level();
    check_levels(&Work::new(model, lengths), &[best], allowed);
    let others: Vec<_> = CpuBackend::levels().filter(|level| *level != best).collect();
    check_levels(&Work::new(model, &SHORTER), &others, allowed);
}

#[test]
fn rows_agree_with_the_reference_and_are_independent() {
    check(PLAIN, &LENGTHS, ALLOWED);
    check(Model { kv_type: KvType::F16, sinks: true, dim: 32, ..PLAIN }, &LENGTHS, ALLOWED);
}

#[test]
fn windows_cross_the_borders_of_parts() {
    for (window, kv_type) in [(3, KvType::F16), (100, KvType::F32), (256, KvType::F16), (300, KvType::F32)] {
        check(Model { window: Some(window), kv_type, ..PLAIN }, &LENGTHS, ALLOWED);
    }
    let all = Model { window: Some(513), soft_cap: Some(3.0), sinks: true, dim: 80, ..PLAIN };
    check(all, &LENGTHS, ALLOWED);
}

/// Scores up to 1e4 and more: one or two positions take all the weight, and where the nearest two are close, the
/// rounding of scores of 1e4 (0.0005) moves the weights by as large a share.
#[test]
fn large_scores_are_stable() {
    for (magnitude, sinks) in [(50.0, false), (50.0, true)] {
        check(Model { magnitude, sinks, ..PLAIN }, &[300, 600], 4e-3);
    }
}
