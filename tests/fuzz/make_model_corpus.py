#!/usr/bin/env python3
"""Writes the seeds of fuzz_safetensors and fuzz_config to tests/fuzz/corpus (kept in the tree).

Seeds are a few hundred bytes each: one per layer type and a few that are wrong in one way."""
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def put(target, name, data):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def tensors(entries, data, more=0, length=None):
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    length = len(header) if length is None else length
    return struct.pack("<IQ", more, length) + header + data


def tensor(dtype, shape, first, last):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def safetensors_seeds():
    meta = {"__metadata__": {"format": "pt"}}
    i, x = tensor("I64", [2], 0, 16), tensor("F32", [2, 1], 16, 24)
    put("safetensors", "good", tensors({**meta, "i": i, "x": x}, bytes(24)))
    put("safetensors", "large", tensors({"x": tensor("BF16", [1 << 20, 64], 0, 1 << 27)}, b"", 1 << 27))
    put("safetensors", "scalar", tensors({"x": tensor("U8", [], 0, 1)}, bytes(1)))
    put("safetensors", "empty", tensors({}, b""))
    put("safetensors", "overlap", tensors({"i": i, "x": tensor("F32", [2], 8, 16)}, bytes(24)))
    put("safetensors", "gap", tensors({"x": tensor("F32", [2], 8, 16)}, bytes(16)))
    put("safetensors", "short", tensors({"i": i, "x": x}, bytes(20)))
    put("safetensors", "product", tensors({"x": tensor("F64", [1 << 62, 1 << 62], 0, 0)}, b""))
    put("safetensors", "length", tensors({"x": x}, b"", 0, 1 << 40))
    put("safetensors", "deep", struct.pack("<IQ", 0, 208) + b'{"x":' + b"[" * 203)


def config_seeds():
    base = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_layers": 6, "mlp_hidden_size": 192,
            "activation_type": "swiglu", "block_type": "sequential", "rope": True,
            "rope_theta": 10000, "attention_layer_norm": True, "layer_norm_type": "rms",
            "layer_norm_eps": 1e-05, "max_sequence_length": 128, "include_bias": False,
            "vocab_size": 288, "embedding_size": None, "weight_tying": True, "eos_token_id": 0,
            "pad_token_id": 1, "mem_insert_way": "no_mem"}
    memory = {"mem_knum": 24, "mem_kdim": 16, "mem_vdim": 32, "mem_knn": 8, "mem_head": 1,
              "mem_insert_way": "1:2/3:5", "mem_share_ratio": 1.0, "mem_key_expand_time": 1,
              "mem_value_expand_time": 4, "mem_pre_vdim": 512}
    v2 = {"mem_type": "ultramem_v2", "mem_insert_way": "full", "mem_share_ratio": 0.5, "mem_head": 4,
          "mem_value_expand_time": 4, "mem_key_expand_time": 2, "mem_pre_vdim": 32,
          "mem_use_glu_act": True, "mem_q_for_each_tucker_rank": True}
    cases = {
        "dense": {},
        "v1": {**memory, "mem_type": "ultramem_v1", "mem_tucker_rank": 2},
        "v2": {**memory, **v2},
        "plus": {**memory, "mem_type": "memory_plus", "mem_vdim": 64, "mem_head": 4},
        "pkm": {**memory, "mem_type": "pkm", "mem_query_bias": True},
        "moe": {"block_type": "moe", "moe_num_experts": 8, "moe_top_k": 3,
                "moe_normalize_expert_weights": 1, "mlp_hidden_size": 64},
        "ratio": {"mlp_hidden_size": None, "mlp_ratio": 4, "embedding_size": 384},
        "alibi": {"alibi": True, "rope": False},
        "huge": {"d_model": 1 << 62, "n_layers": -1},
        "unknown": {"mem_something": 3},
    }
    for name, fields in cases.items():
        put("config", name, json.dumps({**base, **fields}, separators=(",", ":")).encode())
    for name in ["llama_3", "llama_3_old", "llama_linear", "mistral_window", "mixtral", "olmo", "olmoe", "qwen2_types",
                 "qwen2_moe", "qwen3_moe"]:
        with open(os.path.join(HERE, "..", "golden", f"hf_{name}", "config.json"), encoding="utf-8") as f:
            put("config", f"hf_{name}", json.dumps(json.load(f), separators=(",", ":")).encode())
    put("config", "deep", b"[" * 100)
    put("config", "cut", b'{"d_model": 64, "n_he')
    put("config", "bytes", b'{"d_model": "\xff\xfe"}')


if __name__ == "__main__":
    safetensors_seeds()
    config_seeds()
