#!/usr/bin/env python3
"""Rolling restarts under streaming load.

    tests/cluster/rolling.py BUILD_DIR MODEL_DIR

Goal: every memshard (two replica sets), every worker (two groups) and one of two coordinators is ended with
SIGTERM and started again, one after the other; no request fails, and all texts stay the same.
Method: members started by hand around a real etcd, as a supervisor would; eight streaming clients."""
import os
import subprocess
import sys
import time

import cluster
import live
from cluster import Process

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
NAME = os.path.basename(MODEL)
FOLDER = cluster.temporary_folder()
STATE = {"started": 0, "members": {}}
SHARDS, WORKERS, COORDINATORS = ["m0", "m1", "m2", "m3"], ["w0", "w1"], ["c0", "c1"]


def arguments_of(name):
    common = ["--cluster", "etcd:" + STATE["etcd"], "--id", name, "--plain-control"]
    if name[0] == "m":
        return "memshard", [*common, "--set", f"r{int(name[1:]) // 2}", "--capacity", "1GiB"]
    if name[0] == "w":
        return "worker", [*common, "--model", MODEL, "--group", "g" + name[1:], "--threads", "1"]
    return "coordinator", [*common, "--port", "0", "--allow-same-host"]


def start(name):
    role, arguments = arguments_of(name)
    STATE["started"] += 1
    process = Process(f"{name}-{STATE['started']}", [os.path.join(BUILD, f"memrack-{role}"), *arguments],
                      FOLDER)
    STATE["members"][name] = process
    if role == "coordinator":
        return live.address_in(process, 20)
    return process.wait_line("ready ", 30)


def command(*words, seconds=60):
    done = subprocess.run([os.path.join(BUILD, "memrack"), *words, "--cluster", "etcd:" + STATE["etcd"]],
                          capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout + done.stderr


def wait_well(seconds=25):
    live.until(lambda: command("status")[0] == 0, seconds, lambda: command("status")[1])


def starts():
    """four memshards, two workers, two coordinators around a real etcd"""
    STATE["etcd_process"], STATE["etcd"] = live.start_etcd(FOLDER)
    live.until(lambda: live_etcd(), 20, "etcd does not answer")
    for name in SHARDS:
        start(name)
    STATE["addresses"] = [start(name) for name in COORDINATORS]
    code, text = command("load", MODEL, "--grid", "4x1", "--replicas", "2", "--wait", "30")
    assert code == 0, text
    for name in WORKERS:
        start(name)
    wait_well()
    STATE["wanted"] = live.bodies(NAME, 6, 100)
    STATE["right"] = live.answers_of_one_process(BUILD, MODEL, FOLDER, STATE["wanted"])
    for address in STATE["addresses"]:
        live.until(lambda a=address: cluster.request(a, "GET", "/v1/models")[1]["data"], 10, "no model")
    STATE["load"] = live.Load(STATE["addresses"], STATE["wanted"], STATE["right"])
    STATE["load"].more(40)


def live_etcd():
    try:
        live.etcdctl(STATE["etcd"], "endpoint", "health")
        return True
    except AssertionError:
        return False


def roll(names):
    for name in names:
        begin = time.monotonic()
        status = STATE["members"][name].end(20)
        assert status == 0, (name, status)
        STATE["load"].more(6)
        start(name)
        wait_well()
        STATE["load"].more(12)
        worst = STATE["load"].pauses(begin, time.monotonic())[-1]
        print(f"      {name}: {time.monotonic() - begin:.1f} s, longest pause in an answer {1e3 * worst:.0f} ms")


def memshards():
    """every memshard, one after the other"""
    roll(SHARDS)


def workers():
    """every worker, one after the other"""
    roll(WORKERS)


def drained_workers():
    """a worker that is drained first and started again"""
    name = WORKERS[0]
    code, text = command("drain", name, "--timeout", "30")
    assert code == 0, text
    assert STATE["members"][name].popen.wait(10) == 0
    STATE["load"].more(12)
    start(name)
    wait_well()
    STATE["load"].more(12)


def coordinators():
    """a coordinator: clients that went elsewhere before notice nothing"""
    load = STATE["load"]
    with load.lock:
        load.addresses = [STATE["addresses"][1]]
    time.sleep(1)  # what is under way at the other one ends
    begin = time.monotonic()
    assert STATE["members"]["c0"].end(40) == 0
    load.more(30)
    STATE["addresses"][0] = start("c0")
    wait_well()
    with load.lock:
        load.addresses = list(STATE["addresses"])
    live.until(lambda: cluster.request(STATE["addresses"][0], "GET", "/v1/models")[1]["data"], 10, "no model")
    load.more(30)
    print(f"      c0: {time.monotonic() - begin:.1f} s")


def ends():
    """all answers were right; every process ends in order"""
    print(f"      {STATE['load'].stop()} answers, none wrong, none failed")
    for name in (*COORDINATORS, *WORKERS, *SHARDS):
        assert STATE["members"][name].end(20) == 0, name
    STATE["etcd_process"].end(10)


live.need("etcd", "etcdctl")
live.need_cluster(BUILD)
cluster.run([starts, memshards, workers, drained_workers, coordinators, ends], 150, FOLDER)
