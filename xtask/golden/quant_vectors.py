#!/usr/bin/env python3
"""Writes the vectors that crates/tensor/tests/vectors.rs holds our block formats to.

Needs Python 3.11+ with exactly
    gguf==0.19.0  numpy==2.4.6  llama-cpp-python==0.3.36
Run from anywhere: python xtask/golden/quant_vectors.py

Files under crates/tensor/tests/data, all numbers little-endian:
    decode_TYPE.bin   blocks, each followed by its elements as f32 as the `gguf` package decodes them
    encode_input.bin  f32, rows of 32
    encode_TYPE.bin   the input as the `gguf` package encodes it
    k_input.bin       f32, rows of 512, in the order of DISTRIBUTIONS
    k_errors.txt      TYPE DISTRIBUTION and the sum of squared errors of ggml's quantizer, without importance matrix
"""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type

DATA = Path(__file__).resolve().parents[2] / "crates/tensor/tests/data"
FLOATS = [Type.F32, Type.F16, Type.BF16]
LEGACY = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
# The offsets of the f16 scales in a block.
SCALES_AT = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}
K_QUANTS = [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K]
# Zero, minus zero, the smallest and largest subnormals, the smallest normal, one, minus three, the largest,
# the infinities, a quiet and a signalling NaN.
EDGE_HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xC200, 0x7BFF, 0x7C00, 0xFC00, 0x7E01, 0x7D00]
DISTRIBUTIONS = ["gaussian", "heavy_tailed", "uniform", "constant", "negative_constant", "zero", "outlier", "tiny",
                 "positive", "negative", "sparse", "ramp", "mixed_scales", "weights"]


def load_ggml() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [
        ctypes.c_void_p]
    return lib


def ggml_encode(lib: ctypes.CDLL, kind: Type, row: np.ndarray) -> np.ndarray:
    row = np.ascontiguousarray(row, dtype=np.float32)
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    out = np.zeros(row.size // block_len * block_bytes, dtype=np.uint8)
    size = lib.ggml_quantize_chunk(int(kind), row.ctypes.data, out.ctypes.data, 0, 1, row.size, None)
    assert size == out.size
    return out


def write_decode(rng: np.random.Generator, kind: Type) -> None:
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    fields = SCALES_AT.get(kind)
    count = 512 if fields is None else 8 if block_len == 256 else 16
    plain = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    blocks = [plain]
    if fields is None:
        edges = np.array(EDGE_HALVES, dtype=np.uint16)
        upper = edges if kind is not Type.F32 else edges.astype(np.uint32) << np.uint32(16)
        blocks.append(upper.view(np.uint8).reshape(-1, block_bytes))
    else:
        # Random bits make absurd scales; some blocks get those of real weights.
        for at in fields:
            plain[::2, at:at + 2] = rng.normal(0, 0.05, count).astype(np.float16)[::2, None].view(np.uint8)
        for i, edge in enumerate(EDGE_HALVES):
            block = rng.integers(0, 256, block_bytes, dtype=np.uint8)
            for n, at in enumerate(fields):
                value = EDGE_HALVES[(i + 5 * n) % len(EDGE_HALVES)] if n else edge
                block[at:at + 2] = np.array([value], dtype=np.uint16).view(np.uint8)
            blocks.append(block[None])
    blocks = np.concatenate(blocks)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    values = values.reshape(len(blocks), block_len).view(np.uint8)
    np.concatenate([blocks, values], axis=1).tofile(DATA / f"decode_{kind.name.lower()}.bin")


def encode_input(rng: np.random.Generator) -> np.ndarray:
    rows = [rng.normal(0, s, (4, 32)) for s in (1e-6, 1e-3, 0.02, 1.0, 300.0, 40000.0)]
    rows.append(rng.standard_t(2, (6, 32)))
    rows.append(rng.uniform(0.5, 1.0, (2, 32)))
    rows.append(-rng.uniform(0.5, 1.0, (2, 32)))
    # Few different values: ties of the maximum with either sign first, and quotients that fall on a half.
    rows.append(rng.integers(-8, 9, (6, 32)) / 8)
    rows.append(rng.integers(-127, 128, (4, 32)) / 2)
    rows.append(np.where(rng.integers(0, 2, (4, 32)) == 1, 1.0, -1.0))
    rows.append(np.concatenate([[127.0], np.arange(31) - 15.5])[None])
    rows.append(np.concatenate([[-8.0], np.arange(31) / 2 - 7.5])[None])
    rows.append(np.stack([np.zeros(32), np.full(32, 0.3), np.full(32, -0.3), np.eye(32)[7], -np.eye(32)[31]]))
    rows.append(np.stack([np.full(32, 1e-30), np.linspace(-1e-9, 1e-9, 32), np.linspace(6e4, 7e6, 32)]))
    return np.concatenate(rows).astype(np.float32)


def write_encode(lib: ctypes.CDLL, rng: np.random.Generator) -> None:
    rows = encode_input(rng)
    rows.tofile(DATA / "encode_input.bin")
    for kind in LEGACY + [Type.F16, Type.BF16]:
        with np.errstate(over="ignore"):
            blocks = np.ascontiguousarray(gguf.quants.quantize(rows, kind)).view(np.uint8)
        if kind in LEGACY:
            ggml = np.stack([ggml_encode(lib, kind, row) for row in rows])
            differing = np.flatnonzero((blocks != ggml).any(axis=1))
            assert differing.size == 0, f"{kind.name}: gguf and ggml differ in rows {differing}: {rows[differing]}"
        blocks.tofile(DATA / f"encode_{kind.name.lower()}.bin")


def k_row(rng: np.random.Generator, name: str, n: int) -> np.ndarray:
    match name:
        case "gaussian": return rng.normal(0, 0.02, n)
        case "heavy_tailed": return 0.02 * rng.standard_t(2, n)
        case "uniform": return rng.uniform(-1, 1, n)
        case "constant": return np.full(n, 0.7)
        case "negative_constant": return np.full(n, -0.7)
        case "zero": return np.zeros(n)
        case "outlier": return np.where(np.arange(n) % 256 == 77, 10.0, rng.normal(0, 0.01, n))
        case "tiny": return rng.normal(0, 1e-30, n)
        case "positive": return rng.uniform(0.2, 1.0, n)
        case "negative": return -rng.uniform(0.2, 1.0, n)
        case "sparse": return np.where(rng.uniform(size=n) < 0.1, rng.normal(0, 1, n), 0.0)
        case "ramp": return np.linspace(-1, 1, n)
        case "mixed_scales": return rng.normal(0, 1, n) * np.repeat(10.0 ** rng.uniform(-3, 1, n // 16), 16)
        case "weights": return rng.laplace(0, 0.03, n)
    raise ValueError(name)


def write_k(lib: ctypes.CDLL, rng: np.random.Generator) -> None:
    rows = np.stack([k_row(rng, name, 512) for name in DISTRIBUTIONS]).astype(np.float32)
    rows.tofile(DATA / "k_input.bin")
    lines = []
    for kind in K_QUANTS:
        for name, row in zip(DISTRIBUTIONS, rows):
            back = gguf.quants.dequantize(ggml_encode(lib, kind, row), kind)
            error = float(np.sum((back.astype(np.float64) - row.astype(np.float64)) ** 2))
            lines.append(f"{kind.name.lower()} {name} {error!r}\n")
    (DATA / "k_errors.txt").write_text("".join(lines))


def main() -> None:
    rng = np.random.default_rng(20)
    lib = load_ggml()
    DATA.mkdir(parents=True, exist_ok=True)
    for kind in FLOATS + LEGACY + K_QUANTS:
        write_decode(rng, kind)
    write_encode(lib, rng)
    write_k(lib, rng)


if __name__ == "__main__":
    main()
