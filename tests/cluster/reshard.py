#!/usr/bin/env python3
"""A cluster whose memshards, models and versions come and go under load.

    tests/cluster/reshard.py BUILD_DIR MODEL_DIR

Goal: a memshard that joins gets cells, one that is drained gives them away and ends; models and versions
are loaded, switched, rolled back and unloaded; a leader that dies in the middle of a load is followed by one
that finishes it. No request fails, and no answer is of two versions.
Method: `memrack up`, members started by hand beside it, streaming clients all the time. The other version
is a copy of the model with the rows of its table in another order."""
import json
import os
import shutil
import struct
import sys
import time

import cluster
import live
from cluster import Process, request

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
NAME = os.path.basename(MODEL)
FOLDER = cluster.temporary_folder()
OTHER = os.path.join(FOLDER, "other")
STATE = {}


def make_other():
    """A model of the same shape with other answers: the two halves of its value table change places."""
    with open(os.path.join(MODEL, "model.safetensors.index.json")) as file:
        index = json.load(file)["weight_map"]
    table = next(name for tensor, name in index.items() if tensor.endswith(".values_for_look_up")
                 and ".pre_" not in tensor and not tensor.endswith("pre_values_for_look_up"))
    shutil.copytree(MODEL, OTHER, ignore=shutil.ignore_patterns("training"))
    path = os.path.join(OTHER, table)
    with open(path, "rb") as file:
        data = file.read()
    first = 8 + struct.unpack("<Q", data[:8])[0]
    half = (len(data) - first) // 2
    with open(path, "wb") as file:
        file.write(data[:first] + data[first + half:] + data[first:first + half])


def starts():
    """`memrack up` with three memshards and two coordinators; what one process answers"""
    make_other()
    STATE["up"] = live.Up(BUILD, MODEL, FOLDER, "--memshards", "3", "--workers", "2", "--coordinators", "2",
                          "--grid", "6x1", "--threads", "1")
    STATE["wanted"] = live.bodies(NAME, 6, 60)
    STATE["v1"] = live.answers_of_one_process(BUILD, MODEL, FOLDER, STATE["wanted"])
    STATE["v2"] = live.answers_of_one_process(BUILD, OTHER, FOLDER, STATE["wanted"], NAME)
    assert all(a != b for a, b in zip(STATE["v1"], STATE["v2"]))
    STATE["up"].wait_well(20, 7)
    STATE["load"] = live.Load(STATE["up"].addresses(), STATE["wanted"], STATE["v1"], 4)
    STATE["load"].more(20)


def start(role, name, *arguments):
    up = STATE["up"]
    process = Process(f"{role}-{name}", [os.path.join(BUILD, f"memrack-{role}"), "--cluster", up.where,
                                         "--cluster-name", up.name, "--id", name, "--plain-control",
                                         *arguments], FOLDER)
    process.wait_line("ready ", 30)
    return process


def maps():
    """{digest: (epoch, {member: cells})}"""
    found = {}
    for record in STATE["up"].status()["maps"]:
        holders = {}
        for cell, replicas in enumerate(record["cells"]):
            for member in replicas if isinstance(replicas, list) else [replicas]:
                name = member if isinstance(member, str) else record["members"][member]
                holders.setdefault(name, []).append(cell)
        found[record["digest"]] = (record["epoch"], holders)
    return found


def the_map():
    return maps()[STATE["digest"]]


def joins():
    """a memshard that joins loads cells, and the map switches under load"""
    STATE["digest"] = next(iter(maps()))
    epoch, before = the_map()
    assert sum(map(len, before.values())) == 6 and "m9" not in before, before
    capacity = next(m["member"]["capacity_bytes"] for m in STATE["up"].status()["members"]
                    if m["member"]["id"] == "m0")  # cells are shared out by capacity
    STATE["joined"] = start("memshard", "m9", "--set", "r0", "--capacity", str(capacity))
    begin = time.monotonic()
    live.until(lambda: "m9" in the_map()[1], 20, lambda: str(maps()))
    print(f"      {len(the_map()[1]['m9'])} cells at the new memshard after {time.monotonic() - begin:.1f} s")
    assert the_map()[0] > epoch
    STATE["load"].more(30)


def drains():
    """`memrack drain` empties a memshard and ends it, under load"""
    victim = "m1"
    pid = STATE["up"].pids()[f"memshard/{victim}"]
    begin = time.monotonic()
    code, text = STATE["up"].command("drain", victim, "--timeout", "40", seconds=55)
    assert code == 0 and "drained" in text, (code, text)
    print(f"      drained after {time.monotonic() - begin:.1f} s")
    assert victim not in the_map()[1], the_map()
    live.until(lambda: not os.path.exists(f"/proc/{pid}") or pid not in STATE["up"].pids().values(), 5,
               "it has not ended")
    STATE["load"].more(30)
    assert f"memshard/{victim}" not in STATE["up"].pids(), "what was drained is started again"


def second_model():
    """a second model is loaded, answers beside the first, and is unloaded"""
    up = STATE["up"]
    code, text = up.command("load", OTHER, "--name", "second", "--grid", "2x1", "--wait", "30")
    assert code == 0, text
    worker = start("worker", "s0", "--model", OTHER, "--group", "second0", "--threads", "1")
    body = {**STATE["wanted"][0], "model": "second"}

    def answers():
        status, answer, _ = request(up.addresses()[0], "POST", "/v1/completions", body)
        return status == 200 and answer["choices"][0]["text"]
    assert live.until(answers, 20, "the second model does not answer") == STATE["v2"][0]
    for address in up.addresses():
        assert live.stream(address, body)[0] == STATE["v2"][0]
    names = [m["id"] for m in request(up.addresses()[1], "GET", "/v1/models")[1]["data"]]
    assert sorted(names) == sorted([NAME, "second"]), names
    assert worker.end(20) == 0
    code, text = up.command("unload", "second")
    assert code == 0, text
    live.until(lambda: len(maps()) == 1, 20, lambda: str(maps()))
    live.until(lambda: request(up.addresses()[0], "POST", "/v1/completions", body)[0] == 404, 10,
               "an unloaded model is still there")
    held = lambda: {h["digest"] for m in up.status()["members"]  # noqa: E731
                    for h in m["member"].get("holdings", [])}
    live.until(lambda: held() == {STATE["digest"]}, 20, lambda: str(held()))
    STATE["load"].more(20)


def versions():
    """two versions: load, switch, rollback under load, and no answer of both"""
    up, load = STATE["up"], STATE["load"]
    code, text = up.command("switch", NAME, "v2")
    assert code != 0 and "no version v2" in text, text
    code, text = up.command("load", OTHER, "--name", NAME, "--version", "v2", "--grid", "3x1", "--wait", "30")
    assert code == 0, text
    code, text = up.command("switch", NAME, "v2")
    assert code != 0 and "no worker serves it" in text, text
    STATE["worker2"] = start("worker", "v2w", "--model", OTHER, "--group", "v2g", "--threads", "1")
    owned = lambda: "v2g" in up.status()["owners"]  # noqa: E731
    live.until(owned, 20, "the new version's worker has no owner")
    load.more(20)
    load.expected = [{a, b} for a, b in zip(STATE["v1"], STATE["v2"])]
    for command, texts in ((("switch", NAME, "v2"), "v2"), (("rollback", NAME), "v1"),
                           (("switch", NAME, "v2"), "v2"), (("rollback", NAME), "v1")):
        code, text = up.command(*command)
        assert code == 0, text

        def is_everywhere(texts=texts):
            return all(live.stream(a, STATE["wanted"][0])[0] == STATE[texts][0] for a in up.addresses())
        live.until(is_everywhere, 10, f"{command} has no effect")
        for address in up.addresses():
            for number, body in enumerate(STATE["wanted"]):
                assert live.stream(address, body)[0] == STATE[texts][number], (command, address, number)
        load.more(12)
    load.expected = STATE["v1"]
    code, text = up.command("unload", NAME, "--version", "v2")
    assert code == 0, text
    live.until(lambda: len(maps()) == 1, 20, lambda: str(maps()))
    assert STATE["worker2"].end(20) == 0
    load.more(20)


def leader_killed():
    """a leader killed in the middle of a load: the next one finishes it"""
    up, load = STATE["up"], STATE["load"]
    pids = up.pids()
    leader = up.status()["leader"]
    number = int(leader[1:])
    with load.lock:
        load.addresses = [a for i, a in enumerate(up.addresses()) if i != number]
    time.sleep(1)  # what is under way at the leader ends
    code, text = up.command("load", OTHER, "--name", "half", "--grid", "6x1", "--wait", "0")
    assert code == 0, text
    cluster.stop(up.pid)  # or it starts the coordinator again, which then keeps its groups
    try:
        cluster.kill(pids[f"coordinator/{leader}"])
        live.until(lambda: all(up.status()["owners"][g]["coordinator"] != leader for g in ("g0", "g1")), 10,
                   "its groups are not taken over")
    finally:
        os.kill(up.pid, cluster.signal.SIGCONT)
    begin = time.monotonic()
    live.until(lambda: len(maps()) == 2 and not up.status()["next_maps"], 60, lambda: str(up.status()))
    print(f"      loaded {time.monotonic() - begin:.1f} s after the leader died")
    load.more(20)
    code, text = up.command("unload", "half")
    assert code == 0, text
    live.until(lambda: len(maps()) == 1, 20, lambda: str(maps()))


def ends():
    """all answers were right"""
    print(f"      {STATE['load'].stop()} answers, none wrong, none failed")
    assert STATE["joined"].end(10) == 0
    STATE["up"].end()


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


live.need("etcd")
live.need_cluster(BUILD)
cluster.run([shown(c) for c in (starts, joins, drains, second_model, versions, leader_killed, ends)], 180,
            FOLDER)
