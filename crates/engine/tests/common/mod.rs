//! Two tiny programs with random weights, and a way to run requests to their end.
// Every test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::HashMap;

use exotherm_engine::{
    Engine, EngineConfig, Event, FinishReason, Request, RequestId, RequestStats, Sampling,
};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::ops::{
    Attention, ChannelMix, Embed, GroupedLinear, Head, LinearResidual, Lora, LoraPair, NormLinear,
    QkRopeWrite, Rope, RopeStyle, RopeTable, ShiftMix, TimeMix,
};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{
    Activation, Backend, KvType, MatId, Norm, NormKind, Op, Program, ProgramBuilder, VecId,
};
use exotherm_tensor::Tensor;

pub const VOCAB: usize = 23;

/// Records a program whose weights come from a small generator.
struct Recorder {
    builder: ProgramBuilder,
    state: u64,
}

impl Recorder {
    fn new(seed: u64) -> Recorder {
        Recorder { builder: ProgramBuilder::new(), state: seed }
    }

    /// Numbers in [-scale, scale).
    fn numbers(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| scale * next()).collect()
    }

    fn matrix(&mut self, name: &str, n_out: usize, n_in: usize) -> MatId {
        let values = self.numbers(n_out * n_in, 1.5 / (n_in as f32).sqrt());
        self.builder.matrix(name, vec![Tensor::from_f32(&[n_out, n_in], &values).expect("the shape fits")])
    }

    fn vector(&mut self, n: usize, around: f32) -> VecId {
        let values = self.numbers(n, 0.3).iter().map(|v| v + around).collect();
        self.builder.vector(values)
    }

    fn norm(&mut self, kind: NormKind, n: usize) -> Norm {
        let weight = self.vector(n, 1.0);
        let bias = (kind == NormKind::Layer).then(|| self.vector(n, 0.0));
        Norm { kind, weight, bias, eps: 1e-5 }
    }
}

/// Two layers of a transformer: grouped heads, rope, gated feed-forward.
pub fn transformer() -> Program {
    transformer_with_head(1.0)
}

/// A transformer whose logits are `scale` times as large.
pub fn transformer_with_head(scale: f32) -> Program {
    transformer_with(scale, None)
}

/// A transformer for which this token is no number.
pub fn transformer_without(token: usize) -> Program {
    transformer_with(1.0, Some(token))
}

fn transformer_with(scale: f32, poison: Option<usize>) -> Program {
    let (width, heads, kv_heads, head_dim, hidden) = (14, 4, 2, 6, 10);
    let mut r = Recorder::new(7);
    let x = r.builder.buffer("x", width);
    let mut table = r.numbers(VOCAB * width, 1.5 / (width as f32).sqrt());
    poison.into_iter().for_each(|token| table[token * width..(token + 1) * width].fill(f32::NAN));
    let table = Tensor::from_f32(&[VOCAB, width], &table).expect("the shape fits");
    let table = r.builder.matrix("embedding", vec![table]);
    r.builder.push(Embed { table, scale: 1.0, positions: None, norm: None, out: x });
    let rope = r.builder.buffer("rope", head_dim);
    let inv_freq = r.builder.vector(vec![1.0, 0.3, 0.05]);
    r.builder.push(RopeTable { inv_freq, magnitude: 1.0, out: rope });
    for _ in 0..2 {
        let qkv = r.builder.buffer("qkv", (heads + 2 * kv_heads) * head_dim);
        let attended = r.builder.buffer("attended", heads * head_dim);
        let kv = r.builder.kv_layer(kv_heads, head_dim);
        let norm = Some(r.norm(NormKind::Rms, width));
        let weight = r.matrix("qkv", (heads + 2 * kv_heads) * head_dim, width);
        let activation = Activation::None;
        r.builder.push(NormLinear { x, norm, weight, bias: None, activation, out: qkv });
        let rope = Some(Rope { table: rope, style: RopeStyle::Halves });
        r.builder.push(QkRopeWrite { qkv, q_norm: None, k_norm: None, rope, heads, kv });
        let scale = 1.0 / (head_dim as f32).sqrt();
        r.builder.push(Attention {
            qkv,
            heads,
            scale,
            window: None,
            soft_cap: None,
            sinks: None,
            kv,
            out: attended,
        });
        let weight = r.matrix("o", width, heads * head_dim);
        r.builder.push(LinearResidual { x: attended, weight, bias: None, post_norm: None, residual: x });
        let up = r.builder.buffer("hidden", hidden);
        let norm = Some(r.norm(NormKind::Rms, width));
        let weight = r.matrix("gate_up", 2 * hidden, width);
        r.builder.push(NormLinear { x, norm, weight, bias: None, activation: Activation::SiluGlu, out: up });
        let weight = r.matrix("down", width, hidden);
        r.builder.push(LinearResidual { x: up, weight, bias: None, post_norm: None, residual: x });
    }
    let logits = r.builder.logits_buffer(VOCAB);
    let norm = r.norm(NormKind::Rms, width);
    let values: Vec<f32> =
        r.numbers(VOCAB * width, 0.6).iter().map(|v| if scale == 0.0 { 0.0 } else { v * scale }).collect();
    let weight = r.builder.matrix("head", vec![Tensor::from_f32(&[VOCAB, width], &values).expect("it fits")]);
    r.builder.push(Head { x, norm, weight, soft_cap: None, logits });
    r.builder.finish(logits, VOCAB)
}

/// The transformer whose embeddings are `scale` times as large.
pub fn transformer_with_embedding(scale: f32) -> Program {
    let program = transformer();
    let mut builder = ProgramBuilder::reopen(&program);
    for op in builder.ops_mut() {
        if let Op::Embed(embed) = op {
            embed.scale = scale;
        }
    }
    builder.finish(program.logits(), VOCAB)
}

/// One layer of RWKV-7.
pub fn rwkv() -> Program {
    let (width, heads, rank, hidden) = (12, 3, 2, 20);
    let size = width / heads;
    let mut r = Recorder::new(11);
    let x = r.builder.buffer("x", width);
    let table = r.matrix("embedding", VOCAB, width);
    let norm = Some(r.norm(NormKind::Layer, width));
    r.builder.push(Embed { table, scale: 1.0, positions: None, norm, out: x });
    let (time_shift, wkv) = (r.builder.recurrent(width), r.builder.recurrent(heads * size * size));
    let channel_shift = r.builder.recurrent(width);
    let mixed = r.builder.buffer("mixed", 6 * width);
    let (norm, mix) = (r.norm(NormKind::Layer, width), r.vector(6 * width, 0.5));
    r.builder.push(ShiftMix { x, norm, mix, mixes: 6, state: time_shift, out: mixed });
    let rkv = r.builder.buffer("rkv", 3 * width);
    let groups = ["r", "k", "v"].iter().enumerate().map(|(i, n)| (i * width, r.matrix(n, width, width)));
    let groups = groups.collect();
    r.builder.push(GroupedLinear { x: mixed, groups, out: rkv });
    let wagv = r.builder.buffer("wagv", 3 * width);
    let mut pairs = Vec::new();
    for (i, (middle, out)) in [
        (Activation::Tanh, Activation::None),
        (Activation::None, Activation::Sigmoid),
        (Activation::Sigmoid, Activation::None),
    ]
    .into_iter()
    .enumerate()
    {
        let (down, up) = (r.matrix("down", rank, width), r.matrix("up", width, rank));
        let bias = Some(r.vector(width, 0.0));
        pairs.push(LoraPair { x_at: (3 + i) * width, down, middle, up, bias, out });
    }
    r.builder.push(Lora { x: mixed, pairs, out: wagv });
    let (v_first, mixed_time) = (r.builder.buffer("v_first", width), r.builder.buffer("time", width));
    let (k_k, k_a, r_k) = (r.vector(width, 0.8), r.vector(width, 1.0), r.vector(width, 0.0));
    let norm = r.norm(NormKind::Layer, width);
    r.builder.push(TimeMix {
        rkv,
        wagv,
        v_first,
        is_first_layer: true,
        k_k,
        k_a,
        r_k,
        norm,
        heads,
        state: wkv,
        out: mixed_time,
    });
    let weight = r.matrix("o", width, width);
    r.builder.push(LinearResidual { x: mixed_time, weight, bias: None, post_norm: None, residual: x });
    let key = r.builder.buffer("key", hidden);
    let (norm, mix) = (r.norm(NormKind::Layer, width), r.vector(width, 0.5));
    let weight = r.matrix("ffn.key", hidden, width);
    r.builder.push(ChannelMix { x, norm, mix, state: channel_shift, weight, out: key });
    let weight = r.matrix("ffn.value", width, hidden);
    r.builder.push(LinearResidual { x: key, weight, bias: None, post_norm: None, residual: x });
    let logits = r.builder.logits_buffer(VOCAB);
    let (norm, weight) = (r.norm(NormKind::Layer, width), r.matrix("head", VOCAB, width));
    r.builder.push(Head { x, norm, weight, soft_cap: None, logits });
    r.builder.finish(logits, VOCAB)
}

pub fn programs() -> [Program; 2] {
    [transformer(), rwkv()]
}

/// Every program with every backend.
pub fn setups() -> Vec<(Program, Box<dyn Backend>)> {
    programs().into_iter().flat_map(|p| backends().into_iter().map(move |b| (p.clone(), b))).collect()
}

pub fn config(ctx: usize, max_seqs: usize, chunk: usize) -> EngineConfig {
    EngineConfig { ctx, max_seqs, chunk, logit_rows: 1, kv_type: KvType::F16 }
}

/// Every backend that is held to the same properties.
pub fn backends() -> Vec<Box<dyn Backend>> {
    vec![Box::new(ReferenceBackend), Box::new(CpuBackend::new(2))]
}

pub fn engine(program: &Program, ctx: usize, max_seqs: usize, chunk: usize) -> Engine {
    engine_on(&ReferenceBackend, program, ctx, max_seqs, chunk)
}

pub fn engine_on(
    backend: &dyn Backend,
    program: &Program,
    ctx: usize,
    max_seqs: usize,
    chunk: usize,
) -> Engine {
    Engine::new(program, backend, config(ctx, max_seqs, chunk)).expect("the engine is small")
}

pub fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: Sampling::default(),
        logprobs: None,
        stop_tokens: Vec::new(),
        hold: false,
    }
}

/// All that was heard of requests.
#[derive(Default)]
pub struct Heard {
    pub tokens: HashMap<RequestId, Vec<u32>>,
    pub ends: HashMap<RequestId, (FinishReason, RequestStats)>,
}

impl Heard {
    pub fn tokens(&self, id: RequestId) -> Vec<u32> {
        self.tokens.get(&id).cloned().unwrap_or_default()
    }

    /// Runs a step and notes its events; tokens must come in order and nothing after the end.
    pub fn step(&mut self, engine: &mut Engine) {
        for event in engine.step().expect("the step runs") {
            match *event {
                Event::Token { id, token, index, .. } => {
                    let tokens = self.tokens.entry(id).or_default();
                    assert_eq!(index, tokens.len(), "tokens come in order");
                    assert!(!self.ends.contains_key(&id), "nothing comes after the end");
                    tokens.push(token);
                }
                Event::Finished { id, reason, stats } => {
                    assert_eq!(stats.generated, self.tokens(id).len(), "the count is the tokens told");
                    assert!(self.ends.insert(id, (reason, stats)).is_none(), "a request ends once");
                }
            }
        }
        assert!(engine.books().balance(), "the books balance");
    }

    pub fn finish(&mut self, engine: &mut Engine) {
        while !engine.is_idle() {
            self.step(engine);
        }
    }
}

/// A request's tokens when it runs alone in an engine of its own, its prompt in one piece.
pub fn alone(program: &Program, ctx: usize, request: &Request) -> Vec<u32> {
    alone_on(&ReferenceBackend, program, ctx, request)
}

pub fn alone_on(backend: &dyn Backend, program: &Program, ctx: usize, request: &Request) -> Vec<u32> {
    let mut engine = engine_on(backend, program, ctx, 1, ctx);
    let mut heard = Heard::default();
    let id = engine.submit(request.clone()).expect("the request is fine");
    heard.finish(&mut engine);
    heard.tokens(id)
}
