//! The blocks that the decoder-only transformers share. A family's file puts them together.

use exotherm_kernels::ops::{
    Attention, Embed, Head, LinearResidual, NormLinear, QkRopeWrite, Rope, RopeStyle, RopeTable,
};
use exotherm_kernels::{Activation, Buf, MatId, Norm};

use crate::config::Config;
use crate::loader::{Loader, Name, name};
use crate::{ModelError, ModelInfo};

/// More layers than any model has: a file that claims more is refused before anything is made per layer.
const MOST_LAYERS: usize = 4096;

pub(crate) fn layers(config: &Config, names: &[&str]) -> Result<usize, ModelError> {
    match config.count("block_count", names)? {
        n if n <= MOST_LAYERS => Ok(n),
        n => Err(ModelError::bad("the number of layers", n, format!("at most {MOST_LAYERS} are expected"))),
    }
}

/// The sizes of a decoder.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub context: usize,
    pub eps: f32,
}

/// What a family's reference implementation takes where config.json is silent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Defaults {
    pub heads: Option<usize>,
    pub kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub context: Option<usize>,
    pub eps: Option<f32>,
}

impl Shape {
    pub fn read(config: &Config, defaults: Defaults) -> Result<Shape, ModelError> {
        // A GGUF file says everything that does not follow from the rest.
        let defaults = if config.is_gguf() { Defaults::default() } else { defaults };
        let or_default = |key: &str, names: &[&str], default: Option<usize>| match default {
            Some(default) => Ok(config.try_count(key, names)?.unwrap_or(default)),
            None => config.count(key, names),
        };
        let width = config.count("embedding_length", &["hidden_size"])?;
        let heads = or_default("attention.head_count", &["num_attention_heads"], defaults.heads)?;
        let kv_heads = config.try_count("attention.head_count_kv", &["num_key_value_heads"])?;
        let kv_heads = kv_heads.or(defaults.kv_heads).unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(ModelError::bad(
                "the number of KV heads",
                kv_heads,
                format!("it must divide {heads}"),
            ));
        }
        let head_dim = match config.try_count("attention.key_length", &["head_dim"])?.or(defaults.head_dim) {
            Some(dim) => dim,
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                return Err(ModelError::bad("the number of heads", heads, format!("it must divide {width}")));
            }
        };
        let value_dim = config.try_count("attention.value_length", &[])?.unwrap_or(head_dim);
        if value_dim != head_dim {
            return Err(ModelError::Unsupported {
                what: format!("keys of {head_dim} with values of {value_dim} elements"),
                why: "both must be of one size".into(),
            });
        }
        Ok(Shape {
            layers: layers(config, &["num_hidden_layers"])?,
            width,
            heads,
            kv_heads,
            head_dim,
            hidden: config.try_count_or_zero("feed_forward_length", &["intermediate_size"])?.unwrap_or(0),
            context: or_default("context_length", &["max_position_embeddings"], defaults.context)?,
            eps: config.positive("attention.layer_norm_rms_epsilon", &["rms_norm_eps"], defaults.eps)?,
        })
    }

    pub fn info(&self, family: &'static str, vocab: usize) -> ModelInfo {
        ModelInfo {
            family,
            name: None,
            layers: self.layers,
            width: self.width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            hidden: self.hidden,
            experts: 0,
            experts_used: 0,
            vocab,
            context: self.context,
            parameters: 0,
            types: Vec::new(),
        }
    }
}

pub(crate) const EMBEDDING: Name = name("token_embd", "embed_tokens");
pub(crate) const POST_ATTENTION: Name = name("post_attention_norm", "layers.{i}.post_attention_layernorm");
pub(crate) const POST_FEED_FORWARD: Name = name("post_ffw_norm", "layers.{i}.post_feedforward_layernorm");

/// The embedding, and what the head needs of it if both are tied.
pub(crate) struct Embedded {
    pub x: Buf,
    pub table: MatId,
    pub vocab: usize,
}

/// Records the embedding. There are as many tokens as the table has rows.
pub(crate) fn embed(l: &mut Loader, table: Name, width: usize, scale: f32) -> Result<Embedded, ModelError> {
    let vocab = l.rows_in_file(&format!("{}.weight", l.full_name(table)));
    let table = l.matrix(table, vocab, width)?;
    let x = l.program.buffer("residual", width);
    l.program.push(Embed { table, scale, positions: None, norm: None, out: x });
    Ok(Embedded { x, table, vocab })
}

/// Records a table of rotary angles of these frequencies, one per rotated pair.
pub(crate) fn rope_table(l: &mut Loader, inv_freq: Vec<f32>) -> Buf {
    let out = l.program.buffer("rope", 2 * inv_freq.len());
    let inv_freq = l.program.vector(inv_freq);
    l.program.push(RopeTable { inv_freq, magnitude: 1.0, out });
    out
}

/// What a family's attention block has.
#[derive(Clone)]
pub(crate) struct AttentionBlock {
    pub norm_offset: f32,
    pub qkv_bias: bool,
    pub out_bias: bool,
    pub qk_norm: bool,
    pub rope: Rope,
    pub scale: f32,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    /// Norm the block's output before it is added (Gemma).
    pub post_norm: bool,
}

impl AttentionBlock {
    /// The block as most families have it.
    pub fn plain(shape: &Shape, table: Buf, style: RopeStyle) -> AttentionBlock {
        AttentionBlock {
            norm_offset: 0.0,
            qkv_bias: false,
            out_bias: false,
            qk_norm: false,
            rope: Rope { table, style },
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: None,
            soft_cap: None,
            post_norm: false,
        }
    }

    pub fn record(&self, l: &mut Loader, s: &Shape, residual: Buf) -> Result<(), ModelError> {
        let (q_width, kv_width) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let parts = [
            (name("attn_q", "layers.{i}.self_attn.q_proj"), q_width),
            (name("attn_k", "layers.{i}.self_attn.k_proj"), kv_width),
            (name("attn_v", "layers.{i}.self_attn.v_proj"), kv_width),
        ];
        let norm =
            l.rms_norm(name("attn_norm", "layers.{i}.input_layernorm"), s.width, s.eps, self.norm_offset)?;
        let weight = l.packed(&parts, s.width)?;
        let bias = l.biases(&parts, self.qkv_bias)?;
        let qkv = l.program.buffer("qkv", q_width + 2 * kv_width);
        l.program.push(NormLinear {
            x: residual,
            norm: Some(norm),
            weight,
            bias,
            activation: Activation::None,
            out: qkv,
        });
        let head_norm = |l: &mut Loader, of: Name| -> Result<Option<Norm>, ModelError> {
            match self.qk_norm {
                true => l.rms_norm(of, s.head_dim, s.eps, self.norm_offset).map(Some),
                false => Ok(None),
            }
        };
        let q_norm = head_norm(l, name("attn_q_norm", "layers.{i}.self_attn.q_norm"))?;
        let k_norm = head_norm(l, name("attn_k_norm", "layers.{i}.self_attn.k_norm"))?;
        let kv = l.program.kv_layer(s.kv_heads, s.head_dim);
        l.program.push(QkRopeWrite { qkv, q_norm, k_norm, rope: Some(self.rope), heads: s.heads, kv });
        let mixed = l.program.buffer("attention", q_width);
        l.program.push(Attention {
            qkv,
            heads: s.heads,
            scale: self.scale,
            window: self.window,
            soft_cap: self.soft_cap,
            sinks: None,
            kv,
            out: mixed,
        });
        let out = [(name("attn_output", "layers.{i}.self_attn.o_proj"), s.width)];
        let weight = l.packed(&out, q_width)?;
        let bias = l.biases(&out, self.out_bias)?;
        let post_norm = match self.post_norm {
            true => Some(l.rms_norm(POST_ATTENTION, s.width, s.eps, self.norm_offset)?),
            false => None,
        };
        l.program.push(LinearResidual { x: mixed, weight, bias, post_norm, residual });
        Ok(())
    }
}

/// What a family's gated feed-forward block has.
#[derive(Clone)]
pub(crate) struct FeedForward {
    pub norm: Name<'static>,
    pub norm_offset: f32,
    pub bias: bool,
    pub activation: Activation,
    pub post_norm: bool,
}

impl FeedForward {
    /// The block as most families have it.
    pub fn plain() -> FeedForward {
        FeedForward {
            norm: name("ffn_norm", "layers.{i}.post_attention_layernorm"),
            norm_offset: 0.0,
            bias: false,
            activation: Activation::SiluGlu,
            post_norm: false,
        }
    }

    pub fn record(&self, l: &mut Loader, s: &Shape, residual: Buf) -> Result<(), ModelError> {
        if s.hidden == 0 {
            return Err(ModelError::bad("the feed-forward width", 0, "at least 1 is expected"));
        }
        let parts = [
            (name("ffn_gate", "layers.{i}.mlp.gate_proj"), s.hidden),
            (name("ffn_up", "layers.{i}.mlp.up_proj"), s.hidden),
        ];
        let norm = l.rms_norm(self.norm, s.width, s.eps, self.norm_offset)?;
        let weight = l.packed(&parts, s.width)?;
        let bias = l.biases(&parts, self.bias)?;
        let hidden = l.program.buffer("hidden", s.hidden);
        l.program.push(NormLinear {
            x: residual,
            norm: Some(norm),
            weight,
            bias,
            activation: self.activation,
            out: hidden,
        });
        let down = [(name("ffn_down", "layers.{i}.mlp.down_proj"), s.width)];
        let weight = l.packed(&down, s.hidden)?;
        let bias = l.biases(&down, self.bias)?;
        let post_norm = match self.post_norm {
            true => Some(l.rms_norm(POST_FEED_FORWARD, s.width, s.eps, self.norm_offset)?),
            false => None,
        };
        l.program.push(LinearResidual { x: hidden, weight, bias, post_norm, residual });
        Ok(())
    }
}

/// The name of a head of its own.
fn head_name(l: &Loader) -> &'static str {
    let nested = "language_model.lm_head.weight";
    match l.is_gguf() {
        true => "output.weight",
        false if l.checkpoint.contains(nested) => nested,
        false => "lm_head.weight",
    }
}

/// Whether the head shares the embedding's weights: `tied` is what config.json says, a GGUF file says it by leaving
/// the head out. A head that is there all the same must be a copy of the embedding, or it is used.
pub(crate) fn is_tied(l: &mut Loader, table: Name, tied: bool) -> Result<bool, ModelError> {
    let head = head_name(l);
    if l.is_gguf() {
        return Ok(!l.checkpoint.contains(head));
    }
    if !tied || !l.checkpoint.contains(head) {
        return Ok(tied);
    }
    let embedding = format!("{}.weight", l.full_name(table));
    let shape = |name: &str| l.checkpoint.info(name).map(|(_, shape)| shape.to_vec());
    let (Some(own), Some(shared)) = (shape(head), shape(&embedding)) else { return Ok(true) };
    let (own, shared) = (l.checkpoint.take(head, &own)?, l.checkpoint.take(&embedding, &shared)?);
    Ok((own.dtype(), own.shape(), own.bytes()) == (shared.dtype(), shared.shape(), shared.bytes()))
}

/// Records the final norm and the head; returns the logits' buffer.
pub(crate) fn head(
    l: &mut Loader,
    embedded: &Embedded,
    norm: Norm,
    tied: bool,
    soft_cap: Option<f32>,
) -> Result<Buf, ModelError> {
    let (_, width) = l.program.matrix_dims(embedded.table);
    let weight = match tied {
        true => embedded.table,
        false => {
            let full_name = head_name(l);
            let tensor = l.take(full_name, &[embedded.vocab, width])?;
            l.matrix_of(full_name.into(), vec![tensor])?
        }
    };
    let logits = l.program.logits_buffer(embedded.vocab);
    l.program.push(Head { x: embedded.x, norm, weight, soft_cap, logits });
    Ok(logits)
}

/// Tensors that checkpoints carry along and that nothing reads: rotary frequencies follow from the configuration.
/// (A copy of the head beside tied embeddings is read when it is compared with them.)
pub(crate) fn carried_along(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}
