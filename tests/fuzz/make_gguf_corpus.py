#!/usr/bin/env python3
"""Writes the seeds of fuzz_gguf to tests/fuzz/corpus/gguf (kept in the tree): headers of the files of tests/gguf,
without their data, and small headers that are wrong in one way. Python's standard library only."""
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "gguf")
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def put(name, data, more=0):
    folder = os.path.join(HERE, "corpus", "gguf")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(struct.pack("<I", more) + data)


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def header(tensors, keys, version=3, tensor_count=None, key_count=None):
    return (b"GGUF" + struct.pack("<IQQ", version, len(tensors) if tensor_count is None else tensor_count,
                                  len(keys) if key_count is None else key_count) + b"".join(keys) + b"".join(tensors))


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name, dims, kind, offset):
    return text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", kind, offset)


def header_bytes(data):
    """How long the header of a good file is."""
    at = 24
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def skip_text(at):
        return at + 8 + struct.unpack_from("<Q", data, at)[0]

    for _ in range(keys):
        at = skip_text(at)
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        if kind == ARRAY:
            item, count = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(count if item == STRING else 0):
                at = skip_text(at)
            at += 0 if item == STRING else count * sizes[item]
        else:
            at = skip_text(at) if kind == STRING else at + sizes[kind]
    for _ in range(tensors):
        at = skip_text(at)
        (dims,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dims + 12
    return at


def seeds():
    for name in ("llama3", "mixtral", "qwen2", "olmo", "olmo2", "qwen2moe", "qwen3moe", "olmoe", "llama_q4_0",
                 "llama_linear_bias", "tokenizer_llama-bpe", "tokenizer_gpt-2", "tokenizer_spm"):
        with open(os.path.join(MODELS, name + ".gguf"), "rb") as file:
            data = file.read()
        end = header_bytes(data)
        put(name, data[:end], len(data) - end)
    f32 = tensor("t", [4, 4], 0, 0)
    put("empty", header([], []))
    put("one", header([f32], []), 128)
    put("overlap", header([f32, tensor("u", [4, 4], 0, 32)], []), 256)
    put("product", header([tensor("t", [1 << 40, 1 << 40], 0, 0)], []))
    put("type", header([tensor("t", [4], 77, 0)], []))
    put("counts", header([], [], tensor_count=1 << 60, key_count=1 << 60))
    put("nested", header([], [key("k", ARRAY, struct.pack("<IQ", ARRAY, 1 << 50))]))
    put("alignment", header([f32], [key("general.alignment", U32, struct.pack("<I", 0))]), 128)
    put("twice", header([], [key("k", U64, bytes(8))] * 2))
    put("string", header([], [key("k", STRING, struct.pack("<Q", 1 << 63))]))
    put("big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


if __name__ == "__main__":
    seeds()
