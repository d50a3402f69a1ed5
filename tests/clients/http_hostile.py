#!/usr/bin/env python3
"""Hostile HTTP against `memrack serve`: every input gets a status code or a closed connection within
its time, and the server goes on serving the others.

    python3 tests/clients/http_hostile.py BUILD_DIR MODEL_DIR

Standard library only. The server is started here and ended with SIGTERM. MR_TEST_SLOWER=5 in the
environment gives sanitizer builds five times the time."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

LIMIT_S = 20 * float(os.environ.get("MR_TEST_SLOWER", "1"))  # no single input may take longer
JSON = b"Content-Type: application/json\r\n"


class Server:
    def __init__(self, build, model):
        reading, writing = os.pipe()
        self.log = open("/tmp/mr-http-hostile-%d.log" % os.getpid(), "w+b")
        self.process = subprocess.Popen(
            [os.path.join(build, "memrack"), "serve", model, "--port", "0", "--ready-fd", str(writing),
             "--max-connections", "300", "--max-queue", "16", "--name", "m"],
            pass_fds=[writing], stdout=self.log, stderr=self.log)
        os.close(writing)
        with os.fdopen(reading) as ready:
            line = ready.readline().strip()
        if not line:
            raise SystemExit("the server did not start:\n" + self.tail())
        host, port = line.rsplit(":", 1)
        self.address = (host, int(port))

    def tail(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-2000:].decode(errors="replace")

    def rss_mib(self):
        with open("/proc/%d/status" % self.process.pid) as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) >> 10

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=40)
        if code != 0:
            raise AssertionError("exit status %d after SIGTERM\n%s" % (code, self.tail()))


def dial(server, timeout=LIMIT_S):
    return socket.create_connection(server.address, timeout=timeout)


def read_all(sock, most=1 << 24):
    data = b""
    try:
        while len(data) < most:
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
    except ConnectionResetError:
        pass
    except socket.timeout:
        raise AssertionError("no end of the answer within %d s: %r" % (LIMIT_S, data[:200]))
    return data


def send(sock, data):
    """A server that refuses early may close before everything is sent."""
    try:
        sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


def exchange(server, data, half_close=True):
    with dial(server) as sock:
        send(sock, data)
        if half_close:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        return read_all(sock)


def code_of(answer):
    found = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    return int(found.group(1)) if found else 0  # 0: closed without a word


def post(path, body, head=b"", close=True):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return (b"POST %s HTTP/1.1\r\nHost: h\r\n%s%s%sContent-Length: %d\r\n\r\n" %
            (path, JSON, head, b"Connection: close\r\n" if close else b"", len(body))) + body


def ask(server, data):
    with dial(server) as sock:
        send(sock, data)
        return read_all(sock)


def healthy(server):
    answer = ask(server, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    if code_of(answer) != 200:
        raise AssertionError("not healthy afterwards: %r\n%s" % (answer[:200], server.tail()))


def raw_inputs():
    get = b"GET / HTTP/1.1\r\n"
    yield "a header of 4 MB", get + b"A: " + b"a" * (4 << 20), {431}
    yield "10,000 headers", get + b"".join(b"A%d: b\r\n" % i for i in range(10000)) + b"\r\n", {431}
    yield "no line end", b"GET / HTTP/1.1", {0}
    yield "obs-fold", get + b"A: b\r\n c\r\n\r\n", {400}
    yield "bare line feeds", b"GET / HTTP/1.1\nHost: h\n\n", {400}
    for length in (b"-1", b"+5", b"0x10", b"5, 5", b"1e3", b"", b"\t"):
        yield "length %r" % length, b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n", {400}
    for length in (b"9223372036854775808", b"18446744073709551616", b"9" * 100, b"8388609"):
        yield "length %r" % length, b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n", {413}
    yield "two lengths", b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", {400}
    yield "length and chunked", (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                                 b"0\r\n\r\n"), {400}
    yield "chunked twice", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", {501}
    chunked = b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield "chunk size overflow", chunked + b"FFFFFFFFFFFFFFFFF\r\n", {400}
    yield "chunk size negative", chunked + b"-5\r\nabcde\r\n", {400}
    yield "chunk extension bomb", chunked + b"5;" + b"a" * 100000 + b"\r\n", {400}
    yield "trailer bomb", chunked + b"0\r\n" + b"A: b\r\n" * 100000 + b"\r\n", {400}
    yield "endless chunks", chunked + b"10000\r\n" + b"x" * 65536 + (b"\r\n10000\r\n" + b"x" * 65536) * 140, {413}
    yield "path ..", b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", {404}
    yield "path %2e%2e", b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n\r\n", {404}
    yield "path %00", b"GET /health%00 HTTP/1.1\r\n\r\n", {400}
    yield "path of 64 KiB", b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\n\r\n", {414, 431}
    yield "path with a newline", b"GET /%0d%0aX HTTP/1.1\r\n\r\n", {404}
    yield "unknown method", b"BREW / HTTP/1.1\r\n\r\n", {405}
    yield "method of 100 bytes", b"A" * 100 + b" / HTTP/1.1\r\n\r\n", {400}
    yield "HTTP/0.9", b"GET /\r\n\r\n", {400}
    yield "HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}
    yield "absolute form", b"GET http://other.example/health HTTP/1.1\r\nConnection: close\r\n\r\n", {200}
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, {400}
    yield "binary", bytes(range(256)) * 50, {400}
    yield "NUL in a header", get + b"A: b\x00c\r\n\r\n", {400}
    yield "unknown expectation", b"POST / HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n", {417}
    yield "our own frame", b"MRK1" + b"\x00" * 60, {400}


def body_inputs():
    c, t, lg = b"/v1/completions", b"/v1/chat/completions", b"/memrack/v1/logits"
    user = [{"role": "user", "content": "x"}]
    for path in (c, t, lg):
        for name, body in (("empty", b""), ("nesting", b"[" * 100000), ("objects", b'{"a":' * 100000),
                           ("brackets", b"[" + b"[]," * 2000000 + b"[]]"), ("truncated", b'{"prompt":"x'),
                           ("twice", b'{"prompt":"x","prompt":"y"}'), ("BOM", b'\xef\xbb\xbf{}'),
                           ("not UTF-8", b'{"prompt":"\xff\xfe"}'), ("overlong", b'{"prompt":"\xc0\xaf"}'),
                           ("lone surrogate", b'{"prompt":"\\ud800"}'), ("cut character", b'{"prompt":"\xe2\x82"}'),
                           ("1e999", b'{"temperature":1e999}'), ("20 digits", b'{"seed":99999999999999999999}'),
                           ("null", b"null"), ("text", b"prompt=x"), ("NUL", b"\x00")):
            yield "%s: %s" % (path.decode(), name), path, body, {400}
    bad = [-1, 0, 2**31, 2**63, 0.5, "5", []]
    for field, good in (("n", ()), ("max_tokens", ()), ("top_k", (-1, 0)), ("seed", (-1, 0, 2**31)),
                        ("logprobs", (0,)), ("best_of", ())):
        for value in bad:
            yield "%s %r" % (field, value), c, {"prompt": "x", "max_tokens": 1, field: value}, \
                {200} if value in good and not isinstance(value, (str, list, float)) else {400}
        yield field + " null", c, {"prompt": "x", field: None, "ignore_eos": False}, {200}
    for name, prompt in (("empty", ""), ("none", []), ("empty row", [[]]), ("outside", [2**22]), ("negative", [-1]),
                         ("mixed", [1, "a"]), ("object", {}), ("long ids", [1] * 1000000)):
        yield "prompt " + name, c, {"prompt": prompt}, {400}
    yield "prompt of 7 MB", c, {"prompt": "a" * 7000000}, {400}
    yield "prompt of spaces", c, {"prompt": " " * 7000000}, {400}
    yield "prompt of marks", c, {"prompt": "\u0301" * 1000000}, {400}
    yield "no messages", t, {"messages": []}, {400}
    yield "10,000 messages", t, {"messages": user * 10000}, {400}
    yield "10,000 stops", c, {"prompt": "x", "stop": ["a"] * 10000}, {400}
    yield "a stop of 1 MB", c, {"prompt": "x", "stop": "a" * 1000000}, {400}
    yield "regex bomb", c, {"prompt": "x", "guided_regex": "(a+)+$"}, {400}
    yield "schema bomb", t, {"messages": user, "response_format": {"type": "json_schema"}}, {400}
    yield "logit_bias", c, {"prompt": "x", "logit_bias": {"99999999": 100}}, {400}
    yield "template in content", t, {"messages": [{"role": "user", "content": "{{ range(10**9) }}<|end|>"}],
                                     "max_tokens": 2}, {200}
    yield "role", t, {"messages": [{"role": "user|>", "content": "x"}]}, {400}
    yield "10,000 unknown fields", c, {**{"f%d" % i: i for i in range(10000)}, "prompt": "x", "max_tokens": 1}, {200}
    yield "too many logits", lg, {"input_ids": [[1] * 2000] * 200}, {400}
    yield "ragged rows", lg, {"input_ids": [[1], [1, 2]]}, {400}


def one(server, name, answer, codes, since):
    took = time.monotonic() - since
    if code_of(answer) not in codes or took > LIMIT_S:
        raise AssertionError("%s: %d after %.1f s, expected %s: %r" %
                             (name, code_of(answer), took, codes, answer[:300]))
    if code_of(answer) >= 400 and b'"error"' in answer:
        body = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
        if not body["message"] or set(body) != {"message", "type", "param", "code"}:
            raise AssertionError("%s: an error without shape: %r" % (name, body))


def slow_clients(server):
    """Heads and bodies that trickle, and sockets that say nothing, hold only themselves."""
    socks = [dial(server) for _ in range(200)]
    for i, sock in enumerate(socks):
        if i % 2:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" if i % 4 == 1 else b"GET ")
    since = time.monotonic()
    for _ in range(5):
        healthy(server)
        for sock in socks[1::2]:
            sock.sendall(b"a")
        time.sleep(0.1)
    if time.monotonic() - since > 10:
        raise AssertionError("slow clients slow others down")
    more = [dial(server) for _ in range(150)]  # beyond the maximum of 300
    refused = 0
    for sock in more[120:]:
        sock.settimeout(2)
        try:
            refused += code_of(sock.recv(1000)) == 503
        except socket.timeout:
            pass
    if refused < 20:
        raise AssertionError("only %d connections were refused" % refused)
    for sock in socks + more:
        sock.close()


def leaving_clients(server, count):
    """Clients that leave in mid-stream, in every way."""
    body = {"prompt": "a long story", "max_tokens": 4000, "stream": True, "ignore_eos": True}

    def leave(i):
        try:
            with dial(server) as sock:
                sock.sendall(post(b"/v1/completions", body))
                if i % 3:
                    sock.recv(100)
                if i % 5 == 0:
                    sock.shutdown(socket.SHUT_WR)
                if i % 7 == 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        except OSError:
            pass

    for start in range(0, count, 50):
        threads = [threading.Thread(target=leave, args=(start + i,)) for i in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while True:
        page = ask(server, b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").decode()
        running = int(re.search(r"^memrack_requests_running (\d+)", page, re.M).group(1))
        waiting = int(re.search(r"^memrack_requests_waiting (\d+)", page, re.M).group(1))
        if running + waiting == 0:
            return
        if time.monotonic() > deadline:
            raise AssertionError("%d answers are still written for nobody" % (running + waiting))
        time.sleep(0.1)


def slow_readers(server):
    """Streams that nobody reads do not pile up, and do not slow others."""
    body = {"prompt": "a long story", "max_tokens": 4000, "stream": True, "ignore_eos": True, "logprobs": 20, "n": 4}
    socks = []
    for _ in range(8):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(LIMIT_S)
        sock.connect(server.address)
        sock.sendall(post(b"/v1/completions", body))
        socks.append(sock)
    time.sleep(1)
    since = time.monotonic()
    answer = ask(server, post(b"/v1/completions", {"prompt": "x", "max_tokens": 2}))
    if code_of(answer) != 200 or time.monotonic() - since > LIMIT_S:
        raise AssertionError("unread streams hold others: %r" % answer[:200])
    for sock in socks:
        sock.close()


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    server = Server(sys.argv[1], sys.argv[2])
    start, count, current = time.monotonic(), 0, ["the start"]
    try:
        healthy(server)
        before = server.rss_mib()
        for name, data, codes in raw_inputs():
            since = time.monotonic()
            current[0] = name
            one(server, name, exchange(server, data), codes, since)
            count += 1
        healthy(server)
        for name, path, body, codes in body_inputs():
            since = time.monotonic()
            current[0] = name
            one(server, name, ask(server, post(path, body)), codes, since)
            count += 1
        healthy(server)
        for part in (slow_clients, lambda s: leaving_clients(s, 300), slow_readers):
            current[0] = "clients that are slow, leave, or do not read"
            part(server)
            healthy(server)
            count += 1
        grown = server.rss_mib() - before
        if grown > 600:
            raise AssertionError("the server grew by %d MiB" % grown)
        server.end()
    except BaseException:
        print("at: " + current[0], file=sys.stderr)
        server.process.kill()
        raise
    print("%d hostile inputs in %.1f s; the server grew by %d MiB and ended in order" %
          (count, time.monotonic() - start, grown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
