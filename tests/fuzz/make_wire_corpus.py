#!/usr/bin/env python3
"""Writes the seed corpus of fuzz_wire: good frames of every kind, from which a fuzzer spoils its own.

    tests/fuzz/make_wire_corpus.py [FOLDER]     default: tests/fuzz/corpus/wire

The layouts are those of proto/wire.h, written down a second time: a seed that fuzz_wire refuses
although nothing is wrong with it would show a slip in one of the two."""
import os
import struct
import sys

MAGIC = 0x314B524D
HELLO, WELCOME, REFUSE, PING, ERROR, RETRIEVE, STEP, SAMPLED, LOGITS, DONE = (
    1, 2, 3, 4, 6, 16, 32, 33, 34, 35)
ECHO, ECHOED, TOPK, CHOSEN, CANCEL, PREFETCH, STAGE, HIDDEN = (7, 8, 20, 21, 22, 23, 36, 37)
NEW = (ECHO, ECHOED, TOPK, CHOSEN, CANCEL, PREFETCH, STAGE, HIDDEN)  # with version 2


def header(kind, payload, request=9, status=0):
    return struct.pack("<IHHIIQQIi16sQ", MAGIC, 2 if kind in NEW else 1, kind, len(payload), 0, request, 0, 0, status,
                       bytes(16), 0)


def frame(kind, payload=b"", **fields):
    return header(kind, payload, **fields) + payload


def pad8(data):
    return data + bytes(-len(data) % 8)


def hello(low=1, high=1, digest=bytes(32), flags=0, nonce=bytes(16)):
    return struct.pack("<HHHHII32s16s", low, high, 3, 4, 1 << 20, flags, digest, nonce)


def retrieve(mode, layer, counts, rows, cores=0, slots=1, bits=0, gelu=0, slot=b"", x_columns=0):
    tokens, entries = len(counts), len(rows)
    out = struct.pack("<IIHHIIHHHHI", layer, 0, mode, bits, tokens, entries, 0, cores, slots, gelu,
                      x_columns)
    out += pad8(struct.pack(f"<{tokens}I", *counts)) + pad8(struct.pack(f"<{entries}I", *rows))
    out += pad8(slot)
    out += pad8(struct.pack(f"<{cores * entries}f", *(0.5 for _ in range(cores * entries))))
    if mode == 2:
        out += 2 * pad8(struct.pack(f"<{tokens}h", *([3] * tokens)))
    return out + pad8(struct.pack(f"<{tokens * x_columns}f", *([0.25] * tokens * x_columns)))


def step(drafted=0):
    sequence = struct.pack("<QIIIIfffIQIIII", 1, 0, 2, 1, 1, 0.7, 0.9, 0.0, 40, 5, 0, 0, 2, drafted)
    return struct.pack("<IIII", 1, 2, 1, 0) + sequence + struct.pack("<ii", 5, 6) + struct.pack("<I", 3)


def welcome():
    return struct.pack("<HHI32s16sIIII", 1, 4, 1 << 20, bytes(32), bytes(16), 2, 2, 1, 0) + struct.pack(
        "<II", 0, 1)


def topk(wants, tokens, query_columns, x_columns, bits):
    floats = tokens * (query_columns + x_columns)
    return struct.pack("<IIHHIIIII", 1, 0, wants, bits, tokens, query_columns, x_columns, 0, 0) + b"".join(
        pad8(struct.pack(f"<{tokens * n}f", *([0.5] * tokens * n)))
        for n in (query_columns, x_columns) if n and floats)


def prefetch():
    return struct.pack("<IIII", 1, 0, 3, 0) + pad8(struct.pack("<III", 1, 5, 31))


def hidden(kind, kinds, layer):
    return struct.pack("<HHIIIiI", kind, kinds, 0, 2, 2, layer, 0) + struct.pack("<4f", 1, 2, 3, 4)


def done_more():
    return struct.pack("<QQQQ", 1, 2, 3, 4) + struct.pack("<8I", 2, 1, 0, 0, 5, 6, 7, 0) + struct.pack(
        "<QQ", 8, 9)


REGISTRY = (b'{"cluster":"c","model":"m","digest":"' + b"ab" * 32 + b'","grid":"2x1",'
            b'"memshards":[{"id":0,"address":"127.0.0.1:7001"},{"id":1,"address":"[::1]:7002"}],'
            b'"workers":[{"id":0,"address":"unix:/tmp/w"}],"coordinators":[]}')


def seeds():
    pool = retrieve(1, 0, [2, 1], [1, 5, 31], cores=2, slots=4, bits=32, slot=bytes([0, 3, 1]))
    gated = retrieve(2, 1, [2, 1], [1, 5, 31], cores=1, bits=64, gelu=1, x_columns=4)
    dot = retrieve(3, 1, [2, 1], [1, 5, 31], bits=64, x_columns=4)
    gather = retrieve(4, 0, [3], [1, 5, 31])
    sampled = struct.pack("<QifII", 1, 4, -1.0, 1, 0) + struct.pack("<if", 4, -1.0)
    logits = struct.pack("<QIIII", 1, 0, 0, 2, 0) + struct.pack("<ff", 1.0, 2.0)
    payloads = {"hello": (HELLO, hello(), 0), "welcome": (WELCOME, welcome(), 0),
                "refuse": (REFUSE, b"no", -10), "error": (ERROR, b"row 9 is not here", -3),
                "ping": (PING, b"", 0), "pool": (RETRIEVE, pool, 0), "step": (STEP, step(), 0),
                "sampled": (SAMPLED, sampled, 0), "logits": (LOGITS, logits, 0),
                "done": (DONE, struct.pack("<QQQQ", 1, 2, 3, 4), 0)}
    new = {"echo": (ECHO, struct.pack("<II", 64, 0) + b"any bytes", 0), "echoed": (ECHOED, b"12345", 0),
           "topk_ids": (TOPK, topk(1, 2, 4, 0, 0), 0), "topk_pooled": (TOPK, topk(2, 2, 3, 4, 64), 0),
           "chosen": (CHOSEN, bytes(64), 0), "cancel": (CANCEL, b"", 0), "prefetch": (PREFETCH, prefetch(), 0),
           "stage": (STAGE, step(), 0), "stage_drafted": (STAGE, step(drafted=1), 0),
           "hidden_stream": (HIDDEN, hidden(0, 3, -1), 0),
           "hidden_pending": (HIDDEN, hidden(1, 3, 4), 0)}
    stream = b"".join(frame(kind, payload, status=status) for kind, payload, status in payloads.values())
    yield "stream_bytes", b"\x00\x00" + frame(HELLO, hello()) + frame(PING) + frame(RETRIEVE, pool)
    yield "stream_pieces", b"\x00\x20" + stream
    yield "stream_new", b"\x00\x20" + frame(HELLO, hello(1, 2)) + b"".join(
        frame(kind, payload, status=status) for kind, payload, status in new.values())
    more = {"done_more": (DONE, done_more(), 0)}
    for name, (kind, payload, status) in (payloads | new | more).items():
        yield "frame_" + name, b"\x01" + struct.pack("<Hi", kind, status) + payload
    for name, payload in (("pool", pool), ("gated", gated), ("dot", dot), ("gather", gather)):
        yield "retrieve_" + name, b"\x02" + payload
    yield "hello_any", b"\x03" + hello()
    yield "hello_range", b"\x03" + hello(1, 2)
    yield "hello_new", b"\x03" + hello(2, 3)
    yield "hello_digest", b"\x03" + hello(digest=bytes([1, 2]) + bytes(30))
    yield "hello_keyed", b"\x03" + hello(2, 2, flags=1, nonce=bytes(range(16)))
    for name, payload in (("ids", topk(1, 2, 4, 0, 0)), ("pooled", topk(2, 2, 3, 4, 64))):
        yield "topk_" + name, b"\x05" + struct.pack("<IIII", 84, 2, 4, 1024) + payload
    yield "registry", b"\x04" + REGISTRY


def main():
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "wire")
    folder = sys.argv[1] if len(sys.argv) > 1 else default
    os.makedirs(folder, exist_ok=True)
    for name, data in seeds():
        with open(os.path.join(folder, name), "wb") as out:
            out.write(data)


if __name__ == "__main__":
    main()
