//! Gemma 3: norms before and after each block with weights stored as differences from 1, layers that see a
//! window and layers that see everything, each with its own rotary base.

use exotherm_kernels::Activation;
use exotherm_kernels::ops::{Rope, RopeStyle};

use crate::config::Config;
use crate::decoder::{self, AttentionBlock, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::rope::{RopeConfig, Scaling};
use crate::{Model, ModelError};

/// Every sixth layer sees everything where a checkpoint does not say.
const PATTERN: usize = 6;
const PATTERN_KEY: &str = "attention.sliding_window_pattern";
/// The model whose attention is scaled by the width per head, not by the head's size (27B).
const LAYERS_OF_LARGEST: usize = 62;

struct Layers {
    /// A window for the layers that have one.
    windows: Vec<Option<usize>>,
    local: RopeConfig,
    global: RopeConfig,
    scale: f32,
}

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", "language_model.model.", "model.language_model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    config.check_activation(&["hidden_activation", "hidden_act"], &["gelu_pytorch_tanh"])?;
    let shape = Shape::read(&config, Some(256))?;
    let layers = Layers::read(&config, &shape)?;
    let soft_cap = config.try_float("final_logit_softcapping", &["final_logit_softcapping"])?;
    let attention_soft_cap = config.try_float("attn_logit_softcapping", &["attn_logit_softcapping"])?;
    let bias = config.json_flag("attention_bias", false);
    let tied = decoder::is_tied(&l, &config, true);
    // The GGUF conversion adds the 1 to the stored weights.
    let norm_offset = if l.is_gguf() { 0.0 } else { 1.0 };

    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, (shape.width as f32).sqrt())?;
    let local = decoder::rope_table(&mut l, &layers.local)?;
    let global = decoder::rope_table(&mut l, &layers.global)?;
    let feed_forward = FeedForward {
        norm: name("ffn_norm", "layers.{i}.pre_feedforward_layernorm"),
        norm_offset,
        activation: Activation::GeluTanhGlu,
        post_norm: true,
        ..FeedForward::plain()
    };
    for (layer, &window) in layers.windows.iter().enumerate() {
        l.enter(Some(layer));
        let table = if window.is_some() { local } else { global };
        let attention = AttentionBlock {
            norm_offset,
            qkv_bias: bias,
            out_bias: bias,
            qk_norm: true,
            rope: Rope { table, style: RopeStyle::Halves },
            scale: layers.scale,
            window,
            soft_cap: attention_soft_cap,
            post_norm: true,
        };
        attention.record(&mut l, &shape, embedded.x)?;
        feed_forward.record(&mut l, &shape, embedded.x)?;
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, norm_offset)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, soft_cap)?;
    // The text part of a multimodal checkpoint is a whole model; its eyes are left alone.
    let carried = carried_along(tied);
    let vision = |name: &str| name.contains("vision_tower.") || name.contains("multi_modal_projector.");
    let may_stay = |name: &str| carried(name) || vision(name);
    l.finish(logits, &may_stay, shape.info("gemma3", embedded.vocab))
}

impl Layers {
    fn read(config: &Config, shape: &Shape) -> Result<Layers, ModelError> {
        let window = config.try_count("attention.sliding_window", &["sliding_window"])?;
        let kinds = config.json(&["layer_types"]).and_then(|v| v.as_array());
        // A GGUF file may flag every layer, or give the period, or say nothing.
        let flagged = |layer| config.gguf_flag_of_layer(PATTERN_KEY, layer);
        let pattern = match flagged(0) {
            Some(_) => PATTERN,
            None => config
                .try_count(PATTERN_KEY, &["sliding_window_pattern", "_sliding_window_pattern"])?
                .unwrap_or(PATTERN),
        };
        let slides = |layer: usize| match (flagged(layer), kinds) {
            (Some(flag), _) => flag,
            (None, Some(kinds)) => kinds.get(layer).and_then(|k| k.as_str()) == Some("sliding_attention"),
            (None, None) => !(layer + 1).is_multiple_of(pattern),
        };
        let windows: Vec<_> = (0..shape.layers).map(|layer| window.filter(|_| slides(layer))).collect();

        let global = RopeConfig::read(config, shape.head_dim, Some("full_attention"))?;
        let own = config.json(&["rope_parameters.sliding_attention"]).is_some();
        let local = match own {
            true => RopeConfig::read(config, shape.head_dim, Some("sliding_attention"))?,
            false => {
                let base =
                    config.positive("rope.freq_base_swa", &["rope_local_base_freq"], Some(10_000.0))?;
                RopeConfig { base, scaling: Scaling::None, ..global }
            }
        };
        let scalar = match config.is_gguf() {
            true if shape.layers == LAYERS_OF_LARGEST => (shape.width / shape.heads) as f32,
            true => shape.head_dim as f32,
            false => config.positive("", &["query_pre_attn_scalar"], Some(256.0))?,
        };
        Ok(Layers { windows, local, global, scale: 1.0 / scalar.sqrt() })
    }
}
