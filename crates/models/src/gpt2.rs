//! GPT-2: layer norms, learned positions, one projection for Q, K and V, no rotary embedding. Its safetensors
//! store weights transposed ("Conv1D").

use exotherm_kernels::ops::{Attention, Embed, LinearResidual, NormLinear, QkRopeWrite};
use exotherm_kernels::{Activation, Buf, MatId};

use crate::config::Config;
use crate::decoder::{self, Embedded, Shape};
use crate::loader::{Loader, Name, name};
use crate::{Model, ModelError};

const EMBEDDING: Name = name("token_embd", "wte");

/// What a block needs beyond its shape.
struct Block {
    activation: Activation,
    scale_scores: bool,
    scale_by_layer: bool,
}

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["transformer.", ""], "wte.weight");
    let config = Config::new(l.checkpoint);
    let shape = shape(&config)?;
    let block = Block {
        activation: activation(&config)?,
        scale_scores: config.json_flag("scale_attn_weights", true)?,
        scale_by_layer: config.json_flag("scale_attn_by_inverse_layer_idx", false)?,
    };
    let tied = config.json_flag("tie_word_embeddings", true)?;

    let tied = decoder::is_tied(&mut l, EMBEDDING, tied)?;
    let embedded = embed(&mut l, &shape)?;
    for layer in 0..shape.layers {
        l.enter(Some(layer));
        block.attention(&mut l, &shape, embedded.x, layer)?;
        block.feed_forward(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.layer_norm(name("output_norm", "ln_f"), shape.width, shape.eps)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, None)?;
    // Old checkpoints carry the causal mask of every layer as a buffer.
    let mask = |name: &str| name.ends_with("attn.bias") || name.ends_with("attn.masked_bias");
    l.finish(logits, &mask, shape.info("gpt2", embedded.vocab))
}

fn shape(config: &Config) -> Result<Shape, ModelError> {
    let width = config.count("embedding_length", &["n_embd", "hidden_size"])?;
    let heads = config.count("attention.head_count", &["n_head", "num_attention_heads"])?;
    if !width.is_multiple_of(heads) {
        return Err(ModelError::bad("the number of heads", heads, format!("it must divide {width}")));
    }
    Ok(Shape {
        layers: decoder::layers(config, &["n_layer", "num_hidden_layers"])?,
        width,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        hidden: config.try_count("feed_forward_length", &["n_inner"])?.unwrap_or(4 * width),
        context: config.count("context_length", &["n_positions", "max_position_embeddings", "n_ctx"])?,
        eps: config.positive("attention.layer_norm_epsilon", &["layer_norm_epsilon"], Some(1e-5))?,
    })
}

fn activation(config: &Config) -> Result<Activation, ModelError> {
    const NAMES: &[&str] = &["activation_function"];
    config.check_activation(NAMES, &["gelu_new", "gelu_pytorch_tanh", "gelu"])?;
    match config.json_text(NAMES)? {
        Some("gelu") => Ok(Activation::GeluErf),
        _ => Ok(Activation::GeluTanh),
    }
}

fn embed(l: &mut Loader, shape: &Shape) -> Result<Embedded, ModelError> {
    let vocab = l.rows_in_file(&format!("{}.weight", l.full_name(EMBEDDING)));
    let table = l.matrix(EMBEDDING, vocab, shape.width)?;
    let positions = l.plain_matrix(name("position_embd", "wpe"), shape.context, shape.width)?;
    l.program.limit_positions(shape.context);
    let x = l.program.buffer("residual", shape.width);
    l.program.push(Embed { table, scale: 1.0, positions: Some(positions), norm: None, out: x });
    Ok(Embedded { x, table, vocab })
}

/// A weight that safetensors store as `[n_in, n_out]`.
fn conv1d(l: &mut Loader, of: Name, n_out: usize, n_in: usize) -> Result<MatId, ModelError> {
    if l.is_gguf() {
        return l.matrix(of, n_out, n_in);
    }
    let full_name = format!("{}.weight", l.full_name(of));
    let stored = l.take(&full_name, &[n_in, n_out])?;
    let dtype = stored.dtype();
    if dtype.is_quantized() {
        return Err(ModelError::NotFloat { name: full_name, dtype });
    }
    let tensor = stored.transposed();
    stored.give_back();
    l.matrix_of(full_name, vec![tensor])
}

impl Block {
    fn attention(&self, l: &mut Loader, s: &Shape, residual: Buf, layer: usize) -> Result<(), ModelError> {
        let norm = l.layer_norm(name("attn_norm", "h.{i}.ln_1"), s.width, s.eps)?;
        let packed = name("attn_qkv", "h.{i}.attn.c_attn");
        let weight = conv1d(l, packed, 3 * s.width, s.width)?;
        let bias = l.biases(&[(packed, 3 * s.width)], true)?;
        let qkv = l.program.buffer("qkv", 3 * s.width);
        let activation = Activation::None;
        l.program.push(NormLinear { x: residual, norm: Some(norm), weight, bias, activation, out: qkv });
        let kv = l.program.kv_layer(s.heads, s.head_dim);
        l.program.push(QkRopeWrite { qkv, q_norm: None, k_norm: None, rope: None, heads: s.heads, kv });
        let by_head = if self.scale_scores { 1.0 / (s.head_dim as f32).sqrt() } else { 1.0 };
        let by_layer = if self.scale_by_layer { 1.0 / (layer + 1) as f32 } else { 1.0 };
        let mixed = l.program.buffer("attention", s.width);
        l.program.push(Attention {
            qkv,
            heads: s.heads,
            scale: by_head * by_layer,
            window: None,
            soft_cap: None,
            sinks: None,
            kv,
            out: mixed,
        });
        let out = name("attn_output", "h.{i}.attn.c_proj");
        let weight = conv1d(l, out, s.width, s.width)?;
        let bias = l.biases(&[(out, s.width)], true)?;
        l.program.push(LinearResidual { x: mixed, weight, bias, post_norm: None, residual });
        Ok(())
    }

    fn feed_forward(&self, l: &mut Loader, s: &Shape, residual: Buf) -> Result<(), ModelError> {
        let norm = l.layer_norm(name("ffn_norm", "h.{i}.ln_2"), s.width, s.eps)?;
        let up = name("ffn_up", "h.{i}.mlp.c_fc");
        let weight = conv1d(l, up, s.hidden, s.width)?;
        let bias = l.biases(&[(up, s.hidden)], true)?;
        let hidden = l.program.buffer("hidden", s.hidden);
        let activation = self.activation;
        l.program.push(NormLinear { x: residual, norm: Some(norm), weight, bias, activation, out: hidden });
        let down = name("ffn_down", "h.{i}.mlp.c_proj");
        let weight = conv1d(l, down, s.width, s.hidden)?;
        let bias = l.biases(&[(down, s.width)], true)?;
        l.program.push(LinearResidual { x: hidden, weight, bias, post_norm: None, residual });
        Ok(())
    }
}
