#!/usr/bin/env python3
"""A cluster over a network of its own: every member in a network namespace with an own address.

    tests/cluster/netns.py BUILD_DIR MODEL_DIR

Goal: two milliseconds of delay and one percent of loss change no answer; a replica that hears but is not heard
(and one that is heard but does not hear) for three seconds fails no request and comes back.
Method: `ip netns`, a bridge and a veth pair for each member; tc netem, wrong neighbours. Needs the right to make
them; what it makes has names of its own and is removed at the end, whatever happens."""
import ctypes
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
TAG = f"mr{os.getpid() % 100000}"
NET = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
MEMBERS = ["etcd", "m0", "m1", "m2", "m3", "w0", "w1", "c0", "me"]  # me: the clients of this script
STATE = {}
HOME = os.open("/proc/self/ns/net", os.O_RDONLY)


def ip(*words, must=True):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0 or not must, (words, done.stderr)
    return done.returncode == 0


def within(name, *words, must=True):
    done = subprocess.run(["ip", "netns", "exec", space(name), *words], capture_output=True, text=True, timeout=10,
                          check=False)
    assert done.returncode == 0 or not must, (words, done.stderr)
    return done.returncode == 0


def space(name):
    return f"{TAG}-{name}"


def address(name):
    return f"{NET}.{MEMBERS.index(name) + 2}"


def enter(descriptor):
    """This thread's sockets and children, and those of threads it makes, live in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(descriptor, 0x40000000) == 0, os.strerror(ctypes.get_errno())


def remove_all():
    enter(HOME)
    for name in MEMBERS:
        ip("netns", "del", space(name), must=False)  # takes its veth pair along
        ip("link", "del", f"{TAG}{name}", must=False)
    ip("link", "del", f"{TAG}b", must=False)


def may_make():
    try:
        return (ip("netns", "add", space("try"), must=False) and
                ip("link", "add", f"{TAG}t", "type", "bridge", must=False))
    finally:
        ip("netns", "del", space("try"), must=False)
        ip("link", "del", f"{TAG}t", must=False)


def make_network():
    cluster.CLEANUPS.append(remove_all)
    ip("link", "add", f"{TAG}b", "type", "bridge")
    ip("link", "set", f"{TAG}b", "up")
    for name in MEMBERS:
        ip("netns", "add", space(name))
        ip("link", "add", f"{TAG}{name}", "type", "veth", "peer", "name", "eth0", "netns", space(name))
        ip("link", "set", f"{TAG}{name}", "master", f"{TAG}b", "up")
        within(name, "ip", "address", "add", f"{address(name)}/24", "dev", "eth0")
        within(name, "ip", "link", "set", "eth0", "up")
        within(name, "ip", "link", "set", "lo", "up")


def start(name):
    role = {"m": "memshard", "w": "worker", "c": "coordinator"}[name[0]]
    here = address(name)
    words = ["ip", "netns", "exec", space(name), os.path.join(BUILD, f"memrack-{role}"), "--cluster",
             f"etcd:{address('etcd')}:2379", "--id", name, "--control", f"{here}:7000", "--plain-control",
             "--host-label", "host-" + name]
    words += {"memshard": ["--listen", f"{here}:7100", "--set", f"r{int(name[1:]) // 2}" if name[0] == "m" else "",
                           "--capacity", "1GiB", "--no-ucx"],
              "worker": ["--listen", f"{here}:7200", "--model", MODEL, "--group", "g" + name[1:], "--threads", "1",
                         "--fabric", "tcp"],
              "coordinator": ["--host", here, "--port", "8080"]}[role]
    STATE[name] = Process(name, words, FOLDER)
    if role == "coordinator":
        return live.address_in(STATE[name], 20)
    return STATE[name].wait_line("ready ", 30)


def memrack(*words):
    done = subprocess.run(["ip", "netns", "exec", space("me"), os.path.join(BUILD, "memrack"), *words, "--cluster",
                           f"etcd:{address('etcd')}:2379"], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def starts():
    """etcd, four memshards, two workers and a coordinator, each with an own address"""
    STATE["wanted"] = live.bodies(NAME, 4, 40)
    STATE["right"] = live.answers_of_one_process(BUILD, MODEL, FOLDER, STATE["wanted"])
    make_network()
    prefix = ("ip", "netns", "exec", space("etcd"))
    STATE["etcd"], _ = live.start_etcd(FOLDER, address("etcd"), 2379, 2380, prefix)
    for name in ("m0", "m1", "m2", "m3"):
        start(name)
    STATE["address"] = start("c0")
    code, text = memrack("load", MODEL, "--grid", "2x1", "--replicas", "2", "--wait", "30")
    assert code == 0, text
    for name in ("w0", "w1"):
        start(name)
    live.until(lambda: memrack("status")[0] == 0, 20, lambda: memrack("status")[1])
    with open(f"/run/netns/{space('me')}") as there:  # from here on requests of this script come from there
        enter(there.fileno())
    live.until(lambda: cluster.request(STATE["address"], "GET", "/v1/models")[1]["data"], 10, "no model")
    STATE["load"] = live.Load([STATE["address"]], STATE["wanted"], STATE["right"], 4)
    STATE["load"].more(20)


def delay_and_loss():
    """two milliseconds of delay and one percent of loss on every link"""
    if not within("m0", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms", must=False):
        print("      skipped: this kernel has no netem")
        return
    for name in MEMBERS[1:8]:
        within(name, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "2ms", "loss", "1%")
    begin = time.monotonic()
    STATE["load"].more(24, 60)
    pauses = STATE["load"].pauses(begin, time.monotonic())
    print(f"      longest pause in an answer: {1e3 * pauses[len(pauses) // 2]:.0f} ms usually, "
          f"{1e3 * pauses[-1]:.0f} ms at most")
    for name in MEMBERS[1:8]:
        within(name, "tc", "qdisc", "del", "dev", "eth0", "root")
    STATE["load"].more(12)


def cut(pairs):
    """What the first of each pair sends to the second goes to an address nobody has."""
    for source, target in pairs:
        within(source, "ip", "neighbour", "replace", address(target), "lladdr", "02:00:00:00:00:99", "dev", "eth0",
               "nud", "permanent")


def heal(pairs):
    for source, target in pairs:
        within(source, "ip", "neighbour", "del", address(target), "dev", "eth0")


def one_way(name, what, pairs):
    begin = time.monotonic()
    cut(pairs)
    try:
        STATE["load"].more(6)
        time.sleep(max(0, begin + 3 - time.monotonic()))
        STATE["load"].check()
    finally:
        heal(pairs)
    STATE["load"].more(12)
    pauses = STATE["load"].pauses(begin, time.monotonic())
    print(f"      {name} {what}: longest pause in an answer {1e3 * pauses[-1]:.0f} ms")
    live.until(lambda: memrack("status")[0] == 0, 20, lambda: memrack("status")[1])
    noticed = [line for w in ("w0", "w1") for line in STATE[w].text().splitlines() if f"memshard {name} at" in line]
    assert any("suspected" in line or "lost" in line for line in noticed), "the cut was not noticed"


def is_not_heard():
    """a replica that hears and is not heard, healed after three seconds"""
    one_way("m0", "is not heard", [("m0", other) for other in MEMBERS if other != "m0"])


def does_not_hear():
    """a replica that is heard and does not hear, healed after three seconds"""
    one_way("m3", "does not hear", [(other, "m3") for other in MEMBERS if other != "m3"])


def ends():
    """all answers were right; nothing is left"""
    print(f"      {STATE['load'].stop()} answers, none wrong, none failed")
    for name in ("c0", "w0", "w1", "m0", "m1", "m2", "m3"):
        assert STATE[name].end(20) == 0, name
    STATE["etcd"].end(10)


live.need("etcd", "etcdctl", "ip", "tc")
live.need_cluster(BUILD)
if os.geteuid() != 0 or not may_make():
    live.skip("network namespaces may not be made here")
cluster.run([starts, delay_and_loss, is_not_heard, does_not_hear, ends], 120, FOLDER)
