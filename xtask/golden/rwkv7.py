"""RWKV-7 ("Goose") evaluated from the published equations, and tiny random models of it.

The equations are those of the paper "RWKV-7 'Goose' with Expressive Dynamic State Evolution"
(time mixing: section 4.1, channel mixing: section 4.2), one token at a time in numpy.
"""

import math

import numpy as np

LAYER_NORM_EPS = 1e-5
# Fixed in the published models, whatever the head size.
GROUP_NORM_EPS = 64e-5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, weight, bias):
    centred = x - x.mean()
    return centred / np.sqrt((centred * centred).mean() + LAYER_NORM_EPS) * weight + bias


def group_norm(heads, weight, bias):
    centred = heads - heads.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1, keepdims=True)
    return (centred / np.sqrt(variance + GROUP_NORM_EPS)).reshape(-1) * weight + bias


def time_mix(at, x, previous, state, value_first):
    """One token through one time-mixing block; `state` [heads, value, key] is updated in place."""
    heads, size = at("r_k").shape

    def shifted(name):
        return x + (previous - x) * at("x_" + name).reshape(-1)

    def low_rank(name, inner, activation=lambda y: y):
        return activation(inner @ at(name + "1")) @ at(name + "2")

    xw, xk, xv, xa, xg = (shifted(name) for name in "wkvag")
    r = at("receptance.weight") @ shifted("r")
    k = at("key.weight") @ xk
    v = at("value.weight") @ xv
    decay = np.exp(-math.exp(-0.5) * sigmoid(at("w0").reshape(-1) + low_rank("w", xw, np.tanh)))
    a = sigmoid(at("a0").reshape(-1) + low_rank("a", xa))
    g = low_rank("g", xg, sigmoid)
    if value_first is None:
        value_first = v
    else:
        v = v + (value_first - v) * sigmoid(at("v0").reshape(-1) + low_rank("v", xv))

    removed = (k * at("k_k").reshape(-1)).reshape(heads, size)
    removed = removed / np.maximum(np.linalg.norm(removed, axis=1, keepdims=True), 1e-12)
    k = k * (1 + (a - 1) * at("k_a").reshape(-1))

    r, k, v, decay, a = (part.reshape(heads, size) for part in (r, k, v, decay, a))
    out = np.empty_like(v)
    for h in range(heads):
        seen = state[h] @ -removed[h]
        state[h] = (
            state[h] * decay[h] + np.outer(seen, removed[h] * a[h]) + np.outer(v[h], k[h])
        )
        out[h] = state[h] @ r[h]
    out = group_norm(out, at("ln_x.weight"), at("ln_x.bias"))
    out = out + ((r * k * at("r_k")).sum(axis=1, keepdims=True) * v).reshape(-1)
    return at("output.weight") @ (out * g), value_first


def channel_mix(at, x, previous):
    hidden = at("key.weight") @ (x + (previous - x) * at("x_k").reshape(-1))
    return at("value.weight") @ np.maximum(hidden, 0) ** 2


def logits(weights, tokens, dtype=np.float64):
    """Logits after every token."""
    w = {name: tensor.astype(dtype) for name, tensor in weights.items()}
    width = w["emb.weight"].shape[1]
    heads, size = w["blocks.0.att.r_k"].shape
    layers = sum(name.endswith(".ln1.weight") for name in w)
    state = np.zeros((layers, heads, size, size), dtype)
    before = np.zeros((layers, 2, width), dtype)

    rows = []
    for token in tokens:
        x = layer_norm(w["emb.weight"][token], w["blocks.0.ln0.weight"], w["blocks.0.ln0.bias"])
        value_first = None
        for layer in range(layers):
            block = f"blocks.{layer}."

            def normed(name, x):
                return layer_norm(x, w[block + name + ".weight"], w[block + name + ".bias"])

            inner = normed("ln1", x)
            mixed, value_first = time_mix(
                lambda name: w[block + "att." + name],
                inner,
                before[layer, 0],
                state[layer],
                value_first,
            )
            before[layer, 0] = inner
            x = x + mixed
            inner = normed("ln2", x)
            x = x + channel_mix(lambda name: w[block + "ffn." + name], inner, before[layer, 1])
            before[layer, 1] = inner
        rows.append(w["head.weight"] @ layer_norm(x, w["ln_out.weight"], w["ln_out.bias"]))
    return np.array(rows)


def build(vocabulary, width, head_size, hidden, layers, ranks, seed):
    """Random weights under the names and in the shapes of RWKV checkpoints."""
    rng = np.random.default_rng(seed)
    weights = {}

    def put(name, shape, scale, middle=0.0):
        weights[name] = (middle + scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(name):
        put(name + ".weight", (width,), 0.3, 1.0)
        put(name + ".bias", (width,), 0.3)

    def matrix(name, rows, columns, gain=1.0):
        put(name, (rows, columns), gain / math.sqrt(columns))

    put("emb.weight", (vocabulary, width), 1.0)
    norm("blocks.0.ln0")
    for layer in range(layers):
        norm(f"blocks.{layer}.ln1")
        norm(f"blocks.{layer}.ln2")
        att = f"blocks.{layer}.att."
        for name in "rwkvag":
            weights[att + "x_" + name] = rng.random((1, 1, width)).astype(np.float32)
        for name, middle in (("w", -1.0), ("a", 0.0), ("v", 0.0), ("g", None)):
            rank = ranks[name]
            if middle is not None:
                put(att + name + "0", (1, 1, width), 0.8, middle)
            put(att + name + "1", (width, rank), 1 / math.sqrt(width))
            # The decay reaches the logits through the state alone, so it is given more to say.
            put(att + name + "2", (rank, width), (2 if name == "w" else 1) / math.sqrt(rank))
        put(att + "k_k", (1, 1, width), 0.2, 0.85)
        put(att + "k_a", (1, 1, width), 0.3, 1.0)
        put(att + "r_k", (width // head_size, head_size), 0.3)
        for name in ("receptance", "key", "value", "output"):
            matrix(att + name + ".weight", width, width)
        norm(att + "ln_x")
        ffn = f"blocks.{layer}.ffn."
        weights[ffn + "x_k"] = rng.random((1, 1, width)).astype(np.float32)
        matrix(ffn + "key.weight", hidden, width)
        matrix(ffn + "value.weight", width, hidden)
    norm("ln_out")
    matrix("head.weight", vocabulary, width, 1.6)
    return weights


def unused(name):
    """The first layer has no earlier value to mix in, so its v0 v1 v2 (if there) do nothing."""
    return name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")


def check_liveness(weights, tokens, expected, disturbance, must_move):
    rng = np.random.default_rng(7)
    smallest = math.inf
    for name in sorted(weights):
        tensor = weights[name]
        noise = rng.standard_normal(tensor.shape).astype(np.float32)
        changed = tensor + noise * np.sqrt((tensor**2).mean()) * disturbance
        effect = float(np.abs(logits({**weights, name: changed}, tokens) - expected).max())
        if unused(name):
            assert effect == 0, f"{name} should not matter"
            continue
        assert effect > must_move, f"{name} moves the logits by {effect} only"
        smallest = min(smallest, effect)
    return smallest
