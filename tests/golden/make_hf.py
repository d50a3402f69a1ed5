#!/usr/bin/env python3
"""Golden cases of the Hugging Face families: tiny random models and what the transformers package computes.

    tests/golden/make_hf.py [CASE ...]   writes tests/golden/hf_*/: config.json, model.safetensors, expected.safetensors
    tests/golden/make_hf.py --check      runs the cases there are with the transformers package that is installed

Needs PyPI's torch and transformers (made with 5.23.0, checked with 4.57.1 too). A case's expected.safetensors holds
input_ids I64 [3,40] (24 prompt tokens, then 16 that greedy generation gave), logits F32 [3,40,V] of all of them in
float32 with eager attention, and prompt_tokens. A seed is taken whose greedy choices are no near ties.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

PROMPT, NEW, BATCH, GAP = 24, 16, 3, 1e-3
HERE = os.path.dirname(os.path.abspath(__file__))
BASE = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=24)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
PLAIN = dict(rope_type="default", rope_theta=10000.0)
EXPERTS = dict(num_experts=6, num_experts_per_tok=2)
QWEN_MOE = dict(EXPERTS, moe_intermediate_size=24)

# name: (family, changes to BASE, storage, layout of config.json: that of transformers 4 or 5)
CASES = {
    "hf_llama": ("llama", dict(rope_parameters=PLAIN), "f32", 5),
    "hf_llama_3": ("llama", dict(rope_parameters=LLAMA3, eos_token_id=[2, 7, 9]), "f32", 5),
    "hf_llama_3_old": ("llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=12), "bf16", 4),
    "hf_llama_linear": ("llama", dict(rope_parameters=LINEAR, attention_bias=True, mlp_bias=True), "f32", 4),
    "hf_mistral_window": ("mistral", dict(sliding_window=7, rope_parameters=PLAIN), "f32", 5),
    "hf_olmo": ("olmo", dict(clip_qkv=0.9, rope_parameters=PLAIN, num_key_value_heads=4), "f32", 5),
    "hf_olmo2": ("olmo2", dict(rope_parameters=dict(PLAIN, rope_theta=500000.0)), "f32", 5),
    "hf_qwen2_window": ("qwen2", dict(use_sliding_window=True, sliding_window=18, max_window_layers=1,
                                      rope_parameters=dict(PLAIN, rope_theta=1e6)), "f32", 4),
    "hf_qwen2_types": ("qwen2", dict(use_sliding_window=True, sliding_window=5, tie_word_embeddings=True, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"], rope_parameters=PLAIN), "f16", 5),
    "hf_qwen3": ("qwen3", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=PLAIN), "f32", 5),
    "hf_olmoe": ("olmoe", dict(EXPERTS, intermediate_size=20, clip_qkv=1.5, num_key_value_heads=4,
                               rope_parameters=PLAIN), "f32", 5),
    "hf_mixtral": ("mixtral", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=28, sliding_window=20,
                                   rope_parameters=dict(PLAIN, rope_theta=1e6)), "f32", 4),
    "hf_qwen2_moe": ("qwen2_moe", dict(QWEN_MOE, shared_expert_intermediate_size=40, mlp_only_layers=[1],
                                       rope_parameters=PLAIN), "f32", 4),
    "hf_qwen3_moe": ("qwen3_moe", dict(QWEN_MOE, norm_topk_prob=True, head_dim=12, moe_intermediate_size=20,
                                       rope_parameters=PLAIN), "f32", 5),
}


def make_model(family, fields, seed, storage):
    """A model of such a configuration with random weights near what training gives, as stored in float32."""
    classes = {"llama": "Llama", "mistral": "Mistral", "olmo": "Olmo", "olmo2": "Olmo2", "qwen2": "Qwen2",
               "qwen3": "Qwen3", "olmoe": "Olmoe", "mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe",
               "qwen3_moe": "Qwen3Moe"}
    config = getattr(transformers, classes[family] + "Config")(**dict(BASE, **fields))
    config._attn_implementation = config._experts_implementation = "eager"
    model = getattr(transformers, classes[family] + "ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[storage]
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                noise = 1 + 0.3 * noise
            elif name.endswith("bias"):
                noise = 0.3 * noise
            elif "embed_tokens" not in name:
                noise = noise * 1.3 / weight.shape[-1] ** 0.5
            weight.copy_(noise.to(kind).float())
    return model


def save_model(model, folder, storage, layout):
    transformers.logging.set_verbosity_error()
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[storage]
    model.to(kind).save_pretrained(folder)
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    if layout == 4 and "rope_parameters" in config:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        if rope["rope_type"] == "linear":
            rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.40.0"
    with open(path, "w") as f:
        json.dump(config, f, indent=1)
        f.write("\n")


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.as_tensor(ids), use_cache=False).logits.float()


def greedy(model, prompt):
    options = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    options.eos_token_id = None
    model.generation_config.eos_token_id = None
    return model.generate(prompt, generation_config=options, attention_mask=torch.ones_like(prompt))


def make_case(name):
    family, fields, storage, layout = CASES[name]
    folder = os.path.join(HERE, name)
    for seed in range(1, 200):
        model = make_model(family, fields, seed, storage)
        prompt = torch.randint(0, BASE["vocab_size"], (BATCH, PROMPT), generator=torch.Generator().manual_seed(seed))
        ids = greedy(model, prompt)
        logits = logits_of(model, ids)
        top = logits[:, PROMPT - 1:-1].topk(2).values
        gap = ((top[..., 0] - top[..., 1]).min() / logits.abs().max()).item()
        if gap > GAP and ids.shape[1] == PROMPT + NEW:
            break
    assert torch.equal(logits[:, PROMPT - 1:-1].argmax(-1), ids[:, PROMPT:])
    save_model(model, folder, storage, layout)
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        os.remove(os.path.join(folder, "generation_config.json"))
    save_file({"input_ids": ids.contiguous(), "logits": logits.contiguous(), "prompt_tokens": torch.tensor([PROMPT])},
              os.path.join(folder, "expected.safetensors"),
              metadata={"case": name, "seed": str(seed), "transformers": transformers.__version__, "gap": f"{gap:.1e}"})
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:20} seed {seed}, smallest greedy gap {gap:.1e}, largest logit {logits.abs().max():.1f}, {size} bytes")


def check_case(name):
    """The case through from_pretrained of the package installed."""
    folder = os.path.join(HERE, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager",
                                                              torch_dtype=torch.float32).eval()
    want = load_file(os.path.join(folder, "expected.safetensors"))
    error = ((logits_of(model, want["input_ids"]) - want["logits"]).abs().max() / want["logits"].abs().max()).item()
    print(f"{'ok  ' if error < 2e-6 else 'FAIL'} {name:20} {error:.1e}")
    return error < 2e-6


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if "--check" in sys.argv:
        newest = int(transformers.__version__.split(".")[0])
        cases = [name for name in sorted(CASES) if CASES[name][3] <= newest]  # 4 does not read what 5 writes
        sys.exit(0 if all([check_case(name) for name in cases]) else 1)
    for name in sys.argv[1:] or sorted(CASES):
        make_case(name)


if __name__ == "__main__":
    main()
