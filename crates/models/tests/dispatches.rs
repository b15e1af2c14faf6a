//! How many dispatches a layer of each family takes on a GPU for one row: counted in recordings of the golden models and compared
//! with the table in `benches/DISPATCHES.md`. No GPU is needed.

mod common;

use std::path::Path;

use exotherm_kernels::gpu::dispatches;
use exotherm_kernels::ops::{LoraPair, MoeRoute, NormLinear, TimeMix};
use exotherm_kernels::{Activation, Norm, Op, Program};

use common::{golden, open};

/// The families as the table names them, and a model of each.
const FAMILIES: [(&str, &str); 8] = [
    ("Llama", "llama-rope3"),
    ("Qwen2", "qwen2"),
    ("Qwen3", "qwen3"),
    ("Qwen3-MoE", "qwen3moe"),
    ("GPT-2", "gpt2"),
    ("Gemma 3", "gemma3"),
    ("RWKV-7", "rwkv7"),
    ("RWKV-7 (GGUF)", "rwkv7/model.gguf"),
];

/// The ops of each layer.
fn layers(program: &Program) -> Vec<std::ops::Range<usize>> {
    let ops = program.ops();
    let begins = |i: &usize| match &ops[*i] {
        Op::ShiftMix(_) => true,
        Op::NormLinear(_) => matches!(ops.get(i + 1), Some(Op::QkRopeWrite(_))),
        _ => false,
    };
    let starts: Vec<usize> = (0..ops.len()).filter(begins).collect();
    let head = ops.iter().position(|op| matches!(op, Op::Head(_))).expect("a model has a head");
    let ends = starts.iter().copied().skip(1).chain([head]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

fn has<T>(of: Option<T>) -> usize {
    usize::from(of.is_some())
}

/// Steps that a gated activation, another one, or none takes.
fn activation(of: Activation) -> usize {
    match of {
        Activation::None => 0,
        _ if of.is_gated() => 2,
        _ => 1,
    }
}

fn norm_linear(op: &NormLinear, program: &Program) -> usize {
    // Q, K and V, or gate and up, which some files have as one matrix.
    let matrices = program.matrix(op.weight).segments.len().max(if op.activation.is_gated() { 2 } else { 1 });
    has(op.norm) + matrices * (1 + has(op.bias)) + activation(op.activation)
}

fn route(op: &MoeRoute) -> usize {
    // Norm, scores, softmax and the choice.
    4 + usize::from(op.renormalize)
}

fn pair(pair: &LoraPair) -> usize {
    2 + activation(pair.middle) + has(pair.bias) + activation(pair.out)
}

fn time_mix(op: &TimeMix) -> usize {
    // The key's direction and its length, what is removed and what is put in its place, the decay; the state decayed, less what is
    // removed, and with the new value; what is read of it, its norm, the bonus and its sum, the gate. Later layers mix values.
    13 + usize::from(!op.is_first_layer)
}

/// Elementary steps of an op: what programs dispatch one by one that fuse nothing.
fn unfused(op: &Op, program: &Program) -> usize {
    let norm = |norm: &Option<Norm>| has(norm.as_ref());
    match op {
        Op::NormLinear(op) => norm_linear(op, program),
        // Q and K are turned, K and V written.
        Op::QkRopeWrite(op) => norm(&op.q_norm) + norm(&op.k_norm) + 2 * has(op.rope) + 2,
        // Scores, softmax, weighted sum.
        Op::Attention(op) => 3 + has(op.soft_cap),
        Op::LinearResidual(op) => 1 + has(op.bias) + norm(&op.post_norm) + 1,
        Op::MoeRoute(op) => route(op),
        Op::MoeGateUp(op) => 2 + activation(op.activation),
        // Products, their weighted sum, and the residual.
        Op::MoeDown(_) => 3,
        // Norm, difference to the row before, the mixes, and the state.
        Op::ShiftMix(op) => 3 + op.mixes,
        Op::GroupedLinear(op) => op.groups.len(),
        Op::Lora(op) => op.pairs.iter().map(pair).sum(),
        Op::TimeMix(op) => time_mix(op),
        // Norm, difference, mix, state, product and its activation.
        Op::ChannelMix(_) => 6,
        _ => 1,
    }
}

/// The row of the table for a family: its layer with the most ops.
fn row(name: &str, program: &Program) -> String {
    let fused = dispatches(program).expect("the golden models fit");
    let layer = layers(program).into_iter().max_by_key(|layer| (layer.len(), layer.start)).expect("a layer");
    let ops = &program.ops()[layer.clone()];
    let each = ops.iter().zip(&fused[layer.clone()]).map(|(op, n)| match n {
        1 => format!("`{}`", op.name()),
        n => format!("`{}` {n}", op.name()),
    });
    let each = each.collect::<Vec<_>>().join(", ");
    let fused: usize = fused[layer].iter().sum();
    let unfused: usize = ops.iter().map(|op| unfused(op, program)).sum();
    format!("| {name} | {fused} | {unfused} | {each} |")
}

#[test]
fn the_table_says_how_many_dispatches_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/DISPATCHES.md");
    let table = std::fs::read_to_string(path).expect("the table");
    let rows: Vec<String> =
        FAMILIES.map(|(name, case)| row(name, &open(&golden(case)).expect("the model").program)).to_vec();
    let missing: Vec<&String> = rows.iter().filter(|row| !table.lines().any(|line| line == *row)).collect();
    assert!(missing.is_empty(), "these rows are not in the table:\n{}", rows.join("\n"));
}
