#!/usr/bin/env python3
"""`memrack selftest --cluster` and `memrack replay` against real processes.

    tests/cluster/replay_selftest.py BUILD_DIR MODEL_DIR

Goal: the self-test says equal, with one digest, where answers are equal, and names the first difference and exits
with 1 where one weight differs; a worker's recording replays in process, behind a tier, in another grid and
against running memshards, with the same bytes a token whichever way that does not change them; it holds no
prompt; recordings that are cut, spoilt or of another model are refused with one sentence.
Method: two memshards, a recording worker and a coordinator; `memrack serve` beside them; a copy of the model with
changed weights."""
import json
import os
import shutil
import struct
import subprocess
import sys
import time

import cluster
from cluster import Process, request

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
FOLDER = cluster.temporary_folder()
TRACE = os.path.join(FOLDER, "trace")
STATE = {}
PROMPT = "define the river that no recording may name"


def memrack(*arguments, seconds=60):
    return subprocess.run([os.path.join(BUILD, "memrack"), *arguments], capture_output=True, text=True,
                          timeout=seconds, check=False, env={**os.environ, "TMPDIR": FOLDER})


def start(role, *arguments):
    return Process(role + str(len(cluster.PROCESSES)), [os.path.join(BUILD, "memrack-" + role), "--model", MODEL,
                                                       *arguments], FOLDER)


def http_address(process, seconds=30):
    end = time.monotonic() + seconds
    while "http://" not in process.text():
        assert time.monotonic() < end and process.is_alive(), process.text()
        time.sleep(0.02)
    return process.text().split("http://")[1].split('"')[0].split()[0]


def serve(model):
    return http_address(Process("serve" + str(len(cluster.PROCESSES)), [
        os.path.join(BUILD, "memrack"), "serve", model, "--port", "0", "--threads", "1"], FOLDER))


def starts():
    """two memshards, a worker that records, a coordinator"""
    shards = [start("memshard", "--grid", "2x1", "--index", str(i), "--of", "2") for i in range(2)]
    STATE["shards"] = [shard.wait_line("ready ", 30) for shard in shards]
    named = [x for address in STATE["shards"] for x in ("--memshard", address)]
    STATE["worker"] = start("worker", "--threads", "1", "--record", TRACE, *named)
    STATE["address"] = http_address(start("coordinator", "--port", "0", "--worker",
                                          STATE["worker"].wait_line("ready ", 30)))
    status, reply, _ = request(STATE["address"], "POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 8})
    assert status == 200, reply


def equal():
    """the self-test finds a cluster, another process and itself equal"""
    done = memrack("selftest", "--cluster", f"http://{STATE['address']}", f"http://{serve(MODEL)}", "--model", MODEL,
                   "--threads", "1", "--rounds", "2", "--tokens", "8", seconds=120)
    assert done.returncode == 0, done
    digests = {word for word in done.stdout.split() if len(word) == 64}
    assert len(digests) == 1 and done.stdout.count("equal") == 2, done.stdout


def change_weights(model):
    """A low bit of each number of the token embedding."""
    for name in (f for f in os.listdir(model) if f.endswith(".safetensors")):
        with open(os.path.join(model, name), "r+b") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            tensor = json.loads(file.read(size)).get("transformer.wte.weight")
            if not tensor:
                continue
            first, end = tensor["data_offsets"]
            file.seek(8 + size + first)
            data = bytearray(file.read(end - first))
            data[0::2] = bytes(x ^ 0x10 for x in data[0::2])
            file.seek(8 + size + first)
            file.write(data)
            return
    raise AssertionError("no token embedding")


def different():
    """where weights differ a little it says where answers do first, and fails"""
    other = os.path.join(FOLDER, os.path.basename(MODEL))
    shutil.copytree(MODEL, other)
    change_weights(other)
    done = memrack("selftest", "--cluster", f"http://{STATE['address']}", f"http://{serve(other)}", "--tokens", "8",
                   seconds=120)
    assert done.returncode == 1 and "differs at prompt" in done.stderr, done


def unreachable():
    """a server that is not there is named"""
    done = memrack("selftest", "--cluster", "http://127.0.0.1:1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "127.0.0.1:1" in done.stderr, done
    assert memrack("selftest").returncode == 2
    assert memrack("selftest", "--fabric", "--cluster").returncode == 2


def replay(trace, *options, model=MODEL):
    done = memrack("replay", trace, "--model", model, "--json", *options)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def replays():
    """what the worker recorded is replayed here, in another grid, behind a tier, and by memshards"""
    assert STATE["worker"].end() == 0
    assert "recorded " in STATE["worker"].text(), STATE["worker"].text()
    with open(TRACE, "rb") as file:
        data = file.read()
    assert b"No prompts" in data[:256] and PROMPT.split()[2].encode() not in data
    plain = replay(TRACE)
    assert plain["retrievals"] > 50 and plain["p50_us"] > 0 and 0 <= plain["duplicate_rate"] < 1, plain
    named = [x for address in STATE["shards"] for x in ("--memshard", address)]
    for options in (["--grid", "2x1"], named):
        figures = replay(TRACE, *options)
        assert figures["retrievals"] == plain["retrievals"], figures
        STATE.setdefault("down", figures["bytes_down_per_token"])
        # the frames are the same over a link in this process and over TCP, but for PINGs
        assert abs(figures["bytes_down_per_token"] / STATE["down"] - 1) < 0.05, (figures, STATE["down"])
    tier = replay(TRACE, "--tier-ram", "2MiB")
    assert 0 < tier["tier_hit_rate"] < 1 and tier["tier_read_bytes"] > 0, tier
    assert replay(TRACE, "--speed", "1000")["late_ms"] >= 0


def made_up():
    """a recording can be made up; a skewed one repeats rows, and no file is overwritten"""
    rates = []
    for skew in ("0", "0.8", "1.2"):
        path = TRACE + skew
        done = memrack("replay", path, "--model", MODEL, "--make", f"zipf:{skew}:400", "--batch", "8")
        assert done.returncode == 0, done
        rates.append(replay(path)["duplicate_rate"])
    assert rates[0] < rates[1] < rates[2], rates
    done = memrack("replay", TRACE + "0", "--model", MODEL, "--make", "zipf:0:10")
    assert done.returncode == 1 and "exists" in done.stderr, done
    for spec in ("zipf", "zipf:9:10", "zipf:0:", "zipf:0:0", "flat:0:1", "zipf:nan:5"):
        assert memrack("replay", TRACE + "x", "--model", MODEL, "--make", spec).returncode == 2, spec


def refuses():
    """cut, spoilt and foreign recordings are refused with one sentence"""
    with open(TRACE, "rb") as file:
        data = bytearray(file.read())
    middle = len(data) // 2
    spoilt = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:]
    for bad in (b"", b"x" * 300, data[:100], data[:256], data[:middle + 1], spoilt, data + b"MRec"):
        path = os.path.join(FOLDER, "bad")
        with open(path, "wb") as file:
            file.write(bad)
        done = memrack("replay", path, "--model", MODEL)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (len(bad), done)
    small = os.path.join(FOLDER, "small")
    assert memrack("synth", "ultramem-151m-x12", small, "--scale", "0.125", "--vocab", "256").returncode == 0
    done = memrack("replay", TRACE, "--model", small)
    assert done.returncode == 1 and "of others" in done.stderr, done
    gates = replay_of_v1(small)
    assert gates["row_cache_hit_rate"] > 0.2, gates


def replay_of_v1(model):
    """Layers without a gate can be cached on the asking side."""
    path = TRACE + "v1"
    assert memrack("replay", path, "--model", model, "--make", "zipf:1.2:400").returncode == 0
    return replay(path, "--row-cache", "4MiB", "--passes", "2", model=model)


cluster.run([starts, equal, different, unreachable, replays, made_up, refuses], 240, FOLDER)
