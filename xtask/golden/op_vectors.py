#!/usr/bin/env python3
"""Writes the vectors that crates/kernels/tests/reference_*.rs hold the reference backend to.

Needs Python 3.11+ with exactly
    torch==2.15.0  transformers==5.23.0  numpy==2.4.6
Run from anywhere: python xtask/golden/op_vectors.py

Writes crates/kernels/tests/data/op_vectors.txt: a name and its numbers on every line, tensors flattened with the last
dimension innermost. Inputs are drawn with few digits; results are computed in float64 from them by PyTorch, by the
modelling code of transformers, and for RWKV-7 by the published equations in numpy.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, Qwen3MoeConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe

OUT = Path(__file__).resolve().parents[2] / "crates/kernels/tests/data/op_vectors.txt"
torch.set_default_dtype(torch.float64)
LINES = []
RNG = np.random.default_rng(7)


def put(name, values):
    values = np.asarray(values.detach() if torch.is_tensor(values) else values, dtype=np.float32).reshape(-1)
    LINES.append(name + " " + " ".join(f"{v:.7g}" for v in values))


def draw(name, *shape, scale=1.0, centre=0.0):
    """Numbers of two decimals, the same in f32 and f64 after the f32 rounding; recorded under the name."""
    values = np.round(centre + scale * RNG.uniform(-1, 1, shape), 2).astype(np.float32)
    put(name, values)
    return torch.tensor(values.astype(np.float64))


def norms():
    x = draw("norm.x", 3, 10, scale=2, centre=0.5)
    x[1] *= 0.0078125
    put("norm.x", x)
    weight, bias = draw("norm.weight", 10, centre=1), draw("norm.bias", 10)
    put("norm.layer", F.layer_norm(x, (10,), weight, bias, 1e-5))
    put("norm.rms", F.rms_norm(x, (10,), weight, 1e-5))


def activations():
    x = torch.tensor([-90.0, -12, -6, -3.5, -2, -1, -0.5, -0.125, 0, 0.0625, 0.25, 0.75, 1, 1.5, 2.5, 4, 7, 30])
    put("act.x", x)
    up = draw("act.up", len(x), scale=3)
    put("act.gelu_erf", F.gelu(x))
    put("act.gelu_tanh", F.gelu(x, approximate="tanh"))
    put("act.squared_relu", F.relu(x) ** 2)
    put("act.tanh", torch.tanh(x))
    put("act.sigmoid", torch.sigmoid(x))
    put("act.silu_glu", F.silu(x) * up)
    put("act.gelu_tanh_glu", F.gelu(x, approximate="tanh") * up)


def attention():
    """Six heads on two KV heads, 19 positions, the rows of the last two."""
    heads, kv_heads, dim, n, rows = 6, 2, 10, 19, 2
    q = draw("attn.q", heads, rows, dim, scale=2)
    k, v = draw("attn.k", kv_heads, n, dim, scale=2), draw("attn.v", kv_heads, n, dim)
    sinks = draw("attn.sinks", heads, scale=2)
    scale = 0.3
    at, seen = torch.arange(n - rows, n)[:, None], torch.arange(n)[None]
    for name, window in [("full", None), ("window7", 7)]:
        visible = (seen <= at) & ((seen > at - window) if window else torch.ones_like(seen, dtype=torch.bool))
        mask = torch.where(visible, 0.0, float("-inf"))[None, None]
        plain = F.scaled_dot_product_attention(q[None], k[None], v[None], mask, scale=scale, enable_gqa=True)
        put(f"attn.{name}", plain[0].transpose(0, 1))
        module = SimpleNamespace(num_key_value_groups=heads // kv_heads, training=False, sinks=sinks)
        args = (module, q[None], k[None], v[None], mask.expand(1, 1, rows, n))
        capped, _ = modeling_gemma2.eager_attention_forward(*args, scaling=scale, softcap=2.0)
        put(f"attn.{name}.cap2", capped[0])
        sunk, _ = modeling_gpt_oss.eager_attention_forward(*args, scaling=scale)
        put(f"attn.{name}.sinks", sunk[0])


def rope():
    """Three Q heads and one K head of 12 at positions 7..10; both styles, partial rotation, QK-norm."""
    dim, rows = 12, 3
    positions = torch.arange(7, 7 + rows)[None]
    q, k = draw("rope.q", 3, rows, dim), draw("rope.k", 1, rows, dim)
    q_weight, k_weight = draw("rope.q_weight", dim, centre=1), draw("rope.k_weight", dim, centre=1)

    def tables(dims):
        config = LlamaConfig(
            hidden_size=dims, num_attention_heads=1, head_dim=dims, max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
        rotary = modeling_llama.LlamaRotaryEmbedding(config)
        put(f"rope.inv_freq{dims}", rotary.inv_freq)
        return rotary(torch.zeros(1), positions)

    def record(name, q, k):
        put(f"rope.{name}.q", q[0].transpose(0, 1))
        put(f"rope.{name}.k", k[0].transpose(0, 1))

    cos, sin = tables(dim)
    put("rope.table", torch.cat([cos[0, :, : dim // 2], sin[0, :, : dim // 2]], -1))
    halves = modeling_llama.apply_rotary_pos_emb
    record("halves", *halves(q[None], k[None], cos, sin))
    twice = [t[..., : dim // 2].repeat_interleave(2, dim=-1) for t in (cos, sin)]
    record("pairs", *modeling_cohere.apply_rotary_pos_emb(q[None], k[None], *twice))

    def normed(x, weight):
        norm = modeling_qwen3.Qwen3RMSNorm(dim, eps=1e-6)
        norm.weight.data = weight
        # The module rounds to f32 inside; its formula in f64 is F.rms_norm, and the two must agree.
        exact = F.rms_norm(x, (dim,), weight, 1e-6)
        assert torch.allclose(norm(x), exact, atol=1e-5)
        return exact

    record("normed", *halves(normed(q, q_weight)[None], normed(k, k_weight)[None], cos, sin))
    part = 8
    cos, sin = tables(part)
    turned = halves(q[None, ..., :part], k[None, ..., :part], cos, sin)
    record("partial", *(torch.cat([t, whole[None, ..., part:]], -1) for t, whole in zip(turned, (q, k))))


def experts():
    """Qwen3-MoE's block: five experts of 7, two chosen, width 10."""
    x = draw("moe.x", 4, 10)
    router, weight = draw("moe.router", 5, 10), draw("moe.norm", 10, centre=1)
    gate, up = draw("moe.gate", 5, 7, 10), draw("moe.up", 5, 7, 10)
    down = draw("moe.down", 5, 10, 7)
    for renormalize in (True, False):
        config = Qwen3MoeConfig(
            hidden_size=10, moe_intermediate_size=7, num_experts=5, num_experts_per_tok=2,
            norm_topk_prob=renormalize, hidden_act="silu",
        )
        config._experts_implementation = "eager"
        block = modeling_qwen3_moe.Qwen3MoeSparseMoeBlock(config).double()
        block.gate.weight.data = router
        block.experts.gate_up_proj.data = torch.cat([gate, up], 1)
        block.experts.down_proj.data = down
        out = block(F.rms_norm(x, (10,), weight, 1e-6)[None])
        out = out[0] if isinstance(out, tuple) else out
        put(f"moe.out.{'renormalized' if renormalize else 'plain'}", x + out.reshape(4, 10))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def rwkv():
    """Two layers of RWKV-7 (arXiv 2503.14456, section 4), 2 heads of 4, 5 tokens, matrices in the paper's form."""
    c, size, rank, hidden, tokens = 8, 4, 3, 11, 5
    heads = c // size
    x = draw("rwkv.x", tokens, c).numpy()
    v_first = None
    for layer in range(2):
        def p(name, *shape, scale=1.0, centre=0.0, layer=layer):
            return draw(f"rwkv.{layer}.{name}", *shape, scale=scale, centre=centre).numpy()

        ln1 = p("ln1.w", c, centre=1), p("ln1.b", c)
        mu = p("mix", 6, c, scale=0.5, centre=0.5)  # r w k v a g
        W_r, W_k, W_v, W_o = (p(n, c, c, scale=0.6) for n in ("r", "k", "v", "o"))
        lora = {n: (p(n + "1", rank, c), p(n + "2", c, rank)) for n in "wagv"}
        bias = {n: p(n + "0", c) for n in "wav"}
        xi, alpha, rho = p("k_k", c, centre=1), p("k_a", c, scale=0.3, centre=1), p("r_k", c)
        gn = p("gn.w", c, centre=1), p("gn.b", c)

        h = layer_norm(x, *ln1, 1e-5)
        shifted = np.vstack([np.zeros(c), h[:-1]])
        x_r, x_w, x_k, x_v, x_a, x_g = (h + (shifted - h) * m for m in mu)
        r, k, v = x_r @ W_r.T, x_k @ W_k.T, x_v @ W_v.T
        low = lambda n, z, f=lambda t: t: f(z @ lora[n][0].T) @ lora[n][1].T
        d = bias["w"] + low("w", x_w, np.tanh)
        w = np.exp(-np.exp(-0.5) * sigmoid(d))
        a = sigmoid(bias["a"] + low("a", x_a))
        g = low("g", x_g, sigmoid)
        if layer == 0:
            v_first = v
        else:
            nu = sigmoid(bias["v"] + low("v", x_v))
            v = v + (v_first - v) * nu
        kappa = (k * xi).reshape(tokens, heads, size)
        kappa /= np.linalg.norm(kappa, axis=-1, keepdims=True)
        k_new = k * (1 + (a - 1) * alpha)
        out = np.zeros((tokens, c))
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            S = np.zeros((size, size))  # rows: values, columns: keys
            for t in range(tokens):
                kap = kappa[t, head]
                G = np.diag(w[t, at]) - np.outer(kap, a[t, at] * kap)
                S = S @ G + np.outer(v[t, at], k_new[t, at])
                y = layer_norm(S @ r[t, at], gn[0][at], gn[1][at], size * 1e-5)
                bonus = (r[t, at] * rho[at] * k_new[t, at]).sum() * v[t, at]
                out[t, at] = y + bonus
            put(f"rwkv.{layer}.state{head}", S)
        x = x + (out * g) @ W_o.T
        put(f"rwkv.{layer}.after_time", x)

        ln2 = p("ln2.w", c, centre=1), p("ln2.b", c)
        mu, K, V = p("ffn.mix", c, scale=0.5, centre=0.5), p("ffn.k", hidden, c), p("ffn.v", c, hidden, scale=0.3)
        h = layer_norm(x, *ln2, 1e-5)
        shifted = np.vstack([np.zeros(c), h[:-1]])
        x = x + np.maximum((h + (shifted - h) * mu) @ K.T, 0) ** 2 @ V.T
        put(f"rwkv.{layer}.after_channel", x)
        put(f"rwkv.{layer}.shift", h[-1])


for make in (norms, activations, attention, rope, experts, rwkv):
    make()
# The last line of a name counts where an input was changed after it was drawn.
last = {line.split(" ", 1)[0]: line for line in LINES}
OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text("\n".join(last.values()) + "\n")
print(f"{OUT.name}: {len(last)} tensors, {OUT.stat().st_size} bytes")
