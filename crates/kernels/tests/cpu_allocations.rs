//! A step of the CPU backend allocates nothing, on any of its threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use exotherm_kernels::conformance::programs::{self, Kind};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{BLOCK, Backend, Batch, Executor, KvType, Limits, SampleRow, Sampled, Sampling};

/// Counts what all threads of the process allocate.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SEQUENCES: usize = 3;
const ROWS: usize = 64;

/// Fills `batch` with `rows` rows at `start` of each of the first `sequences` sequences.
fn fill(batch: &mut Batch, sequences: usize, start: usize, rows: usize) {
    let (mut tokens, mut table) = ([0; ROWS], [0; 4]);
    batch.clear();
    for sequence in 0..sequences {
        tokens.iter_mut().enumerate().for_each(|(i, t)| *t = ((i * 7 + sequence) % programs::VOCAB) as u32);
        table.iter_mut().enumerate().for_each(|(i, b)| *b = (i * SEQUENCES + sequence) as u32);
        let first = batch.push_span(&tokens[..rows], start as u32, &table, sequence as u32);
        batch.want_logits(first + rows as u32 - 1);
    }
}

/// Ways to choose that use all the memory there is for it.
fn samplings() -> [Sampling; 4] {
    let warm = || Sampling { temperature: 0.9, ..Sampling::default() };
    let bias = vec![(1, 3.0), (5, -7.0)];
    let presence_penalty = 0.5;
    [
        Sampling::default(),
        warm(),
        Sampling { top_k: programs::VOCAB - 1, top_p: 0.99, min_p: 0.01, ..warm() },
        Sampling { top_p: 0.999, repeat_penalty: 1.2, presence_penalty, logit_bias: bias, ..warm() },
    ]
}

/// Steps of every size there is room for, each with tokens chosen.
fn steps(executor: &mut dyn Executor, batch: &mut Batch, samplings: &[Sampling], sampled: &mut Vec<Sampled>) {
    for (sequences, start, rows) in [(1, 0, 1), (3, 0, 5), (3, 5, 1), (2, 6, 17), (1, 23, 33), (3, 60, 4)] {
        fill(batch, sequences, start, rows);
        executor.run(batch).unwrap();
        for sampling in samplings {
            let (prompt, output, logprobs) = (&[1, 2, 3, 3][..], &[4, 3][..], Some(20));
            let row = |logits| {
                // The last of several stands there already.
                let given = (logits == 2).then_some(7);
                SampleRow { logits, sampling, prompt, output, position: start, logprobs, given }
            };
            let rows: [SampleRow; SEQUENCES] = std::array::from_fn(row);
            executor.sample(&rows[..sequences], sampled).unwrap();
            assert!(sampled.len() == sequences && sampled.iter().all(|s| s.token.is_some()));
        }
    }
}

/// One test alone, so that no other test's allocations are counted.
#[test]
fn a_steady_step_allocates_nothing() {
    let limits = Limits {
        rows: ROWS,
        logit_rows: SEQUENCES,
        blocks: 4 * SEQUENCES,
        slots: SEQUENCES,
        kv_type: KvType::F16,
    };
    assert!(limits.blocks * BLOCK >= SEQUENCES * 64);
    let backend = CpuBackend::new(3);
    let (samplings, mut sampled) = (samplings(), Vec::new());
    for kind in [Kind::Dense, Kind::Experts, Kind::Recurrent] {
        for seed in 0..8 {
            let mut executor = backend.compile(&programs::draw(kind, seed), &limits).unwrap();
            let mut batch = Batch::with_capacity(ROWS, SEQUENCES, 4 * SEQUENCES);
            for profiled in [false, true] {
                executor.set_profiling(profiled);
                steps(executor.as_mut(), &mut batch, &samplings, &mut sampled);
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                steps(executor.as_mut(), &mut batch, &samplings, &mut sampled);
                let made = ALLOCATIONS.load(Ordering::SeqCst) - before;
                assert_eq!(made, 0, "{kind:?} {seed}: steps allocated, profiled: {profiled}");
                assert_eq!(executor.op_times().is_empty(), !profiled);
            }
        }
    }
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > before, "the allocator does not count");
}
