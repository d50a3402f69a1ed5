#!/usr/bin/env python3
"""Speculation that changes nothing: the same bytes with it and without.

    tests/cluster/speculation.py BUILD_DIR MODEL_DIR

Goal: every response of a server that speculates equals that of one that does not: texts, log probabilities,
ends, usage, the pieces of a stream; in one process, with memshards and two stages, while workers and a
memshard are killed. And it does speculate.
Method: the same requests in the same order to both; replies are compared byte by byte without their id and
time. Where requests run side by side, what depends on who came first (cached tokens) is left out."""
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time

import cluster
import live
from cluster import Process, request

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
NAME = os.path.basename(MODEL)
FOLDER = cluster.temporary_folder()
STATE = {"started": 0}
WORDS = ["river", "stone", "winter", "mountain", "table", "music", "horse", "window", "bread", "island"]
REPEATING = "define river: a large natural stream of water. define river: a large natural"


def bodies():
    """(path, body): greedy and sampled, short and long, all ways to end, alone and with choices."""
    found = []
    for i, word in enumerate(WORDS):
        found.append(("chat/completions", {"messages": [{"role": "user", "content": f"define {word}"}],
                                           "temperature": 0 if i % 2 else 0.7, "seed": i}))
    for i in range(24):
        body = {"prompt": [f"define {WORDS[i % 10]}", REPEATING, "the sea the sea the sea the"][i % 3],
                "max_tokens": [1, 2, 3, 17, 60, 150][i % 6], "temperature": [0, 0.4, 0.9, 1.5][i % 4],
                "seed": 50 + i, "ignore_eos": i % 5 < 3}
        if i % 3 == 1:
            body["logprobs"] = i % 6
        if i % 4 == 2:
            body["stop"] = [["water", "of a"], "e", " the large"][i % 3]
        if i % 7 == 3:
            body["n"] = 3
        if i % 7 == 5:
            body["stop_token_ids"] = [260 + i, 300, 400]
        if i % 6 == 5:
            body.update(top_k=30, top_p=0.9, min_p=0.02)
        found.append(("completions", body))
    chance = random.Random(7)
    for i in range(6):  # ids that repeat, and such that do not; up to the end of the context
        some = [chance.randrange(6, 4000) for _ in range(20)]
        ids = (some * 9)[:170] if i % 2 else [chance.randrange(6, 4000) for _ in range(120)]
        found.append(("completions", {"prompt": ids, "max_tokens": 200, "temperature": [0, 0.3, 0.8][i % 3],
                                      "seed": i, "ignore_eos": True, "logprobs": 1}))
    found.append(("completions", {"prompt": ["define bread", REPEATING, "stone"], "n": 2, "max_tokens": 40,
                                  "temperature": 0.8, "seed": 9, "echo": True}))
    return found


def post(address, path, body, seconds=60):
    """(status, bytes without id and time)"""
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=seconds)
    try:
        connection.request("POST", path if path[0] == "/" else "/v1/" + path, json.dumps({"model": NAME, **body}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        return response.status, re.sub(rb'"id":"[^"]*"|"created":[0-9]+', b"", data)
    finally:
        connection.close()


def by_choice(data):
    """The events of a stream, of each choice for itself: how choices take turns is nobody's business."""
    found = {}
    for line in data.split(b"\n"):
        if line.startswith(b"data: {"):
            index = re.search(rb'"index":([0-9]+)', line)
            found.setdefault(index and index.group(1), []).append(line)
        elif line.startswith(b"data: "):
            found.setdefault(b"end", []).append(line)
    return found


def without_cached(reply):
    return reply[0], re.sub(rb'"cached_tokens":[0-9]+', b"", reply[1])


def metric(address, name):
    text = request(address, "GET", "/metrics")[1]
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])


def accepted(address):
    return metric(address, "memrack_speculation_accepted_tokens_total")


def serve(*options):
    STATE["started"] += 1
    process = Process(f"serve-{STATE['started']}", [os.path.join(BUILD, "memrack"), "serve", MODEL, "--port",
                                                    "0", "--threads", "1", *options], FOLDER)
    return live.address_in(process, 60)


def starts():
    """one process without speculation, three with"""
    STATE["plain"] = serve()
    STATE["both"] = serve("--speculate", "8")
    STATE["lookup"] = serve("--speculate", "32", "--draft", "lookup")
    STATE["ngram"] = serve("--speculate", "3", "--draft", "ngram", "--grid", "2x2")


def same_bytes():
    """replies are equal, byte by byte"""
    for turn in range(2):
        for path, body in bodies():
            right = post(STATE["plain"], path, body)
            assert right[0] == 200, (body, right)
            for kind in ("both", "lookup", "ngram"):
                got = post(STATE[kind], path, body)
                assert got == right, (turn, kind, body, right, got)
    assert metric(STATE["plain"], "memrack_speculation_drafted_tokens_total") == 0
    steps = {kind: metric(STATE[kind], "memrack_steps_total") for kind in ("plain", "both", "lookup", "ngram")}
    for kind in ("both", "lookup", "ngram"):
        assert accepted(STATE[kind]) > 20, (kind, accepted(STATE[kind]))
        assert steps[kind] < steps["plain"], steps
    assert steps["both"] < 0.9 * steps["plain"], steps


def same_streams():
    """so are streams, piece by piece"""
    for path, body in bodies():
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        right, got = post(STATE["plain"], path, body), post(STATE["both"], path, body)
        assert right[0] == 200 and got[0] == 200
        assert by_choice(right[1]) == by_choice(got[1]), (body, right, got)


def same_logits():
    """logits requests are no business of speculation"""
    ids = [[(7 * i * i + 3 * i + 1) % 4000 for i in range(40)]]
    body = {"input_ids": ids, "prefill_chunk": 7, "decode_from": 20}
    right, got = (post(STATE[kind], "/memrack/v1/logits", body) for kind in ("plain", "both"))
    assert right == got and right[0] == 200 and len(right[1]) > 40 * 4000 * 4


def in_a_crowd(address, wanted, meanwhile=None, more=None):
    """Replies to all requests at once."""
    replies = [None] * len(wanted)

    def one(i):
        path, body = wanted[i]
        replies[i] = post(address, path, {**body, **(more or {})})

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    if meanwhile:
        meanwhile()
    for thread in threads:
        thread.join(90)
    return [reply and without_cached(reply) for reply in replies]


def side_by_side():
    """many requests at once"""
    STATE["right"] = [without_cached(post(STATE["plain"], *one)) for one in bodies()]
    for kind in ("both", "lookup", "ngram"):
        for body, right, got in zip(bodies(), STATE["right"], in_a_crowd(STATE[kind], bodies())):
            assert got == right, (kind, body, right, got)


def asked_for():
    """a request may ask for less, and is told what came of it"""
    path, body = "completions", {"prompt": REPEATING, "max_tokens": 120, "temperature": 0, "ignore_eos": True}
    told = {}
    for wanted in (0, 4, 8, 2, 32):  # with 4 the table learns it
        status, data = post(STATE["both"], path, {**body, "memrack": {"speculate": wanted}})
        reply = json.loads(data.replace(b"{,", b"{").replace(b",,", b","))
        assert status == 200 and reply["usage"]["completion_tokens"] == 120, reply
        told[wanted] = reply.pop("memrack")["speculation"]
        plain = json.loads(post(STATE["plain"], path, body)[1].replace(b"{,", b"{").replace(b",,", b","))
        assert reply["choices"] == plain["choices"]
    assert told[0] == {"steps": 0, "drafted_tokens": 0, "accepted_tokens": 0}, told
    assert 0 < told[2]["drafted_tokens"] <= 2 * told[2]["steps"], told
    assert told[8]["accepted_tokens"] > 20, told
    assert told[32]["drafted_tokens"] <= 8 * told[32]["steps"], told
    plain = json.loads(post(STATE["plain"], path, {**body, "memrack": {"speculate": 8}})[1]
                       .replace(b"{,", b"{").replace(b",,", b","))
    assert plain["memrack"]["speculation"]["steps"] == 0, plain  # the server's maximum is 0
    for bad in (-1, 33, 1.5, "2", True):
        assert post(STATE["both"], path, {**body, "memrack": {"speculate": bad}})[0] == 400, bad


def commands():
    """generate says the same; bad options get a sentence"""
    def generate(*options):
        return subprocess.run([os.path.join(BUILD, "memrack"), "generate", MODEL, "--chat", "-p", "define river",
                               "--seed", "4", "--threads", "1", *options], capture_output=True, text=True,
                              timeout=60, check=False)
    right = generate()
    assert right.returncode == 0 and len(right.stdout) > 20, right
    assert generate("--speculate", "6").stdout == right.stdout
    assert generate("--speculate", "32", "--draft", "lookup").stdout == right.stdout
    for options, sentence in ((("--speculate", "33"), "--speculate"), (("--draft", "magic"), "'magic'")):
        bad = generate(*options)
        assert bad.returncode == 2 and sentence in bad.stderr, bad


# --- a cluster ----------------------------------------------------------------------------------


def start(role, *arguments):
    STATE["started"] += 1
    return Process(f"{role}-{STATE['started']}",
                   [os.path.join(BUILD, "memrack-" + role), "--model", MODEL, *arguments], FOLDER)


def start_shard(index, listen="127.0.0.1:0"):
    process = start("memshard", "--grid", "2x1", "--index", str(index), "--of", "2", "--listen", listen)
    return process, process.wait_line("ready ", 30)


def start_worker(listen="127.0.0.1:0", *extra):
    shards = [x for address in STATE["shards"] for x in ("--memshard", address)]
    process = start("worker", "--threads", "1", "--listen", listen, *shards, *extra)
    return process, process.wait_line("ready ", 30)


def states():
    return {g["name"]: g["state"] for g in request(STATE["address"], "GET", "/health")[1]["groups"]}


def all_up():
    live.until(lambda: set(states().values()) == {"up"}, 20, lambda: str(states()))


def a_cluster():
    """memshards, a worker, a pipeline of two stages: the same"""
    started = [start_shard(i) for i in range(2)]
    STATE["shard"], STATE["shards"] = started[1][0], [address for _, address in started]
    STATE["single"], STATE["single_at"] = start_worker()
    _, last_at = start_worker("127.0.0.1:0", "--stage", "1/2")
    STATE["first"], STATE["first_at"] = start_worker("127.0.0.1:0", "--stage", "0/2", "--next", last_at)
    coordinator = start("coordinator", "--port", "0", "--worker", STATE["single_at"], "--worker",
                        STATE["first_at"], "--worker-wait-ms", "20000", "--lost-wait-ms", "20000",
                        "--speculate", "6")
    STATE["address"] = live.address_in(coordinator, 30)
    all_up()
    for _ in range(2):
        assert in_a_crowd(STATE["address"], bodies()) == STATE["right"]
    assert accepted(STATE["address"]) > 20
    figures = request(STATE["address"], "GET", "/metrics")[1]
    for name in ("worker0", "worker1"):
        assert f'memrack_group_steps_total{{group="{name}"}} 0' not in figures, figures


def under_way(what):
    """While requests are being answered: waits until guesses are being accepted, then does it."""
    def act():
        before = accepted(STATE["address"])
        live.until(lambda: accepted(STATE["address"]) > before + 5, 20, "nothing is accepted")
        what()
    return act


def killed_workers():
    """workers killed in the midst of it"""
    before = metric(STATE["address"], "memrack_failovers_total")
    for name in ("single", "first", "single"):
        right, listen = STATE["right"], STATE[name + "_at"]
        got = in_a_crowd(STATE["address"], bodies(), under_way(STATE[name].kill))
        assert got == right, name
        extra = [] if name == "single" else STATE["first"].arguments[-4:]
        STATE[name], _ = start_worker(listen, *extra)
        all_up()
    assert metric(STATE["address"], "memrack_failovers_total") > before


def killed_memshard():
    """a memshard killed in the midst of it, and back"""
    def kill_and_start():
        STATE["shard"].kill()
        time.sleep(0.3)
        STATE["shard"], _ = start_shard(1, STATE["shards"][1])

    before = metric(STATE["address"], "memrack_step_retries_total")
    assert in_a_crowd(STATE["address"], bodies(), under_way(kill_and_start)) == STATE["right"]
    assert metric(STATE["address"], "memrack_step_retries_total") > before


def cancelled():
    """clients that leave in mid-answer leave nothing behind"""
    host, port = STATE["address"].rsplit(":", 1)
    for i in range(20):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        body = {"model": NAME, "prompt": REPEATING, "max_tokens": 200, "ignore_eos": True, "stream": True,
                "n": 1 + i % 3, "temperature": 0.2, "seed": i}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        connection.getresponse().readline()
        connection.close()
    live.until(lambda: metric(STATE["address"], "memrack_kv_blocks_used") == 0, 20, "KV blocks are not given back")
    assert in_a_crowd(STATE["address"], bodies()) == STATE["right"]


cluster.run([starts, same_bytes, same_streams, same_logits, side_by_side, asked_for, commands, a_cluster,
             killed_workers, killed_memshard, cancelled], 280, FOLDER)
