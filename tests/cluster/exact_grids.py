#!/usr/bin/env python3
"""The same bits from every split of the tables over real processes.

    tests/cluster/exact_grids.py BUILD_DIR MODEL_DIR

Goal: logits do not depend on how many memshards there are, on the grid, on one trip or two, or on how
a prompt is cut into steps.
Method: for each grid memshards and a worker are started and asked for the logits of the same tokens in
frames; their SHA-256 must be the one that `memrack logits` prints for one process. Models: MODEL_DIR
and one golden case of each kind."""
import hashlib
import json
import os
import struct
import subprocess
import sys

import cluster
from cluster import DONE, ERROR, LOGITS, STEP, WELCOME, WORKER, Link, Process, frame

BUILD = sys.argv[1] if len(sys.argv) > 1 else ""
HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = ["v1_ive4_skip", "v1_head2_full_e1", "v2_glu_kx2_e4", "v2_peer_share05", "memory_plus", "pkm"]
SPLITS = [("1x1", 1), ("2x1", 2), ("3x1", 3), ("8x1", 8), ("1x2", 1), ("1x4", 3), ("2x2", 2), ("3x4", 5),
          ("8x4", 8)]
TOKENS = 21
FOLDER = cluster.temporary_folder()


def ids_of(vocab):
    return [(7 * i * i + 3 * i + 1) % vocab for i in range(TOKENS)]


def one_process(model, vocab):
    """The hash that `memrack logits` prints."""
    data = struct.pack(f"<{TOKENS}q", *ids_of(vocab))
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [1, TOKENS],
                                       "data_offsets": [0, len(data)]}}).encode()
    source, out = os.path.join(FOLDER, "in.safetensors"), os.path.join(FOLDER, "out.safetensors")
    with open(source, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)
    done = subprocess.run([os.path.join(BUILD, "memrack"), "logits", model, "--input", source, "--output",
                           out, "--threads", "2"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def step(request_id, ids, first, count):
    blocks = (first + count + 15) // 16
    sequence = struct.pack("<QIIIIfffIQIIII", 1, first, count, blocks, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    return frame(STEP, struct.pack("<IIII", 1, count, blocks, 0) + sequence +
                 struct.pack(f"<{count}i", *ids[first:first + count]) +
                 struct.pack(f"<{blocks}I", *range(blocks)), request_id)


def logits(link, ids, columns, cuts):
    """SHA-256 of [TOKENS][columns], the tokens cut into steps of the given lengths."""
    rows = bytearray(TOKENS * columns * 4)
    first = 0
    for number, count in enumerate(cuts):
        link.send(step(number + 1, ids, first, count))
        while True:
            kind, _, _, payload = link.receive(30)
            assert kind != ERROR, payload.decode()
            if kind == DONE:
                break
            if kind == LOGITS:
                _, position, column, width, _ = struct.unpack_from("<QIIII", payload)
                at = (position * columns + column) * 4
                rows[at:at + width * 4] = payload[24:]
        first += count
    assert first == TOKENS
    return hashlib.sha256(rows).hexdigest()


def check_split(model, grid, shards, two_trips, expected, vocab, cuts_list, shard_options=(), worker_options=(),
                options=()):
    """shard_options: of the memshards with an odd index, for a cluster of both kinds; options: of all."""
    processes, addresses = [], []
    label = f"{os.path.basename(model)}-{grid}-{shards}{'-two' if two_trips else ''}{''.join(options)}"
    for index in range(shards):
        processes.append(Process(f"{label}-memshard-{index}",
                                 [os.path.join(BUILD, "memrack-memshard"), "--model", model, "--grid", grid,
                                  "--index", str(index), "--of", str(shards),
                                  *(shard_options if index % 2 else []), *options], FOLDER))
    for process in processes:
        addresses += ["--memshard", process.wait_line("ready ", 30)]
    worker = Process(f"{label}-worker", [os.path.join(BUILD, "memrack-worker"), "--model", model, "--threads",
                                         "2", *addresses, *(["--two-trips"] if two_trips else []),
                                         *worker_options], FOLDER)
    processes.append(worker)
    link = Link(worker.wait_line("ready ", 30))
    kind, _, _, payload = link.open(WORKER)
    assert kind == WELCOME
    columns = struct.unpack_from("<II", payload, 72)[1]
    for cuts in cuts_list:
        got = logits(link, ids_of(vocab), columns, cuts)
        assert got == expected, f"{label}, steps of {cuts}: {got}, one process has {expected}"
    link.close()
    for process in processes:
        process.end()
        cluster.PROCESSES.remove(process)
        process.kill()


def check_model(model):
    with open(os.path.join(model, "config.json")) as file:
        vocab = json.load(file)["vocab_size"]
    expected = one_process(model, vocab)
    whole, pieces, single = [TOKENS], [7, 1, 13], [1] * TOKENS
    for grid, shards in SPLITS:
        cuts = [whole, pieces, single] if grid == "2x2" else [whole]
        check_split(model, grid, shards, False, expected, vocab, cuts)
    check_split(model, "2x1", 2, True, expected, vocab, [whole])


def on_gpu():
    """rows in a GPU's memory, its kernels played on the CPU: the same bits"""
    os.environ["MEMRACK_CUDA_MODULE"] = os.path.abspath(os.path.join(BUILD, "tests", "memrack-cuda-emulated.so"))
    for name in ("v1_ive4_skip", "v2_glu_kx2_e4", "v2_peer_share05"):
        model = os.path.normpath(os.path.join(HERE, "..", "golden", name))
        with open(os.path.join(model, "config.json")) as file:
            vocab = json.load(file)["vocab_size"]
        expected = one_process(model, vocab)
        for grid, shards, two_trips in (("1x1", 1, False), ("2x2", 2, False), ("3x1", 2, True)):
            check_split(model, grid, shards, two_trips, expected, vocab, [[TOKENS]], options=("--gpu", "0"))


def make_check(model):
    def check():
        check_model(model)
    check.__doc__ = f"{os.path.basename(os.path.normpath(model))}: {len(SPLITS)} splits give the same bits"
    return check


def main():
    models = [sys.argv[2]] + [os.path.join(HERE, "..", "golden", name) for name in GOLDEN]
    checks = [make_check(os.path.normpath(m)) for m in models if os.path.isdir(m)]
    if os.path.exists(os.path.join(BUILD, "tests", "memrack-cuda-emulated.so")):
        checks.append(on_gpu)
    cluster.run(checks, 240, FOLDER)


if __name__ == "__main__":
    main()
