//! Qwen2 and Qwen2.5: Llama with biases on Q, K and V.

use exotherm_kernels::ops::RopeStyle;

use crate::config::Config;
use crate::decoder::{self, AttentionBlock, Defaults, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::rope::RopeConfig;
use crate::{Model, ModelError};

/// Where sliding begins if config.json does not say.
const FIRST_SLIDING_LAYER: usize = 28;

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    config.check_activation(&["hidden_act"], &["silu"])?;
    let shape = Shape::read(&config, Defaults::default())?;
    let rope = RopeConfig::read(&config, shape.head_dim, None, 10_000.0)?;
    let windows = windows(&config, shape.layers)?;
    let tied = config.json_flag("tie_word_embeddings", false)?;

    let tied = decoder::is_tied(&mut l, EMBEDDING, tied)?;
    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, 1.0)?;
    let table = decoder::rope_table(&mut l, rope.inv_freq());
    for (layer, &window) in windows.iter().enumerate() {
        l.enter(Some(layer));
        let plain = AttentionBlock::plain(&shape, table, RopeStyle::Halves);
        AttentionBlock { qkv_bias: true, window, ..plain }.record(&mut l, &shape, embedded.x)?;
        FeedForward::plain().record(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, 0.0)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, None)?;
    l.finish(logits, &carried_along, shape.info("qwen2", embedded.vocab))
}

/// The window of every layer: Qwen slides only where config.json asks for it, and there from a layer on.
pub(crate) fn windows(config: &Config, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let Some(window) = asked_window(config)? else { return Ok(vec![None; layers]) };
    if let Some(sliding) = config.sliding_layers(layers)? {
        return Ok(sliding.into_iter().map(|slides| slides.then_some(window)).collect());
    }
    let first = config.try_count_or_zero("", &["max_window_layers"])?.unwrap_or(FIRST_SLIDING_LAYER);
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}

/// The window, if layers shall slide at all.
pub(crate) fn asked_window(config: &Config) -> Result<Option<usize>, ModelError> {
    match config.json_flag("use_sliding_window", false)? {
        true => config.count("", &["sliding_window"]).map(Some),
        false => Ok(None),
    }
}
