#!/usr/bin/env python3
"""Hostile values, bytes and partners, while a cluster serves.

    tests/cluster/hostile_cluster.py BUILD_DIR MODEL_DIR

Goal: bad records in etcd are refused with one log line each and change nothing; garbage at a control port ends
its own connection; wrong digests and versions are refused, the version before works; with certificates,
members of the authority serve each other and strangers are refused. Serving goes on all the time.
Method: values are put with etcdctl beside the real ones, bytes sent through raw sockets, certificates made by
openssl on the spot."""
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import time

import cluster
import live
from cluster import MEMSHARD, REFUSE, WELCOME, WORKER, Link, Process

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
NAME = os.path.basename(MODEL)
FOLDER = cluster.temporary_folder()
STATE = {}


def starts():
    """a cluster with a load that goes on"""
    up = STATE["up"] = live.Up(BUILD, MODEL, FOLDER, "--memshards", "2", "--replicas", "2", "--threads", "1")
    up.wait_well(20, 6)
    STATE["wanted"] = live.bodies(NAME, 4, 60)
    STATE["right"] = live.answers_of_one_process(BUILD, MODEL, FOLDER, STATE["wanted"])
    STATE["load"] = live.Load(up.addresses(), STATE["wanted"], STATE["right"], 3)
    STATE["load"].more(12)
    STATE["digest"] = up.status()["maps"][0]["digest"]


def put(key, value):
    live.etcdctl(STATE["up"].etcd, "put", f"/memrack/{STATE['up'].name}/{key}", stdin=value)


def hostile_values():
    """hostile etcd values: serving goes on, one log line each"""
    up = STATE["up"]
    before = up.status()
    member = live.etcdctl(up.etcd, "get", "--print-value-only",
                          f"/memrack/{up.name}/members/memshard/m0").strip().encode()
    the_map = live.etcdctl(up.etcd, "get", "--print-value-only",
                           f"/memrack/{up.name}/maps/{STATE['digest']}").strip().encode()
    model = live.etcdctl(up.etcd, "get", "--print-value-only", f"/memrack/{up.name}/models/{NAME}").strip().encode()
    evil = member.replace(b'"m0"', b'"evil"')
    assert evil != member and b'"m0"' in the_map
    address = next(m["member"]["address"] for m in before["members"] if m["member"]["id"] == "m0").encode()
    zeros = b"0" * 64

    def at(where):
        return evil.replace(address, where)
    d = STATE["digest"].encode()
    cases = {
        "members/memshard/e1": b" ",
        "members/memshard/e2": b"x" * 1400000,
        "members/memshard/e3": b"\x00\xff\xfe not json",
        "members/memshard/evil": evil.replace(b'"schema":1', b'"schema":"one"'),
        "members/memshard/e5": evil[:-1] + b',"more":1}',
        "members/memshard/e6": evil + b" trailing",
        "members/memshard/e7": b"[" * 100000,
        "members/worker/evil": evil,
        "members/king/evil": evil,
        "members/memshard/" + "a" * 200: evil,
        "members/memshard/evil2": at(b"0.0.0.0:1").replace(b'"evil"', b'"evil2"'),
        "members/memshard/evil3": at(b"127.0.0.1:0").replace(b'"evil"', b'"evil3"'),
        "members/memshard/evil4": at(b"127.0.0.1:70000").replace(b'"evil"', b'"evil4"'),
        "members/memshard/evil5": at(b"h" * 10000 + b":1").replace(b'"evil"', b'"evil5"'),
        "members/memshard/evil6": at(b"169.254.169.254:80").replace(b'"evil"', b'"evil6"'),
        "members/memshard/evil7": b'{"id":"evil7","%n%s":"%n%s%n"}',
        "maps/" + zeros.decode(): the_map,  # another digest than its key
        "maps/nonsense": the_map,
        "maps/" + "1" * 64: the_map.replace(d, b"1" * 64).replace(b'"cells":[[', b'"cells":[[],['),
        "maps/" + "2" * 64: the_map.replace(d, b"2" * 64).replace(b'"cells":[[', b'"cells":[[0,0,'),
        "maps/" + "3" * 64: the_map.replace(d, b"3" * 64).replace(b'"cells":[[', b'"cells":[[77,'),
        "maps/" + "4" * 64: the_map.replace(d, b"4" * 64).replace(b'"grid":[2,1]', b'"grid":[1000000,1000000]'),
        f"maps/{STATE['digest']}": the_map.replace(b'"epoch":1', b'"epoch":0'),
        "models/evil": model,
        "models/" + "b" * 200: model,
        "owners/nobody": b'{"schema":1,"group":"nobody","coordinator":"c0","epoch":-1}',
        "owners/g0": b'{"schema":1,"group":"g0","coordinator":"evil","epoch":0}',
        "junk": b"{}",
        "members": b"{}",
        "": b"{}",
    }
    unlike = [key for key, value in cases.items() if value in (evil, member, the_map, model)]
    assert sorted(unlike) == sorted(["members/worker/evil", "members/king/evil", "members/memshard/" + "a" * 200,
                                     "maps/" + zeros.decode(), "maps/nonsense", "models/evil",
                                     "models/" + "b" * 200]), unlike
    STATE["cases"] = cases
    for key, value in cases.items():
        put(key, value)
        STATE["load"].check()
    STATE["load"].more(20)
    time.sleep(11)  # everything is read again every ten seconds: nothing is said twice
    STATE["load"].more(10)
    for role, number in (("coordinator", 0), ("worker", 0)):
        log = up.log(role, number)
        for key in cases:
            # refused by name, or a key that has no meaning: nothing to say then
            lines = [line for line in log.splitlines() if f" {key} is refused" in line]
            assert len(lines) <= 1, (key, lines[:3])
        said = sum(" is refused" in line for line in log.splitlines())
        print(f"      {role}: {said} of {len(cases)} values refused with a line each")
        assert said >= 15, log[-3000:]
    after = up.status()
    names = sorted(m["member"]["id"] for m in after["members"])
    assert names == sorted(m["member"]["id"] for m in before["members"]), names
    assert all(p is not None and os.path.exists(f"/proc/{p}") for p in up.pids().values())


def values_gone():
    """the same values deleted, the good ones put again by their owners"""
    up = STATE["up"]
    for key in STATE["cases"]:
        live.etcdctl(up.etcd, "del", f"/memrack/{up.name}/{key}")
    STATE["load"].more(20)
    # an epoch below the one that was seen, and a map that vanished: the leader puts the good one again
    live.until(lambda: f'"epoch":{1}' in live.etcdctl(
        up.etcd, "get", "--print-value-only", f"/memrack/{up.name}/maps/{STATE['digest']}").replace(" ", ""), 25,
        "the map is not put again")
    up.wait_well(20, 6)


def leases_lost():
    """all leases revoked, all members deleted: records come again, nobody goes"""
    up = STATE["up"]
    before = {m["member"]["id"]: m["member"]["incarnation"] for m in up.status()["members"]}
    live.etcdctl(up.etcd, "del", "--prefix", f"/memrack/{up.name}/members/")
    for lease in live.etcdctl(up.etcd, "lease", "list").split()[3:]:
        live.etcdctl(up.etcd, "lease", "revoke", lease)
    revision = live.etcdctl(up.etcd, "get", "x", "-w", "fields").split('"Revision" : ')[1].split()[0]
    live.etcdctl(up.etcd, "compaction", revision)
    STATE["load"].more(20)
    up.wait_well(25, 6)
    after = {m["member"]["id"]: m["member"]["incarnation"] for m in up.status()["members"]}
    assert before == after, (before, after)


def control_port():
    """garbage at a control port ends its own connection, and nothing else"""
    up = STATE["up"]
    noise = random.Random(7)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\4\0\0\0\0\0"
    grpc = b"\0\xff\xff\xff\xff" + b"x" * 64  # a message that says it has 4 GiB
    cases = [b"\0" * 4096, noise.randbytes(100000), b"GET / HTTP/1.1\r\n\r\n", preface,
             preface + noise.randbytes(5000),
             preface + b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * 100000, preface + settings * 20000,
             preface + settings + b"\0\0\x40\0\0\0\0\0\1" + grpc,
             preface + settings + b"\0\0\4\3\0\0\0\0\1\0\0\0\10" * 5000,
             b"MRK1" * 1000]
    ports = [m["member"]["control"] for m in up.status()["members"]]
    assert len(ports) == 6
    for place in ports:
        for data in cases:
            host, port = place.rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=5) as s:
                s.settimeout(0.05)
                try:
                    s.sendall(data)
                    s.recv(4096)
                except OSError:
                    pass
    idle = [socket.create_connection(tuple(p.rsplit(":", 1)), timeout=5) for p in ports for _ in range(40)]
    STATE["load"].more(12)
    for s in idle:
        s.close()
    up.wait_well(20, 6)
    rss = {}
    for name, pid in up.pids().items():
        if name == "etcd":
            continue
        with open(f"/proc/{pid}/status") as file:
            rss[name] = int(next(line for line in file if line.startswith("VmRSS")).split()[1]) // 1024
    print(f"      largest resident size afterwards: {max(rss.values())} MiB")
    assert max(rss.values()) < 1500, rss


def partners():
    """a wrong digest and versions 3 to 4 are refused; version 1 alone works, on every data port"""
    for m in STATE["up"].status()["members"]:
        kind = {"memshard": MEMSHARD, "worker": WORKER}.get(m["member"]["role"])
        if not kind:
            continue
        digest = bytes.fromhex(STATE["digest"])
        for fields, wanted in (({"digest": b"\7" * 32}, REFUSE), ({"low": 3, "high": 4}, REFUSE),
                               ({"low": 0, "high": 0}, REFUSE), ({"low": 1, "high": 1}, WELCOME),
                               ({"low": 1, "high": 9}, WELCOME)):
            link = Link(m["member"]["address"])
            answer = link.open(kind, **{"digest": digest, **fields})
            assert answer[0] == wanted, (m["member"]["id"], fields, answer)
            assert wanted == WELCOME or answer[3], answer
            link.close()
    STATE["load"].more(12)


def ends():
    """all answers were right"""
    print(f"      {STATE['load'].stop()} answers, none wrong, none failed")
    STATE["up"].end()


# --- certificates -------------------------------------------------------------------------------


def openssl(*words):
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def path(name):
    return os.path.join(FOLDER, name)


KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def make_authority(name):
    openssl("req", "-x509", *KEY, "-days", "2", "-keyout", path(name + ".key"), "-out", path(name + ".crt"), "-subj",
            f"/CN=authority {name}")


def make_certificate(name, authority):
    with open(path(name + ".ext"), "w") as file:
        file.write(f"subjectAltName=DNS:localhost,DNS:{name},IP:127.0.0.1\n")
    openssl("req", "-new", *KEY, "-keyout", path(name + ".key"), "-out", path(name + ".csr"), "-subj", f"/CN={name}")
    openssl("x509", "-req", "-in", path(name + ".csr"), "-CA", path(authority + ".crt"), "-CAkey",
            path(authority + ".key"), "-CAcreateserial", "-days", "2", "-extfile", path(name + ".ext"), "-out",
            path(name + ".crt"))


def identity(name, authority="ours"):
    return ["--tls-ca", path(authority + ".crt"), "--tls-cert", path(name + ".crt"), "--tls-key",
            path(name + ".key")]


def member(role, name, *arguments):
    make_certificate(f"{role}.{name}", "ours")
    process = Process(f"tls-{role}-{name}", [os.path.join(BUILD, f"memrack-{role}"), "--cluster",
                                             "etcds:" + STATE["etcds"], "--id", name, *identity(f"{role}.{name}"),
                                             *arguments], FOLDER)
    if role == "coordinator":
        return live.address_in(process, 20)
    return process.wait_line("ready ", 30)


def memrack(*words, who):
    done = subprocess.run([os.path.join(BUILD, "memrack"), *words, "--cluster", "etcds:" + STATE["etcds"], *who],
                          capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def certificates():
    """a cluster with certificates: etcd, control and keyed data plane; the same answers"""
    make_authority("ours")
    make_authority("theirs")
    make_certificate("localhost-etcd", "ours")
    make_certificate("client.ann", "ours")
    make_certificate("client.eve", "theirs")
    tls = (path("ours.crt"), path("localhost-etcd.crt"), path("localhost-etcd.key"))
    process, STATE["etcds"] = live.start_etcd(FOLDER, tls=tls, name="etcd-tls")
    host, port = STATE["etcds"].rsplit(":", 1)

    def is_open():
        with socket.socket() as s:
            return s.connect_ex((host, int(port))) == 0
    live.until(is_open, 20, lambda: process.text()[-2000:])
    for i in range(2):
        member("memshard", f"m{i}", "--set", f"r{i}", "--capacity", "1GiB", "--require-keys")
    STATE["secure"] = member("coordinator", "c0", "--port", "0", "--allow-same-host")
    code, text = memrack("load", MODEL, "--grid", "2x1", "--replicas", "2", "--wait", "40", who=identity("client.ann"))
    assert code == 0, text
    STATE["secure_worker"] = member("worker", "w0", "--model", MODEL, "--group", "g0", "--threads", "1", "--mac")

    def answers():
        status, answer, _ = cluster.request(STATE["secure"], "POST", "/v1/completions", STATE["wanted"][0])
        return status == 200 and answer["choices"][0]["text"]
    live.until(answers, 20, "no answer")
    for body, right in zip(STATE["wanted"], STATE["right"]):
        assert live.stream(STATE["secure"], body)[0] == right
    code, text = memrack("status", who=identity("client.ann"))
    assert code == 0 and "w0" in text, text


def is_served(place, who):
    """Whether a control port answers HTTP/2 to this certificate."""
    host, port = place.rsplit(":", 1)
    context = ssl.create_default_context(cafile=path("ours.crt"))
    context.set_alpn_protocols(["h2"])
    if who:
        context.load_cert_chain(path(who + ".crt"), path(who + ".key"))
    try:
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as s:
                s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                return len(s.recv(9)) > 0
    except OSError:  # an alert is one too
        return False


def strangers():
    """a certificate of another authority, none at all, and frames without a key are refused"""
    code, text = memrack("status", who=identity("client.eve"))
    assert code != 0, text
    mixed = ["--tls-ca", path("ours.crt"), "--tls-cert", path("client.eve.crt"), "--tls-key", path("client.eve.key")]
    code, text = memrack("status", who=mixed)
    assert code != 0, text
    status = memrack("status", "--json", who=identity("client.ann"))[1]
    members = [m["member"] for m in json.loads(status[status.index("{"):])["members"]]
    for m in members:
        assert is_served(m["control"], "client.ann"), m["id"]
        for who in (None, "client.eve"):
            assert not is_served(m["control"], who), (m["id"], who)
    code, text = memrack("drain", "m0", "--timeout", "5", who=mixed)
    assert code != 0, text
    shard = next(m for m in members if m["role"] == "memshard")
    link = Link(shard["address"])
    answer = link.open(MEMSHARD)
    assert answer[0] == REFUSE and b"key" in answer[3], answer
    link.close()
    make_certificate("worker.w8", "ours")  # a good certificate, of another member
    impostor = Process("impostor", [os.path.join(BUILD, "memrack-worker"), "--cluster", "etcds:" + STATE["etcds"],
                                    "--id", "w9", *identity("worker.w8"), "--model", MODEL, "--group", "g9", "--mac",
                                    "--threads", "1"], FOLDER)
    impostor.wait_line("ready ", 30)
    live.until(lambda: "w9" in memrack("status", who=identity("client.ann"))[1], 10, "the impostor is not seen")
    time.sleep(1)
    log = impostor.text()
    assert "over " not in log.split("ready ")[1] or "session key" in log, log
    impostor.end()
    for body, right in zip(STATE["wanted"], STATE["right"]):
        assert live.stream(STATE["secure"], body)[0] == right


def shown(check):
    """The logs of the members too, where a check fails."""
    def run():
        try:
            check()
        except BaseException:
            if "up" in STATE and STATE["up"].process.is_alive():
                STATE["up"].show_logs()
            raise
    run.__doc__ = check.__doc__
    return run


live.need("etcd", "etcdctl", "openssl")
live.need_cluster(BUILD)
cluster.run([shown(c) for c in (starts, hostile_values, values_gone, leases_lost, control_port, partners, ends,
                                certificates, strangers)], 180, FOLDER)
