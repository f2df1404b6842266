#!/usr/bin/env python3
"""Writes tests/unit/hf/cases/*.json: tiny models of the families that are read from folders, with logits of `transformers`.

Needs PyPI's torch and transformers (made with 2.15 and 5.24). A case is {"config", "tensors": {name: shape}, "ids", "positions",
"logits"}; the weights are not stored: both this script and tests/unit/hf/folder.c compute them from the tensors' names.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

OUT = Path(__file__).resolve().parent.parent / "tests/unit/hf/cases"
BASE = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=None)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [1.5 + 0.5 * i for i in range(8)]}
CASES = {
    "llama": hf.LlamaConfig(**BASE, rope_theta=10000.0),
    "llama3": hf.LlamaConfig(**BASE, rope_scaling=LLAMA3, rope_theta=500000.0, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-yarn": hf.LlamaConfig(**BASE, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "llama-linear": hf.LlamaConfig(**BASE, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "mistral": hf.MistralConfig(**BASE, sliding_window=None, head_dim=32),
    "mistral-window": hf.MistralConfig(**BASE, sliding_window=16),
    "phi3": hf.Phi3Config(**BASE, sliding_window=24),
    "phi3-long": hf.Phi3Config(**BASE, original_max_position_embeddings=32, rope_scaling=LONG),
    "qwen2": hf.Qwen2Config(**BASE),
    "qwen3": hf.Qwen3Config(**BASE, head_dim=32),
    "gemma3": hf.Gemma3TextConfig(**{**BASE, "num_hidden_layers": 7}, head_dim=32, sliding_window=16, query_pre_attn_scalar=24,
                                  rope_scaling={"rope_type": "linear", "factor": 2.0}),
}
POSITIONS = [0, 1, 7, 15, 16, 17, 25, 39, 47]


def fill(name, shape, gemma):
    """Values from the name, the same as in folder.c, cut to bfloat16."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 & 0xFFFFFFFF
    x = (np.uint32(seed) + np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(2654435769)).astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x = (x * np.uint32(factor)).astype(np.uint32)
    x ^= x >> np.uint32(16)
    u = (x >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    if "norm" in name:
        u = u * np.float32(0.25) + np.float32(0 if gemma else 1)
    else:
        u = u * np.float32(0.5 if "embed" in name else 0.25)
    return torch.from_numpy((u.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).reshape(shape).copy())


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    ids = [(7 * i * i + 3 * i + 5) % 64 for i in range(48)]
    for name, config in CASES.items():
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        tied = config.tie_word_embeddings
        state = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        with torch.no_grad():
            for key, value in state.items():
                value.copy_(fill(key, tuple(value.shape), name == "gemma3"))
            logits = model(torch.tensor([ids])).logits[0]
        config.architectures = [type(model).__name__]
        case = {"config": json.loads(config.to_json_string(use_diff=True)), "tensors": {k: list(v.shape) for k, v in state.items()},
                "ids": ids, "positions": POSITIONS, "logits": [[float(f"{x:.7g}") for x in logits[p].tolist()] for p in POSITIONS]}
        (OUT / f"{name}.json").write_text(json.dumps(case, separators=(",", ":")) + "\n")
        print(name, float(logits.std()))


if __name__ == "__main__":
    sys.exit(main())
