//! Whole small models of each kind, with widths that fit no vector width and weights of several types.

use exotherm_tensor::DType;

use super::data::Numbers;
use crate::ops::{
    Activation, Attention, ChannelMix, Embed, GroupedLinear, Head, LinearResidual, Lora, LoraPair, MoeDown,
    MoeGateUp, MoeRoute, Norm, NormKind, NormLinear, QkRopeWrite, Rope, RopeStyle, RopeTable, ShiftMix,
    TimeMix,
};
use crate::program::{Buf, MatId, Program, ProgramBuilder, VecId};

/// Tokens of the models.
pub const VOCAB: usize = 29;

/// The kinds of model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Attention and a dense feed-forward, with biases, QK-norm, windows, caps, sinks in turn.
    Dense,
    /// The same with experts.
    Experts,
    /// Time mixing and channel mixing.
    Recurrent,
}

/// Draws a model of this kind. The same seed gives the same model.
pub fn draw(kind: Kind, seed: u64) -> Program {
    let recorder = Recorder { b: ProgramBuilder::new(), numbers: Numbers::new(seed) };
    match kind {
        Kind::Recurrent => recorder.recurrent(),
        _ => recorder.transformer(kind == Kind::Experts),
    }
}

struct Recorder {
    b: ProgramBuilder,
    numbers: Numbers,
}

struct Heads {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Recorder {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.numbers.below(of.len())]
    }

    fn coin(&mut self) -> bool {
        self.numbers.below(2) == 0
    }

    /// A type whose blocks fit rows of `n_in`.
    fn dtype(&mut self, n_in: usize) -> DType {
        let fits: Vec<DType> = DType::all().filter(|t| n_in.is_multiple_of(t.block_len())).collect();
        self.pick(&fits)
    }

    /// Weights that keep rows at about the magnitude they have; segments of types that differ.
    fn matrix(&mut self, segments: &[usize], n_in: usize) -> MatId {
        let magnitude = (3.0 / n_in as f32).sqrt();
        let mut tensors = Vec::new();
        for &n_out in segments {
            let dtype = self.dtype(n_in);
            tensors.push(self.numbers.tensor(dtype, n_out, n_in, magnitude));
        }
        self.b.matrix("weights", tensors)
    }

    fn vector(&mut self, n: usize, centre: f32, spread: f32) -> VecId {
        let values = self.numbers.around(n, centre, spread);
        self.b.vector(values)
    }

    fn norm(&mut self, kind: NormKind, width: usize) -> Norm {
        let weight = self.vector(width, 1.0, 0.3);
        let bias = (kind == NormKind::Layer).then(|| self.vector(width, 0.0, 0.2));
        Norm { kind, weight, bias, eps: 1e-5 }
    }

    fn transformer(mut self, experts: bool) -> Program {
        let (heads, kv_heads) = self.pick(&[(1, 1), (3, 1), (4, 2), (6, 3)]);
        let heads = Heads { heads, kv_heads, dim: self.pick(&[4, 10, 12, 16]) };
        let width = self.pick(&[20, 33, 52, 64]);
        let kind = self.pick(&[NormKind::Rms, NormKind::Layer]);
        let x = self.b.buffer("x", width);
        let table = self.matrix(&[VOCAB], width);
        self.b.push(Embed { table, scale: 2.0, positions: None, norm: None, out: x });
        let rotated = if self.coin() { heads.dim } else { 4 };
        let frequencies = (0..rotated / 2).map(|i| 1000f32.powf(-((2 * i) as f32) / rotated as f32));
        let inv_freq = self.b.vector(frequencies.collect());
        let rope = Rope {
            table: self.b.buffer("rope", rotated),
            style: self.pick(&[RopeStyle::Halves, RopeStyle::Pairs]),
        };
        self.b.push(RopeTable { inv_freq, magnitude: 1.0, out: rope.table });
        for _ in 0..2 {
            self.attention(x, kind, &heads, rope);
            if experts { self.experts(x, kind) } else { self.feed_forward(x, kind) }
        }
        self.head(x, kind)
    }

    fn attention(&mut self, x: Buf, kind: NormKind, h: &Heads, rope: Rope) {
        let &Heads { heads, kv_heads, dim } = h;
        let width = self.b.buffer_width(x);
        let outputs = (heads + 2 * kv_heads) * dim;
        let (qkv, out) = (self.b.buffer("qkv", outputs), self.b.buffer("attention", heads * dim));
        let norm = Some(self.norm(kind, width));
        let weight = self.matrix(&[heads * dim, kv_heads * dim, kv_heads * dim], width);
        let bias = self.coin().then(|| self.vector(outputs, 0.0, 0.2));
        self.b.push(NormLinear { x, norm, weight, bias, activation: Activation::None, out: qkv });
        let kv = self.b.kv_layer(kv_heads, dim);
        let normed = self.coin();
        let [q_norm, k_norm] = [normed; 2].map(|normed| normed.then(|| self.norm(NormKind::Rms, dim)));
        self.b.push(QkRopeWrite { qkv, q_norm, k_norm, rope: Some(rope), heads, kv });
        let window = self.pick(&[None, Some(5), Some(17)]);
        let soft_cap = self.pick(&[None, Some(4.0)]);
        let sinks = self.coin().then(|| self.vector(heads, 0.0, 1.0));
        let scale = 1.0 / (dim as f32).sqrt();
        self.b.push(Attention { qkv, heads, scale, window, soft_cap, sinks, kv, out });
        self.onto_residual(out, x, kind);
    }

    fn onto_residual(&mut self, from: Buf, x: Buf, kind: NormKind) {
        let width = self.b.buffer_width(x);
        let weight = self.matrix(&[width], self.b.buffer_width(from));
        let bias = self.coin().then(|| self.vector(width, 0.0, 0.2));
        let post_norm = self.coin().then(|| self.norm(kind, width));
        self.b.push(LinearResidual { x: from, weight, bias, post_norm, residual: x });
    }

    fn feed_forward(&mut self, x: Buf, kind: NormKind) {
        let width = self.b.buffer_width(x);
        let hidden = self.pick(&[32, 37, 96]);
        let activation = self.pick(&[
            Activation::SiluGlu,
            Activation::GeluTanhGlu,
            Activation::GeluTanh,
            Activation::GeluErf,
        ]);
        let out = self.b.buffer("hidden", hidden);
        let norm = Some(self.norm(kind, width));
        let parts = if activation.is_gated() { vec![hidden; 2] } else { vec![hidden] };
        let weight = self.matrix(&parts, width);
        self.b.push(NormLinear { x, norm, weight, bias: None, activation, out });
        self.onto_residual(out, x, kind);
    }

    fn experts(&mut self, x: Buf, kind: NormKind) {
        let width = self.b.buffer_width(x);
        let (experts, hidden) = (self.pick(&[4, 7]), self.pick(&[13, 32]));
        let top_k = self.pick(&[1, 2, 3]);
        let (normed, routes) = (self.b.buffer("normed", width), self.b.buffer("routes", 2 * top_k));
        let norm = self.norm(kind, width);
        let router = self.matrix(&[experts], width);
        let renormalize = self.coin();
        self.b.push(MoeRoute { x, norm, router, top_k, renormalize, normed, routes });
        let out = self.b.buffer("hidden", top_k * hidden);
        let gate = self.matrix(&vec![hidden; experts], width);
        let up = self.matrix(&[experts * hidden], width);
        let activation = Activation::SiluGlu;
        self.b.push(MoeGateUp { normed, routes, top_k, experts, gate, up, activation, out });
        let down = self.matrix(&[experts * width], hidden);
        self.b.push(MoeDown { hidden: out, routes, top_k, experts, down, residual: x });
    }

    fn head(mut self, x: Buf, kind: NormKind) -> Program {
        let width = self.b.buffer_width(x);
        let norm = self.norm(kind, width);
        let weight = self.matrix(&[VOCAB], width);
        let logits = self.b.logits_buffer(VOCAB);
        let soft_cap = self.pick(&[None, Some(10.0)]);
        self.b.push(Head { x, norm, weight, soft_cap, logits });
        self.b.finish(logits, VOCAB)
    }

    fn recurrent(mut self) -> Program {
        let (heads, size) = self.pick(&[(1, 8), (3, 8), (2, 16), (3, 12)]);
        let width = heads * size;
        let x = self.b.buffer("x", width);
        let table = self.matrix(&[VOCAB], width);
        let norm = Some(self.norm(NormKind::Layer, width));
        self.b.push(Embed { table, scale: 1.0, positions: None, norm, out: x });
        let v_first = self.b.buffer("v_first", width);
        for layer in 0..2 {
            self.time_mixing(x, v_first, heads, layer == 0);
            self.channel_mixing(x);
        }
        self.head(x, NormKind::Layer)
    }

    fn time_mixing(&mut self, x: Buf, v_first: Buf, heads: usize, is_first_layer: bool) {
        let width = self.b.buffer_width(x);
        let mixed = self.b.buffer("mixed", 6 * width);
        let (norm, mix) = (self.norm(NormKind::Layer, width), self.vector(6 * width, 0.5, 0.5));
        let shift = self.b.recurrent(width);
        self.b.push(ShiftMix { x, norm, mix, mixes: 6, state: shift, out: mixed });
        let rkv = self.b.buffer("rkv", 3 * width);
        let groups = [0, 2, 3].map(|mix| (mix * width, self.matrix(&[width], width)));
        self.b.push(GroupedLinear { x: mixed, groups: groups.to_vec(), out: rkv });
        let parts = [
            (1, 5, Activation::Tanh, Activation::None),
            (4, 9, Activation::None, Activation::Sigmoid),
            (5, 32, Activation::Sigmoid, Activation::None),
            (3, 7, Activation::None, Activation::Sigmoid),
        ];
        let parts = &parts[..if is_first_layer { 3 } else { 4 }];
        let wagv = self.b.buffer("wagv", parts.len() * width);
        let mut pairs = Vec::new();
        for &(mix, rank, middle, out) in parts {
            let (down, up) = (self.matrix(&[rank], width), self.matrix(&[width], rank));
            let bias = (mix != 5).then(|| self.vector(width, -1.0, 1.0));
            pairs.push(LoraPair { x_at: mix * width, down, middle, up, bias, out });
        }
        self.b.push(Lora { x: mixed, pairs, out: wagv });
        let [k_k, k_a, r_k] = [(0.8, 0.2), (0.9, 0.3), (0.0, 0.3)].map(|(c, s)| self.vector(width, c, s));
        let norm = Norm { eps: 64e-5, ..self.norm(NormKind::Layer, width) };
        let state = self.b.recurrent(width * width / heads);
        let out = self.b.buffer("time_mixed", width);
        self.b.push(TimeMix { rkv, wagv, v_first, is_first_layer, k_k, k_a, r_k, norm, heads, state, out });
        let weight = self.matrix(&[width], width);
        self.b.push(LinearResidual { x: out, weight, bias: None, post_norm: None, residual: x });
    }

    fn channel_mixing(&mut self, x: Buf) {
        let width = self.b.buffer_width(x);
        let hidden = self.pick(&[33, 64, 96]);
        let (norm, mix) = (self.norm(NormKind::Layer, width), self.vector(width, 0.5, 0.5));
        let state = self.b.recurrent(width);
        let weight = self.matrix(&[hidden], width);
        let out = self.b.buffer("hidden", hidden);
        self.b.push(ChannelMix { x, norm, mix, state, weight, out });
        let weight = self.matrix(&[width], hidden);
        self.b.push(LinearResidual { x: out, weight, bias: None, post_norm: None, residual: x });
    }
}
