"""Write a checkpoint as a model directory: official tensor names, sharded safetensors, tokenizer.

usage: export.py NAME WORK OUT     (NAME: ultramemv2 | dense | moe; reads WORK/NAME.ckpt)

Tables and large matrices become bfloat16; norms, keys, Tucker cores and their singular vectors
stay float32; shuffle_index is int64.
"""

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

from configs import CONFIGS

TEMPLATE = ("{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


def stored(name, t):
    if t.dtype == torch.long:
        return t
    small = t.dim() == 1 or name.endswith(".keys") or "tucker_core" in name or "router" in name
    return (t.float() if small else t.to(torch.bfloat16)).contiguous()


def write_json(out, name, value):
    with open(os.path.join(out, name), "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("name", choices=CONFIGS)
    ap.add_argument("work")
    ap.add_argument("out")
    ap.add_argument("--limit", type=int, default=14 << 20, help="bytes per shard")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    saved = torch.load(os.path.join(a.work, a.name + ".ckpt"), weights_only=False)
    tensors = {k: stored(k, v) for k, v in saved["model"].items()}
    shards, size = [{}], 0
    order = sorted(tensors, key=lambda k: (k.endswith("values_for_look_up"), "pre_" in k, k))
    for k in order:
        n = tensors[k].numel() * tensors[k].element_size()
        if shards[-1] and (size + n > a.limit):
            shards.append({})
            size = 0
        shards[-1][k] = tensors[k]
        size += n
    for old in os.listdir(a.out):
        if old.endswith(".safetensors"):
            os.remove(os.path.join(a.out, old))
    where = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, os.path.join(a.out, file), metadata={"format": "pt"})
        os.chmod(os.path.join(a.out, file), 0o644)
        where.update({k: file for k in shard})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(a.out, "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    config = CONFIGS[a.name]
    write_json(a.out, "config.json", config)
    shutil.copy(os.path.join(a.work, "tokenizer.json"), os.path.join(a.out, "tokenizer.json"))
    write_json(a.out, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|end|>", "pad_token": "<|pad|>",
        "unk_token": None, "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": config["max_sequence_length"],
        "chat_template": TEMPLATE})
    write_json(a.out, "generation_config.json", {
        "eos_token_id": [config["eos_token_id"], 0], "pad_token_id": config["pad_token_id"], "do_sample": False,
        "max_new_tokens": 64})
    print(f"{a.out}: step {saved['step']}, {len(shards)} shards, {total / 1e6:.1f} MB of tensors")


if __name__ == "__main__":
    main()
