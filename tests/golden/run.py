#!/usr/bin/env python3
"""Golden cases: every folder beside this file holds a tiny model and what the official implementation, or for
hf_* the transformers package, computes for it (README.md). This runs `memrack logits --trace` on each and compares.

    tests/golden/run.py BUILD_DIR [CASES_DIR] [--runner "qemu-aarch64 -L ROOT"] [--same-as BUILD_DIR]

Integers must be equal position by position; floats: max|got - want| / max|want| <= 2e-5; where input_ids end
with a greedy continuation, ours must be the same. The second
part runs every option that may not change the hash and compares hashes, with those of another build too where one
is given: --runner starts a build for another architecture. Python's standard library only.
"""
import argparse
import array
import concurrent.futures
import json
import os
import shlex
import struct
import subprocess
import sys
import tempfile

TOLERANCE = 2e-5
LIMIT_S = 60
RUNNER = {}  # of a build: the command that starts its programs


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    (length,) = struct.unpack_from("<Q", data)
    out = {}
    for name, t in json.loads(data[8:8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        values = array.array({"F32": "f", "I64": "q"}[t["dtype"]])
        values.frombytes(data[8 + length + begin:8 + length + end])
        out[name] = (t["dtype"], t["shape"], values)
    return out


def compare(name, got, want):
    """None, or what is wrong."""
    dtype, _, want_values = want
    got_values = got[2]
    if len(got_values) != len(want_values):
        return f"{name}: {len(got_values)} values, expected {len(want_values)}"
    if dtype == "I64":
        for i, (g, w) in enumerate(zip(got_values, want_values)):
            if g != w:
                return f"{name}: place {i} is {g}, expected {w}"
        return None
    worst = max(abs(g - w) for g, w in zip(got_values, want_values))
    largest = max(abs(w) for w in want_values)
    error = worst / largest
    if not error <= TOLERANCE:
        return f"{name}: error {error:.2e}"
    return error


def logits(build, model, expected, extra=()):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.safetensors")
        run = subprocess.run(
            [*RUNNER.get(build, []), os.path.join(build, "memrack"), "logits", model,
             "--input", expected, "--output", out, *extra],
            capture_output=True, text=True, timeout=LIMIT_S)
        if run.returncode != 0:
            raise RuntimeError(run.stderr.strip())
        return run.stdout.strip().splitlines()[-1], read(out)


def pairs(want, config):
    """Our tensor name for each of theirs that can be compared."""
    yield "logits", "logits"
    last = None
    if any(k.startswith("mem_last.") for k in want):
        way = config["mem_insert_way"]
        count = config["n_layers"] if way == "full" else len(way.split("/"))
        last = count - 1
    names = {"input_hidden": "input", "best_indices_shuffled": "indices", "rows": "rows",
             "best_scores": "scores", "pre_score": "pre_score", "output": "output"}
    for theirs, ours in names.items():
        if f"mem0.{theirs}" in want:
            yield f"mem0.{theirs}", f"memory.0.{ours}"
        if last is not None and f"mem_last.{theirs}" in want:
            yield f"mem_last.{theirs}", f"memory.{last}.{ours}"
    for label, block in (("moe0", 0), ("moe_last", config.get("n_layers", 0) - 1)):
        for theirs, ours in (("input_hidden", "input"), ("output", "output"),
                             ("expert_indices", "indices"), ("expert_weights", "weights")):
            if f"{label}.{theirs}" in want:
                yield f"{label}.{theirs}", f"moe.{block}.{ours}"


def check_greedy(want, got):
    """The tokens behind the prompt are those that their logits ask for: ours must ask for the same."""
    columns, length = got["logits"][1][2], want["input_ids"][1][1]
    prompt = want["prompt_tokens"][2][0]
    ids, logits = want["input_ids"][2], got["logits"][2]
    for row in range(want["input_ids"][1][0]):
        for at in range(row * length + prompt, (row + 1) * length):
            scores = logits[(at - 1) * columns:at * columns]
            if scores.index(max(scores)) != ids[at]:
                return [f"greedy token {at - row * length} of prompt {row} is not {ids[at]}"]
    return []


def check_case(build, folder):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    expected = os.path.join(folder, "expected.safetensors")
    want = read(expected)
    problems, worst = [], 0.0
    digest, got = logits(build, folder, expected, ["--trace"])
    for theirs, ours in pairs(want, config):
        if ours not in got:
            problems.append(f"{ours} is missing")
            continue
        result = compare(ours, got[ours], want[theirs])
        if isinstance(result, str):
            problems.append(result)
        elif result:
            worst = max(worst, result)
    if "prompt_tokens" in want:
        problems += check_greedy(want, got)
    return digest, worst, problems


def has_tables(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f).get("mem_insert_way", "no_mem") != "no_mem"


def check_same_bits(build, folder, digest, other):
    """Invariant 1: options that may not change a bit."""
    expected = os.path.join(folder, "expected.safetensors")
    variants = [[], ["--threads", "1"], ["--threads", "3"], ["--prefill-chunk", "1"],
                ["--prefill-chunk", "5"], ["--prefill-chunk", "17"], ["--decode-from", "7"],
                ["--batch-with", other], ["--batch-with", other, "--prefill-chunk", "3"]]
    if has_tables(folder):
        for rows in (1, 2, 3, 8):
            for columns in (1, 2, 4):
                variants.append(["--table-grid", f"{rows}x{columns}"])
        variants += [["--table-grid", "3x2", "--trace"], ["--table-grid", "1x32"],
                     ["--stages", "4", "--decode-from", "7"]]
    variants += [["--isa", "avx2"], ["--isa", "neon"], ["--isa", "ref"], ["--stages", "2"],
                 ["--stages", "3", "--prefill-chunk", "5"],
                 ["--stages", "3", "--decode-from", "19"], ["--stages", "3", "--trace"]]
    problems = []
    for extra in variants:
        try:
            got, _ = logits(build, folder, expected, extra)
        except RuntimeError as error:
            if "--isa" in extra and "lacks it" in str(error):
                continue
            problems.append(f"{' '.join(extra)}: {error}")
            continue
        if got != digest:
            problems.append(f"{' '.join(extra) or 'no trace'}: other bits")
    return problems


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("cases", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--runner", type=shlex.split, default=[])
    parser.add_argument("--same-as", metavar="BUILD_DIR")
    a = parser.parse_args()
    build, root = a.build, a.cases
    RUNNER[build] = a.runner
    cases = sorted(d for d in os.listdir(root) if os.path.exists(os.path.join(root, d, "expected.safetensors")))
    passed = failed = 0

    def check(case):
        kind = case.startswith(("hf_", "meta_"))
        peers = [c for c in cases if c.startswith(("hf_", "meta_")) == kind]  # of one vocabulary
        folder, other = (os.path.join(root, c) for c in (case, peers[peers.index(case) - 1]))
        try:
            digest, worst, problems = check_case(build, folder)
            problems += check_same_bits(build, folder, digest, os.path.join(other, "expected.safetensors"))
            if a.same_as and logits(a.same_as, folder, os.path.join(folder, "expected.safetensors"))[0] != digest:
                problems.append(f"{a.same_as}: other bits")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            problems, worst = [str(error)], float("nan")
        return case, worst, problems

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, worst, problems in pool.map(check, cases):
            print(f"{'ok  ' if not problems else 'FAIL'} {case:20} largest error {worst:.1e}")
            for problem in problems:
                print(f"       {problem}")
            passed, failed = passed + (not problems), failed + bool(problems)
    print(f"golden: {passed} passed, {failed} failed")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
