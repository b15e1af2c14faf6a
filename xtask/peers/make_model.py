"""A GGUF file of a real model's shape with random weights: what a speed needs, and no more.

    make_model.py SHAPE TYPE VOCABULARY.gguf OUT.gguf

The vocabulary is that of another file, filled up with unused tokens. Rows of a matrix are drawn from a pool of encoded
random rows, so that large models are made in seconds; the same arguments make the same file.
"""

import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

SHAPES = {
    "qwen2.5-0.5b": dict(arch="qwen2", layers=24, width=896, hidden=4864, heads=14, kv_heads=2, head_dim=64,
                         vocab=151936, rope=1e6),
    "llama-3.2-1b": dict(arch="llama", layers=16, width=2048, hidden=8192, heads=32, kv_heads=8, head_dim=64,
                         vocab=128256, rope=5e5),
    # Qwen3-30B-A3B with an eighth of the experts, all of it narrower.
    "qwen3-moe": dict(arch="qwen3moe", layers=12, width=1024, hidden=3072, heads=16, kv_heads=4, head_dim=128,
                      vocab=49152, rope=1e6, experts=32, used=4, expert_hidden=384),
    "rwkv7-0.1b": dict(arch="rwkv7", layers=12, width=768, hidden=3072, head_dim=64, vocab=65536,
                       ranks=dict(w=64, a=64, v=32, g=128)),
}
TYPES = {"q8_0": T.Q8_0, "q4_0": T.Q4_0, "f16": T.F16}
FILE_TYPES = {"q8_0": 7, "q4_0": 2, "f16": 1}
POOL = 2048


class Rows:
    """Random rows of a type, zero on average and of about unit length."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.pools = {}

    def tensor(self, kind, shape, scale):
        n_in = shape[-1]
        key = (kind, n_in, scale)
        if key not in self.pools:
            values = self.random.standard_normal((POOL, n_in), dtype=np.float32) * np.float32(scale / np.sqrt(n_in))
            self.pools[key] = values if kind == T.F32 else gguf.quants.quantize(values, kind)
        rows = self.random.integers(0, POOL, int(np.prod(shape[:-1])))
        return self.pools[key][rows].reshape(*shape[:-1], -1)


def transformer(s):
    """(name, shape, scale of the weights or the one value of a vector, whether it is a vector)"""
    width, q, kv = s["width"], s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    yield "token_embd", (s["vocab"], width), 1.0, False
    yield "output_norm", (width,), 1.0, True
    for i in range(s["layers"]):
        at = f"blk.{i}."
        yield at + "attn_norm", (width,), 1.0, True
        yield at + "ffn_norm", (width,), 1.0, True
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            yield at + f"attn_{name}", (n, width), 1.0, False
            if s["arch"] == "qwen2":
                yield at + f"attn_{name}.bias", (n,), 0.0, True
        yield at + "attn_output", (width, q), 0.5, False
        if s["arch"] == "qwen3moe":
            for name in ("q", "k"):
                yield at + f"attn_{name}_norm", (s["head_dim"],), 1.0, True
            n, hidden = s["experts"], s["expert_hidden"]
            yield at + "ffn_gate_inp", (n, width), 1.0, False
            yield at + "ffn_gate_exps", (n, hidden, width), 1.0, False
            yield at + "ffn_up_exps", (n, hidden, width), 1.0, False
            yield at + "ffn_down_exps", (n, width, hidden), 0.5, False
        else:
            yield at + "ffn_gate", (s["hidden"], width), 1.0, False
            yield at + "ffn_up", (s["hidden"], width), 1.0, False
            yield at + "ffn_down", (width, s["hidden"]), 0.5, False


def rwkv(s):
    width = s["width"]

    def norm(name):
        yield name + ".weight", (width,), 1.0, True
        yield name + ".bias", (width,), 0.0, True

    yield "token_embd", (s["vocab"], width), 1.0, False
    yield "output", (s["vocab"], width), 1.0, False
    yield from norm("token_embd_norm")
    yield from norm("output_norm")
    for i in range(s["layers"]):
        at = f"blk.{i}."
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            yield from norm(at + name)
        for name, rank in s["ranks"].items():
            # The first layer's v is there but never used; it has the rank of a.
            rank = s["ranks"]["a"] if (name, i) == ("v", 0) else rank
            if name != "g":
                yield at + f"time_mix_{name}0", (width,), -2.0 if name == "w" else 0.0, True
            yield at + f"time_mix_{name}1", (rank, width), 1.0, False
            yield at + f"time_mix_{name}2", (width, rank), 1.0, False
        yield at + "time_mix_lerp_fused", (6, 1, 1, width), 0.5, True
        for name, value in (("k_k", 0.85), ("k_a", 1.0), ("r_k", 0.0)):
            yield at + f"time_mix_{name}", (width,), value, True
        for name in ("key", "value", "receptance", "output"):
            yield at + f"time_mix_{name}", (width, width), 1.0, False
        yield at + "channel_mix_lerp_k", (1, 1, width), 0.5, True
        yield at + "channel_mix_key", (s["hidden"], width), 1.0, False
        yield at + "channel_mix_value", (width, s["hidden"]), 0.5, False


def type_of(name, is_vector, kind):
    """Vectors and routers stay f32, the narrow matrices of RWKV's low ranks f16, as in converted files."""
    if is_vector or name.endswith("ffn_gate_inp"):
        return T.F32
    low_rank = name.split("time_mix_")[-1] in {f"{n}{i}" for n in "wavg" for i in (1, 2)}
    return T.F16 if low_rank else kind


def write_settings(writer, s):
    writer.add_context_length(32768)
    writer.add_block_count(s["layers"])
    writer.add_embedding_length(s["width"])
    writer.add_feed_forward_length(s["hidden"])
    writer.add_vocab_size(s["vocab"])
    if s["arch"] == "rwkv7":
        writer.add_head_count(0)
        writer.add_wkv_head_size(s["head_dim"])
        writer.add_layer_norm_eps(1e-5)
        writer.add_decay_lora_rank(s["ranks"]["w"])
        writer.add_iclr_lora_rank(s["ranks"]["a"])
        writer.add_value_residual_mix_lora_rank(s["ranks"]["v"])
        writer.add_gate_lora_rank(s["ranks"]["g"])
        return
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_key_length(s["head_dim"])
    writer.add_value_length(s["head_dim"])
    writer.add_rope_dimension_count(s["head_dim"])
    writer.add_rope_freq_base(s["rope"])
    writer.add_layer_norm_rms_eps(1e-5)
    if "experts" in s:
        writer.add_expert_count(s["experts"])
        writer.add_expert_used_count(s["used"])
        writer.add_expert_feed_forward_length(s["expert_hidden"])


def write_vocabulary(writer, source, size):
    reader = gguf.GGUFReader(source)

    def field(name):
        return reader.fields["tokenizer.ggml." + name].contents()

    tokens, types = field("tokens"), field("token_type")
    if len(tokens) > size:
        sys.exit(f"{source} has {len(tokens)} tokens, the shape has {size}")
    padding = range(len(tokens), size)
    writer.add_tokenizer_model(field("model"))
    writer.add_tokenizer_pre(field("pre"))
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in padding])
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(padding))
    writer.add_token_merges(field("merges"))
    writer.add_bos_token_id(field("bos_token_id"))
    writer.add_eos_token_id(field("eos_token_id"))


def main(shape, type_name, vocabulary, out):
    s, kind = SHAPES[shape], TYPES[type_name]
    partial = out + ".part"
    writer = gguf.GGUFWriter(partial, s["arch"])
    writer.add_name(f"{shape} with random weights, {type_name}")
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_quantization_version(2)
    write_settings(writer, s)
    write_vocabulary(writer, vocabulary, s["vocab"])
    tensors = []
    for name, shape, value, is_vector in (rwkv if s["arch"] == "rwkv7" else transformer)(s):
        name, tensor_type = (name, type_of(name, is_vector, kind))
        full = name if name.endswith((".weight", ".bias")) else name + ".weight"
        stored = shape if tensor_type in (T.F32, T.F16) else gguf.quant_shape_to_byte_shape(shape, tensor_type)
        block, size = gguf.GGML_QUANT_SIZES[tensor_type]
        dtype = {T.F32: np.float32, T.F16: np.float16}.get(tensor_type, np.uint8)
        writer.add_tensor_info(full, stored, np.dtype(dtype), int(np.prod(shape)) // block * size,
                               raw_dtype=None if tensor_type in (T.F32, T.F16) else tensor_type)
        tensors.append((tensor_type, shape, value, is_vector))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        rows = Rows(seed=1)
        for tensor_type, shape, value, is_vector in tensors:
            data = np.full(shape, value, np.float32) if is_vector else rows.tensor(tensor_type, shape, value)
            writer.write_tensor_data(data)
        writer.close()
        os.replace(partial, out)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] not in SHAPES or sys.argv[2] not in TYPES:
        sys.exit(f"{__doc__}\nshapes: {', '.join(SHAPES)}; types: {', '.join(TYPES)}")
    main(*sys.argv[1:])
