//! The same of a model whose memory is recurrent states: those of the running sequences, and those that are remembered.
//!
//! One test alone, so that nothing else in the process takes memory meanwhile.
#![cfg(target_os = "linux")]

mod common;

use common::{Heard, VOCAB, assert_planned, config, resident_bytes, rwkv_of};
use exotherm_engine::{Engine, EngineConfig, FinishReason, MemoryPlan, Request};
use exotherm_kernels::cpu::CpuBackend;

const SEQUENCES: usize = 16;
const SNAPSHOTS: usize = 144;

#[test]
fn what_is_in_use_is_what_was_planned() {
    let before = resident_bytes();
    let backend = CpuBackend::new(2);
    // Half a megabyte of state for each sequence, and few weights, whose first copy is given back to the allocator only.
    let program = rwkv_of(64, 32, 1, 64);
    let config = EngineConfig { snapshots: SNAPSHOTS, snapshot_stride: 16, ..config(4096, SEQUENCES, 128) };
    let plan = MemoryPlan::new(&program, &backend, &config);
    assert!(plan.recurrent + plan.snapshots > 10 * plan.weights, "states are most of it\n{plan}");
    let mut engine = Engine::new(&program, &backend, config).expect("there is memory");
    drop(program);
    let mut heard = Heard::default();
    for i in 0..SEQUENCES {
        let prompt = (0..150).map(|p| ((p * p * 31 + i * 7) % VOCAB) as u32).collect();
        engine.submit(Request::new(prompt, 20)).expect("it fits");
    }
    heard.finish(&mut engine);
    assert!(heard.ends.len() == SEQUENCES && heard.ends.values().all(|end| end.0 == FinishReason::Length));
    assert_eq!(engine.stats().snapshots, SNAPSHOTS, "all that there is room for are remembered");
    assert_planned(resident_bytes() - before, &plan);
}
