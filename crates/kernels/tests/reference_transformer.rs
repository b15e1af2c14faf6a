//! The reference against PyTorch and the modelling code of transformers.

mod vectors;

use exotherm_kernels::ops::{
    Attention, MoeDown, MoeGateUp, MoeRoute, NormLinear, QkRopeWrite, Rope, RopeStyle, RopeTable,
};
use exotherm_kernels::{Activation, BLOCK, Batch, Buf, Norm, NormKind, Place, Program, ProgramBuilder};
use exotherm_tensor::Tensor;
use vectors::{Vectors, assert_close, compiled, finish, positions};

/// Runs a program of one input and gives its output.
fn run(program: &Program, inputs: &[(Buf, &[f32])], batch: &Batch, out: Buf) -> Vec<f32> {
    let mut executor = compiled(program);
    inputs.iter().for_each(|&(buf, values)| executor.write(Place::Buffer(buf), values));
    executor.run(batch).expect("the batch fits");
    executor.read(Place::Buffer(out))
}

/// Where (position, head, element) of the sequence lies in its layer's keys or values.
fn kv_at(position: usize, head: usize, kv_heads: usize, dim: usize) -> std::ops::Range<usize> {
    let block = [1, 0][position / BLOCK];
    let at = ((block * kv_heads + head) * BLOCK + position % BLOCK) * dim;
    at..at + dim
}

fn identity(n: usize) -> Tensor {
    let values: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    Tensor::from_f32(&[n, n], &values).unwrap()
}

#[test]
fn norms_agree_with_pytorch() {
    let v = Vectors::load();
    for (kind, name) in [(NormKind::Layer, "norm.layer"), (NormKind::Rms, "norm.rms")] {
        let mut b = ProgramBuilder::new();
        let (x, out) = (b.buffer("x", 10), b.buffer("out", 10));
        let weight = v.vector(&mut b, "norm.weight");
        let bias = (kind == NormKind::Layer).then(|| v.vector(&mut b, "norm.bias"));
        let norm = Some(Norm { kind, weight, bias, eps: 1e-5 });
        let weight = b.matrix("identity", vec![identity(10)]);
        b.push(NormLinear { x, norm, weight, bias: None, activation: Activation::None, out });
        let have = run(&finish(b), &[(x, v.get("norm.x"))], &positions(0, 3), out);
        assert_close(name, v.get(name), &have);
    }
}

#[test]
fn activations_agree_with_pytorch() {
    let v = Vectors::load();
    let n = v.get("act.x").len();
    for (activation, name) in [
        (Activation::GeluErf, "act.gelu_erf"),
        (Activation::GeluTanh, "act.gelu_tanh"),
        (Activation::SquaredRelu, "act.squared_relu"),
        (Activation::Tanh, "act.tanh"),
        (Activation::Sigmoid, "act.sigmoid"),
        (Activation::SiluGlu, "act.silu_glu"),
        (Activation::GeluTanhGlu, "act.gelu_tanh_glu"),
    ] {
        let mut b = ProgramBuilder::new();
        let inputs = if activation.is_gated() { 2 * n } else { n };
        let (x, out) = (b.buffer("x", inputs), b.buffer("out", n));
        let weight = b.matrix("identity", vec![identity(inputs)]);
        b.push(NormLinear { x, norm: None, weight, bias: None, activation, out });
        let row = [v.get("act.x"), if activation.is_gated() { v.get("act.up") } else { &[] }].concat();
        let have = run(&finish(b), &[(x, &row)], &positions(0, 1), out);
        assert_close(name, v.get(name), &have);
    }
}

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const DIM: usize = 10;

/// `[head][position][dim]` as the cache holds it.
fn cache(values: &[f32]) -> Vec<f32> {
    let mut cache = vec![0.0; 2 * BLOCK * KV_HEADS * DIM];
    let n = values.len() / KV_HEADS / DIM;
    for (i, vector) in values.chunks(DIM).enumerate() {
        cache[kv_at(i % n, i / n, KV_HEADS, DIM)].copy_from_slice(vector);
    }
    cache
}

#[test]
fn attention_agrees_with_pytorch_and_transformers() {
    let v = Vectors::load();
    let context = v.get("attn.k").len() / KV_HEADS / DIM;
    let rows = v.get("attn.q").len() / HEADS / DIM;
    let (width, q_width) = ((HEADS + 2 * KV_HEADS) * DIM, HEADS * DIM);
    let mut input = vec![0.0; rows * width];
    for (i, vector) in v.get("attn.q").chunks(DIM).enumerate() {
        let at = i % rows * width + i / rows * DIM;
        input[at..at + DIM].copy_from_slice(vector);
    }
    for (window, name) in [(None, "full"), (Some(7), "window7")] {
        for (soft_cap, sunk, kind) in [(None, false, ""), (Some(2.0), false, ".cap2"), (None, true, ".sinks")]
        {
            let name = format!("attn.{name}{kind}");
            let mut b = ProgramBuilder::new();
            let (qkv, out) = (b.buffer("qkv", width), b.buffer("out", q_width));
            let kv = b.kv_layer(KV_HEADS, DIM);
            let sinks = sunk.then(|| v.vector(&mut b, "attn.sinks"));
            b.push(Attention { qkv, heads: HEADS, scale: 0.3, window, soft_cap, sinks, kv, out });
            let mut executor = compiled(&finish(b));
            executor.write(Place::Buffer(qkv), &input);
            executor.write(Place::Keys(kv), &cache(v.get("attn.k")));
            executor.write(Place::Values(kv), &cache(v.get("attn.v")));
            executor.run(&positions(context - rows, rows)).unwrap();
            assert_close(&name, v.get(&name), &executor.read(Place::Buffer(out)));
        }
    }
}

#[test]
fn rotary_tables_agree_with_transformers() {
    let v = Vectors::load();
    let mut b = ProgramBuilder::new();
    let inv_freq = v.vector(&mut b, "rope.inv_freq12");
    let out = b.buffer("rope", 12);
    b.push(RopeTable { inv_freq, magnitude: 1.0, out });
    let have = run(&finish(b), &[], &positions(7, 3), out);
    assert_close("rope.table", v.get("rope.table"), &have);
}

#[test]
fn rotation_and_qk_norm_agree_with_transformers() {
    let v = Vectors::load();
    let (heads, dim, rows) = (3, 12, 3);
    for (name, style, rotated, normed) in [
        ("halves", RopeStyle::Halves, 12, false),
        ("pairs", RopeStyle::Pairs, 12, false),
        ("normed", RopeStyle::Halves, 12, true),
        ("partial", RopeStyle::Halves, 8, false),
    ] {
        let mut b = ProgramBuilder::new();
        let inv_freq = v.vector(&mut b, &format!("rope.inv_freq{rotated}"));
        let (table, qkv) = (b.buffer("rope", rotated), b.buffer("qkv", 5 * dim));
        b.push(RopeTable { inv_freq, magnitude: 1.0, out: table });
        let mut norm = |name| {
            let weight = v.vector(&mut b, name);
            normed.then_some(Norm { kind: NormKind::Rms, weight, bias: None, eps: 1e-6 })
        };
        let (q_norm, k_norm) = (norm("rope.q_weight"), norm("rope.k_weight"));
        let kv = b.kv_layer(1, dim);
        b.push(QkRopeWrite { qkv, q_norm, k_norm, rope: Some(Rope { table, style }), heads, kv });
        let (q, k) = (v.get("rope.q"), v.get("rope.k"));
        let row = |r: usize| {
            let of_head = |head: usize| &q[(head * rows + r) * dim..][..dim];
            let values: Vec<f32> = (0..dim).map(|i| (r * dim + i) as f32).collect();
            [of_head(0), of_head(1), of_head(2), &k[r * dim..][..dim], &values].concat()
        };
        let input: Vec<f32> = (0..rows).flat_map(row).collect();
        let mut executor = compiled(&finish(b));
        executor.write(Place::Buffer(qkv), &input);
        executor.run(&positions(7, rows)).unwrap();
        let out = executor.read(Place::Buffer(qkv));
        let turned: Vec<f32> = out.chunks(5 * dim).flat_map(|row| row[..heads * dim].to_vec()).collect();
        assert_close(name, v.get(&format!("rope.{name}.q")), &turned);
        let (keys, values) = (executor.read(Place::Keys(kv)), executor.read(Place::Values(kv)));
        for r in 0..rows {
            let at = kv_at(7 + r, 0, 1, dim);
            let want = &v.get(&format!("rope.{name}.k"))[r * dim..][..dim];
            assert_close(name, want, &keys[at.clone()]);
            assert_close(name, &input[r * 5 * dim + 4 * dim..][..dim], &values[at]);
        }
    }
}

#[test]
fn experts_agree_with_transformers() {
    let v = Vectors::load();
    let (width, hidden, experts, top_k) = (10, 7, 5, 2);
    for (renormalize, name) in [(true, "moe.out.renormalized"), (false, "moe.out.plain")] {
        let mut b = ProgramBuilder::new();
        let (x, normed) = (b.buffer("x", width), b.buffer("normed", width));
        let (routes, out) = (b.buffer("routes", 2 * top_k), b.buffer("hidden", top_k * hidden));
        let weight = v.vector(&mut b, "moe.norm");
        let norm = Norm { kind: NormKind::Rms, weight, bias: None, eps: 1e-6 };
        let router = v.matrix(&mut b, "moe.router", width);
        b.push(MoeRoute { x, norm, router, top_k, renormalize, normed, routes });
        let (gate, up) = (v.matrix(&mut b, "moe.gate", width), v.matrix(&mut b, "moe.up", width));
        let activation = Activation::SiluGlu;
        b.push(MoeGateUp { normed, routes, top_k, experts, gate, up, activation, out });
        let down = v.matrix(&mut b, "moe.down", hidden);
        b.push(MoeDown { hidden: out, routes, top_k, experts, down, residual: x });
        let have = run(&finish(b), &[(x, v.get("moe.x"))], &positions(0, 4), x);
        assert_close(name, v.get(name), &have);
    }
}
