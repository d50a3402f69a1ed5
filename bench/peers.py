#!/usr/bin/env python3
"""A dense model beside llama.cpp and torch: equal shapes, equal threads, turns in one run.

Needs a Python with llama-cpp-python, gguf and numpy (--llama-python) and, for torch, one with
torch (--torch-python; left out without it); this script itself runs on any Python. Models are
random and written under --dir: ours by `memrack synth` and `memrack convert`, theirs as GGUF of
the architecture llama, quantized by llama.cpp itself. Every round measures everybody once, in
turn; a ratio is the median over the rounds of ours / theirs in tokens a second.
With one thread, CPU time is counted instead of time that passes: other work on the machine then
disturbs caches and memory only. llama.cpp must be built for the machine it runs on:
CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPE = {"d": 1536, "layers": 12, "heads": 12, "kv": 4, "ffn": 4096, "vocab": 32000}
COLUMNS = ["what", "storage", "batch", "threads", "clock", "rounds", "ours", "theirs", "peer", "ratio",
           "ratio_least", "ratio_most", "busy_cores"]


def clock_of(threads):
    return time.process_time if threads == 1 else time.perf_counter


# --- theirs: run by --llama-python or --torch-python ------------------------------------------

def write_gguf(path):
    import gguf
    import numpy as np
    s = SHAPE
    generator = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(s["layers"])
    w.add_context_length(2048)
    w.add_embedding_length(s["d"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(s["d"] // s["heads"])
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(s["vocab"])
    w.add_tokenizer_model("no_vocab")

    def matrix(name, rows, columns):
        x = (generator.standard_normal((rows, columns), dtype=np.float32) * 0.02)
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)
        w.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def ones(name):
        w.add_tensor(name, np.ones(s["d"], dtype=np.float32))

    kv = s["d"] // s["heads"] * s["kv"]
    matrix("token_embd.weight", s["vocab"], s["d"])
    ones("output_norm.weight")
    for i in range(s["layers"]):
        b = f"blk.{i}."
        ones(b + "attn_norm.weight")
        ones(b + "ffn_norm.weight")
        matrix(b + "attn_q.weight", s["d"], s["d"])
        matrix(b + "attn_k.weight", kv, s["d"])
        matrix(b + "attn_v.weight", kv, s["d"])
        matrix(b + "attn_output.weight", s["d"], s["d"])
        matrix(b + "ffn_gate.weight", s["ffn"], s["d"])
        matrix(b + "ffn_up.weight", s["ffn"], s["d"])
        matrix(b + "ffn_down.weight", s["d"], s["ffn"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_llama_models(folder):
    import ctypes
    import llama_cpp as lib
    whole = os.path.join(folder, "bf16.gguf")
    if not os.path.exists(whole):
        write_gguf(whole + ".part")
        os.rename(whole + ".part", whole)
    for name, kind in (("int8", 7), ("int4", 2)):  # Q8_0, Q4_0
        out = os.path.join(folder, name + ".gguf")
        if os.path.exists(out):
            continue
        p = lib.llama_model_quantize_default_params()
        p.ftype, p.nthread, p.pure = kind, 2, True
        if lib.llama_model_quantize(whole.encode(), out.encode(), ctypes.byref(p)) != 0:
            raise SystemExit("llama.cpp could not quantize")


def fill(lib, batch, rows, logits):
    """rows: of (token, position, sequence)."""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = logits(i)


def run_llama(model_path, threads, batch_size, prompt, tokens):
    """Tokens a second of prefill and of decode."""
    import llama_cpp as lib
    clock = clock_of(threads)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(model_path.encode(), lib.llama_model_default_params())
    p = lib.llama_context_default_params()
    p.n_ctx = batch_size * ((prompt + tokens + 255) // 256 * 256)
    p.n_batch = p.n_ubatch = 512
    p.n_threads = p.n_threads_batch = threads
    p.n_seq_max = batch_size
    context = lib.llama_init_from_model(model, p)
    batch = lib.llama_batch_init(512, 0, 1)

    def decode():
        if lib.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")

    fill(lib, batch, [(7, i, 0) for i in range(16)], lambda i: i == 15)
    decode()  # warm
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    begin = clock()
    for s in range(batch_size):
        rows = [((i * 37 + s * 11) % SHAPE["vocab"], i, s) for i in range(prompt)]
        fill(lib, batch, rows, lambda i: i == prompt - 1)
        decode()
        lib.llama_synchronize(context)
    prefill = batch_size * prompt / (clock() - begin)
    begin = clock()
    for t in range(tokens):
        rows = [((t * 13 + s) % SHAPE["vocab"], prompt + t, s) for s in range(batch_size)]
        fill(lib, batch, rows, lambda i: True)
        decode()
        lib.llama_synchronize(context)
    return prefill, batch_size * tokens / (clock() - begin)


def run_torch(threads, prompt):
    """Prefill of torch with oneDNN in bf16: products, norms and attention, but no rotation."""
    import torch
    import torch.nn.functional as f
    clock = clock_of(threads)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    s, bf16 = SHAPE, torch.bfloat16
    dim = s["d"] // s["heads"]

    def matrix(rows, columns):
        return (torch.randn(rows, columns) * 0.02).to(bf16)

    blocks = [(matrix(s["d"] + 2 * dim * s["kv"], s["d"]), matrix(s["d"], s["d"]),
               matrix(2 * s["ffn"], s["d"]), matrix(s["d"], s["ffn"])) for _ in range(s["layers"])]
    embedding, one = matrix(s["vocab"], s["d"]), torch.ones(s["d"], dtype=bf16)

    def forward(ids):
        x = embedding[ids]
        for qkv_w, out_w, up_w, down_w in blocks:
            qkv = f.linear(f.rms_norm(x, (s["d"],), one), qkv_w)
            q, k, v = qkv.split([s["d"], dim * s["kv"], dim * s["kv"]], -1)
            q = q.view(-1, s["heads"], dim).transpose(0, 1)[None]
            k = k.view(-1, s["kv"], dim).transpose(0, 1)[None]
            v = v.view(-1, s["kv"], dim).transpose(0, 1)[None]
            a = f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + f.linear(a[0].transpose(0, 1).reshape(-1, s["d"]), out_w)
            gate, value = f.linear(f.rms_norm(x, (s["d"],), one), up_w).chunk(2, -1)
            x = x + f.linear(f.silu(gate) * value, down_w)
        return f.linear(x[-1:], embedding)

    ids = torch.arange(prompt) * 37 % s["vocab"]
    forward(ids[:64])
    times = []
    for _ in range(2):
        begin = clock()
        forward(ids)
        times.append(clock() - begin)
    return prompt / min(times)


# --- ours -------------------------------------------------------------------------------------

def make_our_models(build, folder, storages):
    s = SHAPE
    memrack = os.path.join(build, "memrack")
    whole = os.path.join(folder, "bf16")
    if not os.path.exists(os.path.join(whole, "config.json")):
        subprocess.run([memrack, "synth", "dense-151m", whole, "--d-model", str(s["d"]),
                        "--layers", str(s["layers"]), "--heads", str(s["heads"]), "--kv-heads",
                        str(s["kv"]), "--mlp-hidden", str(2 * s["ffn"]), "--vocab",
                        str(s["vocab"])], check=True, stdout=subprocess.DEVNULL)
    for name, storage in (("int8", "int8-block"), ("int4", "int4")):
        out = os.path.join(folder, name)
        if name in storages and not os.path.exists(os.path.join(out, "config.json")):
            subprocess.run([memrack, "convert", whole, out, "--dtype", storage], check=True,
                           stdout=subprocess.DEVNULL)


def run_ours(build, model, threads, batch_size, prompt, tokens, numeric):
    command = [os.path.join(build, "bench", "bench_decode"), "--model", model, "--threads",
               str(threads), "--batch", str(batch_size), "--prompt", str(prompt), "--tokens",
               str(tokens), "--numeric", numeric] + (["--cpu-time"] if threads == 1 else [])
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fields = line.strip().split(",")
    return float(fields[4]), float(fields[5])


# --- the rounds -------------------------------------------------------------------------------

CASES = [("decode", "bf16", 1, 32, 16), ("decode", "int8", 1, 32, 24),
         ("decode", "int4", 1, 32, 24), ("decode", "bf16", 16, 32, 6),
         ("decode", "bf16", 64, 16, 4), ("prefill", "bf16", 1, 512, 1)]


def ask_child(python, *arguments):
    run = subprocess.run([python, os.path.abspath(__file__), *map(str, arguments)], check=True,
                         capture_output=True, text=True)
    return json.loads(run.stdout.strip().splitlines()[-1])


def measure(a, case):
    what, storage, batch, prompt, tokens = case
    peers = {"llama.cpp": [], "torch": []}
    ours = {"exact": [], "fast": []}
    at = 0 if what == "prefill" else 1
    for _ in range(a.rounds):
        for numeric in ours:
            model = os.path.join(a.dir, storage)
            ours[numeric].append(run_ours(a.build, model, a.threads, batch, prompt, tokens,
                                          numeric)[at])
        path = os.path.join(a.dir, storage + ".gguf")
        peers["llama.cpp"].append(ask_child(a.llama_python, "--child", "llama", path, a.threads,
                                            batch, prompt, tokens)[at])
        if what == "prefill" and a.torch_python:
            peers["torch"].append(ask_child(a.torch_python, "--child", "torch", a.threads, prompt))
    return ours, {name: list_ for name, list_ in peers.items() if list_}


def main():
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[2] == "make":
            make_llama_models(sys.argv[3])
            return
        if sys.argv[2] == "llama":
            print(json.dumps(run_llama(sys.argv[3], *map(int, sys.argv[4:]))))
            return
        print(json.dumps(run_torch(*map(int, sys.argv[3:]))))
        return
    import record
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=os.path.join(record.ROOT, "build", "release"))
    parser.add_argument("--dir", default=os.path.join(record.ROOT, "build", "peers"))
    parser.add_argument("--llama-python", required=True)
    parser.add_argument("--torch-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="storage, or what, or what:batch")
    a = parser.parse_args()
    os.makedirs(a.dir, exist_ok=True)
    cases = [c for c in CASES if not a.only or a.only in (c[1], c[0], f"{c[0]}:{c[2]}")]
    make_our_models(a.build, a.dir, {c[1] for c in cases})
    subprocess.run([a.llama_python, os.path.abspath(__file__), "--child", "make", a.dir],
                   check=True, capture_output=True)
    rows = []
    for case in cases:
        what, storage, batch = case[:3]
        ours, peers = measure(a, case)
        for numeric, mine in ours.items():
            if storage != "bf16" and numeric == "fast":
                continue  # the same kernels
            for peer, theirs in peers.items():
                ratios = [m / t for m, t in zip(mine, theirs)]
                row = [f"{what} {numeric}", storage, batch, a.threads,
                       "cpu" if a.threads == 1 else "wall", a.rounds,
                       round(statistics.median(mine), 2), round(statistics.median(theirs), 2), peer,
                       *(round(f(ratios), 3) for f in (statistics.median, min, max)),
                       round(record.busy_cores(), 1)]
                rows.append(row)
                print(*row, sep=",", flush=True)
    record.append("peers", COLUMNS, rows)


if __name__ == "__main__":
    main()
