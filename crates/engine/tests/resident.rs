//! After a run that filled the pool, as much memory is really in use as the plan said.
//!
//! One test alone, so that nothing else in the process takes memory meanwhile.
#![cfg(target_os = "linux")]

mod common;

use common::{assert_planned, resident_bytes};
use exotherm_engine::{Engine, EngineConfig, Event, FinishReason, MemoryPlan, Request};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::ops::{Attention, Embed, Head, LinearResidual, NormLinear, QkRopeWrite};
use exotherm_kernels::{Activation, MatId, Norm, NormKind, Program, ProgramBuilder};
use exotherm_tensor::Tensor;

const WIDTH: usize = 64;
const VOCAB: usize = 60_000;
const HEADS: usize = 40;
const HEAD_DIM: usize = 64;
const SEQUENCES: usize = 12;

fn matrix(builder: &mut ProgramBuilder, name: &str, n_out: usize, n_in: usize) -> MatId {
    let mut state = n_out as u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) / (n_in as f32).sqrt()
    };
    let values: Vec<f32> = (0..n_out * n_in).map(|_| next()).collect();
    builder.matrix(name, vec![Tensor::from_f32(&[n_out, n_in], &values).expect("the shape fits")])
}

/// A small model with much to remember: 40 KiB for every token.
fn program() -> Program {
    let mut b = ProgramBuilder::new();
    let weight = b.vector(vec![1.0; WIDTH]);
    let norm = Norm { kind: NormKind::Rms, weight, bias: None, eps: 1e-5 };
    let (x, logits) = (b.buffer("x", WIDTH), b.logits_buffer(VOCAB));
    let table = matrix(&mut b, "embedding", VOCAB, WIDTH);
    b.push(Embed { table, scale: 1.0, positions: None, norm: None, out: x });
    for _ in 0..4 {
        let (qkv, attended) = (b.buffer("qkv", 3 * HEADS * HEAD_DIM), b.buffer("attended", HEADS * HEAD_DIM));
        let kv = b.kv_layer(HEADS, HEAD_DIM);
        let weight = matrix(&mut b, "qkv", 3 * HEADS * HEAD_DIM, WIDTH);
        let activation = Activation::None;
        b.push(NormLinear { x, norm: Some(norm), weight, bias: None, activation, out: qkv });
        b.push(QkRopeWrite { qkv, q_norm: None, k_norm: None, rope: None, heads: HEADS, kv });
        let (window, soft_cap, sinks, out) = (None, None, None, attended);
        b.push(Attention { qkv, heads: HEADS, scale: 0.1, window, soft_cap, sinks, kv, out });
        let weight = matrix(&mut b, "o", WIDTH, HEADS * HEAD_DIM);
        b.push(LinearResidual { x: attended, weight, bias: None, post_norm: None, residual: x });
    }
    b.push(Head { x, norm, weight: table, soft_cap: None, logits });
    b.finish(logits, VOCAB)
}

#[test]
fn what_is_in_use_is_what_was_planned() {
    let before = resident_bytes();
    let backend = CpuBackend::new(2);
    let program = program();
    let config = EngineConfig { max_seqs: SEQUENCES, ..EngineConfig::new(250) };
    let plan = MemoryPlan::new(&program, &backend, &config);
    let mut engine = Engine::new(&program, &backend, config).expect("there is memory");
    drop(program);
    for i in 0..SEQUENCES {
        let prompt = (0..248).map(|p| ((p * p * 31 + i * 977) % VOCAB) as u32).collect();
        engine.submit(Request::new(prompt, 2)).expect("it fits");
    }
    let mut ended = 0;
    while ended < SEQUENCES {
        for event in engine.step().expect("it runs") {
            if let Event::Finished { reason, .. } = event {
                assert_eq!(*reason, FinishReason::Length);
                ended += 1;
            }
        }
    }
    let books = engine.books();
    assert_eq!(books.free + books.cached, SEQUENCES * 16);
    assert_eq!(books.cached, SEQUENCES * 15, "all but the last, unfilled blocks are remembered");
    let used = resident_bytes() - before;
    assert_planned(used, &plan);
}
