"""What the tests of whole clusters share: `memrack up` or members started by hand around a real
etcd, a continuous load of streaming clients whose answers are compared, and what one process answers.

A script that needs etcd calls need("etcd", ..) first: it prints why it is skipped, and ends."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import cluster
from cluster import Process, request

PROMPTS = ["define river", "define mountain and say where the name is from", "the sea",
           "define winter, define summer, define spring, and define autumn, one after the other"]


def skip(reason):
    print(f"{os.path.basename(sys.argv[0])}: skipped: {reason}")
    print(f"{os.path.basename(sys.argv[0])}: 0 passed, 0 failed")
    sys.exit(0)


def need(*programs):
    for name in programs:
        if not shutil.which(name):
            skip(f"{name} is not installed")


def need_cluster(build):
    """A build without gRPC or without etcd's client has no clusters."""
    done = subprocess.run([os.path.join(build, "memrack"), "status", "--cluster", "etcd:127.0.0.1:1"],
                          capture_output=True, text=True, timeout=30, check=False)
    if "built without" in done.stderr:
        skip(done.stderr.strip())


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, seconds, sentence):
    """Waits until what() is true; returns it."""
    end = time.monotonic() + seconds
    while True:
        got = what()
        if got:
            return got
        assert time.monotonic() < end, sentence() if callable(sentence) else sentence
        time.sleep(0.05)


# --- requests -----------------------------------------------------------------------------------


def bodies(model, count=6, tokens=40):
    """Greedy and seeded requests, in turn."""
    return [{"model": model, "prompt": PROMPTS[i % len(PROMPTS)], "max_tokens": tokens,
             "temperature": 0 if i % 2 == 0 else 0.9, "seed": 100 + i, "ignore_eos": True}
            for i in range(count)]


def stream(address, body, seconds=30):
    """(text, seconds of each piece since the request). Raises if anything is wrong with it."""
    host, port = address.rsplit(":", 1)
    begin = time.monotonic()
    connection = http.client.HTTPConnection(host, int(port), timeout=seconds)
    text, times, is_done = [], [], False
    try:
        connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"{response.status}: {response.read(400)}")
        for line in response:
            assert time.monotonic() - begin < seconds, "the stream does not end"
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                is_done = True
                break
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event.get("choices", []):
                text.append(choice["text"])
                times.append(time.monotonic() - begin)
    finally:
        connection.close()
    assert is_done, "the stream ended without [DONE]"
    return "".join(text), times


def answers_of_one_process(build, model, folder, wanted, name=None):
    """Texts that `memrack serve` gives, by number of the request."""
    extra = ["--name", name] if name else []
    serve = Process(f"serve-{len(cluster.PROCESSES)}", [os.path.join(build, "memrack"), "serve", model,
                    "--port", "0", "--threads", "1", *extra], folder)
    address = address_in(serve, 30)
    texts = [stream(address, body)[0] for body in wanted]
    serve.end()
    return texts


def address_in(process, seconds):
    """The first http address in its log."""
    found = until(lambda: re.search(r"http://([0-9.]+:[0-9]+)", process.text()) or not process.is_alive(),
                  seconds, f"{process.name} is not ready")
    assert found is not True, f"{process.name} ended"
    return found.group(1)


def difference(case, text, wanted):
    """Where an answer goes another way."""
    same = len(os.path.commonprefix([text, wanted]))
    return (f"answer {case} has {len(text)} characters, not {len(wanted)}; from {same} on it is "
            f"{text[same:same + 60]!r} instead of {wanted[same:same + 60]!r}; its end is {text[-40:]!r} instead "
            f"of {wanted[-40:]!r}")


class Load:
    """Streaming clients, each with one request after another, until stopped. An answer that is not
    as expected, and any error, is a failure; those of addresses in `excused` are only counted."""

    def __init__(self, addresses, wanted, expected, clients=8, seconds=30):
        self.addresses, self.wanted, self.expected = list(addresses), wanted, expected
        self.patience = seconds
        self.excused, self.failures, self.lost = set(), [], 0
        self.done = []  # (end, seconds, longest pause between pieces, address)
        self.pieces = 0
        self.lock, self.is_over = threading.Lock(), False
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        turn = number
        while not self.is_over:
            with self.lock:
                if not self.addresses:
                    return
                address = self.addresses[number % len(self.addresses)]
            case = turn % len(self.wanted)
            turn += 1
            begin = time.monotonic()
            try:
                text, times = stream(address, self.wanted[case], self.patience)
                good = self.expected[case] if isinstance(self.expected[case], (set, list, tuple)) else [
                    self.expected[case]]
                assert text in good, difference(case, text, good[0])
                pauses = [b - a for a, b in zip([0.0] + times, times)]
                with self.lock:
                    self.done.append((time.monotonic(), time.monotonic() - begin, max(pauses), address))
                    self.pieces += len(times)
            except Exception as error:  # noqa: BLE001 - whatever it is, a client has seen it
                with self.lock:
                    if address in self.excused:
                        self.lost += 1
                    else:
                        self.failures.append((time.monotonic(), address, case, f"{type(error).__name__}: "
                                              f"{error}"))
                time.sleep(0.1)

    def check(self):
        with self.lock:
            assert not self.failures, f"{len(self.failures)} requests failed: {self.failures[:4]}"

    def more(self, count, seconds=30):
        """Waits until so many more answers have come, all good."""
        with self.lock:
            wanted = len(self.done) + count
        end = time.monotonic() + seconds
        while True:
            self.check()
            with self.lock:
                if len(self.done) >= wanted:
                    return
                have = len(self.done)
            assert time.monotonic() < end, f"{wanted - have} of {count} answers have not come in {seconds} s"
            time.sleep(0.02)

    def pauses(self, begin, end):
        """The longest pause of each answer that ended between the two moments."""
        with self.lock:
            return sorted(pause for when, _, pause, _ in self.done if begin <= when <= end)

    def stop(self):
        self.is_over = True
        for thread in self.threads:
            thread.join(self.patience + 5)
            assert not thread.is_alive(), "a client hangs"
        self.check()
        return len(self.done)


def measure(load, settle, act, seconds):
    """Runs act() under load; (usual longest pause, longest after it, both in ms)."""
    load.more(8)
    before = time.monotonic()
    time.sleep(settle)
    usual = load.pauses(before, time.monotonic())
    begin = time.monotonic()
    act()
    time.sleep(seconds)
    load.check()
    after = load.pauses(begin, time.monotonic() + 0.01)
    return (1e3 * usual[len(usual) // 2] if usual else -1, 1e3 * usual[-1] if usual else -1,
            1e3 * after[-1] if after else -1)


# --- clusters -----------------------------------------------------------------------------------


def members_of(pid):
    """{"memshard/m0": pid} of the children of `memrack up`, and "etcd"."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            if int(fields[1]) != pid or fields[0] in "ZX":
                continue
            with open(f"/proc/{entry}/cmdline") as file:
                words = file.read().split("\0")
        except (OSError, ValueError, IndexError):
            continue
        program = os.path.basename(words[0])
        if program == "etcd":
            found["etcd"] = int(entry)
        elif program.startswith("memrack-") and "--id" in words:
            found[f"{program[len('memrack-'):]}/{words[words.index('--id') + 1]}"] = int(entry)
    return found


class Up:
    """`memrack up` around a real etcd."""

    def __init__(self, build, model, folder, *options, seconds=60):
        self.build = build
        self.name = f"test-{os.getpid()}-{len(cluster.PROCESSES)}"
        self.run_folder = os.path.join(folder, self.name)
        self.process = Process(self.name, [os.path.join(build, "memrack"), "up", model, "--port", "0",
                                           "--name", self.name, "--run-folder", self.run_folder,
                                           "--table", "never", *options], folder)
        self.pid = self.process.pid
        self.process.wait_line("serving http://", seconds)
        self.where = self.process.text().split("etcd: ")[1].split()[0]
        self.etcd = self.where[len("etcd:"):]

    def addresses(self):
        return [line.split("//")[1].split()[0] for line in self.process.text().splitlines()
                if line.startswith("serving http://")]

    def pids(self):
        return members_of(self.pid)

    def command(self, *words, seconds=40):
        """(status, all it printed) of `memrack WORDS`."""
        done = subprocess.run([os.path.join(self.build, "memrack"), *words, "--cluster", self.where,
                               "--cluster-name", self.name], capture_output=True, text=True,
                              timeout=seconds, check=False)
        return done.returncode, done.stdout + done.stderr

    def status(self):
        """What `memrack status --json` says; None: it cannot."""
        try:
            done = subprocess.run([os.path.join(self.build, "memrack"), "status", "--json", "--cluster",
                                   self.where, "--cluster-name", self.name], capture_output=True,
                                  timeout=20, check=False)
            return json.loads(done.stdout)
        except (ValueError, subprocess.TimeoutExpired):
            return None

    def log(self, role, number):
        with open(os.path.join(self.run_folder, f"{role}-{number}.log"), errors="replace") as file:
            return file.read()

    def show_logs(self):
        for name in sorted(os.listdir(self.run_folder)):
            path = os.path.join(self.run_folder, name)
            if not name.endswith(".log") or name.startswith("etcd"):
                continue
            with open(path, errors="replace") as file:
                print(f"--- {name}, the end of it:")
                print("\n".join("    " + line[:220] for line in file.read().splitlines()[-12:]))

    def wait_well(self, seconds=20, members=None):
        """Until every listed member answers and is ready, and no map is being loaded."""
        def is_well():
            s = self.status()
            return (s and s["etcd_up"] and s["next_maps"] == 0 and
                    (members is None or len(s["members"]) == members) and
                    all(m["answers"] and m["listed"] and m["member"]["state"] == "ready"
                        for m in s["members"]))
        until(is_well, seconds, lambda: f"the cluster is not well: {self.command('status')[1]}")

    def end(self, seconds=20):
        status = self.process.end(seconds)
        assert status == 0, status


def etcdctl(endpoint, *words, stdin=None):
    done = subprocess.run(["etcdctl", "--endpoints", endpoint, *words], input=stdin, capture_output=True,
                          timeout=20, check=False, env={**os.environ, "ETCDCTL_API": "3"})
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(errors="replace")


def start_etcd(folder, host="127.0.0.1", client=None, peer=None, prefix=(), tls=None, name="etcd"):
    """(process, "host:port")."""
    client, peer = client or free_port(), peer or free_port()
    scheme = "https" if tls else "http"
    at, to = f"{scheme}://{host}:{client}", f"http://{host}:{peer}"
    more = [] if not tls else ["--cert-file", tls[1], "--key-file", tls[2], "--trusted-ca-file", tls[0],
                               "--client-cert-auth"]
    process = Process(name, [*prefix, "etcd", "--name", "x", "--data-dir", os.path.join(folder, name + "-data"),
                             "--listen-client-urls", at, "--advertise-client-urls", at,
                             "--listen-peer-urls", to, "--initial-advertise-peer-urls", to,
                             "--initial-cluster", f"x={to}", "--log-level", "error", *more], folder)
    return process, f"{host}:{client}"


def freeze(pid, seconds):
    """SIGSTOP now, SIGCONT after so long, whatever happens meanwhile."""
    cluster.stop(pid)
    timer = threading.Timer(seconds, lambda: os.kill(pid, signal.SIGCONT))
    timer.daemon = True
    timer.start()
    return timer


def health(address):
    return request(address, "GET", "/health", seconds=5)[1]
