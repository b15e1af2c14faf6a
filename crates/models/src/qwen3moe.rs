//! Qwen3-MoE: Qwen3's attention with a mixture of experts in place of (most of) the feed-forward blocks.

use exotherm_kernels::ops::{MoeDown, MoeGateUp, MoeRoute};
use exotherm_kernels::{Activation, Buf, MatId};
use exotherm_tensor::Tensor;

use crate::config::Config;
use crate::decoder::{self, Defaults, EMBEDDING, FeedForward, Shape, carried_along};
use crate::loader::{Loader, name};
use crate::qwen2::asked_window;
use crate::qwen3;
use crate::rope::RopeConfig;
use crate::{Model, ModelError, ModelInfo};

/// Far more experts per token than any model uses; choosing takes time and memory in proportion.
const MOST_USED: usize = 256;

struct Experts {
    count: usize,
    used: usize,
    hidden: usize,
    renormalize: bool,
}

pub(crate) fn record(mut l: Loader) -> Result<Model, ModelError> {
    l.find_prefix(&["model.", ""], "embed_tokens.weight");
    let config = Config::new(l.checkpoint);
    config.check_activation(&["hidden_act"], &["silu"])?;
    let shape = Shape::read(&config, Defaults { head_dim: Some(128), ..Defaults::default() })?;
    let experts = Experts::read(&config)?;
    let sparse = sparse_layers(&l, &config, shape.layers)?;
    let rope = RopeConfig::read(&config, shape.head_dim, None, 10_000.0)?;
    // Unlike the dense families, this one slides in all layers if it slides at all.
    let window = asked_window(&config)?;
    let bias = config.json_flag("attention_bias", false)?;
    let tied = config.json_flag("tie_word_embeddings", false)?;

    let tied = decoder::is_tied(&mut l, EMBEDDING, tied)?;
    let embedded = decoder::embed(&mut l, EMBEDDING, shape.width, 1.0)?;
    let table = decoder::rope_table(&mut l, rope.inv_freq());
    for (layer, &is_sparse) in sparse.iter().enumerate() {
        l.enter(Some(layer));
        qwen3::attention(&shape, table, bias, window).record(&mut l, &shape, embedded.x)?;
        match is_sparse {
            true => experts.record(&mut l, &shape, embedded.x)?,
            false => FeedForward::plain().record(&mut l, &shape, embedded.x)?,
        }
    }
    l.enter(None);
    let norm = l.rms_norm(name("output_norm", "norm"), shape.width, shape.eps, 0.0)?;
    let logits = decoder::head(&mut l, &embedded, norm, tied, None)?;
    let info = ModelInfo {
        experts: experts.count,
        experts_used: experts.used,
        hidden: experts.hidden,
        ..shape.info("qwen3moe", embedded.vocab)
    };
    l.finish(logits, &carried_along, info)
}

/// Which layers have experts: config.json excepts some by number or by a step, a GGUF file has no router there.
fn sparse_layers(l: &Loader, config: &Config, layers: usize) -> Result<Vec<bool>, ModelError> {
    if config.is_gguf() {
        return Ok((0..layers)
            .map(|i| l.checkpoint.contains(&format!("blk.{i}.ffn_gate_inp.weight")))
            .collect());
    }
    let step = config.try_count("", &["decoder_sparse_step"])?.unwrap_or(1);
    let dense = config.json_list("mlp_only_layers")?;
    let is_dense = |i: usize| dense.is_some_and(|d| d.iter().any(|v| v.as_u64() == Some(i as u64)));
    Ok((0..layers).map(|i| !is_dense(i) && (i + 1).is_multiple_of(step)).collect())
}

impl Experts {
    fn read(config: &Config) -> Result<Experts, ModelError> {
        let count = config.count("expert_count", &["num_experts", "num_local_experts"])?;
        let used = config.count("expert_used_count", &["num_experts_per_tok"])?;
        if used > count.min(MOST_USED) {
            let most = count.min(MOST_USED);
            return Err(ModelError::bad("the experts used", used, format!("at most {most} can be")));
        }
        let hidden = config.count("expert_feed_forward_length", &["moe_intermediate_size"])?;
        // GGUF files do not say; every Qwen3-MoE that was published renormalises.
        let renormalize = config.is_gguf() || config.json_flag("norm_topk_prob", false)?;
        Ok(Experts { count, used, hidden, renormalize })
    }

    fn record(&self, l: &mut Loader, s: &Shape, residual: Buf) -> Result<(), ModelError> {
        let norm =
            l.rms_norm(name("ffn_norm", "layers.{i}.post_attention_layernorm"), s.width, s.eps, 0.0)?;
        let router = l.plain_matrix(name("ffn_gate_inp", "layers.{i}.mlp.gate"), self.count, s.width)?;
        let normed = l.program.buffer("normed", s.width);
        let routes = l.program.buffer("routes", 2 * self.used);
        l.program.push(MoeRoute {
            x: residual,
            norm,
            router,
            top_k: self.used,
            renormalize: self.renormalize,
            normed,
            routes,
        });
        let [gate, up, down] = self.matrices(l, s)?;
        let hidden = l.program.buffer("hidden", self.used * self.hidden);
        l.program.push(MoeGateUp {
            normed,
            routes,
            top_k: self.used,
            experts: self.count,
            gate,
            up,
            activation: Activation::SiluGlu,
            out: hidden,
        });
        l.program.push(MoeDown { hidden, routes, top_k: self.used, experts: self.count, down, residual });
        Ok(())
    }

    /// Gate, up and down of all experts: one tensor each in GGUF files; in safetensors a tensor per expert, or
    /// (newer) gate and up of all experts in one.
    fn matrices(&self, l: &mut Loader, s: &Shape) -> Result<[MatId; 3], ModelError> {
        let (hidden, width) = (self.hidden, s.width);
        let fused = name("", "layers.{i}.mlp.experts.gate_up_proj");
        if !l.is_gguf() && l.has(fused, "") {
            let (gates, ups) = self.split_fused(l, s)?;
            let down_name = l.full_name(name("", "layers.{i}.mlp.experts.down_proj"));
            let down = l.take(&down_name, &[self.count, width, hidden])?;
            let label = l.full_name(fused);
            let gate = l.matrix_of(format!("{label} (gates)"), gates)?;
            let up = l.matrix_of(format!("{label} (ups)"), ups)?;
            return Ok([gate, up, l.matrix_of(down_name, vec![down])?]);
        }
        let gate = self.one_kind(l, "ffn_gate_exps", "gate_proj", hidden, width)?;
        let up = self.one_kind(l, "ffn_up_exps", "up_proj", hidden, width)?;
        Ok([gate, up, self.one_kind(l, "ffn_down_exps", "down_proj", width, hidden)?])
    }

    fn one_kind(
        &self,
        l: &mut Loader,
        gguf: &str,
        hf: &str,
        n_out: usize,
        n_in: usize,
    ) -> Result<MatId, ModelError> {
        if l.is_gguf() {
            let full_name = format!("{}.weight", l.full_name(name(gguf, "")));
            let all = l.take(&full_name, &[self.count, n_out, n_in])?;
            return l.matrix_of(full_name, vec![all]);
        }
        let mut tensors = Vec::new();
        for expert in 0..self.count {
            let hf = format!("layers.{{i}}.mlp.experts.{expert}.{hf}");
            tensors.push(l.weight(name("", &hf), n_out, n_in)?);
        }
        let label = l.full_name(name("", &format!("layers.{{i}}.mlp.experts.*.{hf}")));
        l.matrix_of(label, tensors)
    }

    fn split_fused(&self, l: &mut Loader, s: &Shape) -> Result<(Vec<Tensor>, Vec<Tensor>), ModelError> {
        let full_name = l.full_name(name("", "layers.{i}.mlp.experts.gate_up_proj"));
        let fused = l.take(&full_name, &[self.count, 2 * self.hidden, s.width])?;
        let rows = |expert: usize, half: usize| {
            let start = (2 * expert + half) * self.hidden;
            fused.rows(start..start + self.hidden)
        };
        let of = |half| (0..self.count).map(|expert| rows(expert, half)).collect();
        Ok((of(0), of(1)))
    }
}
