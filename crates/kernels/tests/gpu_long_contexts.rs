//! Attention of the GPU backend over contexts of several stretches of 256 positions: against the reference, and the same bits for
//! a row whether a tile of a prompt has it, or it is taken alone, with its stretches put together in one kernel or in two.

#[path = "gpu_at_hand/mod.rs"]
mod gpu_at_hand;
mod long_contexts;

use exotherm_kernels::KvType;
use exotherm_kernels::reference::ReferenceBackend;

use long_contexts::{ALLOWED, LENGTHS, Model, PLAIN, Work};

/// Chunks and, behind them, rows that come one by one: whole tiles, parts of them, and few rows, which are taken alone.
const CHUNKS: [(usize, usize); 4] = [(1000, 3), (117, 40), (20, 9), (7, 0)];

/// Holds all ways to run it to one another bit for bit and to the reference within `allowed`.
fn check(model: Model, lengths: &[usize], allowed: f32) {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    let work = Work::new(model, lengths);
    let alone = work.run(gpu, &work.alone());
    work.agree(&alone, &work.run(&ReferenceBackend, &work.alone()), allowed, "on the GPU");
    for (rows, singles) in CHUNKS {
        let chunked = work.run(gpu, &work.chunked(rows, singles));
        work.are_same(&chunked, &alone, &format!("in chunks of {rows}, then {singles} rows"));
    }
}

#[test]
fn rows_agree_with_the_reference_and_are_independent() {
    check(PLAIN, &LENGTHS, ALLOWED);
    check(Model { kv_type: KvType::F16, sinks: true, dim: 32, ..PLAIN }, &LENGTHS, ALLOWED);
}

#[test]
fn windows_cross_the_borders_of_stretches() {
    for (window, kv_type) in [(3, KvType::F16), (100, KvType::F32), (300, KvType::F16)] {
        check(Model { window: Some(window), kv_type, ..PLAIN }, &LENGTHS, ALLOWED);
    }
    let all = Model { window: Some(513), soft_cap: Some(3.0), sinks: true, dim: 80, ..PLAIN };
    check(all, &LENGTHS, ALLOWED);
}

/// As on the CPU: one or two positions take all the weight, and where the nearest two are close, the rounding of scores of 1e4
/// (0.0005) moves the weights by as large a share.
#[test]
fn large_scores_are_stable() {
    for (magnitude, sinks) in [(50.0, false), (50.0, true)] {
        check(Model { magnitude, sinks, ..PLAIN }, &[300, 600], 4e-3);
    }
}

/// So many rows are not split: each goes through its stretches in one kernel, one after another.
#[test]
fn rows_beside_many_others_get_the_same_bits() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    let work = Work::new(Model { kv_type: KvType::F16, sinks: true, ..PLAIN }, &[290; 66]);
    let prompts = || (0..66).map(|s| vec![(s, 0, 289)]);
    let one_by_one: Vec<_> = prompts().chain((0..66).map(|s| vec![(s, 289, 1)])).collect();
    let together: Vec<_> = prompts().chain([(0..66).map(|s| (s, 289, 1)).collect()]).collect();
    work.are_same(&work.run(gpu, &together), &work.run(gpu, &one_by_one), "of 66 sequences together");
}
