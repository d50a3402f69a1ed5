#!/usr/bin/env python3
"""One coordinator, several worker groups, all real processes.

    tests/cluster/groups.py BUILD_DIR MODEL_DIR

Goal: an answer does not show which group wrote it, how many stages that has, what was cached, or that
its group was killed or stopped on the way; without any group requests wait, then get a reason.
Method: answers with a seed are asked for once in peace; then again while the group that writes them is
killed, stopped or started again; the texts and log probabilities must be equal."""
import os
import signal
import sys
import threading
import time

import cluster
from cluster import Process, request

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
NAME = os.path.basename(MODEL)
FOLDER = cluster.temporary_folder()
STATE = {"started": 0}
PROMPTS = ["define river", "define mountain and say where the name is from", "the sea",
           "define winter, define summer, define spring, and define autumn, one after the other"]


def start(role, *arguments):
    STATE["started"] += 1
    return Process(f"{role}-{STATE['started']}",
                   [os.path.join(BUILD, "memrack-" + role), "--model", MODEL, *arguments], FOLDER)


def start_worker(listen="127.0.0.1:0", *extra):
    shards = [x for address in STATE["shards"] for x in ("--memshard", address)]
    worker = start("worker", "--threads", "1", "--listen", listen, *shards, *extra)
    return worker, worker.wait_line("ready ", 30)


def body_of(index, **fields):
    return {"model": NAME, "prompt": PROMPTS[index % len(PROMPTS)], "max_tokens": 60, "temperature": 0.9,
            "seed": 100 + index, "n": 1 + index % 2, "logprobs": 2, "ignore_eos": True, **fields}


def ask(index, **fields):
    return request(STATE["address"], "POST", "/v1/completions", body_of(index, **fields), 30)


def choices_of(answer):
    status, reply, _ = answer
    assert status == 200, answer
    return [(c["text"], c["logprobs"]["token_logprobs"]) for c in reply["choices"]]


def ask_all(meanwhile=None, count=8):
    answers = [None] * count
    threads = [threading.Thread(target=lambda i=i: answers.__setitem__(i, ask(i))) for i in range(count)]
    for thread in threads:
        thread.start()
    if meanwhile:
        time.sleep(0.15)
        meanwhile()
    for thread in threads:
        thread.join(40)
    return [choices_of(answer) for answer in answers]


def groups():
    _, health, _ = request(STATE["address"], "GET", "/health")
    return {g["name"]: g for g in health["groups"]}


def wait_states(**wanted):
    end = time.monotonic() + 15
    while {name: groups()[name]["state"] for name in wanted} != wanted:
        assert time.monotonic() < end, groups()
        time.sleep(0.05)


def metric(name):
    _, text, _ = request(STATE["address"], "GET", "/metrics")
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])


def starts():
    """a worker, a pipeline of two, and a coordinator over both"""
    shards = [start("memshard", "--grid", "2x1", "--index", str(i), "--of", "2") for i in range(2)]
    STATE["shards"] = [shard.wait_line("ready ", 30) for shard in shards]
    STATE["single"], STATE["single_at"] = start_worker()
    STATE["last"], last_at = start_worker("127.0.0.1:0", "--stage", "1/2")
    STATE["first"], STATE["first_at"] = start_worker("127.0.0.1:0", "--stage", "0/2", "--next", last_at)
    coordinator = start("coordinator", "--port", "0", "--worker", STATE["single_at"], "--worker",
                        STATE["first_at"], "--worker-wait-ms", "1500", "--silence-ms", "600")
    STATE["address"] = address_of(coordinator)
    wait_states(worker0="up", worker1="up")
    assert groups()["worker1"]["stages"] == 2, groups()
    status, _, _ = request(STATE["address"], "GET", "/readyz")
    assert status == 200


def address_of(coordinator, seconds=30):
    end = time.monotonic() + seconds
    while "listening on http://" not in coordinator.text():
        assert time.monotonic() < end and coordinator.is_alive()
        time.sleep(0.02)
    return coordinator.text().split("listening on http://")[1].split('"')[0].split()[0]


def in_peace():
    """answers with a seed repeat, whichever group writes them"""
    STATE["right"] = ask_all()
    assert ask_all() == STATE["right"]
    figures = request(STATE["address"], "GET", "/metrics")[1]
    for name in ("worker0", "worker1"):
        assert f'memrack_group_steps_total{{group="{name}"}} 0' not in figures, figures


def cached():
    """a prompt that is known begins behind its cached blocks"""
    reply = ask(3)[1]
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16, reply["usage"]
    assert choices_of((200, reply, 0)) == STATE["right"][3]


def killed():
    """a killed worker's answers go on in the other group, with the same tokens"""
    before = metric("memrack_failovers_total")
    assert ask_all(lambda: cluster.kill(STATE["single"].pid)) == STATE["right"]
    assert metric("memrack_failovers_total") > before
    STATE["single"], _ = start_worker(STATE["single_at"])
    wait_states(worker0="up")


def stopped():
    """so do those of a stopped one"""
    assert ask_all(lambda: cluster.stop(STATE["first"].pid)) == STATE["right"]
    os.kill(STATE["first"].pid, signal.SIGCONT)
    wait_states(worker1="up")
    assert ask_all() == STATE["right"]


def none_left():
    """without any group requests wait for one, then get a reason"""
    cluster.kill(STATE["first"].pid)
    cluster.kill(STATE["single"].pid)
    status, reply, seconds = ask(0)
    assert status == 503 and 1 < seconds < 5, (status, reply, seconds)
    assert reply["error"]["message"], reply

    # asked before the worker is back; as often as its start takes longer than a request waits
    answers = []

    def ask_until_answered():
        end = time.monotonic() + 20
        while time.monotonic() < end and (not answers or answers[-1][0] == 503):
            answers.append(ask(0))

    thread = threading.Thread(target=ask_until_answered)
    thread.start()
    STATE["single"], _ = start_worker(STATE["single_at"])  # here: it ends with the thread that starts it
    thread.join(30)
    assert choices_of(answers[-1]) == STATE["right"][0]


cluster.run([starts, in_peace, cached, killed, stopped, none_left], 180, FOLDER)
