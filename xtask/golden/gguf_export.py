"""GGUF files of the golden models: names, metadata and layouts as llama.cpp's converter writes them."""

import math

import gguf
import numpy as np


def writer(path, architecture, name, context):
    out = gguf.GGUFWriter(path, architecture)
    out.add_type("model")
    out.add_name(name)
    out.add_context_length(context)
    out.add_quantization_version(2)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    return out


def add_vocabulary(out, size):
    """A byte-level vocabulary that satisfies loaders; nothing is ever tokenized with it."""
    tokens = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "ab"]
    tokens = tokens + [f"[PAD{index}]" for index in range(len(tokens), size)]
    kinds = [
        gguf.TokenType.UNUSED if token.startswith("[PAD") else gguf.TokenType.NORMAL
        for token in tokens
    ]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges(["a b"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)


def finish(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def transformer(path, name, model, architecture):
    """Llama, Qwen2, Qwen3, Qwen3-MoE and Gemma 3."""
    config = model.config
    out = writer(path, architecture, name, config.max_position_embeddings)
    add_sizes(out, config)
    add_rope(out, config)
    add_vocabulary(out, config.vocab_size)
    for tensor_name, tensor in converted(model, architecture):
        out.add_tensor(tensor_name, np.ascontiguousarray(tensor, dtype=np.float32))
    finish(out)


def head_size(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def add_sizes(out, config):
    out.add_block_count(config.num_hidden_layers)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        out.add_key_length(config.head_dim)
        out.add_value_length(config.head_dim)
    if config.model_type == "llama":
        out.add_vocab_size(config.vocab_size)
        out.add_rope_dimension_count(head_size(config))
    if config.model_type == "qwen3_moe":
        out.add_expert_count(config.num_experts)
        out.add_expert_used_count(config.num_experts_per_tok)
        out.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "gemma3_text":
        out.add_sliding_window(config.sliding_window)
        # The format has no key for another scale of the scores.
        assert config.query_pre_attn_scalar == config.head_dim


def add_rope(out, config):
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        add_local_layers(out, config)
        rope = rope["full_attention"]
    out.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(rope["factor"])


def add_local_layers(out, config):
    """Readers assume a local rope base of 10000 and every sixth layer global where a file says nothing."""
    local_base = config.rope_parameters["sliding_attention"]["rope_theta"]
    if local_base != 10000.0:
        out.add_rope_freq_base_swa(local_base)
    local = [kind == "sliding_attention" for kind in config.layer_types]
    if local != [(index + 1) % 6 != 0 for index in range(len(local))]:
        out.add_sliding_window_pattern(local)


def converted(model, architecture):
    config = model.config
    names = gguf.get_tensor_name_map(
        {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture],
        config.num_hidden_layers,
    )
    for name, tensor in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensor.numpy()
        for part_name, part in split_experts(name, tensor):
            yield (
                names.get_name(part_name, try_suffixes=(".weight", ".bias")),
                relaid(part_name, part, config, architecture),
            )
    if architecture == "llama" and config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(config)


def split_experts(name, tensor):
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(tensor, 2, axis=1)
        base = name.removesuffix("gate_up_proj")
        return [(base + "gate_proj.weight", gate), (base + "up_proj.weight", up)]
    if name.endswith("experts.down_proj"):
        return [(name + ".weight", tensor)]
    return [(name, tensor)]


def relaid(name, tensor, config, architecture):
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return interleave_halves(tensor, heads)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return tensor + np.float32(1)
    return tensor


def interleave_halves(tensor, heads):
    """The llama architecture rotates neighbouring rows, the checkpoint the two halves of a head."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def llama3_factors(config):
    """What each rotary frequency is divided by."""
    rope = config.rope_parameters
    size = head_size(config)
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for index in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / size)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    assert len({factor in (1.0, rope["factor"]) or "between" for factor in factors}) == 2
    assert 1.0 in factors and rope["factor"] in factors
    return np.array(factors, dtype=np.float32)


def gpt2(path, name, model, _architecture):
    config = model.config
    out = writer(path, "gpt2", name, config.n_positions)
    out.add_block_count(config.n_layer)
    out.add_embedding_length(config.n_embd)
    out.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    out.add_head_count(config.n_head)
    out.add_layer_norm_eps(config.layer_norm_epsilon)
    add_vocabulary(out, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for tensor_name, tensor in sorted(model.state_dict().items()):
        if tensor_name == "lm_head.weight":
            continue
        tensor = tensor.numpy()
        if tensor_name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.T
        new_name = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        out.add_tensor(new_name, np.ascontiguousarray(tensor))
    finish(out)


RWKV_TOP = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
RWKV_BLOCK = {
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.ln_x": "time_mix_ln",
    "att.receptance": "time_mix_receptance",
    "att.key": "time_mix_key",
    "att.value": "time_mix_value",
    "att.output": "time_mix_output",
    "att.k_k": "time_mix_k_k",
    "att.k_a": "time_mix_k_a",
    "att.r_k": "time_mix_r_k",
    "ffn.x_k": "channel_mix_lerp_k",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
}


def rwkv7(path, name, weights):
    heads, size = weights["blocks.0.att.r_k"].shape
    layers = sum(key.endswith(".ln1.weight") for key in weights)
    vocabulary, width = weights["emb.weight"].shape
    out = writer(path, "rwkv7", name, 1048576)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_layer_norm_eps(1e-5)
    out.add_wkv_head_size(size)
    out.add_decay_lora_rank(weights["blocks.0.att.w1"].shape[1])
    out.add_iclr_lora_rank(weights["blocks.0.att.a1"].shape[1])
    out.add_value_residual_mix_lora_rank(weights["blocks.1.att.v1"].shape[1])
    out.add_gate_lora_rank(weights["blocks.0.att.g1"].shape[1])
    out.add_feed_forward_length(weights["blocks.0.ffn.key.weight"].shape[0])
    # A reader must not take this for a transformer without heads.
    out.add_head_count(0)
    add_vocabulary(out, vocabulary)
    for old, new in RWKV_TOP.items():
        out.add_tensor(new, weights[old])
    for layer in range(layers):
        for new, tensor in rwkv7_block(weights, layer):
            out.add_tensor(f"blk.{layer}.{new}", np.ascontiguousarray(tensor))
    finish(out)


def rwkv7_block(weights, layer):
    block = f"blocks.{layer}."
    for old, new in RWKV_BLOCK.items():
        for suffix in (".weight", ".bias", ""):
            tensor = weights.get(block + old + suffix)
            if tensor is not None:
                # The vectors of a checkpoint carry leading ones, and r_k its heads.
                flat = tensor.reshape(-1) if suffix == "" else tensor
                yield new + (suffix or ".weight"), flat
    shifts = [weights[f"{block}att.x_{kind}"] for kind in "rwkvag"]
    yield "time_mix_lerp_fused.weight", np.stack(shifts)
    for kind in "wavg":
        # The first layer mixes in no earlier value: the converter puts the tensors of `a` there.
        source = "a" if layer == 0 and kind == "v" else kind
        if kind != "g":
            yield f"time_mix_{kind}0.weight", weights[f"{block}att.{source}0"].reshape(-1)
        for half in "12":
            yield f"time_mix_{kind}{half}.weight", weights[f"{block}att.{source}{half}"].T
