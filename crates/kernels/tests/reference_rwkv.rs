//! The reference against a float64 evaluation of RWKV-7's published equations: two layers, two heads, five tokens.

mod vectors;

use exotherm_kernels::backend::Executor;
use exotherm_kernels::ops::{ChannelMix, GroupedLinear, LinearResidual, Lora, LoraPair, ShiftMix, TimeMix};
use exotherm_kernels::{Activation, Buf, Norm, NormKind, Place, ProgramBuilder, RecId};
use vectors::{Vectors, assert_close, compiled, finish, positions};

const WIDTH: usize = 8;
const HEADS: usize = 2;
const HIDDEN: usize = 11;
const RANK: usize = 3;
const TOKENS: usize = 5;

/// The op after which a layer's time mixing is done, counted within the layer, and the ops of a layer.
const TIME_OPS: usize = 5;
const LAYER_OPS: usize = 7;

struct Layer {
    state: RecId,
    shift: RecId,
}

fn norm(v: &Vectors, b: &mut ProgramBuilder, name: &str, eps: f32) -> Norm {
    let weight = v.vector(b, &format!("{name}.w"));
    let bias = Some(v.vector(b, &format!("{name}.b")));
    Norm { kind: NormKind::Layer, weight, bias, eps }
}

fn record_layer(v: &Vectors, b: &mut ProgramBuilder, layer: usize, x: Buf, v_first: Buf) -> Layer {
    let name = |what: &str| format!("rwkv.{layer}.{what}");
    let mixed = b.buffer("mixed", 6 * WIDTH);
    let ln1 = norm(v, b, &name("ln1"), 1e-5);
    let (mix, state) = (v.vector(b, &name("mix")), b.recurrent(WIDTH));
    b.push(ShiftMix { x, norm: ln1, mix, mixes: 6, state, out: mixed });
    let rkv = b.buffer("rkv", 3 * WIDTH);
    // The mixes lie in the order r w k v a g.
    let groups = [(0, "r"), (2, "k"), (3, "v")].map(|(at, of)| (at * WIDTH, v.matrix(b, &name(of), WIDTH)));
    b.push(GroupedLinear { x: mixed, groups: groups.to_vec(), out: rkv });
    let of = [
        (1, "w", Activation::Tanh, Activation::None),
        (4, "a", Activation::None, Activation::Sigmoid),
        (5, "g", Activation::Sigmoid, Activation::None),
        (3, "v", Activation::None, Activation::Sigmoid),
    ];
    let of = if layer == 0 { &of[..3] } else { &of };
    let wagv = b.buffer("wagv", of.len() * WIDTH);
    let mut pairs = Vec::new();
    for &(at, letter, middle, out) in of {
        let down = v.matrix(b, &name(&format!("{letter}1")), WIDTH);
        let up = v.matrix(b, &name(&format!("{letter}2")), RANK);
        let bias = (letter != "g").then(|| v.vector(b, &name(&format!("{letter}0"))));
        pairs.push(LoraPair { x_at: at * WIDTH, down, middle, up, bias, out });
    }
    b.push(Lora { x: mixed, pairs, out: wagv });
    let [k_k, k_a, r_k] = ["k_k", "k_a", "r_k"].map(|of| v.vector(b, &name(of)));
    let group_norm = norm(v, b, &name("gn"), (WIDTH / HEADS) as f32 * 1e-5);
    let state = b.recurrent(WIDTH * WIDTH / HEADS);
    let (out, is_first_layer) = (b.buffer("out", WIDTH), layer == 0);
    let op = TimeMix {
        rkv,
        wagv,
        v_first,
        is_first_layer,
        k_k,
        k_a,
        r_k,
        norm: group_norm,
        heads: HEADS,
        state,
        out,
    };
    b.push(op);
    let weight = v.matrix(b, &name("o"), WIDTH);
    b.push(LinearResidual { x: out, weight, bias: None, post_norm: None, residual: x });

    let ln2 = norm(v, b, &name("ln2"), 1e-5);
    let (mix, shift) = (v.vector(b, &name("ffn.mix")), b.recurrent(WIDTH));
    let hidden = b.buffer("hidden", HIDDEN);
    let weight = v.matrix(b, &name("ffn.k"), WIDTH);
    b.push(ChannelMix { x, norm: ln2, mix, state: shift, weight, out: hidden });
    let weight = v.matrix(b, &name("ffn.v"), HIDDEN);
    b.push(LinearResidual { x: hidden, weight, bias: None, post_norm: None, residual: x });
    Layer { state, shift }
}

/// Runs the layers on the tokens cut into chunks and checks rows and states after every layer.
fn check_chunks(chunks: &[usize]) {
    let v = Vectors::load();
    let mut b = ProgramBuilder::new();
    let (x, v_first) = (b.buffer("x", WIDTH), b.buffer("v_first", WIDTH));
    let layers = [0, 1].map(|layer| record_layer(&v, &mut b, layer, x, v_first));
    let mut executor: Box<dyn Executor> = compiled(&finish(b));
    // Whatever the slot held before the sequence must not count.
    for layer in &layers {
        executor.write(Place::Recurrent(layer.state), &[3.0; WIDTH * WIDTH / HEADS]);
        executor.write(Place::Recurrent(layer.shift), &[3.0; WIDTH]);
    }
    let mut start = 0;
    for &rows in chunks {
        let of = start * WIDTH..(start + rows) * WIDTH;
        executor.write(Place::Buffer(x), &v.get("rwkv.x")[of.clone()]);
        let batch = positions(start, rows);
        for layer in 0..layers.len() {
            let first = layer * LAYER_OPS;
            for (ops, name) in [
                (first..first + TIME_OPS, format!("rwkv.{layer}.after_time")),
                (first + TIME_OPS..first + LAYER_OPS, format!("rwkv.{layer}.after_channel")),
            ] {
                executor.run_ops(&batch, ops).unwrap();
                assert_close(&name, &v.get(&name)[of.clone()], &executor.read(Place::Buffer(x)));
            }
        }
        start += rows;
    }
    assert_eq!(start, TOKENS);
    for (i, layer) in layers.iter().enumerate() {
        let state = [0, 1].map(|head| v.get(&format!("rwkv.{i}.state{head}"))).concat();
        assert_close("state", &state, &executor.read(Place::Recurrent(layer.state)));
        let shift = format!("rwkv.{i}.shift");
        assert_close(&shift, v.get(&shift), &executor.read(Place::Recurrent(layer.shift)));
    }
}

#[test]
fn a_whole_prompt_agrees_with_the_equations() {
    check_chunks(&[5]);
}

#[test]
fn chunks_agree_with_the_equations() {
    check_chunks(&[1, 3, 1]);
    check_chunks(&[1; 5]);
}
