//! Attention of a single row at several lengths of context, in the shape of SmolLM2-135M.

mod common;

use common::{Bench, Units, Work, compile, values};
use exotherm_kernels::ops::Attention;
use exotherm_kernels::{BLOCK, Batch, Executor, KvId, Place, Program, ProgramBuilder};

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
/// Each with keys and values of its own, so that they do not stay in the caches near a core.
const LAYERS: usize = 8;

fn program() -> (Program, Vec<KvId>) {
    let mut builder = ProgramBuilder::new();
    let qkv = builder.buffer("qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM);
    let out = builder.buffer("attended", HEADS * HEAD_DIM);
    let layers: Vec<KvId> = (0..LAYERS).map(|_| builder.kv_layer(KV_HEADS, HEAD_DIM)).collect();
    for &kv in &layers {
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        builder.push(Attention {
            qkv,
            heads: HEADS,
            scale,
            window: None,
            soft_cap: None,
            sinks: None,
            kv,
            out,
        });
    }
    let logits = builder.logits_buffer(1);
    (builder.finish(logits, 1), layers)
}

fn fill(executor: &mut dyn Executor, program: &Program, layers: &[KvId], context: usize) {
    let cache = values(context * KV_HEADS * HEAD_DIM);
    for &kv in layers {
        executor.write(Place::Keys(kv), &cache);
        executor.write(Place::Values(kv), &cache);
    }
    let mut input = None;
    program.ops()[0].for_each_buffer(&mut |buffer| input = input.or(Some(buffer)));
    let width = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    executor.write(Place::Buffer(input.expect("an op has an input")), &values(width));
}

fn main() {
    let mut bench = Bench::new();
    let (program, layers) = program();
    for context in [128, 1024, 4096, 16384] {
        let blocks = context / BLOCK;
        let mut executor = compile(&bench, &program, 1, blocks);
        fill(&mut *executor, &program, &layers, context);
        let mut batch = Batch::default();
        let table: Vec<u32> = (0..blocks as u32).collect();
        batch.push_span(&[0], context as u32 - 1, &table, 0);
        let elements = (LAYERS * context * HEAD_DIM) as f64;
        let work = Work {
            // Keys and values in f16, each read once.
            bytes: elements * (2 * KV_HEADS * 2) as f64,
            operations: elements * (4 * HEADS) as f64,
            units: Units::Floats,
        };
        bench.run("attention", &context.to_string(), &mut *executor, &batch, work);
    }
    bench.end();
}
