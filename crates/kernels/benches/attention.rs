//! Attention of a single row at several lengths of context, and of a chunk of a prompt's rows, in the shape of
//! SmolLM2-135M.

mod common;

use common::{Bench, Units, Work, compile, values};
use exotherm_kernels::ops::Attention;
use exotherm_kernels::{BLOCK, Batch, Executor, KvId, Place, Program, ProgramBuilder};

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
/// Rows that a prompt brings at a time.
const CHUNK: usize = 48;
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

/// Puts `context` positions into the cache of every layer, and so many rows before the op.
fn fill(executor: &mut dyn Executor, program: &Program, layers: &[KvId], context: usize, rows: usize) {
    let cache = values(context * KV_HEADS * HEAD_DIM);
    for &kv in layers {
        executor.write(Place::Keys(kv), &cache);
        executor.write(Place::Values(kv), &cache);
    }
    let mut input = None;
    program.ops()[0].for_each_buffer(&mut |buffer| input = input.or(Some(buffer)));
    let width = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    executor.write(Place::Buffer(input.expect("an op has an input")), &values(rows * width));
}

/// Times so many rows behind `depth` others.
fn attention(bench: &mut Bench, group: &str, name: usize, depth: usize, rows: usize) {
    let context = depth + rows;
    let (program, layers) = program();
    let blocks = context.div_ceil(BLOCK);
    let mut executor = compile(bench, &program, rows, blocks);
    fill(&mut *executor, &program, &layers, blocks * BLOCK, rows);
    let mut batch = Batch::default();
    let table: Vec<u32> = (0..blocks as u32).collect();
    batch.push_span(&vec![0; rows], depth as u32, &table, 0);
    // What each row sees, itself included.
    let seen: usize = (depth + 1..=context).sum();
    let elements = (LAYERS * HEAD_DIM) as f64;
    let work = Work {
        // Keys and values in f16, each read once for all rows.
        bytes: elements * context as f64 * (2 * KV_HEADS * 2) as f64,
        operations: elements * seen as f64 * (4 * HEADS) as f64,
        units: Units::Floats,
    };
    bench.run(group, &name.to_string(), &mut *executor, &batch, work);
}

fn main() {
    let mut bench = Bench::new();
    for context in [128, 1024, 4096, 16384] {
        attention(&mut bench, "attention", context, context - 1, 1);
    }
    for depth in [0, 512, 4096] {
        attention(&mut bench, &format!("attention of {CHUNK} rows at depth"), depth, depth, CHUNK);
    }
    bench.end();
}
