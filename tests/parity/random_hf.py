#!/usr/bin/env python3
"""Random configurations of every Hugging Face family against the transformers package that is installed.

    tests/parity/random_hf.py BUILD_DIR [COUNT [FIRST_SEED [FAMILY]]]

Each family gets COUNT (12) random shapes: heads, head_dim, biases, windows, layer_types, experts, scaled rope, tied or
not, both layouts of config.json, f32, bf16 or f16 tensors. Logits must agree within 2e-5 of the largest, and be the
same bits with another prefill chunk. Skipped, with a word, where torch or transformers is not installed.
"""
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "golden"))
try:
    import make_hf
    import torch
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}; pip install torch transformers")
    sys.exit(0)

TOLERANCE, TOKENS = 2e-5, 45


def random_rope(r):
    rope = dict(rope_type=r.choice(["default", "default", "linear", "llama3"]),
                rope_theta=r.choice([10000.0, 10000, 500000.0, 1e6, 123.5]))
    if rope["rope_type"] != "default":
        rope["factor"] = r.choice([2.0, 8.0, 32.0, 1.7])
    if rope["rope_type"] == "llama3":
        rope.update(low_freq_factor=r.choice([1.0, 1.5]), high_freq_factor=r.choice([4.0, 3.0]),
                    original_max_position_embeddings=r.choice([16, 40, 100]))
    return rope


def random_fields(r, family):
    heads = r.choice([1, 2, 3, 4, 6])
    head_dim = r.choice([2, 4, 6, 8, 10])
    layers = r.randint(1, 4)
    shared = [k for k in range(1, heads + 1) if heads % k == 0]
    fields = dict(num_attention_heads=heads, num_key_value_heads=r.choice(shared),
                  hidden_size=heads * head_dim, intermediate_size=4 * r.randint(2, 20), num_hidden_layers=layers,
                  vocab_size=r.randint(20, 130), tie_word_embeddings=r.random() < 0.4, rope_parameters=random_rope(r),
                  max_position_embeddings=r.choice([45, 64, 4096]))
    if family not in ("olmo2", "olmoe") and r.random() < 0.5:
        fields["head_dim"] = r.choice([2, 4, 6, 12, 16])
    if family.startswith("qwen3"):
        fields["head_dim"] = fields.get("head_dim", head_dim)
    if family != "olmo":
        fields["rms_norm_eps"] = r.choice([1e-5, 1e-6, 1e-3])
    if family in ("llama", "olmo", "olmo2", "qwen3", "olmoe", "qwen3_moe"):
        fields["attention_bias"] = r.random() < 0.5
    if family == "llama":
        fields["mlp_bias"] = r.random() < 0.5
    if family in ("olmo", "olmoe") and r.random() < 0.6:
        fields["clip_qkv"] = r.choice([0.3, 1.0, 8.0])
    window = r.choice([1, 2, 5, 15, 16, 17, 33, 100])
    types = [r.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]
    if family in ("mistral", "mixtral"):
        fields["sliding_window"] = r.choice([None, window])
    if family in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe") and r.random() < 0.6:
        fields.update(use_sliding_window=True, sliding_window=window)
        if family == "qwen2_moe" or (family != "qwen3_moe" and r.random() < 0.5):
            fields["layer_types"] = types
        elif family != "qwen3_moe":
            fields["max_window_layers"] = r.randint(0, layers)
    if family in ("olmoe", "mixtral", "qwen2_moe", "qwen3_moe"):
        experts = r.randint(2, 9)
        fields.update({"num_local_experts" if family == "mixtral" else "num_experts": experts,
                       "num_experts_per_tok": r.randint(1, min(experts, 4))})
        if family != "mixtral":
            fields["norm_topk_prob"] = r.random() < 0.5
    if family in ("qwen2_moe", "qwen3_moe"):
        fields.update(moe_intermediate_size=4 * r.randint(2, 12), decoder_sparse_step=r.choice([1, 1, min(2, layers)]))
        if layers > 1 and r.random() < 0.4:
            fields["mlp_only_layers"] = [0]
    if family == "qwen2_moe":
        fields.update(shared_expert_intermediate_size=4 * r.randint(2, 20), qkv_bias=r.random() < 0.5)
    return fields


def run(build, folder, out, *extra):
    ids = os.path.join(folder, "ids.safetensors")
    done = subprocess.run([os.path.join(build, "memrack"), "logits", folder, "--input", ids, "--output", out, *extra],
                          capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip().splitlines()[-1]


def check(build, family, seed):
    """What is wrong, or the error."""
    r = random.Random(f"{family} {seed}")
    fields, storage, layout = random_fields(r, family), r.choice(["f32", "f32", "bf16", "f16"]), r.choice([4, 5])
    model = make_hf.make_model(family, fields, seed, storage)
    ids = torch.randint(0, fields["vocab_size"], (2, TOKENS), generator=torch.Generator().manual_seed(seed))
    want = make_hf.logits_of(model, ids)
    with tempfile.TemporaryDirectory() as folder:
        make_hf.save_model(model, folder, storage, layout)
        save_file({"input_ids": ids}, os.path.join(folder, "ids.safetensors"))
        out = os.path.join(folder, "out.safetensors")
        try:
            digest = run(build, folder, out)
            other = run(build, folder, out + "2", "--prefill-chunk", str(r.randint(1, 20)), "--stages",
                        str(r.randint(1, fields["num_hidden_layers"])))
        except RuntimeError as error:
            return f"{error}\n     {fields}"
        got = load_file(out)["logits"]
    error = ((got - want).abs().max() / want.abs().max()).item()
    if digest != other:
        return f"other bits with another prefill chunk\n     {fields}"
    return error if error <= TOLERANCE else f"error {error:.1e}, {storage}\n     {fields}"


def main():
    build, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    families = sys.argv[4:] or ["llama", "mistral", "olmo", "olmo2", "qwen2", "qwen3", "olmoe", "mixtral", "qwen2_moe",
                                "qwen3_moe"]
    torch.set_num_threads(1)
    make_hf.transformers.logging.set_verbosity_error()
    make_hf.transformers.utils.logging.disable_progress_bar()
    failed = 0
    for family in families:
        worst = 0.0
        for seed in range(first, first + count):
            result = check(build, family, seed)
            if isinstance(result, str):
                print(f"FAIL {family} {seed}: {result}")
                failed += 1
            else:
                worst = max(worst, result)
        print(f"{family:12} {count} models, largest error {worst:.1e}", flush=True)
    print(f"random_hf: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
