#!/usr/bin/env python3
"""The data plane of real processes: a worker and two memshards, spoken to in frames.

    tests/cluster/data_plane.py BUILD_DIR MODEL_DIR

Goal: a stopped or killed memshard ends in a clear error within a second, and the service returns
with it; garbage ends one link and disturbs nobody; wrong partners are refused with a reason.
Method: no coordinator: this script opens sessions and sends steps itself."""
import os
import random
import signal
import struct
import sys
import time

import cluster
from cluster import (COORDINATOR, DONE, ERROR, HELLO, MEMSHARD, PING, PONG, REFUSE, RETRIEVE, STEP,
                     WELCOME, WORKER, Link, Process, frame, hello)

BUILD, MODEL = sys.argv[1], sys.argv[2]
FOLDER = cluster.temporary_folder()
SHARDS = []
STATE = {}


def program(role):
    return os.path.join(BUILD, "memrack-" + role)


def start_shard(index, listen="127.0.0.1:0"):
    shard = Process(f"memshard-{index}-{len(cluster.PROCESSES)}",
                    [program("memshard"), "--model", MODEL, "--grid", "2x1", "--index", str(index),
                     "--of", "2", "--listen", listen], FOLDER)
    return shard, shard.wait_line("ready ", 20)


def step(request_id, tokens=4):
    """One sequence from position 0 in KV block 0, one token sampled greedily."""
    blocks = (tokens + 15) // 16
    sequence = struct.pack("<QIIIIfffIQIIII", 7, 0, tokens, blocks, 1, 0.0, 1.0, 0.0, 0, 1, 0, 0, 0, 0)
    payload = struct.pack("<IIII", 1, tokens, blocks, 0) + sequence
    payload += struct.pack(f"<{tokens}i", *range(1, tokens + 1)) + struct.pack(f"<{blocks}I", *range(blocks))
    return frame(STEP, payload, request_id)


def run_step(link, request_id):
    """(the last frame's kind, its sentence, seconds)."""
    begin = time.monotonic()
    link.send(step(request_id))
    while True:
        got = link.receive()
        assert got, "the worker closed the link"
        if got[0] in (DONE, ERROR):
            assert got[1] == request_id
            return got[0], got[3].decode(errors="replace"), time.monotonic() - begin


def start():
    """two memshards and a worker start, and say what they hold"""
    for index in range(2):
        SHARDS.append(start_shard(index))
        text = SHARDS[index][0].text()
        assert "will hold" in text and text.index("will hold") < text.index("ready"), text
    STATE["worker"] = Process("worker", [program("worker"), "--model", MODEL, "--memshard", SHARDS[1][1],
                                         "--memshard", SHARDS[0][1], "--threads", "2"], FOLDER)
    STATE["address"] = STATE["worker"].wait_line("ready ", 60)


def steps():
    """a step is answered, the same one twice with the same token"""
    link = STATE["link"] = Link(STATE["address"])
    assert link.open(WORKER)[0] == WELCOME
    tokens = []
    for request_id in range(1, 4):
        link.send(step(request_id))
        while True:
            kind, _, status, payload = link.receive()
            assert kind != ERROR, payload
            if kind == DONE:
                break
            tokens.append(struct.unpack_from("<i", payload, 8)[0])
    assert len(tokens) == 3 and len(set(tokens)) == 1, tokens


def wrong_partners():
    """wrong roles, versions and digests are refused with a reason"""
    worker, shard = STATE["address"], SHARDS[0][1]
    for address, fields, reason in (
            (worker, {"wanted": MEMSHARD}, b"this is a worker, not a memshard"),
            (shard, {"wanted": WORKER}, b"this is a memshard, not a worker"),
            (shard, {"wanted": MEMSHARD, "low": 3, "high": 4}, b"no common version"),
            (shard, {"wanted": MEMSHARD, "digest": b"\1" * 32}, b"010101010101..."),
            (shard, {"wanted": MEMSHARD, "low": 0, "high": 0}, b"versions from 0 to 0")):
        link = Link(address)
        kind, _, status, sentence = link.open(**fields)
        assert kind == REFUSE and status < 0 and reason in sentence, sentence
        assert link.receive() is None
        link.close()
    link = Link(shard)
    assert link.open(MEMSHARD, low=1, high=9)[0] == WELCOME  # a newer peer that still speaks ours
    link.close()


def hostile_bytes():
    """garbage ends its own link with a sentence, at every place, and nobody else's"""
    noise = random.Random(1).randbytes(300000)
    good_hello = frame(HELLO, hello(MEMSHARD))
    cases = [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, noise, frame(RETRIEVE), good_hello + noise,
             frame(HELLO, hello(MEMSHARD), length=0xFFFFFFFF), frame(HELLO, b""),
             good_hello + good_hello, good_hello + frame(STEP), good_hello + frame(77),
             good_hello + frame(RETRIEVE, b"\0" * 32), good_hello + frame(RETRIEVE, b"\xff" * 4096),
             good_hello + frame(RETRIEVE, flags=1), good_hello + frame(RETRIEVE, flags=1 << 31),
             good_hello + frame(RETRIEVE, version=2), good_hello + frame(RETRIEVE, magic=0x4D524B31)]
    for data in cases:
        link = Link(SHARDS[0][1])
        try:
            link.send(data)
        except OSError:
            pass  # it may close before it has read everything
        last = None
        while True:
            got = link.receive()
            if got is None:
                break
            last = got
        assert last and last[0] == REFUSE and last[3], (data[:80], last)
        link.close()
    for data in (good_hello[:40], good_hello + step(1)[:70]):  # cut short, then gone
        link = Link(SHARDS[0][1])
        link.send(data)
        link.close()
    kind, sentence, _ = run_step(STATE["link"], 10)
    assert kind == DONE, sentence


def many_links():
    """two hundred links that say nothing do not keep anyone out"""
    idle = [Link(SHARDS[0][1]) for _ in range(200)]
    kind, sentence, seconds = run_step(STATE["link"], 11)
    assert kind == DONE and seconds < 5, (sentence, seconds)
    for link in idle:
        link.close()


def stopped_shard():
    """a stopped memshard: an error that names it within a second; steps again after SIGCONT"""
    cluster.stop(SHARDS[1][0].pid)
    kind, sentence, seconds = run_step(STATE["link"], 20)
    assert kind == ERROR and "memshard" in sentence and SHARDS[1][1] in sentence, sentence
    assert seconds < 1.0, seconds
    kind, sentence, seconds = run_step(STATE["link"], 21)  # and again, as fast
    assert kind == ERROR and seconds < 1.0, (sentence, seconds)
    STATE["link"].send(frame(PING, request_id=22))
    assert STATE["link"].receive(1)[0] == PONG
    SHARDS[1][0].signal(signal.SIGCONT)
    wait_until_back(30)


def wait_until_back(first_request):
    end = time.monotonic() + 10
    while True:
        kind, sentence, _ = run_step(STATE["link"], first_request)
        if kind == DONE:
            return
        assert time.monotonic() < end, sentence
        time.sleep(0.1)
        first_request += 1


def killed_shard():
    """a killed memshard: an error within a second; steps again when it was started anew"""
    address = SHARDS[1][1]
    SHARDS[1][0].signal(signal.SIGKILL)
    SHARDS[1][0].popen.wait()
    for request_id in (200, 201):
        kind, sentence, seconds = run_step(STATE["link"], request_id)
        assert kind == ERROR and "memshard" in sentence, sentence
        assert seconds < 1.0, seconds
    assert STATE["worker"].is_alive() and SHARDS[0][0].is_alive()
    SHARDS[1] = start_shard(1, address)
    wait_until_back(210)


def wrong_shards():
    """a worker refuses memshards of another model, too few of them, and one twice"""
    def refused(arguments, reason):
        worker = Process(f"bad-worker-{len(cluster.PROCESSES)}",
                         [program("worker"), "--connect-timeout-ms", "500", "--model", MODEL] + arguments,
                         FOLDER)
        assert worker.popen.wait(20) != 0
        assert reason in worker.text(), worker.text()
    first, second = SHARDS[0][1], SHARDS[1][1]
    refused([], "name its memshards")
    refused(["--memshard", first], "not those of one of 1 memshards")
    refused(["--memshard", first, "--memshard", first], "holds too")
    refused(["--memshard", "127.0.0.1:1", "--memshard", second], "127.0.0.1:1")
    refused(["--memshard", STATE["address"]], "this is a worker, not a memshard")
    refused(["--memshard", "nonsense"], "neither host:port nor unix:PATH")


def orderly_end():
    """SIGTERM ends each with status 0"""
    for process in [STATE["worker"], SHARDS[0][0], SHARDS[1][0]]:
        assert process.end() == 0, process.name


cluster.run([start, steps, wrong_partners, hostile_bytes, many_links, stopped_shard, killed_shard,
             wrong_shards, orderly_end], 120, FOLDER)
