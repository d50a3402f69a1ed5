"""What the cluster tests share: processes that are always ended, logs that are shown when something
fails, HTTP with a deadline, and a frame client of the data plane (proto/wire.h, version 1).

A script calls run(checks, limit): each check is a function with a docstring, called in order; a
watchdog ends everything when the time is over. Nothing is left running, whatever happens."""
import http.client
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

PROCESSES = []
CLEANUPS = []  # called once all processes have ended
PDEATHSIG = 1


def die_with_parent():
    """In the child: end when this script does, in a group of its own."""
    import ctypes
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)


class Process:
    """A program whose output goes to a log file; ends with the script."""

    def __init__(self, name, arguments, folder):
        self.name, self.arguments = name, arguments
        self.log_path = os.path.join(folder, name + ".log")
        self.log = open(self.log_path, "ab")
        self.popen = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=self.log,
                                      stderr=self.log, preexec_fn=die_with_parent,
                                      env={**os.environ, "TMPDIR": folder})
        self.pid = self.popen.pid
        PROCESSES.append(self)

    def text(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def wait_line(self, prefix, seconds):
        """The rest of the first line of its log that starts with prefix."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.text().splitlines():
                if line.startswith(prefix):
                    return line[len(prefix):].strip()
            if self.popen.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.popen.returncode}")
            time.sleep(0.02)
        raise AssertionError(f"{self.name} did not print '{prefix}' within {seconds} s")

    def is_alive(self):
        return self.popen.poll() is None

    def signal(self, number):
        os.kill(self.pid, number)

    def end(self, seconds=5):
        """SIGTERM; returns the exit status."""
        if self.is_alive():
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"{self.name} did not end within {seconds} s of SIGTERM") from None

    def kill(self):
        if self.is_alive():
            self.popen.kill()
        self.popen.wait()
        self.log.close()


def stop(pid, seconds=2):
    """SIGSTOP, and wait until every thread has stopped: the signal alone returns before that."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat") as f:
                states.append(f.read().rpartition(")")[2].split()[0])
        if all(state == "T" for state in states):
            return
        time.sleep(0.001)
    raise AssertionError(f"process {pid} did not stop")


def kill(pid, seconds=2):
    """SIGKILL to a process that is not our child, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as f:
                if f.read().rpartition(")")[2].split()[0] in "ZX":
                    return
        except (FileNotFoundError, ProcessLookupError):  # reaped before the open, or before the read
            return
        time.sleep(0.001)
    raise AssertionError(f"process {pid} did not die")


def end_all():
    for process in PROCESSES:
        process.kill()
    while CLEANUPS:
        CLEANUPS.pop()()


def show_logs():
    for process in PROCESSES:
        state = "alive" if process.is_alive() else f"ended with {process.popen.returncode}"
        print(f"--- {process.name} ({state}), the end of its log:")
        print("\n".join("    " + line for line in process.text().splitlines()[-25:]))


def run(checks, limit, folder):
    """Calls each check; exits with status 1 if one fails. The last line says how many."""
    passed = failed = 0

    def too_late():
        print(f"stopped: not done within {limit} s", flush=True)
        show_logs()
        end_all()
        os._exit(1)

    watchdog = threading.Timer(limit, too_late)
    watchdog.daemon = True
    watchdog.start()
    try:
        for check in checks:
            begin = time.monotonic()
            name = (check.__doc__ or check.__name__).strip().splitlines()[0]
            try:
                check()
                passed += 1
                print(f"ok    {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception:  # noqa: BLE001 - every failure is reported the same way
                failed += 1
                print(f"FAIL  {name}", flush=True)
                traceback.print_exc(file=sys.stdout)
                show_logs()
                break  # later checks need what this one left
    finally:
        watchdog.cancel()
        end_all()
        shutil.rmtree(folder, ignore_errors=True)
    skipped = len(checks) - passed - failed
    if skipped:
        print(f"{skipped} checks were not reached")
    print(f"{os.path.basename(sys.argv[0])}: {passed} passed, {failed + skipped} failed")
    sys.exit(1 if failed else 0)


def temporary_folder():
    return tempfile.mkdtemp(prefix="memrack-test-")


def children_of(pid):
    """{role of memrack-ROLE: [pid, ...]} of a process's children, in order of their ids."""
    found = {}
    for entry in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{entry}/cmdline") as file:
                program = os.path.basename(file.read().split("\0")[0])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and program.startswith("memrack-"):
            found.setdefault(program[len("memrack-"):], []).append(int(entry))
    return found


def request(address, method, path, body=None, seconds=20):
    """(status, parsed JSON or text, seconds it took)."""
    host, port = address.rsplit(":", 1)
    begin = time.monotonic()
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=seconds)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text), time.monotonic() - begin
    except ValueError:
        return response.status, text, time.monotonic() - begin


# --- frames of the data plane -------------------------------------------------------------------

MAGIC, HEADER = 0x314B524D, struct.Struct("<IHHIIQQIi16sQ")
(HELLO, WELCOME, REFUSE, PING, PONG, ERROR, RETRIEVE, POOLED, STEP, SAMPLED, LOGITS, DONE) = (
    1, 2, 3, 4, 5, 6, 16, 17, 32, 33, 34, 35)
COORDINATOR, WORKER, MEMSHARD = 2, 3, 4


def frame(kind, payload=b"", request_id=1, version=1, magic=MAGIC, flags=0, length=None):
    length = len(payload) if length is None else length
    return HEADER.pack(magic, version, kind, length, flags, request_id, 0, 0, 0, bytes(16), 0) + payload


def hello(wanted, low=1, high=1, role=COORDINATOR, digest=bytes(32)):
    return struct.pack("<HHHHII32s16s", low, high, role, wanted, 1 << 20, 0, digest, bytes(16))


class Link:
    """A blocking client; every call has a deadline."""

    def __init__(self, address, seconds=5):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=seconds)
        self.data = b""

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, seconds=10):
        """(kind, request, status, payload), or None when the peer closed."""
        end = time.monotonic() + seconds
        while True:
            if len(self.data) >= HEADER.size:
                fields = HEADER.unpack_from(self.data)
                if len(self.data) >= HEADER.size + fields[3]:
                    payload = self.data[HEADER.size:HEADER.size + fields[3]]
                    self.data = self.data[HEADER.size + fields[3]:]
                    return fields[2], fields[5], fields[8], payload
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                raise AssertionError(f"no frame within {seconds} s")
            try:
                piece = self.socket.recv(1 << 16)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return None
            self.data += piece

    def open(self, wanted, **fields):
        self.send(frame(HELLO, hello(wanted, **fields)))
        return self.receive()

    def close(self):
        self.socket.close()
