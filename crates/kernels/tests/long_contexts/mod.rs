//! Attention over contexts of several parts of 256 positions, on backends that tests choose.
#![allow(dead_code)] // each test binary uses its own part

use exotherm_kernels::backend::{Backend, Executor, Place};
use exotherm_kernels::conformance::data::{Numbers, Piece, Sequences};
use exotherm_kernels::ops::{Attention, QkRopeWrite};
use exotherm_kernels::{Buf, KvType, Program, ProgramBuilder};

pub const HEADS: usize = 6;
pub const KV_HEADS: usize = 2;

#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub dim: usize,
    pub kv_type: KvType,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    pub sinks: bool,
    /// Magnitude of queries and keys: scores go up to its square times the root of the head's size.
    pub magnitude: f32,
}

pub const PLAIN: Model =
    Model { dim: 20, kv_type: KvType::F32, window: None, soft_cap: None, sinks: false, magnitude: 2.0 };

/// The results of all rows of all sequences.
pub type Results = Vec<Vec<Vec<f32>>>;

/// Keys, values and queries of each sequence's rows go in by the buffer, the results come out.
pub struct Work {
    pub model: Model,
    program: Program,
    qkv: Buf,
    out: Buf,
    /// Each sequence's rows.
    inputs: Vec<Vec<Vec<f32>>>,
}

impl Work {
    pub fn new(model: Model, lengths: &[usize]) -> Work {
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

    pub fn lengths(&self) -> Vec<usize> {
        self.inputs.iter().map(Vec::len).collect()
    }

    /// The results of all rows of all sequences.
    pub fn run(&self, backend: &dyn Backend, steps: &[Vec<Piece>]) -> Results {
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
        let mut results: Results = lengths.iter().map(|&n| vec![Vec::new(); n]).collect();
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
    pub fn alone(&self) -> Vec<Vec<Piece>> {
        self.lengths().into_iter().enumerate().map(|(s, n)| vec![(s, 0, n)]).collect()
    }

    /// All sequences side by side in chunks of `rows`, and the last positions one by one.
    pub fn chunked(&self, rows: usize, singles: usize) -> Vec<Vec<Piece>> {
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

    /// Holds the results of this backend to others within `allowed`.
    pub fn agree(&self, have: &Results, want: &Results, allowed: f32, what: &str) {
        let pairs = want.iter().flatten().flatten().zip(have.iter().flatten().flatten());
        for (i, (want, have)) in pairs.enumerate() {
            assert!((want - have).abs() <= allowed, "{:?} {what}: {have}, not {want}, at {i}", self.model);
        }
    }

    /// Holds results to others bit for bit.
    pub fn are_same(&self, have: &Results, want: &Results, what: &str) {
        let differs = (0..want.len()).find_map(|s| {
            let p = (0..want[s].len()).find(|&p| bits(&want[s][p]) != bits(&have[s][p]))?;
            Some((s, p))
        });
        assert_eq!(differs, None, "{:?} {what}", self.model);
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
pub const LENGTHS: [usize; 4] = [257, 1000, 300, 40];

/// Means of values up to 1 with weights that are as exact as scores of about 3.
pub const ALLOWED: f32 = 5e-6;
