#!/usr/bin/env python3
"""Checks the house rules a compiler does not: who may include whom, sizes, openings, leftovers.

    tests/tidy.py [FILE ...]      all tracked and new files without arguments

Prints one line per breach (file:line: sentence) and ends with a count; exit status 1 if there is
any. The rules are those of docs/ARCHITECTURE.md, "House rules"."""
import os
import re
import subprocess
import sys

LINES_MAX, COLUMNS_MAX, SCRIPT_COLUMNS_MAX, FUNCTION_MAX = 800, 100, 120, 70

BASE, MODEL, OPS, NET, PROTO = "common/base", "common/model", "common/ops", "common/net", "proto"
ROLES = ["coordinator", "worker", "memshard"]
# folder of the including file -> what its quoted includes may start with
ARROWS = {
    BASE: [BASE],
    MODEL: [BASE, MODEL, OPS],
    OPS: [BASE, OPS],
    NET: [BASE, NET, PROTO],
    PROTO: [BASE, PROTO],
    "coordinator": [BASE, MODEL, NET, PROTO, "coordinator"],
    "worker": [BASE, MODEL, OPS, NET, PROTO, "worker"],
    "memshard": [BASE, MODEL, OPS, NET, PROTO, "memshard"],
    "cli": ["common/", PROTO, "cli"] + ROLES,
    "tests": ["common/", PROTO, "tests", "cli/plan_model.h", "cli/embedded.h"] + ROLES,
    "bench": ["common/", PROTO, "bench"] + ROLES,
}
# foreign header -> the files (prefixes) that may include it
HOMES = {
    r"jansson\.h": ["common/base/json", "tests/"],
    r"openssl/": ["common/base/hash", "common/net/keys", "common/net/rpc_tls"],
    r"pcre2\.h": ["common/model/tokenizer"],
    r"utf8proc\.h": ["common/model/tokenizer_unicode"],
    r"event2?[/.]": ["coordinator/", "tests/"],
    r"curl/": ["cli/logits_remote", "cli/selftest_cluster", "common/model/source_http"],
    r"cmocka\.h": ["tests/"],
    r"immintrin\.h": ["common/ops/", "bench/"],
    r"arm_neon\.h": ["common/ops/"],
    r"grpc/": ["common/net/rpc"],
    r"ucp/": ["common/net/fabric_ucx"],
    r"liburing": ["memshard/tier_uring"],
    r"cuda": ["common/ops/cuda/"],
    r"nccl": ["common/net/fabric_nccl"],
}
MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:work|root|home/\w+|var/tmp|mnt)/")
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
TEXT = (".c", ".h", ".cu", ".cuh", ".py", ".sh", ".md", ".txt", ".json", ".yaml", ".yml", ".cmake")
CODE = (".c", ".h", ".cu", ".cuh")
SCRIPT_FOLDERS = ("tools/", ".ci/")
DATA = ("tests/fuzz/corpus/", "tests/golden/cases/", "tests/importer/checkpoints/", "bench/results/", "models/")


def all_files():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], check=True,
                         capture_output=True, text=True).stdout.splitlines()
    return sorted(f for f in out if os.path.isfile(f))


def is_script(path):
    return path.endswith((".py", ".sh")) or path.startswith(SCRIPT_FOLDERS)


def home_of(path):
    for folder in sorted(ARROWS, key=len, reverse=True):
        if path.startswith(folder + "/"):
            return folder
    return None


def check_includes(path, lines):
    home = home_of(path)
    for number, line in enumerate(lines, 1):
        match = re.match(r'\s*#\s*include\s+(["<])([^">]+)', line)
        if not match:
            continue
        quoted, name = match.group(1) == '"', match.group(2)
        if quoted and home and not any(name.startswith(to) for to in ARROWS[home]):
            yield number, f"{home} must not include {name}"
        for pattern, homes in HOMES.items():
            if re.match(pattern, name) and not path.startswith(tuple(homes)):
                yield number, f"<{name}> belongs in {' or '.join(homes)} only"


def check_functions(lines):
    """A function runs from the first line of its signature to the closing brace in column 0."""
    signature = start = None
    for number, line in enumerate(lines, 1):
        if start is None:
            if re.match(r"[A-Za-z_]", line) and not line.startswith(("typedef", "#", "enum")):
                signature = number
            if signature and re.search(r"\)\s*\{$", line) and "=" not in lines[signature - 1]:
                start = signature
        if line.startswith("}"):
            if start is not None and number - start + 1 > FUNCTION_MAX:
                yield start, f"function of {number - start + 1} lines, at most {FUNCTION_MAX}"
            signature = start = None


def check_guard(path, text):
    name = re.sub(r"[^A-Za-z0-9]", "_", re.sub(r"^common/", "", path)).upper()
    guard = re.search(r"#ifndef (\w+)\n#define (\w+)", text)
    if not guard or guard.group(1) != guard.group(2):
        yield 1, "no header guard"
    elif guard.group(1) not in (f"MR_{name}", f"MR_{name}".replace("TESTS_UNIT", "TESTS")):
        yield 1, f"header guard is {guard.group(1)}, expected MR_{name}"


def check_text(path, lines):
    for number, line in enumerate(lines, 1):
        if "\t" in line:
            yield number, "tab"
        if line != line.rstrip():
            yield number, "blanks at the end"
        if MACHINE_PATH.search(line) and path != "tests/tidy.py":
            yield number, f"path of one machine: {MACHINE_PATH.search(line).group(0)}"
        if LEFTOVER.search(line) and path != "tests/tidy.py":
            yield number, f"leftover word {LEFTOVER.search(line).group(0)}"


def check(path):
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        if path.endswith(TEXT):
            yield 1, "not UTF-8"
        return
    lines = text.split("\n")
    code, script = path.endswith(CODE), is_script(path)
    if not (path.endswith(TEXT) or script or os.path.basename(path) == "CMakeLists.txt"):
        return
    if text and not text.endswith("\n"):
        yield len(lines), "no line break at the end"
    yield from check_text(path, lines)
    if not (code or script):
        return
    if len(lines) - 1 > LINES_MAX:
        yield 1, f"{len(lines) - 1} lines, at most {LINES_MAX}"
    for number, line in enumerate(lines, 1):
        columns_max = COLUMNS_MAX if code else SCRIPT_COLUMNS_MAX
        if len(line) > columns_max:
            yield number, f"{len(line)} columns, at most {columns_max}"
    if code:
        if not text.startswith("/*"):
            yield 1, "does not open with a comment that says what the file is"
        yield from check_includes(path, lines)
        yield from check_functions(lines)
        if path.endswith(".h"):
            yield from check_guard(path, text)
    elif not re.match(r'(#!.*\n)?(#|""")', text):
        yield 1, "does not open with a comment that says what the file is"


def main():
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    files = [os.path.relpath(f) for f in sys.argv[1:] if os.path.isfile(f)] or all_files()
    breaches = 0
    for path in files:
        if path.startswith(DATA) and not path.endswith(CODE + (".py",)):
            continue
        for number, sentence in check(path):
            print(f"{path}:{number}: {sentence}")
            breaches += 1
    print(f"tidy: {len(files)} files, {breaches} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
