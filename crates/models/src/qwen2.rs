//! Qwen2 and Qwen2.5: Llama with biases on Q, K and V.

use exotherm_kernels::ops::RopeStyle;

use crate::config::Config;
use crate::decoder::{self, AttentionBlock, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::rope::RopeConfig;
use crate::{Model, ModelError};

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    config.check_activation(&["hidden_act"], &["silu"])?;
    let shape = Shape::read(&config, None)?;
    let rope = RopeConfig::read(&config, shape.head_dim, None)?;
    let tied = decoder::is_tied(&l, &config, false);
    let windows = windows(&config, shape.layers)?;

    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, 1.0)?;
    let table = decoder::rope_table(&mut l, &rope)?;
    for (layer, &window) in windows.iter().enumerate() {
        l.enter(Some(layer));
        let plain = AttentionBlock::plain(&shape, table, RopeStyle::Halves);
        AttentionBlock { qkv_bias: true, window, ..plain }.record(&mut l, &shape, embedded.x)?;
        FeedForward::plain().record(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, 0.0)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, None)?;
    l.finish(logits, &carried_along(tied), shape.info("qwen2", embedded.vocab))
}

/// The window of every layer: Qwen slides only where config.json asks for it, and there from a layer on.
pub(crate) fn windows(config: &Config, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    if !config.json_flag("use_sliding_window", false) {
        return Ok(vec![None; layers]);
    }
    let window = config.count("", &["sliding_window"])?;
    if let Some(kinds) = config.json(&["layer_types"]).and_then(|v| v.as_array()) {
        let slides = |layer: usize| kinds.get(layer).and_then(|k| k.as_str()) == Some("sliding_attention");
        return Ok((0..layers).map(|layer| slides(layer).then_some(window)).collect());
    }
    let first = config.try_count_or_zero("", &["max_window_layers"])?.unwrap_or(layers);
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}
