#!/usr/bin/env python3
"""`memrack up` around a real etcd, with faults under load.

    tests/cluster/etcd_cluster.py BUILD_DIR MODEL_DIR

Goal: two replica sets, two worker groups of two stages and two coordinators answer like one process;
a killed or stopped replica, worker, coordinator or etcd, and an etcd that lost its data, fail no request
of a coordinator that lives, change no answer, and put nobody out.
Method: eight clients stream greedy and seeded answers from both coordinators all the time, each compared
with what `memrack serve` says; meanwhile processes are killed and stopped."""
import os
import shutil
import signal
import sys
import time

import cluster
import live

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
FOLDER = cluster.temporary_folder()
STATE = {}


def starts():
    """`memrack up` starts eleven processes around etcd and shows them"""
    up = STATE["up"] = live.Up(BUILD, MODEL, FOLDER, "--memshards", "2", "--replicas", "2", "--workers", "2",
                               "--stages", "2", "--coordinators", "2", "--threads", "1")
    pids = up.pids()
    assert len(pids) == 11 and "etcd" in pids, pids
    up.wait_well(20, 10)
    code, table = up.command("status")
    assert code == 0 and "g1 stage 1/2" in table and "2x1" in table, table
    STATE["addresses"] = up.addresses()
    assert len(STATE["addresses"]) == 2


def same_answers():
    """greedy and seeded answers of both coordinators are those of one process"""
    name = os.path.basename(MODEL)
    STATE["wanted"] = live.bodies(name, 6, 120)
    STATE["right"] = live.answers_of_one_process(BUILD, MODEL, FOLDER, STATE["wanted"])
    assert len(set(STATE["right"])) > 3
    for address in STATE["addresses"]:
        for body, text in zip(STATE["wanted"], STATE["right"]):
            assert live.stream(address, body)[0] == text, (address, body)


def begin_load():
    """eight clients, all answers as they should be"""
    STATE["load"] = live.Load(STATE["addresses"], STATE["wanted"], STATE["right"])
    STATE["load"].more(40)


def replica_killed():
    """kill -9 of a memshard replica"""
    victim = STATE["up"].pids()["memshard/m0"]
    usual, worst, after = live.measure(STATE["load"], 2, lambda: cluster.kill(victim), 2)
    print(f"      longest pause in an answer: {usual:.0f} ms usually, at most {worst:.0f} ms before, "
          f"{after:.0f} ms after kill -9 of a replica")
    STATE["up"].wait_well(20, 10)  # it is started again, and has its cells again


def replica_stopped():
    """SIGSTOP of a memshard replica, SIGCONT three seconds later"""
    victim = STATE["up"].pids()["memshard/m3"]
    usual, worst, after = live.measure(STATE["load"], 2, lambda: live.freeze(victim, 3), 4)
    print(f"      longest pause in an answer: {usual:.0f} ms usually, at most {worst:.0f} ms before, "
          f"{after:.0f} ms after SIGSTOP of a replica")
    STATE["up"].wait_well(20, 10)


def worker_killed():
    """kill -9 of a worker: its answers go on in the other group"""
    for victim in ("worker/w0", "worker/w3"):
        before = STATE["up"].pids()[victim]
        usual, _, after = live.measure(STATE["load"], 0.5, lambda p=before: cluster.kill(p), 1)
        print(f"      longest pause in an answer: {usual:.0f} ms usually, {after:.0f} ms after kill -9 of "
              f"{victim}")
        live.until(lambda v=victim, b=before: STATE["up"].pids().get(v, b) != b, 10, "it is not started again")
        STATE["up"].wait_well(25, 10)
        STATE["load"].more(20)


def worker_stopped():
    """SIGSTOP of a worker for three seconds"""
    victim = STATE["up"].pids()["worker/w0"]
    usual, _, after = live.measure(STATE["load"], 0.5, lambda: live.freeze(victim, 3), 4)
    print(f"      longest pause in an answer: {usual:.0f} ms usually, {after:.0f} ms after SIGSTOP of a worker")
    STATE["up"].wait_well(20, 10)
    STATE["load"].more(20)


def owner_killed():
    """kill -9 of the coordinator that owns groups: the other one takes them within 3 s"""
    up, load = STATE["up"], STATE["load"]
    owners = {group: owner["coordinator"] for group, owner in up.status()["owners"].items()}
    assert set(owners) == {"g0", "g1"}, owners
    victim = owners["g0"]
    number = int(victim[1:])
    load.excused.add(STATE["addresses"][number])
    pid = up.pids()[f"coordinator/{victim}"]
    cluster.stop(up.pid)  # or it starts the coordinator again, which then keeps its groups
    begin = time.monotonic()
    cluster.kill(pid)
    lost = [group for group, owner in owners.items() if owner == victim]

    def are_taken():
        now = up.status()
        return now and all(now["owners"][group]["coordinator"] != victim for group in lost)
    try:
        live.until(are_taken, 10, lambda: str(up.status()))
    finally:
        os.kill(up.pid, signal.SIGCONT)
    took = time.monotonic() - begin
    print(f"      {len(lost)} groups of {victim} taken over after {took:.2f} s; "
          f"{load.lost} requests were lost with it")
    assert took < 3.0, took
    with load.lock:
        load.addresses = [a for i, a in enumerate(STATE["addresses"]) if i != number]
    load.more(40)
    up.wait_well(20, 10)
    is_there = lambda: [m["member"].get("http") for m in up.status()["members"]  # noqa: E731
                        if m["member"]["id"] == victim and m["answers"]]
    STATE["addresses"][number] = live.until(is_there, 20, "no address of the new coordinator")[0]
    with load.lock:
        load.addresses = list(STATE["addresses"])
        load.excused.clear()
    load.more(40)


def etcd_killed():
    """kill -9 of etcd, and SIGSTOP of etcd for eight seconds"""
    up, load = STATE["up"], STATE["load"]
    before = up.status()
    cluster.kill(up.pids()["etcd"])
    load.more(40)
    live.until(lambda: "etcd" in up.pids(), 10, "etcd is not started again")
    up.wait_well(20, 10)
    live.freeze(up.pids()["etcd"], 8)
    end = time.monotonic() + 9
    while time.monotonic() < end:
        load.more(10)
    up.wait_well(20, 10)
    assert_same_members(before)


def assert_same_members(before):
    now = STATE["up"].status()
    born = [{m["member"]["id"]: m["member"]["incarnation"] for m in s["members"]} for s in (before, now)]
    assert born[0] == born[1], born
    epochs = [{m["digest"]: m["epoch"] for m in s["maps"]} for s in (before, now)]
    assert epochs[0] == epochs[1], epochs


def etcd_wiped():
    """etcd loses all its data: members, model and map are put again, nobody goes"""
    up, load = STATE["up"], STATE["load"]
    before = up.status()
    pid = up.pids()["etcd"]
    os.kill(pid, signal.SIGSTOP)
    os.rename(os.path.join(up.run_folder, "etcd"), os.path.join(up.run_folder, "lost"))
    cluster.kill(pid)
    shutil.rmtree(os.path.join(up.run_folder, "lost"), ignore_errors=True)
    load.more(40)
    live.until(lambda: up.pids().get("etcd", pid) != pid, 10, "etcd is not started again")
    begin = time.monotonic()

    def is_back():
        keys = live.etcdctl(up.etcd, "get", "--prefix", "--keys-only", "/memrack/").split()
        kinds = [key.split("/")[3] for key in keys]
        return kinds.count("members") == 10 and kinds.count("models") == 1 and kinds.count("maps") == 1
    live.until(is_back, 20, lambda: live.etcdctl(up.etcd, "get", "--prefix", "--keys-only", "/memrack/"))
    print(f"      all records are there again {time.monotonic() - begin:.1f} s after etcd")
    load.more(40)
    up.wait_well(20, 10)
    assert_same_members(before)


def ends():
    """all answers were right; nothing is left"""
    up = STATE["up"]
    answers = STATE["load"].stop()
    pids = up.pids()
    up.end()
    print(f"      {answers} answers, none wrong, none failed")
    live.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids.values()), 5, str(pids))


def shown(check):
    """The logs of the members too, where a check fails."""
    def run():
        try:
            check()
        except BaseException:
            if "up" in STATE:
                STATE["up"].show_logs()
            raise
    run.__doc__ = check.__doc__
    return run


live.need("etcd", "etcdctl")
live.need_cluster(BUILD)
cluster.run([shown(c) for c in (starts, same_answers, begin_load, replica_killed, replica_stopped, worker_killed,
                                worker_stopped, owner_killed, etcd_killed, etcd_wiped, ends)], 150, FOLDER)
