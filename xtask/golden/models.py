"""Makes the golden models: tiny random models and their logits by independent implementations.

    python -m pip install -r xtask/golden/requirements.txt
    python xtask/golden/models.py [OUTDIR]          (default: crates/models/tests/golden)

Every case is a folder with the model and `expected.json`. The same versions give the same bytes.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers as tr
from safetensors.numpy import load_file, save_file

import gguf_export
import hf_models
import old_configs
import rwkv7

DEFAULT_FOLDER = (
    pathlib.Path(__file__).resolve().parents[2] / "crates" / "models" / "tests" / "golden"
)
TOTAL_LIMIT = 6 << 20
FILE_LIMIT = 1 << 20

# The epsilons are larger than a real model's, so that a reader who ignores them is found out.
LLAMA_ROPE3 = dict(
    vocab_size=101,
    hidden_size=36,
    intermediate_size=52,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=384,
    rms_norm_eps=1e-3,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 48,
    },
)
LLAMA_LINEAR = dict(
    vocab_size=97,
    hidden_size=40,
    intermediate_size=54,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    rms_norm_eps=1e-2,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
)
QWEN2 = dict(
    vocab_size=103,
    hidden_size=42,
    intermediate_size=53,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=128,
    rms_norm_eps=2e-3,
    tie_word_embeddings=True,
    use_sliding_window=False,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
)
QWEN3 = dict(
    vocab_size=113,
    hidden_size=36,
    intermediate_size=45,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=14,
    max_position_embeddings=128,
    rms_norm_eps=2e-3,
    tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
QWEN3_MOE = dict(
    vocab_size=97,
    hidden_size=36,
    intermediate_size=44,
    moe_intermediate_size=20,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    num_experts=7,
    num_experts_per_tok=3,
    rms_norm_eps=3e-3,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
)
GPT2 = dict(layer_norm_epsilon=2e-3, activation_function="gelu_new", bos_token_id=0, eos_token_id=0)
GEMMA3 = dict(
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    sliding_window=5,
    rms_norm_eps=4e-3,
    max_position_embeddings=256,
)
VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    image_size=28,
    patch_size=14,
)
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def gemma3_config(kinds, local_base, global_rope, **sizes):
    return tr.Gemma3TextConfig(
        **GEMMA3,
        **sizes,
        num_hidden_layers=len(kinds),
        layer_types=kinds,
        rope_parameters={
            LOCAL: {"rope_type": "default", "rope_theta": local_base},
            GLOBAL: global_rope,
        },
    )


def gemma3_narrow(kinds, local_base):
    return gemma3_config(
        kinds,
        local_base,
        {"rope_type": "linear", "rope_theta": 100000.0, "factor": 2.0},
        vocab_size=107,
        hidden_size=24,
        intermediate_size=30,
        query_pre_attn_scalar=12,
    )


class Golden:
    """Writes case folders and checks what goes into them."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, case):
        path = self.folder / case
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def transformer(self, case, model_class, config, count, export=None, save=None):
        """A model of `transformers`: safetensors, both spellings of its config, logits, a GGUF."""
        seed = sum(case.encode())
        model = hf_models.build(model_class, config, seed)
        tokens = hf_models.tokens_for(config.vocab_size, count, seed)
        expected = hf_models.logits(model, tokens)
        hf_models.check_router_gap(model, tokens)
        smallest = hf_models.check_liveness(model, tokens, expected)
        noise = hf_models.noise_floor(model, tokens, expected)
        path = self.start(case)
        self.save(path, model, **(save or {}))
        self.write_expected(path, tokens, expected)
        if export:
            writer, architecture = export
            writer(path / "model.gguf", case, model, architecture)
        for file in ("config.json", "config.old.json"):
            self.check_config(path, file, tokens, expected)
        print(
            f"{case}: logits std {expected.std():.2f}, float64 noise {noise:.1e}, "
            f"least effect of a tensor {smallest:.2f}"
        )
        return model, tokens, expected

    def save(self, path, model, **options):
        model.save_pretrained(path, **options)
        (path / "generation_config.json").unlink(missing_ok=True)
        self.write_old_config(path)

    def write_old_config(self, path):
        config = json.loads((path / "config.json").read_text())
        write_json(path / "config.old.json", old_configs.older(config))

    def read_back(self, path, file, model_class=tr.AutoModelForCausalLM):
        with tempfile.TemporaryDirectory() as copy:
            for source in path.glob("*safetensors*"):
                shutil.copy(source, copy)
            shutil.copy(path / file, pathlib.Path(copy) / "config.json")
            return model_class.from_pretrained(
                copy,
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation="eager",
            )

    def check_config(self, path, file, tokens, expected, **options):
        """What was written must be read back as the same model, in either spelling."""
        model = self.read_back(path, file, **options)
        assert np.array_equal(hf_models.logits(model, tokens), expected), f"{path} {file}"

    def half(self, case, model, tokens, dtype):
        """The same model stored in 16 bits; the logits are those of the rounded weights in float32."""
        path = self.start(case)
        self.save(path, model.to(dtype))
        # Read again, because the conversion has also rounded the rotary frequencies.
        expected = hf_models.logits(self.read_back(path, "config.json"), tokens)
        self.write_expected(path, tokens, expected)
        self.check_config(path, "config.old.json", tokens, expected)

    def write_expected(self, path, tokens, expected):
        assert 1.0 < expected.std() < 3.5, f"{path}: logits of std {expected.std()}"
        rows = [[float(f"{value:.9g}") for value in row] for row in expected.astype(np.float32)]
        golden = {"tokens": tokens, "positions": list(range(len(tokens))), "logits": rows}
        (path / "expected.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")

    def rwkv7(self, case, weights, count, export, left_out=()):
        seed = sum(case.encode())
        tokens = hf_models.tokens_for(weights["emb.weight"].shape[0], count, seed)
        expected = rwkv7.logits(weights, tokens)
        smallest = rwkv7.check_liveness(
            weights, tokens, expected, hf_models.DISTURBANCE, hf_models.MUST_MOVE
        )
        noise = np.abs(rwkv7.logits(weights, tokens, np.float32) - expected).max()
        path = self.start(case)
        kept = {name: tensor for name, tensor in weights.items() if name not in left_out}
        save_file(kept, path / "model.safetensors")
        self.write_expected(path, tokens, expected)
        if export:
            gguf_export.rwkv7(path / "model.gguf", case, weights)
        print(
            f"{case}: logits std {expected.std():.2f}, float32 noise {noise:.1e}, "
            f"least effect of a tensor {smallest:.2f}"
        )


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def llama_cases(golden):
    llama = (gguf_export.transformer, "llama")
    config = tr.LlamaConfig(**LLAMA_ROPE3)
    golden.transformer("llama-rope3", tr.LlamaForCausalLM, config, 37, llama)
    config = tr.LlamaConfig(**LLAMA_LINEAR)
    model, tokens, _ = golden.transformer(
        "llama-linear-tied", tr.LlamaForCausalLM, config, 29, llama
    )
    golden.half("llama-f16", model, tokens, torch.float16)
    config = tr.LlamaConfig(**{**LLAMA_ROPE3, "num_hidden_layers": 2})
    golden.transformer(
        "llama-sharded", tr.LlamaForCausalLM, config, 24, save={"max_shard_size": "50KB"}
    )


def qwen_cases(golden):
    config = tr.Qwen2Config(**QWEN2)
    model, tokens, _ = golden.transformer(
        "qwen2", tr.Qwen2ForCausalLM, config, 31, (gguf_export.transformer, "qwen2")
    )
    golden.half("qwen2-bf16", model, tokens, torch.bfloat16)
    config = tr.Qwen3Config(**QWEN3)
    golden.transformer(
        "qwen3", tr.Qwen3ForCausalLM, config, 27, (gguf_export.transformer, "qwen3")
    )


def qwen3_moe_cases(golden):
    def config(layers, normalised, **more):
        return tr.Qwen3MoeConfig(
            **{**QWEN3_MOE, **more}, num_hidden_layers=layers, norm_topk_prob=normalised
        )

    model_class = tr.Qwen3MoeForCausalLM
    mixed = config(4, True, decoder_sparse_step=2, mlp_only_layers=[3])
    golden.transformer("qwen3moe", model_class, mixed, 33)
    raw = config(2, False, num_experts=5, num_experts_per_tok=2)
    golden.transformer("qwen3moe-raw", model_class, raw, 28)
    golden.transformer(
        "qwen3moe-fused",
        model_class,
        config(2, True),
        30,
        (gguf_export.transformer, "qwen3moe"),
        save={"save_original_format": False},
    )


def gpt2_cases(golden):
    sizes = dict(vocab_size=109, n_positions=48, n_embd=36, n_layer=2, n_head=3, n_inner=50)
    golden.transformer(
        "gpt2", tr.GPT2LMHeadModel, tr.GPT2Config(**GPT2, **sizes), 32, (gguf_export.gpt2, "gpt2")
    )
    sizes = dict(vocab_size=99, n_positions=40, n_embd=28, n_layer=2, n_head=2, n_inner=None)
    _, tokens, expected = golden.transformer(
        "gpt2-bare", tr.GPT2LMHeadModel, tr.GPT2Config(**GPT2, **sizes), 40
    )
    file = golden.folder / "gpt2-bare" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    positions, layers = sizes["n_positions"], sizes["n_layer"]
    for layer in range(layers):
        # The causal mask that checkpoints of old carry as a buffer.
        mask = np.tril(np.ones((1, 1, positions, positions), dtype=np.float32))
        tensors[f"h.{layer}.attn.bias"] = mask
        tensors[f"h.{layer}.attn.masked_bias"] = np.array(-10000.0, dtype=np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    save_file(tensors, file, metadata={"format": "pt"})
    golden.check_config(file.parent, "config.json", tokens, expected)


def gemma3_cases(golden):
    model_class = tr.Gemma3ForCausalLM
    config = gemma3_config(
        [LOCAL, LOCAL, GLOBAL, LOCAL],
        3000.0,
        {"rope_type": "linear", "rope_theta": 100000.0, "factor": 3.0},
        vocab_size=131,
        hidden_size=40,
        intermediate_size=55,
        query_pre_attn_scalar=10,
    )
    golden.transformer("gemma3", model_class, config, 26)
    export = (gguf_export.transformer, "gemma3")
    period_six = gemma3_narrow([LOCAL] * 5 + [GLOBAL, LOCAL], 10000.0)
    golden.transformer("gemma3-six", model_class, period_six, 34, export)
    period_two = gemma3_narrow([LOCAL, GLOBAL, LOCAL], 3000.0)
    model, tokens, expected = golden.transformer(
        "gemma3-two", model_class, period_two, 25, export
    )
    for case, prefix in (
        ("gemma3-mm", "language_model.model."),
        ("gemma3-mm-new", "model.language_model."),
    ):
        gemma3_multimodal(golden, case, prefix, model, tokens, expected)


def gemma3_multimodal(golden, case, prefix, model, tokens, expected):
    """The text part of a multimodal checkpoint: nested config, prefixed names."""
    source = golden.folder / "gemma3-two"
    path = golden.start(case)
    tensors = load_file(source / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    vision = {"model_type": "siglip_vision_model", **VISION}
    config = tr.Gemma3Config(text_config=model.config.to_dict(), vision_config=vision).to_dict()
    config["architectures"] = ["Gemma3ForConditionalGeneration"]
    config["transformers_version"] = tr.__version__
    text = json.loads((source / "config.json").read_text())
    for key in ("architectures", "transformers_version"):
        text.pop(key)
    config["text_config"] = text
    config["dtype"] = "float32"
    write_json(path / "config.json", config)
    golden.write_old_config(path)
    golden.write_expected(path, tokens, expected)
    for file in ("config.json", "config.old.json"):
        golden.check_config(
            path, file, tokens, expected, model_class=tr.Gemma3ForConditionalGeneration
        )


def rwkv7_cases(golden):
    ranks = {"w": 5, "a": 6, "v": 3, "g": 7}
    weights = rwkv7.build(97, 48, 16, 107, 3, ranks, seed=11)
    golden.rwkv7("rwkv7", weights, 28, export=True)
    weights = rwkv7.build(97, 36, 12, 61, 2, ranks, seed=12)
    missing = [name for name in weights if rwkv7.unused(name)]
    golden.rwkv7("rwkv7-nov0", weights, 24, export=False, left_out=missing)


def check_sizes(folder):
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert max(sizes.values()) < FILE_LIMIT
    assert sum(sizes.values()) < TOTAL_LIMIT
    print(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.2f} MB")


def main():
    tr.logging.set_verbosity_error()
    tr.logging.disable_progress_bar()
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    golden = Golden(folder)
    llama_cases(golden)
    qwen_cases(golden)
    qwen3_moe_cases(golden)
    gpt2_cases(golden)
    gemma3_cases(golden)
    rwkv7_cases(golden)
    check_sizes(folder)


if __name__ == "__main__":
    main()
