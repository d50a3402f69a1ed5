#!/usr/bin/env python3
"""Models from an address: real memshards that fetch their cells from a web server that misbehaves.

    tests/cluster/model_sources.py BUILD_DIR MODEL_DIR

Goal: a memshard fetches the ranges of its cells and no others, survives cuts, pauses and one wrong
byte, finds again what it fetched, and refuses, with one sentence and in time, what is not the model.
Method: `memrack split` writes the manifest of a copy of the model; a range server in this process
serves it, with one fault at a time; rows are gathered from the shards and compared with the file."""
import http.server
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time

import cluster
from cluster import MEMSHARD, RETRIEVE, WELCOME, Link, Process, frame

BUILD, MODEL = sys.argv[1], sys.argv[2]
FOLDER = cluster.temporary_folder()
COPY = os.path.join(FOLDER, "model")
GRID, ROWS, GATHER, GATHER_PRE = "4x1", 19, 4, 5
STATE = {"shards": 0}
MIB = 1 << 20


class Fault:
    """What the server does wrong; reset by each case."""
    def __init__(self):
        self.cut_after = 0        # bytes of a body
        self.wrong_times = 0      # bodies with a flipped bit
        self.ignore_range = False
        self.slow_bytes_s = 0
        self.silent = False
        self.codes = []           # answered first
        self.missing = set()
        self.header = None        # that must be sent
        self.lock = threading.Lock()
        self.requests = []        # (file, first, bytes sent)


FAULT = Fault()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def refuse(self, code):
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):  # noqa: N802, the name http.server wants
        fault = FAULT
        name = self.path.split("?")[0].removeprefix("/bucket/m/")
        path = os.path.join(COPY, name)
        with fault.lock:
            code = fault.codes.pop(0) if fault.codes else 0
        if code:
            return self.refuse(code)
        if fault.header and self.headers.get("Authorization") != fault.header:
            return self.refuse(401)
        if "/" in name or name in fault.missing or not os.path.isfile(path):
            return self.refuse(404)
        size, wanted = os.path.getsize(path), self.headers.get("Range")
        first, last = 0, size - 1
        ranged = bool(wanted) and not fault.ignore_range
        if ranged:
            begin, end = wanted.removeprefix("bytes=").split("-")
            first, last = int(begin), min(int(end) if end else size - 1, size - 1)
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        return self.send_body(path, name, first, last - first + 1)

    def send_body(self, path, name, first, wanted):
        fault, sent = FAULT, 0
        with open(path, "rb") as file:
            file.seek(first)
            while sent < wanted:
                data = bytearray(file.read(min(64 << 10, wanted - sent)))
                if sent + len(data) == wanted and wanted >= MIB:
                    with fault.lock:
                        if fault.wrong_times > 0:
                            fault.wrong_times -= 1
                            data[-5] ^= 8
                if fault.cut_after and sent + len(data) > fault.cut_after:
                    self.close_connection = True
                    break
                if fault.silent and wanted >= MIB:
                    time.sleep(4)
                    self.close_connection = True
                    break
                if fault.slow_bytes_s:
                    time.sleep(len(data) / fault.slow_bytes_s)
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True
                    break
                sent += len(data)
        with fault.lock:
            fault.requests.append((name, first, sent))


def start():
    """memrack split writes the manifest; what it says is printed; a second one is the same"""
    shutil.copytree(MODEL, COPY, ignore=shutil.ignore_patterns("memrack-manifest.json", "training"))
    split = [os.path.join(BUILD, "memrack"), "split", COPY, "--grid", GRID]
    done = subprocess.run(split, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"grid {GRID}: 4 cells" in done.stdout and "digest" in done.stdout, done.stdout
    with open(os.path.join(COPY, "memrack-manifest.json")) as file:
        first = file.read()
    out = os.path.join(FOLDER, "elsewhere")
    subprocess.run(split + ["--out", out], check=True, capture_output=True, timeout=60)
    with open(os.path.join(out, "memrack-manifest.json")) as file:
        assert file.read() == first
    manifest = json.loads(first)
    assert manifest["version"] == 2 and manifest["grid"] == GRID
    STATE["manifest"], STATE["table"] = manifest, find_table(manifest)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None  # clients that leave are part of the tests
    threading.Thread(target=server.serve_forever, daemon=True).start()
    STATE["url"] = f"http://127.0.0.1:{server.server_address[1]}/bucket/m?signature=x"
    for bad in (["split", COPY], ["split", COPY, "--grid", "0x1"], ["split", FOLDER, "--grid", "1x1"]):
        done = subprocess.run([os.path.join(BUILD, "memrack")] + bad, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and len(done.stderr.strip().splitlines()) == 1, done.stderr


def find_table(manifest):
    """(file, offset, rows, columns, element bytes) of values and pre-values: the largest tensors."""
    found = {}
    for name in os.listdir(COPY):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(COPY, name), "rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for tensor, facts in header.items():
            kind = "pre" if tensor.endswith("pre_values") or "pre_value" in tensor else "value"
            if tensor in manifest["checksums"] and "values" in tensor and "proj" not in tensor:
                begin, end = facts["data_offsets"]
                rows, columns = facts["shape"]
                found[kind] = (name, 8 + length + begin, rows, columns, (end - begin) // (rows * columns))
    assert "value" in found, "no table found"
    return found


def shard(index=0, of=4, cache=None, extra=(), url=None):
    STATE["shards"] += 1
    cache = cache or os.path.join(FOLDER, f"cache-{STATE['shards']}")
    return Process(f"memshard-{STATE['shards']}",
                   [os.path.join(BUILD, "memrack-memshard"), "--model", url or STATE["url"], "--cache-folder", cache,
                    "--grid", GRID, "--index", str(index), "--of", str(of), *extra], FOLDER)


def gather(address, cell, rows, mode=GATHER):
    link = Link(address)
    assert link.open(MEMSHARD)[0] == WELCOME
    payload = struct.pack("<IIHHIIHHHHI", 0, cell, mode, 0, 1, len(rows), 0, 0, 0, 0, 0)
    payload += struct.pack("<II", len(rows), 0) + struct.pack(f"<{len(rows)}I", *rows)
    payload += bytes(-len(payload) % 8)
    link.send(frame(RETRIEVE, payload, 5))
    kind, _, _, answer = link.receive()
    assert kind == ROWS, answer
    return answer


def check_rows(address, index, kind="value", mode=GATHER):
    name, offset, rows, columns, element = STATE["table"][kind]
    first, end = rows * index // 4, rows * (index + 1) // 4
    wanted = [first, end - 1] + [random.Random(index).randrange(first, end) for _ in range(30)]
    got = gather(address, index, wanted, mode)
    with open(os.path.join(COPY, name), "rb") as file:
        for i, row in enumerate(wanted):
            file.seek(offset + row * columns * element)
            assert file.read(columns * element) == got[i * columns * element:(i + 1) * columns * element]


def expect_ready(index=0, cache=None, extra=(), seconds=30):
    process = shard(index, cache=cache, extra=extra)
    address = process.wait_line("ready ", seconds)
    check_rows(address, index)
    if "pre" in STATE["table"]:
        check_rows(address, index, "pre", GATHER_PRE)
    assert process.end() == 0
    return process


def expect_refused(sentence, extra=(), seconds=20, url=None):
    begin = time.monotonic()
    process = shard(extra=extra, url=url)
    assert process.popen.wait(seconds) == 1
    text = process.text()
    assert sentence in text, text
    assert "ready " not in text and time.monotonic() - begin < seconds
    return process


def fault(**what):
    global FAULT
    FAULT = Fault()
    for key, value in what.items():
        assert hasattr(FAULT, key)
        setattr(FAULT, key, value)


def table_bytes():
    return sum(rows * columns * element for _, _, rows, columns, element in STATE["table"].values())


def only_its_ranges():
    """each of four shards fetches a quarter of the tables, and again nothing"""
    for index in range(4):
        fault()
        cache = os.path.join(FOLDER, f"kept-{index}")
        expect_ready(index, cache)
        big = sum(sent for name, first, sent in FAULT.requests if name.endswith(".safetensors"))
        files = sum(name.endswith(".safetensors") for name in os.listdir(COPY))
        assert big <= table_bytes() / 4 + 4 * MIB + files * 64 * 1024, big
        fault()
        expect_ready(index, cache)
        assert all(sent <= 64 << 10 for name, _, sent in FAULT.requests if name.endswith(".safetensors"))


def cuts():
    """bodies that end after 300 kB: all of it comes, every byte once"""
    fault(cut_after=300 << 10)
    expect_ready(1)
    big = sum(sent for name, _, sent in FAULT.requests if name.endswith(".safetensors"))
    assert big <= table_bytes() / 4 + 5 * MIB, big


def killed_half_way():
    """a shard killed while it fetches: the next one goes on where it was"""
    cache = os.path.join(FOLDER, "killed")
    fault(slow_bytes_s=2 * MIB)
    process = shard(2, cache=cache)
    end = time.monotonic() + 20
    while process.is_alive() and time.monotonic() < end and sum(
            sent for name, _, sent in FAULT.requests if name.endswith(".safetensors")) < 2.5 * MIB:
        time.sleep(0.02)
    assert process.is_alive() and "ready " not in process.text()
    process.kill()
    fault()
    expect_ready(2, cache)
    again = sum(sent for name, _, sent in FAULT.requests if name.endswith(".safetensors"))
    assert again < table_bytes() / 4, again


def wrong_bytes():
    """one wrong byte is fetched again; a server that keeps lying is refused by checksum"""
    fault(wrong_times=1)
    process = expect_ready(0)
    assert "once more" in process.text(), process.text()
    fault(wrong_times=1000)
    expect_refused("does not match the manifest's checksum")


def bad_answers():
    """404, 500, 503, ranges ignored, silence: a sentence each, in time"""
    fault(codes=[503, 500, 429, 503])
    expect_ready(3)
    fault(codes=[500] * 1000)
    expect_refused("the server answers 500", ["--source-timeout", "3"])
    fault(missing={"memrack-manifest.json"})
    expect_refused("memrack split")
    fault(missing={name for name in os.listdir(COPY) if name.endswith(".safetensors")})
    expect_refused("404 (not found)")
    fault(missing={"config.json"})
    expect_refused("404 (not found)")
    fault(ignore_range=True)
    expect_refused("ignores byte ranges")
    fault(silent=True)
    expect_refused("imed out", ["--source-timeout", "3"])
    fault()
    expect_refused("Failed to connect", ["--source-timeout", "2"], url="http://127.0.0.1:1/m")


def slow_server():
    """a slow server is waited for as long as bytes come"""
    fault(slow_bytes_s=8 * MIB)
    expect_ready(1)


def secrets():
    """headers from a file reach the server; their values are not logged"""
    path = os.path.join(FOLDER, "headers")
    with open(path, "w") as file:
        file.write("# for the test\nAuthorization: Bearer very-secret\n")
    fault(header="Bearer very-secret")
    process = expect_ready(0, extra=["--header-file", path])
    assert "very-secret" not in process.text()
    expect_refused("401 (not allowed)")


def other_model():
    """a manifest of other files, and files that changed under a manifest, are refused"""
    path = os.path.join(COPY, "memrack-manifest.json")
    with open(path) as file:
        good = file.read()
    fault()
    with open(path, "w") as file:
        file.write(good.replace('"layout": "', '"layout": "' + "0" * 64 + '", "x": "'))
    expect_refused("it belongs to other files")
    with open(path, "w") as file:
        file.write(good[:len(good) // 2])
    expect_refused("memrack-manifest.json")
    with open(path, "w") as file:
        file.write(good)
    name, offset, _, _, _ = STATE["table"]["value"]
    with open(os.path.join(COPY, name), "r+b") as file:
        file.seek(offset + 77)
        byte = file.read(1)[0]
        file.seek(offset + 77)
        file.write(bytes([byte ^ 1]))
    expect_refused("does not match the manifest's checksum")


cluster.run([start, only_its_ranges, cuts, killed_half_way, wrong_bytes, bad_answers, slow_server, secrets,
             other_model], 120, FOLDER)
