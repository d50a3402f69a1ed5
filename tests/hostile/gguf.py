#!/usr/bin/env python3
"""Bad GGUF files: each gets one clear sentence, exit status 1 or 2, little memory, and leaves nothing behind.

    tests/hostile/gguf.py BUILD_DIR

Method: spoil one of tests/gguf and run `memrack import` on it under a limit of address space. A crash (a signal), a
hang, a sanitizer's report, a missing sentence or a trace of OUT_DIR are failures. Python's standard library only."""
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GOOD = os.path.join(HERE, "..", "gguf")
LIMIT_S, LIMIT_BYTES = 20, 1 << 30
TESTS = []


def case(base, words, *options):
    """Registers a spoiler of bytes; the sentence must hold all words."""
    def register(function):
        TESTS.append((function.__name__, base, words, options, function))
        return function
    return register


def swap(data, old, new):
    assert old in data and len(old) == len(new), old
    return data.replace(old, new, 1)


@case("llama2", ["not a GGUF file"])
def text_file(_):
    return b"# A model card, not a model\n" * 10


@case("llama2", ["too short"])
def empty_file(_):
    return b""


@case("qwen2", ["cut short"])
def half_of_it(data):
    return data[:len(data) // 2]


@case("qwen2", ["belong to nothing"])
def with_a_tail(data):
    return data + bytes(4096)


@case("qwen2", ["big-endian"])
def other_byte_order(data):
    return data[:4] + data[7:3:-1] + data[8:]


@case("qwen2", ["tensors, at most"])
def tensor_count_huge(data):
    return data[:8] + struct.pack("<Q", 1 << 62) + data[16:]


@case("qwen2", ["keys, at most"])
def key_count_huge(data):
    return data[:16] + struct.pack("<Q", 1 << 62) + data[24:]


@case("qwen2", ["a key has"])
def key_length_huge(data):
    return data[:24] + struct.pack("<Q", 1 << 62) + data[32:]


@case("llama2", ["must be 1 to"])
def layers_none(data):
    return swap(data, b"block_count\4\0\0\0\2\0\0\0", b"block_count\4\0\0\0\0\0\0\0")


@case("llama2", ["must be 1 to"])
def layers_huge(data):
    return swap(data, b"block_count\4\0\0\0\2\0\0\0", b"block_count\4\0\0\0\xff\xff\xff\xff")


@case("llama2", ["blk.2.attn_norm.weight is missing"])
def layers_too_many(data):
    return swap(data, b"block_count\4\0\0\0\2\0\0\0", b"block_count\4\0\0\0\xff\0\0\0")


@case("llama2", ["has no place"])
def layers_too_few(data):
    return swap(data, b"block_count\4\0\0\0\2\0\0\0", b"block_count\4\0\0\0\1\0\0\0")


@case("mixtral", ["must be 1 to"])
def experts_none_used(data):
    return swap(data, b"expert_used_count\4\0\0\0\2", b"expert_used_count\4\0\0\0\0")


@case("mixtral", ["expert_count"])
def experts_huge(data):
    return swap(data, b"expert_count\4\0\0\0\4\0\0\0", b"expert_count\4\0\0\0\xff\xff\xff\x7f")


@case("llama3", ["not those of llama3"])
def rope_of_another_kind(data):
    at = data.rindex(struct.pack("<f", 8.0))
    return data[:at - 4] + struct.pack("<f", 3.7) + data[at:]


@case("llama2", ["no tokenizer", "--no-tokenizer"], "TOKENIZER")
def without_a_tokenizer(data):
    return data


@case("tokenizer_qwen2", ["block_count is missing"], "TOKENIZER")
def only_a_tokenizer(data):
    return data


@case("llama_q8_0", ["use keep, bf16, f16 or f32"], "--dtype", "int3")
def dtype_unknown(data):
    return data


def run(build, data, options, folder):
    file, out = os.path.join(folder, "bad.gguf"), os.path.join(folder, "out")
    with open(file, "wb") as target:
        target.write(data)
    flags = ["--no-tokenizer"] if "TOKENIZER" not in options else []
    command = [os.path.join(build, "memrack"), "import", file, out, *flags, *[o for o in options if o != "TOKENIZER"]]

    def limit():
        if "asan" not in os.path.basename(os.path.abspath(build)):  # a sanitizer reserves far more
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S,
                              preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return None, "it hangs", []
    return done.returncode, done.stderr.strip(), [n for n in os.listdir(folder) if n != "bad.gguf"]


def judge(code, text, left, words):
    if code is None:
        return text
    if code not in (1, 2):
        return f"exit status {code}: {text[-300:]}"
    if left:
        return f"{left} is left"
    lines = text.splitlines()
    missing = [w for w in words if w.lower() not in text.lower()]
    if missing or len(lines) != 1 or not lines[0].startswith("memrack import: "):
        return f"'{text[-300:]}' lacks {missing}"
    return None


def random_spoilers():
    """Some bytes of a header, anything: refused, or imported whole."""
    rng = random.Random(5)
    for index in range(60):
        name = rng.choice(["llama3", "mixtral", "qwen2moe", "llama_q4_0", "tokenizer_spm", "tokenizer_qwen2"])

        def spoil(data):
            data = bytearray(data)
            for _ in range(rng.choice([1, 2, 8])):
                data[rng.randrange(min(len(data), 3000))] = rng.randrange(256)
            return bytes(data)
        yield f"random_{index}", name, [], (), spoil


def main():
    build = sys.argv[1]
    passed = failed = 0
    for name, base, words, options, spoil in TESTS + list(random_spoilers()):
        with open(os.path.join(GOOD, base + ".gguf"), "rb") as file:
            data = spoil(file.read())
        with tempfile.TemporaryDirectory() as folder:
            code, text, left = run(build, data, options, folder)
        harmless = name.startswith("random") and code == 0 and left == ["out"] and "Sanitizer" not in text
        problem = None if harmless else judge(code, text, left, words)
        if problem:
            print(f"FAIL {name}: {problem}")
        passed, failed = passed + (not problem), failed + bool(problem)
    print(f"hostile GGUF: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
