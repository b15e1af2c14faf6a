//! Llama and its like (SmolLM2, Llama 3.x): RMS norms, grouped heads, rotary embedding, SwiGLU.

use exotherm_kernels::ops::RopeStyle;

use crate::config::Config;
use crate::decoder::{self, AttentionBlock, Defaults, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::rope::{RopeConfig, divided_by_file};
use crate::{Model, ModelError};

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    config.check_activation(&["hidden_act"], &["silu"])?;
    let shape = Shape::read(&config, Defaults::default())?;
    let rope = RopeConfig::read(&config, shape.head_dim, None, 10_000.0)?;
    // GGUF files have biases or have them not; config.json announces them.
    let attention_bias = match config.is_gguf() {
        true => l.checkpoint.contains("blk.0.attn_q.bias"),
        false => config.json_flag("attention_bias", false)?,
    };
    let out_bias = match config.is_gguf() {
        true => l.checkpoint.contains("blk.0.attn_output.bias"),
        false => attention_bias,
    };
    let mlp_bias = match config.is_gguf() {
        true => l.checkpoint.contains("blk.0.ffn_gate.bias"),
        false => config.json_flag("mlp_bias", false)?,
    };
    let mut inv_freq = rope.inv_freq();
    let tied = config.json_flag("tie_word_embeddings", false)?;
    let tied = decoder::is_tied(&mut l, EMBEDDING, tied)?;
    if l.is_gguf() {
        divided_by_file(l.checkpoint, &mut inv_freq)?;
    }
    // The Q and K rows of Llama's GGUF files are permuted so that rotated elements are neighbours.
    let style = if l.is_gguf() { RopeStyle::Pairs } else { RopeStyle::Halves };

    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, 1.0)?;
    let table = decoder::rope_table(&mut l, inv_freq);
    let attention =
        AttentionBlock { qkv_bias: attention_bias, out_bias, ..AttentionBlock::plain(&shape, table, style) };
    let feed_forward = FeedForward { bias: mlp_bias, ..FeedForward::plain() };
    for layer in 0..shape.layers {
        l.enter(Some(layer));
        attention.record(&mut l, &shape, embedded.x)?;
        feed_forward.record(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, 0.0)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, None)?;
    l.finish(logits, &carried_along, shape.info("llama", embedded.vocab))
}
