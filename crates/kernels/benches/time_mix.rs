//! RWKV-7's time mixing in the shape of its model of 0.1 billion parameters, for one sequence and for sixteen.

mod common;

use common::{Bench, Units, Work, compile, values};
use exotherm_kernels::ops::TimeMix;
use exotherm_kernels::{Batch, Norm, NormKind, Place, Program, ProgramBuilder};

const WIDTH: usize = 768;
const HEADS: usize = 12;
const LAYERS: usize = 12;

fn program() -> Program {
    let mut builder = ProgramBuilder::new();
    let (rkv, wagv) = (builder.buffer("rkv", 3 * WIDTH), builder.buffer("wagv", 4 * WIDTH));
    let (v_first, out) = (builder.buffer("v_first", WIDTH), builder.buffer("mixed", WIDTH));
    let mut vector = |value: f32| builder.vector(vec![value; WIDTH]);
    let (k_k, k_a, r_k, weight, bias) = (vector(0.85), vector(1.0), vector(0.1), vector(1.0), vector(0.0));
    let norm = Norm { kind: NormKind::Layer, weight, bias: Some(bias), eps: 64e-5 };
    for _ in 0..LAYERS {
        let state = builder.recurrent(WIDTH * WIDTH / HEADS);
        let is_first_layer = false;
        builder.push(TimeMix {
            rkv,
            wagv,
            v_first,
            is_first_layer,
            k_k,
            k_a,
            r_k,
            norm,
            heads: HEADS,
            state,
            out,
        });
    }
    let logits = builder.logits_buffer(1);
    builder.finish(logits, 1)
}

fn main() {
    let mut bench = Bench::new();
    let program = program();
    for sequences in [1, 16] {
        let mut executor = compile(&bench, &program, sequences, 0);
        let mut buffers = Vec::new();
        program.ops()[0].for_each_buffer(&mut |buffer| buffers.push(buffer));
        for buffer in buffers {
            executor.write(Place::Buffer(buffer), &values(sequences * program.buffer(buffer).width));
        }
        let mut batch = Batch::default();
        // Not the beginning, so that the state of the run before is gone on from.
        (0..sequences as u32).for_each(|slot| {
            batch.push_span(&[0], 1, &[], slot);
        });
        let state = (LAYERS * sequences * WIDTH * WIDTH / HEADS) as f64;
        let work = Work {
            // The state is read and written.
            bytes: state * 8.0,
            // Decayed, corrected by a product of vectors, added to, and read by another vector.
            operations: state * 9.0,
            units: Units::Floats,
        };
        bench.run("time mix", &format!("{sequences} sequences"), &mut *executor, &batch, work);
    }
    bench.end();
}
