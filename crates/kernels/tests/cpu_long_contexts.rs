//! Attention of the CPU backend over contexts of several parts of 256 positions: against the reference, and the same
//! bits for a row whether it comes alone, in chunks of any size or beside other sequences, on any number of threads.

use exotherm_kernels::backend::{Backend, Executor, Place};
use exotherm_kernels::conformance::data::{Numbers, Piece, Sequences};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::ops::{Attention, QkRopeWrite};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Buf, KvType, Program, ProgramBuilder};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;

#[derive(Clone, Copy, Debug)]
struct Model {
    dim: usize,
    kv_type: KvType,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: bool,
    /// Magnitude of queries and keys: scores go up to its square times the root of the head's size.
    magnitude: f32,
}

const PLAIN: Model =
    Model { dim: 20, kv_type: KvType::F32, window: None, soft_cap: None, sinks: false, magnitude: 2.0 };

/// Keys, values and queries of each sequence's rows go in by the buffer, the results come out.
struct Work {
    model: Model,
    program: Program,
    qkv: Buf,
    out: Buf,
    /// Each sequence's rows.
    inputs: Vec<Vec<Vec<f32>>>,
}

impl Work {
    fn new(model: Model, lengths: &[usize]) -> Work {
        let Model { dim, window, soft_cap, sinks, magnitude, .. } = model;
        let mut numbers = Numbers::new(dim as u64 + lengths.len() as u64);
        let mut b = ProgramBuilder::new();
        let width = (HEADS + 2 * KV_HEADS) * dim;
        let (qkv, out) = (b.buffer("qkv", width), b.buffer("out", HEADS * dim));
        let kv = b.kv_layer(KV_HEADS, dim);
        b.push(QkRopeWrite { qkv, q_norm: None, k_norm: None, rope: None, heads: HEADS, kv });
        let sinks = sinks.then(|| b.vector(numbers.around(HEADS, 1.0, 1.0)));
        let scale = 1.0 / (dim as f32).sqrt();
        b.push(Attention { qkv, heads: HEADS, scale, window, soft_cap, sinks, kv, out });
        let logits = b.logits_buffer(1);
        let values = (HEADS + KV_HEADS) * dim;
        let mut row = || [numbers.signed(values, magnitude), numbers.signed(width - values, 1.0)].concat();
        let inputs = lengths.iter().map(|&n| (0..n).map(|_| row()).collect()).collect();
        Work { model, program: b.finish(logits, 1), qkv, out, inputs }
    }

    fn lengths(&self) -> Vec<usize> {
        self.inputs.iter().map(Vec::len).collect()
    }

    /// The results of all rows of all sequences.
    fn run(&self, backend: &dyn Backend, steps: &[Vec<Piece>]) -> Vec<Vec<Vec<f32>>> {
        let lengths = self.lengths();
        let rows = |step: &Vec<Piece>| step.iter().map(|piece| piece.2).sum();
        let most = steps.iter().map(rows).max().unwrap_or(0);
        let places = Sequences::scattered(&lengths, most, self.model.kv_type, &mut Numbers::new(7));
        let mut executor = backend.compile(&self.program, &places.limits).unwrap();
        // What is not written yet must not matter, whatever it is.
        for op in self.program.ops() {
            if let exotherm_kernels::Op::Attention(op) = op {
                spoil(executor.as_mut(), Place::Keys(op.kv));
                spoil(executor.as_mut(), Place::Values(op.kv));
            }
        }
        let mut results: Vec<Vec<Vec<f32>>> = lengths.iter().map(|&n| vec![Vec::new(); n]).collect();
        for step in steps {
            let pieces =
                || step.iter().flat_map(|&(s, start, rows)| (start..start + rows).map(move |p| (s, p)));
            let input: Vec<f32> = pieces().flat_map(|(s, p)| self.inputs[s][p].iter().copied()).collect();
            let batch = places.batch(step, |_, _| 0);
            executor.write(Place::Buffer(self.qkv), &input);
            executor.run(&batch).unwrap();
            let out = executor.read(Place::Buffer(self.out));
            for ((s, p), row) in pieces().zip(out.chunks(HEADS * self.model.dim)) {
                results[s][p] = row.to_vec();
            }
        }
        results
    }

    /// Each sequence in one step of its own.
    fn alone(&self) -> Vec<Vec<Piece>> {
        self.lengths().into_iter().enumerate().map(|(s, n)| vec![(s, 0, n)]).collect()
    }

    /// All sequences side by side in chunks of `rows`, and the last positions one by one.
    fn chunked(&self, rows: usize, singles: usize) -> Vec<Vec<Piece>> {
        let lengths = self.lengths();
        let mut done = vec![0; lengths.len()];
        let mut steps = Vec::new();
        while done != lengths {
            let mut step = Vec::new();
            for (s, (done, &length)) in done.iter_mut().zip(&lengths).enumerate() {
                let left = length - *done;
                let rows = if left > singles { rows.min(left - singles) } else { left.min(1) };
                if rows > 0 {
                    step.push((s, *done, rows));
                    *done += rows;
                }
            }
            steps.push(step);
        }
        steps
    }

    /// Holds all ways to run it to one another bit for bit and to the reference within `allowed`.
    fn check(&self, levels: &[&str], allowed: f32) {
        let oracle = self.run(&ReferenceBackend, &self.alone());
        levels.iter().for_each(|level| self.check_level(level, &oracle, allowed));
    }

    fn check_level(&self, level: &str, oracle: &[Vec<Vec<f32>>], allowed: f32) {
        let backends = [1, 2, 3].map(|threads| CpuBackend::with_level(threads, level).unwrap());
        let alone = self.run(&backends[0], &self.alone());
        let pairs = oracle.iter().flatten().flatten().zip(alone.iter().flatten().flatten());
        for (i, (want, have)) in pairs.enumerate() {
            assert!(
                (want - have).abs() <= allowed,
                "{:?} at {level}: {have}, not {want}, at {i}",
                self.model
            );
        }
        for (backend, (rows, singles)) in backends.iter().zip([(1000, 3), (117, 9), (50, 70)]) {
            let chunked = self.run(backend, &self.chunked(rows, singles));
            let differs = (0..alone.len()).find_map(|s| {
                let p = (0..alone[s].len()).find(|&p| bits(&alone[s][p]) != bits(&chunked[s][p]))?;
                Some((s, p))
            });
            assert_eq!(
                differs,
                None,
                "{:?} at {level} in chunks of {rows} on {} threads",
                self.model,
                backend.threads()
            );
        }
        let last = self.run(&backends[2], &self.alone());
        assert!(alone.iter().flatten().map(|r| bits(r)).eq(last.iter().flatten().map(|r| bits(r))));
    }
}

/// Fills the cache with what is no number, as far as a backend stores any.
fn spoil(executor: &mut dyn Executor, place: Place) {
    let n = executor.read(place).len();
    executor.write(place, &vec![f32::NAN; n]);
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|v| v.to_bits()).collect()
}

/// The lengths on both sides of the first border, and some way past several.
const LENGTHS: [usize; 4] = [257, 1000, 300, 40];
/// The same, past one border: work goes with the square of the longest, and there are several levels.
const SHORTER: [usize; 3] = [257, 380, 40];

/// At the best level with those lengths, at every other with shorter ones.
fn check(model: Model, lengths: &[usize], allowed: f32) {
    let best = CpuBackend::new(1).level();
    Work::new(model, lengths).check(&[best], allowed);
    let others: Vec<_> = CpuBackend::levels().filter(|level| *level != best).collect();
    Work::new(model, &SHORTER).check(&others, allowed);
}

/// Means of values up to 1 with weights that are as exact as scores of about 3.
const ALLOWED: f32 = 5e-6;

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
