//! Gemma 3: norms before and after each block with weights stored as differences from 1, layers that see a
//! window and layers that see everything, each with its own rotary base.

use exotherm_kernels::Activation;
use exotherm_kernels::ops::{Rope, RopeStyle};

use crate::config::Config;
use crate::decoder::{self, AttentionBlock, Defaults, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::rope::{RopeConfig, Scaling};
use crate::{Model, ModelError};

/// Every sixth layer sees everything where a checkpoint does not say.
const PATTERN: usize = 6;
const PATTERN_KEY: &str = "attention.sliding_window_pattern";
/// The model whose attention is scaled by the width per head, not by the head's size (27B).
const LAYERS_OF_LARGEST: usize = 62;

/// What config.json may leave out: the published ones of the larger models give only what differs from this.
const DEFAULTS: Defaults = Defaults {
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    context: Some(131_072),
    eps: Some(1e-6),
};
const WINDOW: usize = 4096;
const GLOBAL_BASE: f32 = 1e6;
const LOCAL_BASE: f32 = 10_000.0;

struct Layers {
    /// Which layers see a window only; the others see everything.
    sliding: Vec<bool>,
    window: usize,
    local: RopeConfig,
    global: RopeConfig,
    scale: f32,
}

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", "language_model.model.", "model.language_model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    check_variant(&config)?;
    let shape = Shape::read(&config, DEFAULTS)?;
    let layers = Layers::read(&config, &shape)?;
    let soft_cap = config.try_positive("final_logit_softcapping", &["final_logit_softcapping"])?;
    let bias = config.json_flag("attention_bias", false)?;
    let tied = config.json_flag("tie_word_embeddings", true)?;
    let tied = decoder::is_tied(&mut l, EMBEDDING, tied)?;
    // The GGUF conversion adds the 1 to the stored weights.
    let norm_offset = if l.is_gguf() { 0.0 } else { 1.0 };

    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, (shape.width as f32).sqrt())?;
    let local = decoder::rope_table(&mut l, layers.local.inv_freq());
    let global = decoder::rope_table(&mut l, layers.global.inv_freq());
    let feed_forward = FeedForward {
        norm: name("ffn_norm", "layers.{i}.pre_feedforward_layernorm"),
        norm_offset,
        activation: Activation::GeluTanhGlu,
        post_norm: true,
        ..FeedForward::plain()
    };
    for (layer, &slides) in layers.sliding.iter().enumerate() {
        l.enter(Some(layer));
        let table = if slides { local } else { global };
        let attention = AttentionBlock {
            norm_offset,
            qkv_bias: bias,
            out_bias: bias,
            qk_norm: true,
            rope: Rope { table, style: RopeStyle::Halves },
            scale: layers.scale,
            window: slides.then_some(layers.window),
            soft_cap: None,
            post_norm: true,
        };
        attention.record(&mut l, &shape, embedded.x)?;
        feed_forward.record(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, norm_offset)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, soft_cap)?;
    // The text part of a multimodal checkpoint is a whole model; its eyes are left alone.
    let vision = |name: &str| name.contains("vision_tower.") || name.contains("multi_modal_projector.");
    let may_stay = |name: &str| carried_along(name) || vision(name);
    l.finish(logits, &may_stay, shape.info("gemma3", embedded.vocab))
}

/// Refuses what is not Gemma 3 as its reference implementation runs it.
fn check_variant(config: &Config) -> Result<(), ModelError> {
    config.check_activation(&["hidden_activation", "hidden_act"], &["gelu_pytorch_tanh"])?;
    let refuse =
        |what: &str, why: &str| Err(ModelError::Unsupported { what: what.to_string(), why: why.to_string() });
    if config.json_flag("use_bidirectional_attention", false)? {
        return refuse(
            "use_bidirectional_attention",
            "it makes an encoder of the model, this engine generates",
        );
    }
    if config.try_float("attn_logit_softcapping", &["attn_logit_softcapping"])?.is_some() {
        return refuse(
            "attn_logit_softcapping",
            "Gemma 3 has none, and its reference implementation ignores it",
        );
    }
    Ok(())
}

impl Layers {
    fn read(config: &Config, shape: &Shape) -> Result<Layers, ModelError> {
        let window = config.try_count("attention.sliding_window", &["sliding_window"])?;
        // A GGUF file without a window has no layer that slides.
        let window = window.or(Some(WINDOW).filter(|_| !config.is_gguf()));
        let sliding = match window {
            Some(_) => Layers::sliding(config, shape.layers)?,
            None => vec![false; shape.layers],
        };
        let global = RopeConfig::read(config, shape.head_dim, Some("full_attention"), GLOBAL_BASE)?;
        let own = config.json(&["rope_parameters.sliding_attention"]).is_some();
        let local = match own {
            true => RopeConfig::read(config, shape.head_dim, Some("sliding_attention"), LOCAL_BASE)?,
            false => {
                let base =
                    config.positive("rope.freq_base_swa", &["rope_local_base_freq"], Some(LOCAL_BASE))?;
                RopeConfig { base, scaling: Scaling::None, ..global }
            }
        };
        let scalar = match config.is_gguf() {
            true if shape.layers == LAYERS_OF_LARGEST => (shape.width / shape.heads) as f32,
            true => shape.head_dim as f32,
            false => config.positive("", &["query_pre_attn_scalar"], Some(256.0))?,
        };
        Ok(Layers { sliding, window: window.unwrap_or(WINDOW), local, global, scale: 1.0 / scalar.sqrt() })
    }

    /// Layer by layer, or by a period, or as all published models have it.
    fn sliding(config: &Config, layers: usize) -> Result<Vec<bool>, ModelError> {
        let flagged = |layer| config.gguf_flag_of_layer(PATTERN_KEY, layer);
        if flagged(0).is_some() {
            let flags = (0..layers).map(flagged).collect::<Option<Vec<_>>>();
            return flags.ok_or_else(|| {
                ModelError::bad(PATTERN_KEY, "a shorter list", format!("there are {layers} layers"))
            });
        }
        if let Some(sliding) = config.sliding_layers(layers)? {
            return Ok(sliding);
        }
        let names = ["sliding_window_pattern", "_sliding_window_pattern"];
        let pattern = config.try_count(PATTERN_KEY, &names)?.unwrap_or(PATTERN);
        Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect())
    }
}
