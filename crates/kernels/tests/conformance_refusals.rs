//! Every bad batch is refused with its plain error before a kernel sees it.

use exotherm_kernels::backend::{Backend, BackendError, check_batch};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::ops::{Attention, TimeMix};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{BLOCK, Batch, KvType, Limits, Norm, NormKind, Program, ProgramBuilder};

const VOCAB: usize = 11;
const LIMITS: Limits = Limits { rows: 40, logit_rows: 3, blocks: 5, slots: 3, kv_type: KvType::F32 };

/// Attention and time mixing, so that there is state of both kinds, with 100 positions.
fn program() -> Program {
    let mut b = ProgramBuilder::new();
    let kv = b.kv_layer(1, 4);
    let (qkv, out) = (b.buffer("qkv", 12), b.buffer("out", 4));
    b.push(Attention { qkv, heads: 1, scale: 1.0, window: None, soft_cap: None, sinks: None, kv, out });
    let (rkv, wagv, v_first) = (b.buffer("rkv", 12), b.buffer("wag", 12), b.buffer("v_first", 4));
    let ones = b.vector(vec![1.0; 4]);
    let norm = Norm { kind: NormKind::Layer, weight: ones, bias: None, eps: 1e-5 };
    let state = b.recurrent(16);
    b.push(TimeMix {
        rkv,
        wagv,
        v_first,
        is_first_layer: true,
        k_k: ones,
        k_a: ones,
        r_k: ones,
        norm,
        heads: 1,
        state,
        out,
    });
    b.limit_positions(100);
    let logits = b.logits_buffer(1);
    b.finish(logits, VOCAB)
}

/// A batch of spans: tokens, start, block table, slot.
fn batch(spans: &[(&[u32], u32, &[u32], u32)], logits: &[u32]) -> Batch {
    let mut batch = Batch::default();
    for (tokens, start, table, slot) in spans {
        batch.push_span(tokens, *start, table, *slot);
    }
    logits.iter().for_each(|&row| batch.want_logits(row));
    batch
}

/// What every backend says to the batch: the same as `check_batch`.
fn refusal(batch: &Batch) -> String {
    let program = program();
    let error = check_batch(&program, &LIMITS, batch).expect_err("the batch is bad");
    let backends: [&dyn Backend; 2] = [&ReferenceBackend, &CpuBackend::new(2)];
    for backend in backends {
        let mut executor = backend.compile(&program, &LIMITS).unwrap();
        for said in [executor.run(batch), executor.run_ops(batch, 0..1)] {
            assert_eq!(said.expect_err("the batch is bad").to_string(), error.to_string());
        }
    }
    error.to_string()
}

#[test]
fn good_batches_pass() {
    let program = program();
    for good in [
        batch(&[], &[]),
        batch(&[(&[0, 10], 0, &[4], 2)], &[1, 0, 1]),
        // Two sequences share a full block that both only read.
        batch(&[(&[1], 16, &[0, 1], 0), (&[1], 16, &[0, 2], 1)], &[0]),
        // A span of no rows writes nothing.
        batch(&[(&[1], 0, &[0], 0), (&[], 0, &[0], 1)], &[]),
        batch(&[(&[1; 5], 75, &[0, 1, 2, 3, 4], 0)], &[]),
    ] {
        check_batch(&program, &LIMITS, &good).unwrap();
        ReferenceBackend.compile(&program, &LIMITS).unwrap().run(&good).unwrap();
    }
}

#[test]
fn too_much_is_refused() {
    let rows = batch(&[(&[0; 41], 0, &[0, 1, 2], 0)], &[]);
    assert_eq!(refusal(&rows), "the step has 41 rows, there is room for 40");
    let logits = batch(&[(&[0], 0, &[0], 0)], &[0, 0, 0, 0]);
    assert_eq!(refusal(&logits), "the step has 4 rows that want logits, there is room for 3");
}

#[test]
fn numbers_outside_are_refused() {
    let token = batch(&[(&[1, 11], 0, &[0], 0)], &[]);
    assert_eq!(refusal(&token), "token 11 is outside the vocabulary of 11");
    let row = batch(&[(&[1, 2], 0, &[0], 0)], &[1, 2]);
    assert_eq!(refusal(&row), "logits were asked of row 2 in a step of 2 rows");
    let block = batch(&[(&[1], 0, &[5], 0)], &[]);
    assert_eq!(refusal(&block), "block 5 is outside the pool of 5");
    let read_block = batch(&[(&[1], 16, &[u32::MAX, 0], 0)], &[]);
    assert_eq!(refusal(&read_block), "block 4294967295 is outside the pool of 5");
    let slot = batch(&[(&[1], 0, &[0], 3)], &[]);
    assert_eq!(refusal(&slot), "state slot 3 is outside the 3 there are");
}

#[test]
fn positions_past_the_end_are_refused() {
    let table = batch(&[(&[1; 3], BLOCK as u32 - 2, &[0], 0)], &[]);
    assert_eq!(refusal(&table), "a sequence reaches position 16 but its block table has room for 16");
    let position = batch(&[(&[1; 2], 99, &[0, 1, 2, 3, 4, 0, 1], 0)], &[]);
    assert_eq!(refusal(&position), "position 100 is past the 100 that this model holds");
    let far = batch(&[(&[1], u32::MAX - 1, &[0], 0)], &[]);
    assert_eq!(refusal(&far), "position 4294967294 is past the 100 that this model holds");
}

#[test]
fn shared_state_is_refused() {
    let slot = batch(&[(&[1], 0, &[0], 2), (&[1], 3, &[1], 1), (&[1], 3, &[2], 2)], &[]);
    assert_eq!(refusal(&slot), "two sequences of the step keep their state in slot 2");
    let block = batch(&[(&[1], 0, &[3], 0), (&[1], 16, &[1, 3], 1)], &[]);
    assert_eq!(refusal(&block), "block 3 is written by one part of the step and used by another");
    let read = batch(&[(&[1], 17, &[3, 2], 0), (&[1], 0, &[3], 1)], &[]);
    assert_eq!(refusal(&read), "block 3 is written by one part of the step and used by another");
    let own = batch(&[(&[1; 20], 4, &[3, 3], 0)], &[]);
    assert_eq!(refusal(&own), "block 3 is written by one part of the step and used by another");
}

#[test]
fn sharing_is_noticed_in_large_pools() {
    let program = program();
    let limits = Limits { blocks: 200_000, slots: 200_000, ..LIMITS };
    for (a, b) in [(0, 32_768), (32_767, 32_768), (131_071, 199_999)] {
        check_batch(&program, &limits, &batch(&[(&[1], 0, &[a], b), (&[1], 0, &[b], a)], &[])).unwrap();
        for n in [a, b] {
            let shared = batch(&[(&[1], 0, &[n], 0), (&[1], 0, &[n], 1)], &[]);
            let error = check_batch(&program, &limits, &shared).unwrap_err();
            assert!(matches!(error, BackendError::SharedBlock(block) if block == n), "{error}");
            let shared = batch(&[(&[1], 0, &[0], n), (&[1], 0, &[1], n)], &[]);
            let error = check_batch(&program, &limits, &shared).unwrap_err();
            assert!(matches!(error, BackendError::SharedSlot(slot) if slot == n), "{error}");
        }
    }
}

#[test]
fn programs_without_a_head_have_logits_all_the_same() {
    let program = program();
    let backends: [&dyn Backend; 2] = [&ReferenceBackend, &CpuBackend::new(2)];
    for backend in backends {
        let mut executor = backend.compile(&program, &LIMITS).unwrap();
        executor.run(&batch(&[(&[1, 2], 0, &[0], 0)], &[1, 0])).unwrap();
        assert_eq!(executor.logits().len(), 2, "{}", backend.name());
    }
}
