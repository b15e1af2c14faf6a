"""Compares the golden GGUF files with llama.cpp, a second independent implementation.

Not needed to make the files; run it when `gguf_export.py` changes:
    python xtask/golden/llama_check.py [OUTDIR]
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
from llama_cpp import Llama

import gguf_export
import models
import rwkv7

# llama.cpp keeps some lookup tables (GELU, for one) in half precision.
TOLERANCE = 2e-2


def logits(path, tokens):
    model = Llama(
        str(path),
        n_ctx=64,
        n_batch=64,
        n_threads=1,
        logits_all=True,
        type_k=0,
        type_v=0,
        flash_attn=False,
        verbose=False,
    )
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def compare(name, path, tokens, expected):
    difference = float(np.abs(logits(path, tokens) - expected).max())
    print(f"{name}: max |llama.cpp - expected| = {difference:.2e}")
    assert difference < TOLERANCE


def check_rwkv7():
    """llama.cpp's state update needs heads of 64, so the exporter is checked with such a model."""
    weights = rwkv7.build(97, 128, 64, 200, 3, {"w": 5, "a": 6, "v": 3, "g": 7}, seed=5)
    tokens = models.hf_models.tokens_for(97, 24, 5)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        gguf_export.rwkv7(path, "rwkv7 with heads of 64", weights)
        compare("rwkv7 (heads of 64)", path, tokens, rwkv7.logits(weights, tokens))


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else models.DEFAULT_FOLDER
    check_rwkv7()
    for path in sorted(folder.glob("*/model.gguf")):
        if path.parent.name.startswith("rwkv7"):
            continue
        golden = json.loads((path.parent / "expected.json").read_text())
        compare(path.parent.name, path, golden["tokens"], np.array(golden["logits"]))


if __name__ == "__main__":
    main()
