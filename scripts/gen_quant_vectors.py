#!/usr/bin/env python3
"""Writes tests/unit/quant/quant_vectors.inc: two blocks of every format and a digest of the floats that they stand for.

The floats come from the gguf package (another implementation), except those of Q1_0 and Q2_0, which it lacks. The digest is
FNV-1a, 64 bits, over their bytes. Needs numpy and gguf.

usage: scripts/gen_quant_vectors.py > tests/unit/quant/quant_vectors.inc
"""
import random

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

# Where a block's 16-bit scales are; random bytes there might be infinite.
SCALES = {
    T.F16: [0], T.BF16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ3_XXS: [0], T.IQ1_S: [0], T.IQ4_NL: [0],
    T.IQ3_S: [0], T.IQ2_S: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64],
}
SCALES_RAW = {"Q1_0": (41, 18), "Q2_0": (42, 18)}
N_BLOCKS = 2


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def random_block(rng, n_bytes, scales):
    block = bytearray(rng.randbytes(n_bytes))
    for at in scales:
        block[at:at + 2] = np.float16(rng.choice([-1, 1]) * rng.uniform(0.001, 2)).tobytes()
    return block


def q1_0(blocks):
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, scale, -scale)


def q2_0(blocks):
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    twos = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(blocks), -1)
    return (twos.astype(np.float32) - 1) * scale


def main():
    rng = random.Random(20)
    rows = []
    for t in T:
        if t.name.startswith("I") and not t.name.startswith("IQ") or t.name in ("F64", "Q8_1", "Q8_K", "Q1_0", "Q2_0"):
            continue
        n_bytes = GGML_QUANT_SIZES[t][1]
        scales = SCALES.get(t, [])
        blocks = b"".join(random_block(rng, n_bytes, scales) for _ in range(N_BLOCKS))
        if t == T.F32:
            blocks = np.array([1.5, -2.0e-3], np.float32).tobytes()
        if t == T.IQ1_M:  # the scale's bits are spread over four words, at the top; 0x3c.. is near 1
            blocks = bytearray(blocks)
            for b in range(N_BLOCKS):
                for word, nibble in enumerate([rng.randrange(16), rng.randrange(16), 0xC, 0x3]):
                    at = b * n_bytes + 48 + 2 * word + 1
                    blocks[at] = blocks[at] & 15 | nibble << 4
        if t == T.NVFP4:  # no NaN among the E4M3 scales
            blocks = bytearray(b & 0x77 if i % 36 < 4 else b for i, b in enumerate(blocks))
        if t == T.MXFP4:
            blocks = bytearray(100 + b % 50 if i % 17 == 0 else b for i, b in enumerate(blocks))
        values = gguf.quants.dequantize(np.frombuffer(bytes(blocks), np.uint8).reshape(1, -1), t)
        rows.append((t.name, int(t), bytes(blocks), values.astype(np.float32)))
    for name, (number, n_bytes) in SCALES_RAW.items():
        blocks = b"".join(random_block(rng, n_bytes, [0]) for _ in range(N_BLOCKS))
        blocks = np.frombuffer(blocks, np.uint8).reshape(N_BLOCKS, -1)
        rows.append((name, number, blocks.tobytes(), (q1_0 if name == "Q1_0" else q2_0)(blocks).astype(np.float32)))
    print("/* Written by scripts/gen_quant_vectors.py; do not edit. */")
    for name, number, blocks, values in sorted(rows, key=lambda row: row[1]):
        assert np.isfinite(values).all(), name
        print(f"{{QUANT_{name}, 0x{fnv(values.tobytes()):016x}u,")
        text = blocks.hex()
        print("\n".join(f'    "{text[i:i + 112]}"' for i in range(0, len(text), 112)) + "},")


main()
