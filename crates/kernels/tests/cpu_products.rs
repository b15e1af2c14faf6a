//! Products of the CPU backend, of every type and many widths, against sums in f64 (of rounded activations where the
//! weights ask for that); and the same bits whatever the number of rows or threads.

use exotherm_kernels::conformance::data::Numbers;
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::ops::LinearResidual;
use exotherm_kernels::rounding::{INT8_BLOCK, rounded};
use exotherm_kernels::{Backend, Batch, Buf, Executor, KvType, Limits, Place, Program, ProgramBuilder};
use exotherm_tensor::{DType, Tensor};

/// A program that is one projection, and what it is made of.
struct Projection {
    program: Program,
    x: Buf,
    out: Buf,
    weights: Vec<f32>,
    /// The type of every output's weights.
    types: Vec<DType>,
    n_in: usize,
    n_out: usize,
}

impl Projection {
    fn new(segments: Vec<Tensor>) -> Projection {
        let (n_in, n_out) = (segments[0].n_in(), segments.iter().map(Tensor::n_rows).sum());
        let weights = segments.iter().flat_map(Tensor::to_f32).collect();
        let types = segments.iter().flat_map(|s| vec![s.dtype(); s.n_rows()]).collect();
        let mut b = ProgramBuilder::new();
        let (x, out) = (b.buffer("x", n_in), b.buffer("out", n_out));
        let weight = b.matrix("weight", segments);
        b.push(LinearResidual { x, weight, bias: None, post_norm: None, residual: out });
        let logits = b.logits_buffer(1);
        Projection { program: b.finish(logits, 1), x, out, weights, types, n_in, n_out }
    }

    fn executor(&self, threads: usize, rows: usize) -> Box<dyn Executor> {
        let limits = Limits { rows, logit_rows: 1, blocks: 0, slots: 0, kv_type: KvType::F32 };
        CpuBackend::new(threads).compile(&self.program, &limits).unwrap()
    }

    fn run(&self, executor: &mut dyn Executor, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.n_in;
        let mut batch = Batch::default();
        batch.push_span(&vec![0; rows], 0, &[], 0);
        executor.write(Place::Buffer(self.x), x);
        executor.write(Place::Buffer(self.out), &vec![0.0; rows * self.n_out]);
        executor.run(&batch).unwrap();
        executor.read(Place::Buffer(self.out))
    }

    /// Rows of 1 to 9 alone and together, on 1 to 5 threads.
    fn check(&self, what: &str, numbers: &mut Numbers) {
        const ROWS: usize = 9;
        let x = numbers.signed(ROWS * self.n_in, 1.0);
        let mut one = self.executor(1, ROWS);
        let alone: Vec<f32> = x.chunks(self.n_in).flat_map(|x| self.run(one.as_mut(), x)).collect();
        for (i, &have) in alone.iter().enumerate() {
            let (row, column) = (i / self.n_out, i % self.n_out);
            let x = &x[row * self.n_in..][..self.n_in];
            let is_quantized = self.types[column].is_quantized();
            let x = rounded(CpuBackend::new(1).activations().rounding(self.types[column]), x);
            let products = x.iter().zip(&self.weights[column * self.n_in..]);
            let (mut want, mut magnitude) = (0.0, 0.0);
            products.map(|(&x, &w)| f64::from(x) * f64::from(w)).for_each(|p| {
                want += p;
                magnitude += p.abs();
            });
            // Every product passes through no more than these roundings, each of half a unit in the last place.
            // Quantized weights make a block's part of two, a scale's and a minimum's: four roundings for each half
            // block, and the parts may be some times as large as their sum.
            let (roundings, parts) = match is_quantized {
                true => (8 * self.n_in.div_ceil(INT8_BLOCK) + 5, 8.0),
                // A run is of 64 products, or of as many pairs.
                false => (self.n_in.min(128) + self.n_in.div_ceil(64) + 1, 1.0),
            };
            let allowed = parts * magnitude * roundings as f64 * f64::from(f32::EPSILON) / 2.0 + 1e-30;
            assert!((f64::from(have) - want).abs() <= allowed, "{what}: {have} is not {want} ({allowed:e})");
        }
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        for threads in [1, 2, 3, 5] {
            let mut executor = self.executor(threads, ROWS);
            for rows in [1, 2, 3, 4, 5, ROWS] {
                let together = self.run(executor.as_mut(), &x[..rows * self.n_in]);
                assert_eq!(
                    bits(&together),
                    bits(&alone[..rows * self.n_out]),
                    "{what}: {rows} rows on {threads}"
                );
            }
        }
    }
}

#[test]
fn floats_of_every_width() {
    let mut numbers = Numbers::new(1);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for n_in in 1..=70 {
            let weights = numbers.tensor(dtype, 1 + n_in % 7, n_in, 1.0);
            Projection::new(vec![weights]).check(&format!("{dtype} of {n_in}"), &mut numbers);
        }
    }
}

#[test]
fn every_type_and_rows_of_several_blocks() {
    let mut numbers = Numbers::new(2);
    for dtype in DType::all() {
        for (blocks, n_out) in [(1, 1), (2, 37), (3, 70)] {
            let n_in = if dtype.is_quantized() { blocks * dtype.block_len() } else { 300 * blocks + 1 };
            let weights = numbers.tensor(dtype, n_out, n_in, 1.0);
            Projection::new(vec![weights]).check(&format!("{dtype} of {n_in}"), &mut numbers);
        }
    }
}

#[test]
fn segments_of_several_types_are_one_matrix() {
    let mut numbers = Numbers::new(3);
    let mut part = |dtype, n_out| numbers.tensor(dtype, n_out, 256, 1.0);
    let segments = vec![
        part(DType::Q4K, 33),
        part(DType::Q6K, 5),
        part(DType::F32, 1),
        part(DType::Q4_1, 18),
        part(DType::F16, 7),
    ];
    Projection::new(segments).check("mixed segments", &mut numbers);
}

#[test]
fn weights_wider_than_the_decoded_scratch() {
    let mut numbers = Numbers::new(4);
    let weights = numbers.tensor(DType::Q8_0, 6, 10_016, 1.0);
    Projection::new(vec![weights]).check("10016 wide", &mut numbers);
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let mut b = ProgramBuilder::new();
    let x = b.buffer("x", 1 << 20);
    let weight = b.matrix("weight", vec![Tensor::from_f32(&[1, 1 << 20], &vec![0.0; 1 << 20]).unwrap()]);
    let out = b.buffer("out", 1);
    b.push(LinearResidual { x, weight, bias: None, post_norm: None, residual: out });
    let logits = b.logits_buffer(1);
    let program = b.finish(logits, 1);
    for rows in [1 << 45, usize::MAX] {
        let limits = Limits { rows, logit_rows: 1, blocks: 0, slots: 0, kv_type: KvType::F32 };
        let Err(error) = CpuBackend::new(2).compile(&program, &limits) else { panic!("{rows} rows fit") };
        assert!(error.to_string().contains("could not be had"), "{error}");
    }
}
