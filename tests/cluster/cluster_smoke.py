#!/usr/bin/env python3
"""`memrack up --static` with two memshards, as a user meets it.

    tests/cluster/cluster_smoke.py BUILD_DIR MODEL_DIR

Goal: without etcd one command starts a cluster that answers over HTTP; a stopped or killed memshard gives a clear
5xx that names it within a second while the other processes live on; the service returns with it; and
whatever ends `memrack up`, no process is left.
Method: the real processes, killed and stopped while requests run."""
import os
import signal
import sys
import threading
import time

import cluster
from cluster import Process, children_of, request

BUILD, MODEL = sys.argv[1], sys.argv[2]
FOLDER = cluster.temporary_folder()
NAME = os.path.basename(os.path.normpath(MODEL))
STATE = {}
AT_ONCE = {"memrack": {"on_lost_partition": "fail"}}  # the server's own way is to wait for two seconds


def start_up(name, *options, wait=True):
    up = Process(name, [os.path.join(BUILD, "memrack"), "up", MODEL, "--static", "--port", "0", *options], FOLDER)
    if not wait:
        return up, None
    line = up.wait_line("serving http://", 60)
    return up, line.split()[0]


def complete(max_tokens=8, seconds=20, **fields):
    body = {"model": NAME, "prompt": "define river", "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": True, **fields}
    return request(STATE["address"], "POST", "/v1/completions", body, seconds)


def must_complete(**fields):
    status, answer, _ = complete(**fields)
    assert status == 200, (status, answer)
    return answer["choices"][0]["text"]


def must_fail(seconds_max):
    """A 5xx whose sentence names the memshard."""
    status, answer, seconds = complete(**AT_ONCE)
    assert 500 <= status < 600, (status, answer)
    assert "memshard 1" in answer["error"]["message"], answer
    assert seconds < seconds_max, seconds


def wait_until_back(seconds=10):
    end = time.monotonic() + seconds
    while True:
        status, answer, _ = complete()
        if status == 200:
            return answer["choices"][0]["text"]
        assert time.monotonic() < end, (status, answer)
        time.sleep(0.1)


def starts():
    """`memrack up` starts two memshards, a worker and a coordinator, and shows them"""
    STATE["up"], STATE["address"] = start_up("up", "--memshards", "2", "--grid", "2x1")
    STATE["children"] = children_of(STATE["up"].pid)
    counts = {role: len(pids) for role, pids in STATE["children"].items()}
    assert counts == {"memshard": 2, "worker": 1, "coordinator": 1}, counts
    table = STATE["up"].text()
    for pids in STATE["children"].values():
        for pid in pids:
            assert f" {pid} " in table, table
    assert "cell 0 of 2x1" in table and "curl http://" in table, table


def answers():
    """it answers completions and health"""
    status, answer, _ = request(STATE["address"], "GET", "/health")
    assert status == 200, (status, answer)
    STATE["text"] = must_complete()
    assert STATE["text"].strip()
    assert must_complete() == STATE["text"]


def several_at_once():
    """requests beside each other get the same text as alone"""
    texts = [None] * 6

    def ask(index):
        texts[index] = complete(max_tokens=8)[1]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for answer in texts:
        assert answer and answer["choices"][0]["text"] == STATE["text"], answer


def stopped_shard():
    """a stopped memshard: 5xx that names it within a second, service after SIGCONT"""
    shard = STATE["children"]["memshard"][1]
    outcome = {}

    def ask_long():
        outcome["long"] = complete(max_tokens=2000, **AT_ONCE)
        outcome["end"] = time.monotonic()

    thread = threading.Thread(target=ask_long)  # a request that is under way when it happens
    thread.start()
    time.sleep(0.3)
    cluster.stop(shard)
    stopped = time.monotonic()
    thread.join(20)
    assert not thread.is_alive()
    if outcome["long"][0] != 200:  # else it was done before
        assert 500 <= outcome["long"][0] < 600, outcome
        assert outcome["end"] - stopped < 1.0, outcome["end"] - stopped
    must_fail(1.0)
    must_fail(1.0)
    assert children_of(STATE["up"].pid) == STATE["children"]
    os.kill(shard, signal.SIGCONT)
    assert wait_until_back() == STATE["text"]


def killed_shard():
    """a killed memshard: 5xx that names it within a second, the others live, `up` says so"""
    cluster.kill(STATE["children"]["memshard"][1])
    must_fail(1.0)
    must_fail(1.0)
    left = children_of(STATE["up"].pid)
    assert left["worker"] == STATE["children"]["worker"]
    assert left["coordinator"] == STATE["children"]["coordinator"]
    assert left["memshard"] == STATE["children"]["memshard"][:1], left
    end = time.monotonic() + 5
    while "memshard 1 (pid" not in STATE["up"].text():
        assert time.monotonic() < end, STATE["up"].text()
        time.sleep(0.05)
    assert "was killed by signal 9" in STATE["up"].text()


def shard_started_again():
    """the command that `up` shows brings the memshard back, and the service with it"""
    command = next(line for line in STATE["up"].text().splitlines() if "memrack-memshard --model" in line)
    arguments = command.split()
    arguments[0] = os.path.join(BUILD, "memrack-memshard")
    again = Process("memshard-again", arguments, FOLDER)
    again.wait_line("ready ", 20)
    assert wait_until_back() == STATE["text"]
    assert again.end() == 0


def ends_in_order():
    """Ctrl-C ends all processes and `up` with status 0, and removes its folder"""
    folder = STATE["up"].wait_line("logs and registry:", 1)
    assert os.path.isdir(folder)
    STATE["up"].signal(signal.SIGINT)
    assert STATE["up"].popen.wait(10) == 0
    assert_gone(STATE["children"])
    assert not os.path.exists(folder)


def assert_gone(children, seconds=5):
    end = time.monotonic() + seconds
    while alive := [pid for pids in children.values() for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, f"left running: {alive}"
        time.sleep(0.05)


def killed_up_leaves_nothing():
    """`up` killed without warning leaves no process behind"""
    up, _ = start_up("up-killed", "--memshards", "3", "--grid", "3x2")
    children = children_of(up.pid)
    assert len(children["memshard"]) == 3
    up.signal(signal.SIGKILL)
    assert_gone(children)


def stopped_child_is_killed():
    """a child that does not react to SIGTERM is killed after three seconds"""
    up, _ = start_up("up-stubborn", "--memshards", "1")
    children = children_of(up.pid)
    cluster.stop(children["memshard"][0])
    up.signal(signal.SIGTERM)
    assert up.popen.wait(8) == 0
    assert_gone(children)


def refuses():
    """what cannot work is refused before anything starts"""
    for options, reason in (
            (["--memshards", "3", "--grid", "1x2"], "the smallest grid that fits is 2x2"),
            (["--memshards", "3", "--grid", "1x1"], "the smallest grid that fits is 3x1"),
            (["--grid", "2"], "is not ROWSxCOLUMNS"),
            (["--memshards", "0"], "--memshards"),
            (["--isa", "sse9"], "sse9")):
        up, _ = start_up("up-refused-" + "".join(filter(str.isalnum, "".join(options))), *options, wait=False)
        assert up.popen.wait(30) != 0
        assert reason in up.text(), up.text()
        assert not children_of(up.pid)


cluster.run([starts, answers, several_at_once, stopped_shard, killed_shard, shard_started_again,
             ends_in_order, killed_up_leaves_nothing, stopped_child_is_killed, refuses], 180, FOLDER)
