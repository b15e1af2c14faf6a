//! Tiny programs with random weights, and a way to run requests to their end.
// Every test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::Arc;

use exotherm_engine::{
    Engine, EngineConfig, Event, FinishReason, MemoryPlan, Request, RequestId, RequestStats, TokenLogprobs,
};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::ops::{
    Attention, ChannelMix, Embed, GroupedLinear, Head, LinearResidual, Lora, LoraPair, NormLinear,
    QkRopeWrite, Rope, RopeStyle, RopeTable, ShiftMix, TimeMix,
};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Activation, Backend, Buf, MatId, Norm, NormKind, Op, Program, ProgramBuilder, VecId};
use exotherm_tensor::Tensor;

pub const VOCAB: usize = 23;
const WIDTH: usize = 12;
const HEAD_DIM: usize = 6;

/// Records a program whose weights come from a small generator.
struct Recorder {
    builder: ProgramBuilder,
    width: usize,
    state: u64,
}

impl Recorder {
    fn new(seed: u64) -> Recorder {
        Recorder { builder: ProgramBuilder::new(), width: WIDTH, state: seed }
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

    fn embedding(&mut self, norm: Option<Norm>) -> Buf {
        let x = self.builder.buffer("x", self.width);
        let table = self.matrix("embedding", VOCAB, self.width);
        self.builder.push(Embed { table, scale: 1.0, positions: None, norm, out: x });
        x
    }

    /// The same, where this token is no number.
    fn embedding_without(&mut self, token: usize) -> Buf {
        let x = self.builder.buffer("x", WIDTH);
        let mut table = self.numbers(VOCAB * WIDTH, 1.5 / (WIDTH as f32).sqrt());
        table[token * WIDTH..(token + 1) * WIDTH].fill(f32::NAN);
        let table = Tensor::from_f32(&[VOCAB, WIDTH], &table).expect("the shape fits");
        let table = self.builder.matrix("embedding", vec![table]);
        self.builder.push(Embed { table, scale: 1.0, positions: None, norm: None, out: x });
        x
    }

    fn rope(&mut self) -> Buf {
        let rope = self.builder.buffer("rope", HEAD_DIM);
        let inv_freq = self.builder.vector(vec![1.0, 0.3, 0.05]);
        self.builder.push(RopeTable { inv_freq, magnitude: 1.0, out: rope });
        rope
    }

    /// Grouped heads, rope, gated feed-forward.
    fn attention_layer(&mut self, x: Buf, rope: Buf) {
        let (heads, kv_heads, hidden) = (4, 2, 10);
        let qkv = self.builder.buffer("qkv", (heads + 2 * kv_heads) * HEAD_DIM);
        let attended = self.builder.buffer("attended", heads * HEAD_DIM);
        let kv = self.builder.kv_layer(kv_heads, HEAD_DIM);
        let norm = Some(self.norm(NormKind::Rms, WIDTH));
        let weight = self.matrix("qkv", (heads + 2 * kv_heads) * HEAD_DIM, WIDTH);
        let activation = Activation::None;
        self.builder.push(NormLinear { x, norm, weight, bias: None, activation, out: qkv });
        let rope = Some(Rope { table: rope, style: RopeStyle::Halves });
        self.builder.push(QkRopeWrite { qkv, q_norm: None, k_norm: None, rope, heads, kv });
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let (window, soft_cap, sinks, out) = (None, None, None, attended);
        self.builder.push(Attention { qkv, heads, scale, window, soft_cap, sinks, kv, out });
        let weight = self.matrix("o", WIDTH, heads * HEAD_DIM);
        self.builder.push(LinearResidual { x: attended, weight, bias: None, post_norm: None, residual: x });
        let up = self.builder.buffer("hidden", hidden);
        let norm = Some(self.norm(NormKind::Rms, WIDTH));
        let weight = self.matrix("gate_up", 2 * hidden, WIDTH);
        let activation = Activation::SiluGlu;
        self.builder.push(NormLinear { x, norm, weight, bias: None, activation, out: up });
        let weight = self.matrix("down", WIDTH, hidden);
        self.builder.push(LinearResidual { x: up, weight, bias: None, post_norm: None, residual: x });
    }

    /// Time mixing and channel mixing of RWKV-7.
    fn recurrent_layer(&mut self, x: Buf, heads: usize, hidden: usize) {
        let width = self.width;
        let size = width / heads;
        let (time_shift, wkv) = (self.builder.recurrent(width), self.builder.recurrent(heads * size * size));
        let channel_shift = self.builder.recurrent(width);
        let mixed = self.builder.buffer("mixed", 6 * width);
        let (norm, mix) = (self.norm(NormKind::Layer, width), self.vector(6 * width, 0.5));
        self.builder.push(ShiftMix { x, norm, mix, mixes: 6, state: time_shift, out: mixed });
        let rkv = self.builder.buffer("rkv", 3 * width);
        let groups = ["r", "k", "v"].iter().enumerate();
        let groups = groups.map(|(i, name)| (i * width, self.matrix(name, width, width))).collect();
        self.builder.push(GroupedLinear { x: mixed, groups, out: rkv });
        let wagv = self.builder.buffer("wagv", 3 * width);
        let pairs = self.lora_pairs();
        self.builder.push(Lora { x: mixed, pairs, out: wagv });
        let (v_first, mixed_time) =
            (self.builder.buffer("v_first", width), self.builder.buffer("time", width));
        let (k_k, k_a, r_k) = (self.vector(width, 0.8), self.vector(width, 1.0), self.vector(width, 0.0));
        let norm = self.norm(NormKind::Layer, width);
        self.builder.push(TimeMix {
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
        let weight = self.matrix("o", width, width);
        self.builder.push(LinearResidual { x: mixed_time, weight, bias: None, post_norm: None, residual: x });
        let key = self.builder.buffer("key", hidden);
        let (norm, mix) = (self.norm(NormKind::Layer, width), self.vector(width, 0.5));
        let weight = self.matrix("ffn.key", hidden, width);
        self.builder.push(ChannelMix { x, norm, mix, state: channel_shift, weight, out: key });
        let weight = self.matrix("ffn.value", width, hidden);
        self.builder.push(LinearResidual { x: key, weight, bias: None, post_norm: None, residual: x });
    }

    fn lora_pairs(&mut self) -> Vec<LoraPair> {
        let (rank, width) = (2, self.width);
        let activations = [
            (Activation::Tanh, Activation::None),
            (Activation::None, Activation::Sigmoid),
            (Activation::Sigmoid, Activation::None),
        ];
        let pair = |(i, (middle, out))| {
            let (down, up) = (self.matrix("down", rank, width), self.matrix("up", width, rank));
            let bias = Some(self.vector(width, 0.0));
            LoraPair { x_at: (3 + i) * width, down, middle, up, bias, out }
        };
        activations.into_iter().enumerate().map(pair).collect()
    }

    fn finish(mut self, x: Buf, norm: Norm, weight: MatId) -> Program {
        let logits = self.builder.logits_buffer(VOCAB);
        self.builder.push(Head { x, norm, weight, soft_cap: None, logits });
        self.builder.finish(logits, VOCAB)
    }
}

/// Two layers of a transformer.
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
    let mut r = Recorder::new(7);
    let x = match poison {
        None => r.embedding(None),
        Some(token) => r.embedding_without(token),
    };
    let rope = r.rope();
    (0..2).for_each(|_| r.attention_layer(x, rope));
    let norm = r.norm(NormKind::Rms, WIDTH);
    let values: Vec<f32> =
        r.numbers(VOCAB * WIDTH, 0.6).iter().map(|v| if scale == 0.0 { 0.0 } else { v * scale }).collect();
    let weight = r.builder.matrix("head", vec![Tensor::from_f32(&[VOCAB, WIDTH], &values).expect("it fits")]);
    r.finish(x, norm, weight)
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
    rwkv_of(WIDTH, 1, 3, 20)
}

/// So many layers of RWKV-7, of this width.
pub fn rwkv_of(width: usize, layers: usize, heads: usize, hidden: usize) -> Program {
    let mut r = Recorder { width, ..Recorder::new(11) };
    let norm = Some(r.norm(NormKind::Layer, width));
    let x = r.embedding(norm);
    (0..layers).for_each(|_| r.recurrent_layer(x, heads, hidden));
    let (norm, weight) = (r.norm(NormKind::Layer, width), r.matrix("head", VOCAB, width));
    r.finish(x, norm, weight)
}

/// A layer of each kind: a sequence has both keys and values and a recurrent state.
pub fn hybrid() -> Program {
    let mut r = Recorder::new(13);
    let x = r.embedding(None);
    let rope = r.rope();
    r.attention_layer(x, rope);
    r.recurrent_layer(x, 3, 20);
    let (norm, weight) = (r.norm(NormKind::Rms, WIDTH), r.matrix("head", VOCAB, WIDTH));
    r.finish(x, norm, weight)
}

pub fn programs() -> [Program; 3] {
    [transformer(), rwkv(), hybrid()]
}

/// Every program with every backend.
pub fn setups() -> Vec<(Program, Box<dyn Backend>)> {
    programs().into_iter().flat_map(|p| backends().into_iter().map(move |b| (p.clone(), b))).collect()
}

pub fn config(ctx: usize, max_seqs: usize, chunk: usize) -> EngineConfig {
    EngineConfig { max_seqs, chunk, ..EngineConfig::new(ctx) }
}

/// Every backend that is held to the same properties. That threads change nothing is shown where the kernels are; here
/// they would only wait for one another.
pub fn backends() -> Vec<Box<dyn Backend>> {
    vec![Box::new(ReferenceBackend), Box::new(CpuBackend::new(1))]
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
    Request::new(prompt.to_vec(), max_tokens)
}

/// All that was heard of requests.
#[derive(Default)]
pub struct Heard {
    pub tokens: HashMap<RequestId, Vec<u32>>,
    /// Of each of the tokens, where they were asked for.
    pub logprobs: HashMap<RequestId, Vec<Option<Box<TokenLogprobs>>>>,
    /// How likely the tokens of prompts were.
    pub prompts: HashMap<RequestId, Arc<Vec<TokenLogprobs>>>,
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
                Event::Prompt { id, ref logprobs } => {
                    assert!(!self.ends.contains_key(&id) && self.tokens(id).is_empty(), "it comes first");
                    assert!(self.prompts.insert(id, logprobs.clone()).is_none(), "it is told once");
                }
                Event::Token { id, token, index, ref logprobs } => {
                    self.logprobs.entry(id).or_default().push(logprobs.clone());
                    let tokens = self.tokens.entry(id).or_default();
                    assert_eq!(index, tokens.len(), "tokens come in order");
                    assert!(!self.ends.contains_key(&id), "nothing comes after the end");
                    tokens.push(token);
                }
                Event::Finished { id, reason, stats, .. } => {
                    assert_eq!(stats.generated, self.tokens(id).len(), "the count is the tokens told");
                    assert!(self.ends.insert(id, (reason, stats)).is_none(), "a request ends once");
                }
            }
        }
        assert_eq!(engine.audit(), Ok(()));
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
    alone_in(&mut engine_on(backend, program, ctx, 1, ctx), request)
}

/// The same in an engine that does nothing else and remembers nothing.
pub fn alone_in(engine: &mut Engine, request: &Request) -> Vec<u32> {
    let (id, heard) = heard_alone(engine, request);
    heard.tokens(id)
}

/// All that is heard then.
pub fn heard_alone(engine: &mut Engine, request: &Request) -> (RequestId, Heard) {
    assert!(engine.is_idle());
    engine.forget_prefixes();
    let mut heard = Heard::default();
    let id = engine.submit(request.clone()).expect("the request is fine");
    heard.finish(engine);
    assert_eq!(heard.ends[&id].1.cached_tokens, 0);
    (id, heard)
}

/// Physical memory that the process has.
#[cfg(target_os = "linux")]
pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    4096 * pages
}

/// Asserts that the plan is what was taken, within a tenth.
pub fn assert_planned(used: usize, plan: &MemoryPlan) {
    let off = used as f64 / plan.total() as f64 - 1.0;
    println!("{used} bytes are in use, planned were\n{plan}");
    assert!(off.abs() < 0.1, "{used} bytes are in use, {:.1} % off the plan\n{plan}", 100.0 * off);
}
