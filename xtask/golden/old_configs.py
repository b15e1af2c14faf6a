"""config.json as earlier releases of `transformers` (and the hub's checkpoints) spell it."""

import copy


def older(config):
    """The older spelling of a config.json of today; the model it describes is the same."""
    config = copy.deepcopy(config)
    config["transformers_version"] = "4.51.3"
    config["torch_dtype"] = config.pop("dtype")
    return FAMILIES[config["model_type"]](config)


def rope(config):
    """rope_parameters becomes rope_theta and rope_scaling."""
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    if kind == "default":
        config["rope_scaling"] = None
    elif kind == "linear":
        # The oldest name of the key.
        config["rope_scaling"] = {"type": kind, **parameters}
    else:
        config["rope_scaling"] = {**parameters, "rope_type": kind}


def llama(config):
    rope(config)
    if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
        del config["head_dim"]
    return config


def qwen2(config):
    rope(config)
    config.pop("layer_types", None)
    # Checkpoints carry a window that is switched off; it must not be applied.
    config["use_sliding_window"] = False
    config["sliding_window"] = 7
    config["max_window_layers"] = 1
    return config


def qwen3_moe(config):
    qwen2(config)
    config["num_experts"] = config.pop("num_local_experts")
    return config


def gpt2(config):
    config["n_ctx"] = config["n_positions"]
    if config["n_inner"] is None:
        del config["n_inner"]
    del config["tie_word_embeddings"]
    return config


def gemma3_text(config):
    layers = config.pop("rope_parameters")
    config["rope_local_base_freq"] = layers["sliding_attention"]["rope_theta"]
    config["rope_theta"] = layers["full_attention"].pop("rope_theta")
    scaled = layers["full_attention"]["rope_type"] != "default"
    config["rope_scaling"] = layers["full_attention"] if scaled else None
    kinds = config.pop("layer_types")
    config.pop("_sliding_window_pattern", None)
    period = kinds.index("full_attention") + 1
    assert kinds == [
        "sliding_attention" if (index + 1) % period else "full_attention"
        for index in range(len(kinds))
    ]
    config["sliding_window_pattern"] = period
    del config["tie_word_embeddings"]
    return config


def gemma3(config):
    text = config["text_config"]
    text["torch_dtype"] = text.pop("dtype")
    gemma3_text(text)
    if text["sliding_window_pattern"] == 6:
        # The default; the checkpoints of the multimodal sizes leave it out.
        del text["sliding_window_pattern"]
    config.pop("tie_word_embeddings", None)
    return config


FAMILIES = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen2,
    "qwen3_moe": qwen3_moe,
    "gpt2": gpt2,
    "gemma3_text": gemma3_text,
    "gemma3": gemma3,
}
