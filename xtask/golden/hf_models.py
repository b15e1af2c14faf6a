"""Tiny random models of the transformer families, and their logits by `transformers`."""

import math

import numpy as np
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# How far a weight may be disturbed in the liveness test (in units of the tensor's own size),
# and how much at least one logit then has to move.
DISTURBANCE = 0.1
MUST_MOVE = 1e-2
# A router whose last chosen and first refused expert are this close would make the golden
# depend on rounding.
ROUTER_GAP = 1e-3


def build(model_class, config, seed):
    """A model with lively random weights: logits of a spread near 2, attention far from uniform."""
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    rng = np.random.default_rng(seed)
    gemma = config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = random_values(name, tuple(parameter.shape), config, gemma, rng)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def random_values(name, shape, config, gemma, rng):
    noise = rng.standard_normal(shape)
    if name.endswith("bias"):
        return 0.3 * noise
    if len(shape) == 1:
        # Gemma stores its norm weights as the distance from one.
        return 0.3 * noise + (0.0 if gemma else 1.0)
    if "embed_tokens" in name or "wte" in name:
        # A tied table is also the output head, so it must not be as large as an embedding alone.
        return noise * (2.0 / math.sqrt(shape[1]) if config.tie_word_embeddings else 1.0)
    if "wpe" in name:
        return 0.3 * noise
    convolution = any(part in name for part in ("c_attn", "c_proj", "c_fc"))
    fan_in = shape[0] if convolution else shape[-1]
    return noise * gain(name) / math.sqrt(fan_in)


def gain(name):
    for part, value in (
        ("q_proj", 1.4),
        ("k_proj", 1.4),
        ("c_attn", 1.4),
        ("mlp.gate.", 1.5),
        ("lm_head", 1.6),
    ):
        if part in name:
            return value
    return 1.0


def tokens_for(vocabulary, count, seed):
    rng = np.random.default_rng(1000 + seed)
    tokens = rng.integers(0, vocabulary, size=count)
    # A repeated stretch lets attention find something it has seen before.
    tokens[count - 6 : count - 2] = tokens[2:6]
    return [int(token) for token in tokens]


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def noise_floor(model, tokens, expected):
    """Largest difference between the float32 and the float64 evaluation."""
    model.to(torch.float64)
    difference = np.abs(logits(model, tokens) - expected).max()
    model.to(torch.float32)
    return float(difference)


def check_liveness(model, tokens, expected):
    """Every tensor (and every expert of a stack) must matter: returns the smallest effect."""
    rng = np.random.default_rng(7)
    smallest = math.inf
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            slices = parameter if parameter.dim() == 3 else [parameter]
            for index, piece in enumerate(slices):
                kept = piece.clone()
                size = float(piece.pow(2).mean().sqrt())
                noise = torch.from_numpy(rng.standard_normal(tuple(piece.shape)).astype(np.float32))
                piece.add_(noise * size * DISTURBANCE)
                effect = float(np.abs(logits(model, tokens) - expected).max())
                piece.copy_(kept)
                assert effect > MUST_MOVE, f"{name}[{index}] moves the logits by {effect} only"
                smallest = min(smallest, effect)
    return smallest


def check_router_gap(model, tokens):
    gaps = []

    def look(module, _inputs, outputs):
        ordered = outputs[0].sort(dim=-1, descending=True).values
        gaps.append(float((ordered[:, module.top_k - 1] - ordered[:, module.top_k]).min()))

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [router.register_forward_hook(look) for router in routers]
    logits(model, tokens)
    for hook in hooks:
        hook.remove()
    assert all(gap > ROUTER_GAP for gap in gaps), f"routers too close to a tie: {gaps}"
