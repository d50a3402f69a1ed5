#!/usr/bin/env python3
"""Decode speed of a cluster on one machine beside that of one process, at equal worker threads.

    bench/cluster_decode.py BUILD_DIR [--rounds N] [--tokens N] [--threads N] [--fabric tcp|shm]

A v1 preset with a skip window and a V2 preset, scaled down (memrack synth), are served in two ways at once: by
`memrack serve` (one process), and by 4 memshards, a worker and a coordinator (shared memory through UCX, nobody
spins). The same completion goes to one, then to the other, round after round, so that whatever else the machine
does falls on both; the time of an answer of one token is taken off. The answers must be equal. Adds rows to
bench/results/cluster_decode.csv. Aims: 0.9 (v1) and 0.75 (V2) of one process. With fewer than 7 cores the
memshards take theirs from the worker, which one process does not have to share: the ratio then is a lower bound."""
import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

import record

COLUMNS = ("preset,scale,file_gb,memshards,fabric,threads,prompt,tokens,rounds,one_process_tok_s,cluster_tok_s,"
           "ratio,ratio_min,ratio_max,aim,others_busy_cores").split(",")
MODELS = [("v1 with skip window", ["ultramem-151m-x12", "--scale", "0.5", "--vocab", "4096"], 0.9),
          ("V2", ["ultramemv2-227m-1.2b", "--scale", "0.5", "--vocab", "4096"], 0.75)]
SHARDS = 4


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Served:
    """Processes that end together; each writes its address to a pipe when it is ready."""

    def __init__(self, build):
        self.build, self.processes = build, []

    def start(self, program, *arguments):
        ready, written = os.pipe()
        self.processes.append(subprocess.Popen(
            [record.program(self.build, program), *arguments, "--ready-fd", str(written)], pass_fds=[written],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        os.close(written)
        with os.fdopen(ready) as pipe:
            address = pipe.readline().strip()
        if not address:
            raise SystemExit(f"{program} did not start: {' '.join(arguments)}")
        return address

    def end(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=20)


def start_cluster(build, model, threads, fabric):
    served, shards = Served(build), []
    for i in range(SHARDS):
        options = ["--model", model, "--grid", f"{SHARDS}x1", "--index", str(i), "--of", str(SHARDS), "--threads", "1"]
        port = free_port()
        ucx = ["--ucx", f"127.0.0.1:{port}"] if fabric == "shm" else []
        address = served.start("memrack-memshard", *options, *ucx)
        shards += ["--memshard", f"ucx:127.0.0.1:{port}" if fabric == "shm" else address]
    worker = served.start("memrack-worker", "--model", model, "--threads", str(threads), *shards)
    return served, served.start("memrack-coordinator", "--model", model, "--port", "0", "--worker", worker)


def answer(address, prompt, tokens, seed):
    """(seconds, token log probabilities)"""
    host, port = address.rsplit(":", 1)
    body = json.dumps({"prompt": [(seed * 7919 + i * 31) % 4000 for i in range(prompt)], "max_tokens": tokens,
                       "temperature": 0, "ignore_eos": True, "logprobs": 0})
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    begin = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    seconds = time.monotonic() - begin
    connection.close()
    if response.status != 200:
        raise SystemExit(f"{address} answered {response.status}: {text[:300]}")
    return seconds, json.loads(text)["choices"][0]["logprobs"]["token_logprobs"]


def decode_rate(address, options, seed):
    """Tokens a second behind the first; its prompt is in the prefix cache the second time."""
    first, _ = answer(address, options.prompt, 1, seed)
    first, _ = answer(address, options.prompt, 1, seed)
    whole, logprobs = answer(address, options.prompt, options.tokens, seed)
    return (options.tokens - 1) / (whole - first), logprobs


def measure(options, name, preset, aim, folder):
    model = os.path.join(folder, preset[0])
    subprocess.run([record.program(options.build, "memrack"), "synth", preset[0], model] + preset[1:], check=True,
                   stdout=subprocess.DEVNULL)
    # random weights have no tokenizer, and completions need one: any will do, the prompts are ids
    shutil.copy(os.path.join(record.ROOT, "models", "demo", "tokenizer.json"), model)
    size = sum(os.path.getsize(os.path.join(model, f)) for f in os.listdir(model)) / 1e9
    busy = record.busy_cores()
    one, cluster = Served(options.build), None
    try:
        alone = one.start("memrack", "serve", model, "--port", "0", "--threads", str(options.threads))
        cluster, together = start_cluster(options.build, model, options.threads, options.fabric)
        pairs = []
        for i in range(options.rounds + 1):
            (a, left), (b, right) = decode_rate(alone, options, i), decode_rate(together, options, i)
            if left != right:
                raise SystemExit(f"{name}: the answers differ")
            pairs.append((a, b))
        pairs = pairs[1:]  # the first warms both up
    finally:
        one.end()
        if cluster:
            cluster.end()
    ratios = [b / a for a, b in pairs]
    return [preset[0], preset[2], f"{size:.2f}", SHARDS, options.fabric, options.threads, options.prompt,
            options.tokens, options.rounds, f"{statistics.median(a for a, _ in pairs):.1f}",
            f"{statistics.median(b for _, b in pairs):.1f}", f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}", f"{max(ratios):.2f}", aim, f"{busy:.1f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=65)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fabric", choices=("tcp", "shm"), default="shm")
    options = parser.parse_args()
    rows = []
    print(",".join(COLUMNS))
    for name, preset, aim in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(options, name, preset, aim, folder))
            print(",".join(str(x) for x in rows[-1]), flush=True)
    record.append("cluster_decode", COLUMNS, rows)


if __name__ == "__main__":
    main()
