#!/usr/bin/env python3
"""Pipelines of real worker processes.

    tests/cluster/stages.py BUILD_DIR MODEL_DIR

Goal: logits do not depend on the number of stages or on where they are cut, skip windows included; a
killed or stopped stage ends in an error that names it within a second, and steps run again once it is
back; an owner with a lower epoch is refused; stages that do not fit say so.
Method: memshards and stages are started and spoken to in frames; hashes are compared with those that
`memrack logits` prints for one process."""
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time

import cluster
from cluster import DONE, ERROR, HEADER, LOGITS, MAGIC, REFUSE, STEP, WELCOME, WORKER, Link, Process

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = cluster.temporary_folder()
TOKENS = 29
STALE, UNAVAILABLE = -13, -9
# cuts by hand: inside the windows 1:2 and 3:5 of six blocks, and a window over two cuts
GOLDEN = {"v1_ive4_skip": [["0:2", "2:6"], ["0:2", "2:4", "4:6"], ["0:4", "4:5", "5:6"]],
          "v2_glu_kx2_e4": [["0:1", "1:3", "3:4"]], "moe_topk_norm": [], "dense": [["0:3", "3:4"]]}
STATE = {}


def program(role):
    return os.path.join(BUILD, "memrack-" + role)


def number():
    """Of a process: log files are never shared."""
    STATE["started"] = STATE.get("started", 0) + 1
    return STATE["started"]


def ids_of(vocab):
    return [(7 * i * i + 3 * i + 1) % vocab for i in range(TOKENS)]


def config_of(model):
    with open(os.path.join(model, "config.json")) as file:
        return json.load(file)


def in_one_process(model, *extra):
    """The hash that `memrack logits` prints."""
    data = struct.pack(f"<{TOKENS}q", *ids_of(config_of(model)["vocab_size"]))
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [1, TOKENS],
                                       "data_offsets": [0, len(data)]}}).encode()
    source, out = os.path.join(FOLDER, "in.safetensors"), os.path.join(FOLDER, "out.safetensors")
    with open(source, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)
    done = subprocess.run([os.path.join(BUILD, "memrack"), "logits", model, "--input", source, "--output",
                           out, "--threads", "1", *extra], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def start_stage(model, shards, stage, stages, following, blocks=None, listen="127.0.0.1:0"):
    name = f"{os.path.basename(model)}-stage-{stage}-of-{stages}-{number()}"
    return Process(name, [program("worker"), "--model", model, "--threads", "1", "--listen", listen,
                          "--stage", f"{stage}/{stages}", "--connect-timeout-ms", "3000",
                          *[x for a in shards for x in ("--memshard", a)],
                          *(["--next", following] if following else []),
                          *(["--blocks", blocks] if blocks else [])], FOLDER)


def start_shards(model):
    if config_of(model)["mem_insert_way"] == "no_mem":
        return [], []
    shards = [Process(f"{os.path.basename(model)}-memshard-{i}-{number()}",
                      [program("memshard"), "--model", model, "--grid", "2x1", "--index", str(i), "--of",
                       "2"], FOLDER) for i in range(2)]
    return shards, [shard.wait_line("ready ", 30) for shard in shards]


def start_pipeline(model, shards, stages, cuts=None):
    """(processes, addresses) by stage."""
    processes, addresses = [None] * stages, [None] * stages
    for stage in reversed(range(stages)):
        following = addresses[stage + 1] if stage + 1 < stages else None
        processes[stage] = start_stage(model, shards, stage, stages, following, cuts and cuts[stage])
        addresses[stage] = processes[stage].wait_line("ready ", 30)
    return processes, addresses


def end(processes):
    for process in processes:
        process.end()
        cluster.PROCESSES.remove(process)
        process.kill()


def step(request_id, ids, first, count, lane=0, flags=2, epoch=0):
    """One sequence in KV blocks of its own; flags 2: the logits of every position."""
    blocks = (first + count + 15) // 16
    payload = struct.pack("<IIII", 1, count, blocks, 0)
    payload += struct.pack("<QIIIIfffIQIIII", lane, first, count, blocks, flags, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    payload += struct.pack(f"<{count}i", *ids[first:first + count])
    payload += struct.pack(f"<{blocks}I", *[2 * lane + i for i in range(blocks)])
    return HEADER.pack(MAGIC, 1, STEP, len(payload), 0, request_id, epoch, 0, 0, bytes(16), 0) + payload


def finish(link, request_id):
    """(kind, status, sentence) of the frame that ends a step."""
    while True:
        got = link.receive(20)
        if not got or got[0] == REFUSE:
            # a session ends with the next stage it counted on, whose cache may be gone
            if link is STATE.get("link"):
                STATE["link"] = None
            return ERROR, UNAVAILABLE, got[3].decode(errors="replace") if got else "closed"
        if got[0] in (DONE, ERROR) and got[1] == request_id:
            return got[0], got[2], got[3].decode(errors="replace")


def hash_of(link, columns, ids, cuts):
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
                _, position, column, _, _ = struct.unpack_from("<QIIII", payload)
                at = (position * columns + column) * 4
                rows[at:at + len(payload) - 24] = payload[24:]
        first += count
    assert first == TOKENS
    return hashlib.sha256(rows).hexdigest()


def open_link(address):
    link = Link(address)
    kind, _, _, payload = link.open(WORKER)
    assert kind == WELCOME, payload
    return link, struct.unpack_from("<II", payload, 72)[1]


def check_model(model, by_hand):
    expected = in_one_process(model)
    ids = ids_of(config_of(model)["vocab_size"])
    for stages in (2, 3):
        got = in_one_process(model, "--stages", str(stages), "--prefill-chunk", "5")
        assert got == expected, f"--stages {stages}: {got}, one engine has {expected}"
    shard_processes, shards = start_shards(model)
    for cuts in [None, None, None, *by_hand]:
        stages = len(cuts) if cuts else STATE.setdefault(model, 0) + 1
        STATE[model] = stages
        processes, addresses = start_pipeline(model, shards, stages, cuts)
        link, columns = open_link(addresses[0])
        for pieces in ([TOKENS], [7, 1, 13, *[1] * 8]):
            got = hash_of(link, columns, ids, pieces)
            assert got == expected, f"{stages} stages {cuts}, steps of {pieces}: {got}, not {expected}"
        link.close()
        end(processes)
    end(shard_processes)


def make_check(model, by_hand):
    def check():
        check_model(model, by_hand)
    check.__doc__ = f"{os.path.basename(model)}: 1, 2, 3 stages and {len(by_hand)} cuts give the same bits"
    return check


# --- faults -------------------------------------------------------------------------------------


def open_pipeline():
    """three stages of the model are up"""
    STATE["shards"] = start_shards(MODEL)[1]
    STATE["stages"], STATE["addresses"] = start_pipeline(MODEL, STATE["shards"], 3)
    STATE["ids"] = ids_of(config_of(MODEL)["vocab_size"])
    STATE["link"] = open_link(STATE["addresses"][0])[0]
    kind, _, sentence = run_step(1)
    assert kind == DONE, sentence


def run_step(request_id, **fields):
    if not STATE["link"]:  # nobody gets one while a stage is away
        link = Link(STATE["addresses"][0])
        kind, _, status, payload = link.open(WORKER)
        if kind != WELCOME:
            link.close()
            return ERROR, status, payload.decode()
        STATE["link"] = link
    try:
        STATE["link"].send(step(request_id, STATE["ids"], 0, TOKENS, **fields))
    except OSError:
        pass  # its end is read next
    return finish(STATE["link"], request_id)


def run_until_done(request_id, seconds=10):
    until = time.monotonic() + seconds
    while True:
        kind, _, sentence = run_step(request_id)
        if kind == DONE:
            return
        assert time.monotonic() < until, sentence
        time.sleep(0.05)


def fails_within_a_second(request_id, stage):
    begin = time.monotonic()
    kind, status, sentence = run_step(request_id)
    seconds = time.monotonic() - begin
    assert kind == ERROR and status == UNAVAILABLE, (kind, status, sentence)
    assert f"stage {stage} of 3" in sentence and STATE["addresses"][stage] in sentence, sentence
    assert seconds < 1.0, seconds


def stopped_stage():
    """a stopped stage: an error that names it within a second; steps again after SIGCONT"""
    for stage in (1, 2):
        cluster.stop(STATE["stages"][stage].pid)
        fails_within_a_second(10 + stage, stage)
        os.kill(STATE["stages"][stage].pid, signal.SIGCONT)
        run_until_done(20 + stage)


def stopped_under_way():
    """a stage stopped with steps under way: each of them ends"""
    link = STATE["link"]
    for lane in range(12):
        link.send(step(100 + lane, STATE["ids"], 0, TOKENS, lane=lane))
    cluster.stop(STATE["stages"][1].pid)
    begin = time.monotonic()
    ends = [finish(link, 100 + lane)[0] for lane in range(12)]
    assert time.monotonic() - begin < 1.5, time.monotonic() - begin
    assert set(ends) <= {DONE, ERROR}
    os.kill(STATE["stages"][1].pid, signal.SIGCONT)
    run_until_done(140)


def killed_stage():
    """a killed stage: an error that names it; a new process at its address takes over"""
    address, following = STATE["addresses"][1], STATE["addresses"][2]
    for lane in range(12):
        STATE["link"].send(step(200 + lane, STATE["ids"], 0, TOKENS, lane=lane))
    link = STATE["link"]
    cluster.kill(STATE["stages"][1].pid)
    begin = time.monotonic()
    for lane in range(12):
        finish(link, 200 + lane)
    assert time.monotonic() - begin < 1.0
    fails_within_a_second(220, 1)
    STATE["stages"][1] = start_stage(MODEL, STATE["shards"], 1, 3, following, listen=address)
    STATE["stages"][1].wait_line("ready ", 30)
    run_until_done(230)


def owners():
    """two coordinators: the one with the lower epoch is refused, by every stage"""
    other = open_link(STATE["addresses"][0])[0]
    kind, _, sentence = run_step(300, epoch=7)
    assert kind == DONE, sentence
    other.send(step(1, STATE["ids"], 0, TOKENS, lane=1, epoch=8))
    assert finish(other, 1)[0] == DONE
    for epoch in (7, 0):
        kind, status, sentence = run_step(301, epoch=epoch)
        assert kind == ERROR and status == STALE and "epoch 8" in sentence, (status, sentence)
    other.close()


def misfits():
    """stages that do not fit say so"""
    for arguments, reason in ((["--stage", "3/3"], "counted from 0"), (["--stage", "0/2"], "--next"),
                              (["--blocks", "4:2"], "A:B"),
                              (["--stage", "1/2", "--next", "127.0.0.1:1"], "no stage follows"),
                              (["--stage", "1/2", "--blocks", "0:2"], "the first stage begins with block 0")):
        done = subprocess.run([program("worker"), "--model", MODEL, *arguments], capture_output=True,
                              text=True, timeout=20, check=False)
        assert done.returncode != 0 and reason in done.stderr, (arguments, done.stderr)
    dense = os.path.join(HERE, "..", "golden", "dense")
    last = start_stage(dense, [], 1, 2, None, "2:4")
    address = last.wait_line("ready ", 20)
    wrong = start_stage(dense, [], 0, 3, address, "0:2")  # a stage of another pipeline
    assert wrong.popen.wait(30) != 0
    assert "stage 1 of 2" in wrong.text(), wrong.text()
    first = start_stage(dense, [], 0, 2, address, "0:1")  # block 1 is nobody's
    link, _ = open_link(first.wait_line("ready ", 20))
    link.send(step(1, [1] * TOKENS, 0, TOKENS))
    kind, _, sentence = finish(link, 1)
    assert kind == ERROR and "hidden states for block 1" in sentence and "block 2" in sentence, sentence
    link.close()


MODELS = [(MODEL, [])] + [(os.path.join(HERE, "..", "golden", name), cuts) for name, cuts in GOLDEN.items()]
cluster.run([make_check(m, cuts) for m, cuts in MODELS if os.path.isdir(m)] +
            [open_pipeline, stopped_stage, stopped_under_way, killed_stage, owners, misfits], 240, FOLDER)
