//! Qwen3: Llama with a norm on every head of Q and K, and heads of a size of their own.

use exotherm_kernels::ops::RopeStyle;

use crate::config::Config;
use crate::decoder::{self, AttentionBlock, Defaults, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::qwen2::windows;
use crate::rope::RopeConfig;
use crate::{Model, ModelError};

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    config.check_activation(&["hidden_act"], &["silu"])?;
    let shape = Shape::read(&config, Defaults { head_dim: Some(128), ..Defaults::default() })?;
    let rope = RopeConfig::read(&config, shape.head_dim, None, 10_000.0)?;
    let windows = windows(&config, shape.layers)?;
    let bias = config.json_flag("attention_bias", false)?;
    let tied = config.json_flag("tie_word_embeddings", false)?;

    let tied = decoder::is_tied(&mut l, EMBEDDING, tied)?;
    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, 1.0)?;
    let table = decoder::rope_table(&mut l, rope.inv_freq());
    for (layer, &window) in windows.iter().enumerate() {
        l.enter(Some(layer));
        attention(&shape, table, bias, window).record(&mut l, &shape, embedded.x)?;
        FeedForward::plain().record(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, 0.0)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, None)?;
    l.finish(logits, &carried_along, shape.info("qwen3", embedded.vocab))
}

/// Qwen3's attention block, which its mixture of experts has as well.
pub(crate) fn attention(
    shape: &Shape,
    table: exotherm_kernels::Buf,
    bias: bool,
    window: Option<usize>,
) -> AttentionBlock {
    let plain = AttentionBlock::plain(shape, table, RopeStyle::Halves);
    AttentionBlock { qk_norm: true, qkv_bias: bias, out_bias: bias, window, ..plain }
}
