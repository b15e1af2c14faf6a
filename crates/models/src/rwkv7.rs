//! RWKV-7: token shifts, low-rank pairs and a matrix-valued state in place of attention. Its safetensors come
//! without a configuration: the tensors' shapes say everything.

use exotherm_kernels::ops::{
    ChannelMix, Embed, GroupedLinear, Head, LinearResidual, Lora, LoraPair, ShiftMix, TimeMix,
};
use exotherm_kernels::{Activation, Buf, MatId, VecId};
use exotherm_weights::Checkpoint;

use crate::config::Config;
use crate::loader::{Loader, Name, name};
use crate::{Model, ModelError, ModelInfo};

const EPS: f32 = 1e-5;
/// The group norm's epsilon is scaled with the (square of the) default head size, 64.
const GROUP_EPS: f32 = 64e-5;
/// The order of the token shifts in a fused tensor, and in the rows that `ShiftMix` makes.
const SHIFTS: [&str; 6] = ["r", "w", "k", "v", "a", "g"];

struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    hidden: usize,
    vocab: usize,
    context: usize,
    eps: f32,
}

/// Whether a checkpoint without a config.json is an RWKV-7.
pub(crate) fn is_rwkv7(checkpoint: &Checkpoint) -> bool {
    ["emb.weight", "blocks.0.att.r_k", "blocks.0.att.a1"].iter().all(|name| checkpoint.contains(name))
}

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    let shape = Shape::read(&l)?;
    let x = embed(&mut l, &shape)?;
    let v_first = l.program.buffer("v_first", shape.width);
    for layer in 0..shape.layers {
        l.enter(Some(layer));
        time_mixing(&mut l, &shape, layer, x, v_first)?;
        channel_mixing(&mut l, &shape, x)?;
    }
    l.enter(None);
    let norm = l.layer_norm(name("output_norm", "ln_out"), shape.width, shape.eps)?;
    let weight = l.matrix(name("output", "head"), shape.vocab, shape.width)?;
    let logits = l.program.logits_buffer(shape.vocab);
    l.program.push(Head { x, norm, weight, soft_cap: None, logits });
    let info = ModelInfo {
        family: "rwkv7",
        name: None,
        layers: shape.layers,
        width: shape.width,
        heads: shape.heads,
        kv_heads: 0,
        head_dim: shape.width / shape.heads,
        hidden: shape.hidden,
        experts: 0,
        experts_used: 0,
        vocab: shape.vocab,
        context: shape.context,
        parameters: 0,
        types: Vec::new(),
    };
    l.finish(logits, &may_stay, info)
}

/// The first layer's values are mixed with nothing, so its pair for that is not used where it is there.
fn may_stay(name: &str) -> bool {
    let unused =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['0', '1', '2']));
    unused("blocks.0.att.v") || unused("blk.0.time_mix_v")
}

impl Shape {
    fn read(l: &Loader) -> Result<Shape, ModelError> {
        let dims = |name: &str| l.checkpoint.info(name).map(|(_, shape)| shape.to_vec());
        let missing = |name: &str| ModelError::MissingKey { key: name.into(), place: "the tensors" };
        let (embedding, key, some) = match l.is_gguf() {
            true => ("token_embd.weight", "blk.0.channel_mix_key.weight", "blk.{i}.time_mix_r_k.weight"),
            false => ("emb.weight", "blocks.0.ffn.key.weight", "blocks.{i}.att.r_k"),
        };
        let embedding = dims(embedding).filter(|d| d.len() == 2).ok_or_else(|| missing(embedding))?;
        let hidden = l.rows_in_file(key);
        let (vocab, width) = (embedding[0], embedding[1]);
        let layers =
            (0..).take_while(|i| l.checkpoint.contains(&some.replace("{i}", &i.to_string()))).count();
        let config = Config::new(l.checkpoint);
        let (head_size, context) = match l.is_gguf() {
            true => {
                let says = config.count("block_count", &[])?;
                if says != layers {
                    return Err(ModelError::bad(
                        "rwkv7.block_count",
                        says,
                        format!("there are {layers} layers"),
                    ));
                }
                (config.count("wkv.head_size", &[])?, config.try_count("context_length", &[])?.unwrap_or(0))
            }
            // r_k is stored per head: [heads, head size].
            false => (dims("blocks.0.att.r_k").and_then(|d| d.last().copied()).unwrap_or(0), 0),
        };
        if head_size == 0 || !width.is_multiple_of(head_size) {
            return Err(ModelError::bad(
                "the head size",
                head_size,
                format!("it must divide the width {width}"),
            ));
        }
        let eps = match l.is_gguf() {
            true => config.positive("attention.layer_norm_epsilon", &[], Some(EPS))?,
            false => EPS,
        };
        Ok(Shape { layers, width, heads: width / head_size, hidden, vocab, context, eps })
    }
}

fn embed(l: &mut Loader, s: &Shape) -> Result<Buf, ModelError> {
    let table = l.matrix(name("token_embd", "emb"), s.vocab, s.width)?;
    let norm = l.layer_norm(name("token_embd_norm", "blocks.0.ln0"), s.width, s.eps)?;
    let out = l.program.buffer("residual", s.width);
    l.program.push(Embed { table, scale: 1.0, positions: None, norm: Some(norm), out });
    Ok(out)
}

/// A vector under its whole name: GGUF files add `.weight` to it.
fn vector(l: &mut Loader, of: Name, n: usize) -> Result<VecId, ModelError> {
    let suffix = if l.is_gguf() { ".weight" } else { "" };
    l.vector(of, suffix, n)
}

fn time_mixing(l: &mut Loader, s: &Shape, layer: usize, x: Buf, v_first: Buf) -> Result<(), ModelError> {
    let norm = l.layer_norm(name("attn_norm", "blocks.{i}.ln1"), s.width, s.eps)?;
    let mix = shift_coefficients(l, s)?;
    let state = l.program.recurrent(s.width);
    let shifted = l.program.buffer("shifted", SHIFTS.len() * s.width);
    l.program.push(ShiftMix { x, norm, mix, mixes: SHIFTS.len(), state, out: shifted });

    let at = |shift: &str| SHIFTS.iter().position(|s| *s == shift).expect("a shift of the list") * s.width;
    let receptance = l.matrix(name("time_mix_receptance", "blocks.{i}.att.receptance"), s.width, s.width)?;
    let key = l.matrix(name("time_mix_key", "blocks.{i}.att.key"), s.width, s.width)?;
    let value = l.matrix(name("time_mix_value", "blocks.{i}.att.value"), s.width, s.width)?;
    let rkv = l.program.buffer("rkv", 3 * s.width);
    let groups = vec![(at("r"), receptance), (at("k"), key), (at("v"), value)];
    l.program.push(GroupedLinear { x: shifted, groups, out: rkv });

    let (tanh, sigmoid, none) = (Activation::Tanh, Activation::Sigmoid, Activation::None);
    let mut pairs = vec![
        pair(l, s, "w", at("w"), tanh, none, true)?,
        pair(l, s, "a", at("a"), none, sigmoid, true)?,
        pair(l, s, "g", at("g"), sigmoid, none, false)?,
    ];
    if layer > 0 {
        pairs.push(pair(l, s, "v", at("v"), none, sigmoid, true)?);
    }
    let wagv = l.program.buffer("wagv", pairs.len() * s.width);
    l.program.push(Lora { x: shifted, pairs, out: wagv });

    let mixed = l.program.buffer("time_mixed", s.width);
    let k_k = vector(l, name("time_mix_k_k", "blocks.{i}.att.k_k"), s.width)?;
    let k_a = vector(l, name("time_mix_k_a", "blocks.{i}.att.k_a"), s.width)?;
    let r_k = r_k(l, s)?;
    let norm = l.layer_norm(name("time_mix_ln", "blocks.{i}.att.ln_x"), s.width, GROUP_EPS)?;
    let state = l.program.recurrent(s.width * (s.width / s.heads));
    l.program.push(TimeMix {
        rkv,
        wagv,
        v_first,
        is_first_layer: layer == 0,
        k_k,
        k_a,
        r_k,
        norm,
        heads: s.heads,
        state,
        out: mixed,
    });
    let weight = l.matrix(name("time_mix_output", "blocks.{i}.att.output"), s.width, s.width)?;
    l.program.push(LinearResidual { x: mixed, weight, bias: None, post_norm: None, residual: x });
    Ok(())
}

fn channel_mixing(l: &mut Loader, s: &Shape, x: Buf) -> Result<(), ModelError> {
    let norm = l.layer_norm(name("attn_norm_2", "blocks.{i}.ln2"), s.width, s.eps)?;
    let mix = vector_any_shape(l, name("channel_mix_lerp_k.weight", "blocks.{i}.ffn.x_k"), s.width)?;
    let mix = l.program.vector(mix);
    let state = l.program.recurrent(s.width);
    let weight = l.matrix(name("channel_mix_key", "blocks.{i}.ffn.key"), s.hidden, s.width)?;
    let hidden = l.program.buffer("hidden", s.hidden);
    l.program.push(ChannelMix { x, norm, mix, state, weight, out: hidden });
    let weight = l.matrix(name("channel_mix_value", "blocks.{i}.ffn.value"), s.width, s.hidden)?;
    l.program.push(LinearResidual { x: hidden, weight, bias: None, post_norm: None, residual: x });
    Ok(())
}

/// Stored as [1, 1, n]: dimensions of 1 do not matter to `take`.
fn vector_any_shape(l: &mut Loader, of: Name, n: usize) -> Result<Vec<f32>, ModelError> {
    let full_name = l.full_name(of);
    l.floats(&full_name, &[n])
}

fn shift_coefficients(l: &mut Loader, s: &Shape) -> Result<VecId, ModelError> {
    let mut mix = Vec::new();
    if l.is_gguf() {
        let full_name = l.full_name(name("time_mix_lerp_fused.weight", ""));
        mix = l.floats(&full_name, &[SHIFTS.len(), s.width])?;
    } else {
        for shift in SHIFTS {
            mix.extend(vector_any_shape(l, name("", &format!("blocks.{{i}}.att.x_{shift}")), s.width)?);
        }
    }
    Ok(l.program.vector(mix))
}

/// One number per channel, stored per head in safetensors.
fn r_k(l: &mut Loader, s: &Shape) -> Result<VecId, ModelError> {
    let values = match l.is_gguf() {
        true => {
            let full_name = l.full_name(name("time_mix_r_k.weight", ""));
            l.floats(&full_name, &[s.width])?
        }
        false => {
            let full_name = l.full_name(name("", "blocks.{i}.att.r_k"));
            l.floats(&full_name, &[s.heads, s.width / s.heads])?
        }
    };
    Ok(l.program.vector(values))
}

/// A low-rank pair. Safetensors store both matrices transposed.
fn pair(
    l: &mut Loader,
    s: &Shape,
    letter: &str,
    x_at: usize,
    middle: Activation,
    out: Activation,
    has_bias: bool,
) -> Result<LoraPair, ModelError> {
    let names: [(String, String); 3] =
        ["0", "1", "2"].map(|n| (format!("time_mix_{letter}{n}"), format!("blocks.{{i}}.att.{letter}{n}")));
    let bias = match has_bias {
        true => Some(vector(l, name(&names[0].0, &names[0].1), s.width)?),
        false => None,
    };
    let down_name = name(&names[1].0, &names[1].1);
    let up_name = name(&names[2].0, &names[2].1);
    let (down, up) = if l.is_gguf() {
        let stored = format!("{}.weight", l.full_name(down_name));
        let rank = l.rows_in_file(&stored);
        (l.plain_matrix(down_name, rank, s.width)?, l.plain_matrix(up_name, s.width, rank)?)
    } else {
        let stored = l.checkpoint.info(&l.full_name(down_name));
        let rank = stored.and_then(|(_, shape)| shape.get(1).copied()).unwrap_or(0);
        (transposed(l, down_name, rank, s.width)?, transposed(l, up_name, s.width, rank)?)
    };
    Ok(LoraPair { x_at, down, middle, up, bias, out })
}

/// A matrix that the file stores as `[n_in, n_out]`.
fn transposed(l: &mut Loader, of: Name, n_out: usize, n_in: usize) -> Result<MatId, ModelError> {
    let full_name = l.full_name(of);
    let stored = l.take(&full_name, &[n_in, n_out])?;
    let dtype = stored.dtype();
    if dtype.is_quantized() {
        return Err(ModelError::NotFloat { name: full_name, dtype });
    }
    Ok(l.program.matrix(full_name, vec![stored.transposed()]))
}
