#!/usr/bin/env python3
"""Random instances of every layer type with odd sizes, engine against reference.py.

    tests/parity/random_models.py BUILD_DIR [--cases N] [--seed S] [--keep FOLDER]

Needs numpy (Debian: python3-numpy). Each case draws a shape (heads, GQA, key counts, ranks, cores,
expansion, insertion map, storage types), writes the model, runs `memrack logits` and compares with
float64. Shapes whose top-k has near ties are drawn again. The golden cases themselves go through the
reference first: a reference that does not reproduce them proves nothing.
"""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

import reference

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
TOLERANCE = 2e-5
LIMIT_S = 60


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    (length,) = struct.unpack_from("<Q", data)
    out = {}
    for name, t in json.loads(data[8:8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + o for o in t["data_offsets"])
            kind = {"F32": np.float32, "I64": np.int64}[t["dtype"]]
            out[name] = np.frombuffer(data[begin:end], kind).reshape(t["shape"])
    return out


def to_bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write(path, tensors, dtypes):
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize if dtypes[n] != "BF16" else 0, n)):
        x = tensors[name]
        blob = (to_bf16(x) if dtypes[name] == "BF16" else x).tobytes()
        header[name] = {"dtype": dtypes[name], "shape": list(x.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def base_config(rng):
    with open(os.path.join(GOLDEN, "dense", "config.json")) as f:
        c = json.load(f)
    c.pop("golden")
    heads = int(rng.choice([1, 2, 3, 4, 6]))
    hd = int(rng.choice([4, 10, 16, 24]))
    c.update(d_model=heads * hd, n_heads=heads, n_layers=int(rng.integers(2, 6)),
             n_kv_heads=int(rng.choice([k for k in range(1, heads + 1) if heads % k == 0])),
             mlp_hidden_size=2 * int(rng.integers(5, 70)), vocab_size=int(rng.integers(20, 300)),
             layer_norm_type=str(rng.choice(["rms", "default"])), attention_layer_norm=bool(rng.integers(2)),
             weight_tying=bool(rng.integers(2)), rope_theta=float(rng.choice([10000, 500000, 100])),
             layer_norm_eps=float(rng.choice([1e-5, 1e-6])), embedding_size=None)
    if rng.integers(3) == 0:
        c["embedding_size"] = c["vocab_size"] + int(rng.integers(1, 50))
    return c


def insertion_map(rng, layers):
    if rng.integers(2):
        return "full"
    sources = sorted(rng.choice(layers, size=int(rng.integers(1, layers + 1)), replace=False))
    return "/".join(f"{s}:{int(rng.integers(s, layers + 1))}" for s in sources)


def memory_config(rng, c, kind):
    c.update(mem_type=kind, mem_insert_way=insertion_map(rng, c["n_layers"]), mem_knum=int(rng.integers(6, 24)),
             mem_kdim=int(rng.integers(3, 30)), mem_knn=int(rng.integers(1, 7)), mem_head=int(rng.integers(1, 4)),
             mem_vdim=c["d_model"])
    if kind == "pkm":
        c["mem_query_bias"] = True
    if kind == "memory_plus":
        c["mem_vdim"] = int(rng.integers(3, 60))
    rank, cores, expand = int(rng.integers(1, 4)), int(rng.integers(1, 5)), 1
    if kind.startswith("ultramem"):
        c["mem_head"] = int(rng.integers(1, 3))
        c["mem_vdim"] = cores * int(rng.integers(1, 14))
        expand = int(rng.choice([1, 2, 3]))
    if kind == "ultramem_v1":
        c["mem_value_expand_time"] = int(rng.choice([1, expand * expand]))  # ignored: the tensors tell
    if kind == "ultramem_v2":
        per_rank = bool(rng.integers(2))
        if per_rank:
            rank, c["mem_head"] = 2, int(rng.integers(1, 5))
        c.update(mem_q_for_each_tucker_rank=per_rank, mem_key_expand_time=expand,
                 mem_value_expand_time=int(rng.choice([1, expand * expand])),
                 mem_pre_vdim=int(rng.choice([0, 1, 7, 16, 33])), mem_use_glu_act=bool(rng.integers(2)),
                 mem_share_ratio=float(rng.choice([0.3, 0.5, 0.77, 1.0])))
    if kind.startswith("ultramem"):
        c.update(mem_tucker_rank=rank, mem_tucker_multihead=cores)
    return rank, cores, expand


def block_tensors(c, out, normal):
    d, kv, hd = c["d_model"], c["n_kv_heads"], c["d_model"] // c["n_heads"]
    for i in range(c["n_layers"]):
        p = f"transformer.blocks.{i}."
        out[p + "attn_norm.weight"], out[p + "ff_norm.weight"] = 1 + normal(d), 1 + normal(d)
        out[p + "att_proj.weight"], out[p + "attn_out.weight"] = normal(d + 2 * kv * hd, d), normal(d, d)
        if c["attention_layer_norm"]:
            out[p + "q_norm.weight"], out[p + "k_norm.weight"] = 1 + normal(hd), 1 + normal(hd)
        hidden = c["mlp_hidden_size"] // 2
        if c["block_type"] == "moe":
            out[p + "ffn.router.layer.weight"] = 3 * normal(c["moe_num_experts"], d)
            for n in ("w1", "v1", "w2"):
                out[p + f"ffn.experts.mlp.{n}"] = normal(c["moe_num_experts"] * hidden, d)
        else:
            out[p + "ff_proj.weight"], out[p + "ff_out.weight"] = normal(2 * hidden, d), normal(d, hidden)


def memory_tensors(c, out, normal, rng, rank, cores, expand):
    d, n, h, k, v = (c[x] for x in ("d_model", "mem_knum", "mem_head", "mem_kdim", "mem_vdim"))
    kind, layers = c["mem_type"], len(reference.insertions(c))
    rows = n * n * (layers if kind == "ultramem_v2" else 1)
    for i in range(layers):
        m = f"transformer.mem_blocks.{i}."
        if kind == "pkm":
            out[m + "keys"], out[m + "values.weight"] = normal(2 * h * n, k), normal(n * n, d)
            out[m + "query_proj.query_mlps.0.weight"] = normal(h * 2 * k, d)
            out[m + "query_proj.query_mlps.0.bias"] = normal(h * 2 * k)
            continue
        out[m + "query_norm.weight"], out[m + "keys_norm.weight"] = 1 + normal(k), 1 + normal(k)
        if kind == "memory_plus":
            out[m + "keys"], out[m + "query_proj.weight"] = normal(h, 2, n, k), normal(h * 2 * k, d)
            out[m + "swilu_projection.weight"], out[m + "values_proj.weight"] = normal(v, d), normal(d, v)
            continue
        side = n if kind == "ultramem_v1" else int((rows * c["mem_share_ratio"]) ** 0.5)
        per_rank = kind == "ultramem_v2" and c["mem_q_for_each_tucker_rank"]
        slots = expand * expand if kind == "ultramem_v1" or c["mem_value_expand_time"] > 1 else 1
        out[m + "keys"] = normal(h, 2, expand * side, k, rank)
        out[m + "query_proj.weight"] = normal((2 * rank if per_rank else 2) * k, d)
        for j in range(cores):
            out[m + f"tucker_core.{j}"] = 3 * normal(h, rank, rank)
        out[m + "tucker_core_u"], out[m + "tucker_core_v"] = normal(1, h, 1, rank), normal(1, h, 1, rank)
        out[m + "shuffle_index"] = rng.permutation((expand * side) ** 2).astype(np.int64)
        out[m + "values_proj.weight"] = normal(d, slots * v)
        if kind == "ultramem_v1":
            out[m + "values_for_look_up"] = normal(n * n, v)
        elif c["mem_pre_vdim"]:
            out[m + "pre_values_proj.weight"] = normal(c["mem_pre_vdim"], d)
    shared = "transformer.full_memory_layer."
    if kind in ("memory_plus", "ultramem_v2"):
        out[shared + "values_for_look_up"] = normal(rows, v)
    if kind == "ultramem_v2" and c["mem_pre_vdim"]:
        out[shared + "pre_values_for_look_up"] = normal(rows, c["mem_pre_vdim"])


def draw(rng, kind):
    c = base_config(rng)

    def normal(*shape):
        return (rng.standard_normal(shape) * rng.choice([0.1, 0.3])).astype(np.float32)

    if kind == "moe":
        experts = int(rng.integers(2, 12))
        c.update(block_type="moe", moe_num_experts=experts, moe_top_k=int(rng.integers(1, experts + 1)),
                 moe_normalize_expert_weights=[None, 1][rng.integers(2)])
    elif kind != "dense":
        parts = memory_config(rng, c, kind)
    out = {}
    rows = c["embedding_size"] or c["vocab_size"]
    out["transformer.wte.weight"], out["transformer.ln_f.weight"] = normal(rows, c["d_model"]), 1 + normal(c["d_model"])
    if not c["weight_tying"]:
        out["transformer.ff_out.weight"] = normal(rows, c["d_model"])
    block_tensors(c, out, normal)
    if kind not in ("dense", "moe"):
        memory_tensors(c, out, normal, rng, *parts)
    dtypes = {n: "I64" if x.dtype == np.int64 else "F32" for n, x in out.items()}
    stored = rng.integers(3)  # f32, bf16 tables, bf16 everywhere
    for n in out:
        if dtypes[n] == "F32" and (stored == 2 or (stored == 1 and "values" in n and "proj" not in n)):
            dtypes[n] = "BF16"
            out[n] = (to_bf16(out[n]).astype(np.uint32) << 16).view(np.float32)
    ids = rng.integers(0, c["vocab_size"], (int(rng.integers(1, 4)), int(rng.integers(1, 45))))
    return c, out, dtypes, ids


def as_float64(tensors):
    return {n: x if x.dtype == np.int64 else x.astype(np.float64) for n, x in tensors.items()}


def engine(build, folder, config, tensors, dtypes, ids, extra=()):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    write(os.path.join(folder, "model.safetensors"), tensors, dtypes)
    inputs, outputs = os.path.join(folder, "ids.st"), os.path.join(folder, "out.st")
    write(inputs, {"input_ids": ids.astype(np.int64)}, {"input_ids": "I64"})
    done = subprocess.run([os.path.join(build, "memrack"), "logits", folder, "--input", inputs, "--output", outputs,
                           *extra], capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.split()[-1], read(outputs)["logits"]


def check_reference():
    reference.GAP = 1e-6
    for case in sorted(os.listdir(GOLDEN)):
        folder = os.path.join(GOLDEN, case)
        if not os.path.exists(os.path.join(folder, "expected.safetensors")):
            continue
        with open(os.path.join(folder, "config.json")) as f:
            config = json.load(f)
        if "model_type" in config:
            continue  # of another code than the one reference.py follows
        want = read(os.path.join(folder, "expected.safetensors"))
        got = reference.forward(want["input_ids"], as_float64(read(os.path.join(folder, "model.safetensors"))), config)
        error = np.abs(got - want["logits"]).max() / np.abs(want["logits"]).max()
        if not error < TOLERANCE:
            return f"the reference misses golden case {case}: {error:.1e}"
    reference.GAP = 1e-4
    return None


def error_of_fp32(config, tensors, ids, want):
    """What plain float32 arithmetic loses on this instance: some random models amplify rounding."""
    gap, reference.GAP = reference.GAP, 0
    got = reference.forward(ids, tensors, config)
    reference.GAP = gap
    return np.abs(got - want).max() / np.abs(want).max()


def one_case(build, rng, kind, folder):
    for _ in range(200):
        config, tensors, dtypes, ids = draw(rng, kind)
        try:
            want = reference.forward(ids, as_float64(tensors), config)
        except reference.NearTie:
            continue
        break
    else:
        return "no instance without near ties", config
    digest, got = engine(build, folder, config, tensors, dtypes, ids)
    error = np.abs(got - want).max() / np.abs(want).max()
    if not error <= max(TOLERANCE, 4 * error_of_fp32(config, tensors, ids, want)):
        return f"error {error:.1e}", config
    grid = f"{rng.integers(1, 9)}x{rng.integers(1, 9)}"
    extra = ["--table-grid", grid, "--prefill-chunk", str(rng.integers(1, 20)), "--threads", str(rng.integers(1, 4))]
    if engine(build, folder, config, tensors, dtypes, ids, extra)[0] != digest:
        return f"other bits with {' '.join(extra)}", config
    return None, config


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--cases", type=int, default=8, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="leave the last failing model here")
    a = parser.parse_args()
    problem = check_reference()
    if problem:
        print(problem)
        return 1
    passed = failed = 0
    for number, kind in enumerate(["dense", "moe", "pkm", "memory_plus", "ultramem_v1", "ultramem_v2", "ultramem_v2"]):
        for i in range(a.cases):
            rng = np.random.default_rng([a.seed, number, i])
            with tempfile.TemporaryDirectory() as folder:
                try:
                    problem, config = one_case(a.build, rng, kind, a.keep or folder)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    problem, config = str(error), {}
            if problem:
                print(f"FAIL {kind} seed {a.seed} case {number}.{i}: {problem}")
                if a.keep:
                    return 1
            passed, failed = passed + (not problem), failed + bool(problem)
    print(f"random models: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
