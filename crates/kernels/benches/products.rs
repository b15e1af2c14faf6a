//! Products with weights: the fused projection, and single rows and many rows for every type.

mod common;

use common::{Bench, Units, Work, compile, values};
use exotherm_kernels::ops::{LinearResidual, NormLinear};
use exotherm_kernels::{Activation, Batch, Executor, Norm, NormKind, Place, Program, ProgramBuilder};
use exotherm_tensor::{DType, Tensor};

/// A whole number of blocks of every type.
const WIDTH: usize = 2048;
/// Weights that a single row runs through: more than the caches near a core hold.
const STREAM: usize = 64 << 20;
/// Rows of a prompt's step.
const MANY: usize = 64;

fn weights(dtype: DType, n_out: usize, n_in: usize) -> Tensor {
    // Rows that repeat are as good as others, and soon made.
    const DIFFERENT: usize = 16;
    let some = Tensor::from_f32(&[DIFFERENT, n_in], &values(DIFFERENT * n_in)).expect("a shape");
    let some = some.encoded(dtype).expect("whole blocks");
    let mut all = vec![0.0; n_out * n_in];
    for (row, out) in all.chunks_exact_mut(n_in).enumerate() {
        some.decode_row(row % DIFFERENT, out);
    }
    Tensor::from_f32(&[n_out, n_in], &all).expect("a shape").encoded(dtype).expect("whole blocks")
}

/// Products of one input with as many matrices as make up the bytes.
fn products(dtype: DType, bytes: usize) -> Program {
    let mut builder = ProgramBuilder::new();
    let (x, residual) = (builder.buffer("input", WIDTH), builder.buffer("output", WIDTH));
    let tensor = weights(dtype, WIDTH, WIDTH);
    let n = bytes.div_ceil(tensor.bytes().len());
    for _ in 0..n {
        let weight = builder.matrix("weights", vec![tensor.clone()]);
        builder.push(LinearResidual { x, weight, bias: None, post_norm: None, residual });
    }
    let logits = builder.logits_buffer(1);
    builder.finish(logits, 1)
}

/// Norm, gate and up, and what is made of them: the largest projection of a small transformer's layer.
fn projections(dtype: DType, layers: usize) -> Program {
    const HIDDEN: usize = 3 * WIDTH;
    let mut builder = ProgramBuilder::new();
    let (x, out) = (builder.buffer("input", WIDTH), builder.buffer("output", HIDDEN));
    let tensor = weights(dtype, 2 * HIDDEN, WIDTH);
    let weight = builder.vector(vec![1.0; WIDTH]);
    let norm = Some(Norm { kind: NormKind::Rms, weight, bias: None, eps: 1e-5 });
    for _ in 0..layers {
        let weight = builder.matrix("weights", vec![tensor.clone()]);
        builder.push(NormLinear { x, norm, weight, bias: None, activation: Activation::SiluGlu, out });
    }
    let logits = builder.logits_buffer(1);
    builder.finish(logits, 1)
}

fn step(executor: &mut dyn Executor, program: &Program, rows: usize) -> (Batch, Work) {
    let mut input = None;
    program.ops()[0].for_each_buffer(&mut |buffer| input = input.or(Some(buffer)));
    let mut batch = Batch::default();
    batch.push_span(&vec![0; rows], 0, &[], 0);
    executor.write(Place::Buffer(input.expect("an op has an input")), &values(rows * WIDTH));
    let (mut bytes, mut operations) = (0.0, 0.0);
    for matrix in program.matrices() {
        bytes += matrix.bytes() as f64;
        operations += 2.0 * (matrix.n_in * matrix.n_out * rows) as f64;
    }
    let all = |wanted: fn(DType) -> bool| {
        program.matrices().iter().all(|m| m.segments.iter().all(|s| wanted(s.dtype())))
    };
    let units = match () {
        () if all(DType::is_quantized) => Units::Integers,
        () if all(|dtype| dtype == DType::BF16) => Units::Pairs,
        () => Units::Floats,
    };
    (batch, Work { bytes, operations, units })
}

fn measure(bench: &mut Bench, group: &str, name: &str, program: &Program, rows: usize) {
    let mut executor = compile(bench, program, rows, 0);
    let (batch, work) = step(&mut *executor, program, rows);
    bench.run(group, name, &mut *executor, &batch, work);
}

fn main() {
    let mut bench = Bench::new();
    for dtype in DType::all() {
        let stream = products(dtype, STREAM);
        measure(&mut bench, "single row", dtype.name(), &stream, 1);
        let one = products(dtype, 1);
        measure(&mut bench, "many rows", dtype.name(), &one, MANY);
    }
    for dtype in [DType::Q4_0, DType::Q4_1, DType::Q8_0, DType::Q4K, DType::F16] {
        let program = projections(dtype, 4);
        measure(&mut bench, "fused projection", &format!("{dtype}, 1 row"), &program, 1);
        let program = projections(dtype, 1);
        measure(&mut bench, "fused projection", &format!("{dtype}, {MANY} rows"), &program, MANY);
    }
    bench.end();
}
