#!/usr/bin/env python3
"""From a GGUF file to logits: `memrack import`, then `memrack logits`, against what transformers computes.

    tests/gguf/run.py BUILD_DIR

For every NAME.logits.safetensors of this folder. Python's standard library only."""
import glob
import json
import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 2e-5  # of the largest logit


def read_floats(path, name):
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack_from("<Q", data)
    entry = json.loads(data[8:8 + length])[name]
    first, last = entry["data_offsets"]
    return struct.unpack(f"<{(last - first) // 4}f", data[8 + length + first:8 + length + last])


def check(memrack, expected):
    name = os.path.basename(expected)[:-len(".logits.safetensors")]
    with tempfile.TemporaryDirectory() as folder:
        model, out = os.path.join(folder, "model"), os.path.join(folder, "out.safetensors")
        for command in (["import", os.path.join(HERE, name + ".gguf"), model, "--no-tokenizer"],
                        ["logits", model, "--input", expected, "--output", out]):
            done = subprocess.run([memrack, *command], capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                return f"{name}: {done.stderr.strip()[-300:]}"
        wanted, found = read_floats(expected, "logits"), read_floats(out, "logits")
    if len(wanted) != len(found):
        return f"{name}: {len(found)} logits, {len(wanted)} are expected"
    error = max(abs(a - b) for a, b in zip(wanted, found)) / max(map(abs, wanted))
    print(f"{name}: largest error {error:.1e} of the largest logit")
    return None if error <= LIMIT else f"{name}: {error:.1e} is more than {LIMIT:.0e}"


def main():
    memrack = os.path.join(sys.argv[1], "memrack")
    files = sorted(glob.glob(os.path.join(HERE, "*.logits.safetensors")))
    problems = [p for p in (check(memrack, f) for f in files) if p]
    for problem in problems:
        print("FAIL", problem)
    print(f"from GGUF to logits: {len(files) - len(problems)} of {len(files)} models")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
