#!/usr/bin/env python3
"""Makes the GGUF files of this folder and what importing them must give.

    tests/gguf/make_expected.py        (needs gguf, transformers, accelerate, torch, safetensors from PyPI)

blocks.gguf, blocks.expected.safetensors
    random blocks of every type that is decoded, and their values by the gguf package (Q8_K: by its definition)
NAME.gguf, NAME.expected.json
    a tiny random model of the transformers package, written as llama.cpp's converter writes it, and of every
    tensor that transformers saved: shape, and SHA-256 of its values in f32 (of its blocks where it was
    quantised); of config.json the fields that must come back. Where the transformers package can read GGUF of
    that architecture itself, it is asked first whether it finds the same model in the file.
NAME.logits.safetensors
    ids, and the logits that transformers computes for them from the directory of the original model (unquantised
    models only); tests/gguf/run.py asks memrack for the same

make_tokenizers.py makes the tokenizers. The files are committed, so that the tests need none of these packages."""
import hashlib
import json
import os
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from safetensors.torch import load_file

HERE = os.path.dirname(os.path.abspath(__file__))
PLAIN = (Type.F32, Type.F16, Type.BF16)


def path(name):
    return os.path.join(HERE, name)


# --- blocks -----------------------------------------------------------------------------------------

# where a block holds f16 numbers, so that random bytes do not make them infinite
HALVES = {Type.F16: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
          Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
          Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.BF16: [], Type.F32: [], Type.Q8_K: [], Type.MXFP4: []}


def random_blocks(rng, kind, count):
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[kind]:
        blocks[:, at:at + 2] = rng.normal(0, 0.1, count).astype(np.float16).view(np.uint8).reshape(count, 2)
    if kind in (Type.F32, Type.Q8_K):
        blocks[:, 0:4] = rng.normal(0, 0.1, count).astype(np.float32).view(np.uint8).reshape(count, 4)
    if kind == Type.BF16:
        blocks[:, 1] &= 0xbf
    if kind == Type.MXFP4:
        blocks[:, 0] = rng.integers(100, 140, count)
        blocks[0, 0], blocks[1, 0] = 0, 1
    if kind in (Type.F16, Type.Q8_0):  # a subnormal scale and a negative one
        blocks[0, 0:2], blocks[1, 0:2] = (0x35, 0x02), (0x12, 0xa8)
    return blocks


def values_of(blocks, kind):
    if kind == Type.Q8_K:
        scale = blocks[:, 0:4].copy().view(np.float32)
        return scale * blocks[:, 4:260].copy().view(np.int8).astype(np.float32)
    return gguf.dequantize(blocks, kind)


def make_blocks():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path("blocks.gguf"), "none")
    expected = {}
    for kind in HALVES:
        elements, _ = gguf.GGML_QUANT_SIZES[kind]
        blocks = random_blocks(rng, kind, {1: 64, 32: 6}.get(elements, 2))
        values = np.asarray(values_of(blocks, kind), dtype=np.float32).reshape(-1)
        assert np.isfinite(values).all(), kind
        writer.add_tensor(kind.name, blocks.reshape(1, -1), raw_dtype=kind)
        expected[kind.name] = values
    finish(writer)
    save_file(expected, path("blocks.expected.safetensors"))


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- models -----------------------------------------------------------------------------------------

SMALL = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None,
             tie_word_embeddings=False)
EXPERTS = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
# name: (config class, its fields, storage of matrices, fields that GGUF adds, config fields expected)
MODELS = {
    "llama2": ("Llama", {**SMALL, "rms_norm_eps": 1e-6}, Type.F32, {}, {"rope_theta": 10000.0, "rope_scaling": None}),
    "llama3": ("Llama", {**SMALL, "head_dim": 32, "rope_parameters": LLAMA3, "tie_word_embeddings": True}, Type.BF16,
               {}, {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}),
    "llama_linear_bias": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1,
                                    "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
                          Type.F16, {}, {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 32, "num_hidden_layers": 1}, Type.F16,
                {"llama.attention.sliding_window": 32}, {"sliding_window": 32}),
    "llama_q8_0": ("Llama", {**SMALL, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}, Type.Q8_0,
                   {}, {}),
    "llama_q4_0": ("Llama", {**SMALL, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
                             "tie_word_embeddings": True}, Type.Q4_0, {}, {}),
    "mixtral": ("Mixtral", {**SMALL, "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
                            "sliding_window": None}, Type.BF16, {}, {}),
    "qwen2": ("Qwen2", {**SMALL, "tie_word_embeddings": True}, Type.BF16, {}, {}),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}, Type.F16, {}, {}),
    "olmo": ("Olmo", {**SMALL, "clip_qkv": 8.0}, Type.BF16, {}, {}),
    "olmo2": ("Olmo2", {**SMALL}, Type.BF16, {}, {}),
    "qwen2moe": ("Qwen2Moe", {**EXPERTS, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20,
                              "norm_topk_prob": False}, Type.BF16, {}, {}),
    "qwen3moe": ("Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 12, "head_dim": 8, "norm_topk_prob": True},
                 Type.F16, {}, {}),
    "olmoe": ("Olmoe", {**EXPERTS, "norm_topk_prob": False}, Type.BF16, {}, {}),
}
ARCH = {"Llama": "llama", "Mistral": "llama", "Mixtral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3", "Olmo": "olmo",
        "Olmo2": "olmo2", "Qwen2Moe": "qwen2moe", "Qwen3Moe": "qwen3moe", "Olmoe": "olmoe"}
CHECKED = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
           "vocab_size", "max_position_embeddings", "tie_word_embeddings", "num_experts_per_tok", "num_experts",
           "num_local_experts", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob",
           "rms_norm_eps", "head_dim", "clip_qkv", "attention_bias", "model_type", "architectures", "bos_token_id",
           "eos_token_id"]
READ_BY_TRANSFORMERS = ("llama2", "qwen2", "mistral")  # of the others it does not read all keys


def interleave(rows, heads):
    """The order of llama.cpp's rope, which turns neighbours: halves of a head become pairs."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_keys(writer, config, arch, class_name):
    rope = config.rope_parameters or {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if head * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if arch == "olmo":
        writer.add_layer_norm_eps(1e-5)
        writer.add_clamp_kqv(config.clip_qkv)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if class_name.startswith("Qwen"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def rope_factors(rope, head):
    """As llama.cpp's converter computes rope_freqs.weight from a llama3 rope scaling."""
    low, high = (rope["original_max_position_embeddings"] / rope[k] for k in ("low_freq_factor", "high_freq_factor"))
    factors = []
    for freq in 1.0 / (rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head)):
        wave = 2 * np.pi / float(freq)
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def gguf_name(names, name):
    if name.startswith("model.layers.") and name.endswith("e_score_correction_bias"):
        raise ValueError(name)
    stem, suffix = name.rsplit(".", 1)
    found = names.get_name(stem)
    assert found, name
    return f"{found}.{suffix}"


def put_tensor(writer, name, values, kind):
    if values.ndim == 1 or name.endswith("_norm.weight"):
        kind = Type.F32
    if "ffn_gate_inp" in name:
        kind = Type.F32  # the converter keeps routers
    if kind == Type.F32:
        writer.add_tensor(name, values.astype(np.float32))
    else:
        writer.add_tensor(name, gguf.quantize(values.astype(np.float32), kind), raw_dtype=kind)


def write_gguf(name, class_name, config, tensors, kind, more):
    arch = ARCH[class_name]
    writer = gguf.GGUFWriter(path(name + ".gguf"), arch)
    write_keys(writer, config, arch, class_name)
    for key, value in more.items():
        writer.add_uint32(key, value)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    stacks = {}
    for hf, values in tensors.items():
        if ".experts." in hf:
            before, after = hf.split(".experts.")
            expert, part = after.split(".", 1)
            stacks.setdefault(f"{before}.experts.{part}", {})[int(expert)] = values
            continue
        new = gguf_name(names, hf)
        if arch in ("llama", "olmo"):
            if ".q_proj." in hf:
                values = interleave(values, config.num_attention_heads)
            if ".k_proj." in hf:
                values = interleave(values, config.num_key_value_heads)
        if hf.endswith("shared_expert_gate.weight"):
            values = values.reshape(-1)
        put_tensor(writer, new, values, kind)
    for hf, parts in stacks.items():
        put_tensor(writer, gguf_name(names, hf), np.stack([parts[i] for i in range(len(parts))]), kind)
    rope = config.rope_parameters or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(rope, config.head_dim))
    finish(writer)


def digest(data):
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()


def expected_tensor(name, values, kind):
    """What --dtype keep must write: shape and digest of the values in f32, or of the blocks."""
    whole = values.ndim == 1 or name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight",
                                               "shared_expert_gate.weight"))
    if whole or kind in PLAIN:
        return {"dtype": (Type.F32 if whole else kind).name, "shape": list(values.shape), "sha256": digest(values)}
    blocks = gguf.quantize(values, kind)
    return {"dtype": "U8", "shape": list(blocks.shape), "sha256": digest(blocks)}


def check_by_transformers(name, model):
    other = transformers.AutoModelForCausalLM.from_pretrained(HERE, gguf_file=name + ".gguf", dtype=torch.float32)
    ids = torch.arange(20)[None] % model.config.vocab_size
    with torch.no_grad():
        ours, theirs = model(ids).logits, other(ids).logits
    error = float((ours - theirs).abs().max() / ours.abs().max())
    assert error < 1e-5, (name, error)
    print(f"{name}: transformers computes the same logits from the file (to {error:.1e})")


def save_logits(name, model):
    ids = (torch.arange(48) * 7 % model.config.vocab_size)[None]
    with torch.no_grad():
        logits = model(ids).logits
    save_file({"input_ids": ids.numpy(), "logits": logits.numpy()}, path(name + ".logits.safetensors"))


def make_model(name):
    class_name, fields, kind, more, config_more = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    config = getattr(transformers, class_name + "Config")(**fields)
    model = getattr(transformers, class_name + "ForCausalLM")(config).float()
    storage = torch.float16 if kind == Type.F16 else torch.bfloat16
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((torch.randn_like(p) * 0.3 + (1 if p.dim() == 1 else 0)).to(storage).float())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = {k: v.numpy() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            saved = json.load(file)
    write_gguf(name, class_name, config, tensors, kind, more)
    if name in READ_BY_TRANSFORMERS and kind in PLAIN:
        check_by_transformers(name, model)
    if kind in PLAIN:
        save_logits(name, model)
    fields = {k: saved[k] for k in CHECKED if saved.get(k) is not None}
    if class_name == "Qwen3Moe":  # published models have the older word
        fields["num_experts"] = fields.pop("num_local_experts")
    expected = {"config": {**fields, **config_more},
                "tensors": {k: expected_tensor(k, v, kind) for k, v in sorted(tensors.items())}}
    with open(path(name + ".expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    wanted = sys.argv[1:]
    if not wanted or "blocks" in wanted:
        make_blocks()
    for model_name in MODELS:
        if not wanted or model_name in wanted:
            make_model(model_name)
