#!/usr/bin/env python3
"""Writes crates/weights/tests/data/sample.gguf with the `gguf` package: every kind of metadata value and a
tensor of every type. Byte i of tensor t is (7 i + 13 t) mod 251, so that the test can tell what it must read.

    pip install gguf==0.19.0 numpy
    python3 xtask/golden/gguf_sample.py
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

OUT = Path(__file__).resolve().parents[2] / "crates/weights/tests/data/sample.gguf"
TYPES = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
ROWS, COLUMNS = 2, 256

writer = GGUFWriter(OUT, "sample")
writer.add_uint8("kind.u8", 200)
writer.add_int8("kind.i8", -100)
writer.add_uint16("kind.u16", 60000)
writer.add_int16("kind.i16", -30000)
writer.add_uint32("kind.u32", 4_000_000_000)
writer.add_int32("kind.i32", -2_000_000_000)
writer.add_uint64("kind.u64", 2**63 + 1)
writer.add_int64("kind.i64", -(2**62))
writer.add_float32("kind.f32", 1.5)
writer.add_float64("kind.f64", 0.1)
writer.add_bool("kind.bool", True)
writer.add_string("kind.string", "naïve ☃")
writer.add_array("array.strings", ["", "a", "▁the", "x" * 100])
writer.add_array("array.i32", [1, -2, 3])
writer.add_array("array.f32", [0.5, -0.25])
writer.add_array("array.bool", [True, False, True])
writer.add_key_value("array.u8", [1, 2, 255], V.ARRAY, V.UINT8)
writer.add_custom_alignment(64)
for t, kind in enumerate(TYPES):
    block, size = GGML_QUANT_SIZES[kind]
    n = ROWS * COLUMNS // block * size
    data = ((7 * np.arange(n) + 13 * t) % 251).astype(np.uint8).reshape(ROWS, -1)
    writer.add_tensor(f"tensor.{kind.name.lower()}", data, raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(f"{OUT.name}: {OUT.stat().st_size} bytes")
