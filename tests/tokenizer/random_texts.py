#!/usr/bin/env python3
"""Compares the tokenizer with the PyPI package `tokenizers` on random texts, ids and pipelines.

    tests/tokenizer/random_texts.py BUILD_FOLDER [--seed N] [--texts N] [--pipelines N] [--every-character]

Each family of families.py gets its texts; so do pipelines put together at random from the parts that
are supported. Needs the package; the last line is "N passed, N failed", one for each tokenizer."""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from tokenizers import Tokenizer
except ImportError:
    print("skipped: the package tokenizers is not installed")
    sys.exit(0)

from families import SPACES, TEXTS, tokenizers
from make_expected import case, ids_without_specials

BLOCKS = [(0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F),
          (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F), (0x900, 0x97F), (0x980, 0x9FF),
          (0xB80, 0xBFF), (0xC00, 0xD7F), (0xE00, 0xE7F), (0xF00, 0xFFF), (0x1000, 0x10FF), (0x1100, 0x11FF),
          (0x13A0, 0x13FF), (0x1780, 0x17FF), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x1E00, 0x1FFF), (0x2000, 0x206F),
          (0x2070, 0x20CF), (0x20D0, 0x20FF), (0x2100, 0x218F), (0x2190, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x27BF),
          (0x2E80, 0x2FDF), (0x3000, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x4E00, 0x4FFF), (0xA640, 0xA7FF),
          (0xA960, 0xA97F), (0xAC00, 0xACFF), (0xD7B0, 0xD7FF), (0xE000, 0xE020), (0xF900, 0xFAFF), (0xFB00, 0xFDFF),
          (0xFE00, 0xFE6F), (0xFF00, 0xFFFD), (0x10140, 0x1018F), (0x10A00, 0x10A5F), (0x11000, 0x1147F),
          (0x11900, 0x1195F), (0x12000, 0x1247F), (0x16D40, 0x16D79), (0x1B000, 0x1B16F), (0x1CCD0, 0x1CCF9),
          (0x1D100, 0x1D24F), (0x1D400, 0x1D7FF), (0x1E000, 0x1E08F), (0x1F100, 0x1F2FF), (0x1F300, 0x1F64F),
          (0x1F680, 0x1FAFF), (0x20000, 0x20040), (0x2F800, 0x2FA1F), (0x31350, 0x31360), (0xE0100, 0xE01EF),
          (0, 0x10FFFF)]
PHRASES = [
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
    "\u270c\U0001f3fd", "\u263a\ufe0f", "\uac01", "\u1100\u1161\u11a8", "\uac00\u11a8", "e\u0301\u0323",
    "a\u0323\u0307\u0301", "ǖ", "\ufb01", "\ufdfa", "\u212b", "Å", "\u0390", "\u0344", "\u0915\u093c", "\u0958",
    "\u0fb2\u0f71\u0f80", "\r\n", "\r\n\r\n", "\t\t", "    ", "  \n  ", "ſ", "\u212a", "İ", "ß", "\u1e9e",
    "\u03a3\u03c2", "ǅ", "</s>", "<s>", "<unk>", "<0x0A>", "<0xE4>", "\u2581", "\u2581\u2581", "<|endoftext|>",
    "<|end|>", "<|user|", "<|im_start|>", "[INST]", "[/INST", "<tag>", "<Tag>", "<both>", " <both> ", "word",
    "sword", "word's", "I'LL", "'s", "'ſ", "123", "1,234.5", "x=1;", "\u0000", "\u180e", "\u200b", "\u200d",
    "\ufeff", "\ufffd", "an", "anan",
]


def random_text(rng):
    out = []
    blocks = [rng.choice(BLOCKS) for _ in range(rng.randrange(1, 4))]
    for _ in range(rng.randrange(1, 25)):
        kind = rng.random()
        if kind < 0.25:
            out.append(rng.choice(PHRASES))
        elif kind < 0.4:
            out.append(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7]))
        elif kind < 0.5:
            out.append(rng.choice(TEXTS)[:20])
        elif kind < 0.55:
            out.append(rng.choice("aA1 .\n\u0301ä中🙂\u2581") * rng.randrange(1, 40))
        else:
            low, high = rng.choice(blocks)
            for _ in range(rng.randrange(1, 6)):
                c = rng.randrange(low, high + 1)
                out.append(chr(c) if not 0xD800 <= c < 0xE000 else "\ufffd")
    return "".join(out)


def every_character():
    """All code points, each beside a letter, a digit and a space."""
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return ["".join(chr(c) + "a1 b"[c % 4] + chr(c) for c in points[at:at + 64]) for at in range(0, len(points), 64)]


def string(rng):
    return rng.choice(["a", " ", "e", "\u2581", "an", "aa", "中", "é", "\n", "  ", "\u0301"])


def expression(rng):
    return rng.choice([r"\s+", r"\w+", r"\d", r"\p{L}+", r"[^\s\p{L}\p{N}]+", r"(?=[A-Z])", r"\p{Lu}", r"\p{M}+", r"^ ",
                       r"e|\n$", r"\p{Han}+", r"(?i:'s|'t)", r"\s+(?!\S)", r"[\p{P}\p{S}]", r" ?\p{N}{1,3}", r"\P{L}",
                       r"\W+"])


def pattern(rng):
    return {"Regex": expression(rng)} if rng.random() < 0.5 else {"String": string(rng)}


def metaspace(rng, replacement="\u2581"):
    return {"type": "Metaspace", "replacement": replacement,
            "prepend_scheme": rng.choice(["always", "first", "never"]), "split": rng.random() < 0.6}


def normalizer(rng):
    kind = rng.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Prepend", "Replace"])
    more = {"Strip": {"strip_left": rng.random() < 0.7, "strip_right": rng.random() < 0.5},
            "Prepend": {"prepend": string(rng)},
            "Replace": {"pattern": pattern(rng), "content": rng.choice(["", "\u2581", "x", "an", "\u0301", "--"])}}
    return {"type": kind, **more.get(kind, {})}


def pre_tokenizer(rng):
    kind = rng.choice(["Split"] * 3 + ["Metaspace", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"])
    behavior = rng.choice(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
    if kind == "Metaspace":
        return metaspace(rng)
    more = {"Split": {"pattern": pattern(rng), "behavior": behavior, "invert": rng.random() < 0.3},
            "Digits": {"individual_digits": rng.random() < 0.5}, "Punctuation": {"behavior": behavior}}
    return {"type": kind, **more.get(kind, {})}


def byte_level(rng):
    return {"type": "ByteLevel", "add_prefix_space": rng.random() < 0.5, "trim_offsets": True,
            "use_regex": rng.random() < 0.5}


def string_decoder(rng, regex):
    kind = rng.choice(["Replace", "Replace", "Strip", "Metaspace"])
    if kind == "Replace":
        what = pattern(rng) if regex else {"String": string(rng)}
        return {"type": kind, "pattern": what, "content": rng.choice(["", " ", "x", "an"])}
    if kind == "Strip":
        return {"type": kind, "content": rng.choice(" a\u2581"), "start": rng.randrange(3), "stop": 0}
    return metaspace(rng, rng.choice("\u2581a"))


def decoder(rng, of_bytes):
    first = [d for d in (string_decoder(rng, True) for _ in range(rng.randrange(3))) if d["type"] != "Metaspace"]
    first += [string_decoder(rng, False) for _ in range(rng.randrange(2))]
    if of_bytes:
        first.append(byte_level(rng))
    else:
        if rng.random() < 0.7:
            first.append({"type": "ByteFallback"})
            first += [string_decoder(rng, False) for _ in range(rng.randrange(2))]
        first.append({"type": "Fuse"})
    return first + [string_decoder(rng, False) for _ in range(rng.randrange(3))]


def sequence(key, parts):
    return {"type": "Sequence", key: parts} if parts else None


def random_pipeline(rng, models):
    of_bytes = rng.random() < 0.4
    root = json.loads(models["gpt2" if of_bytes else rng.choice(["llama2", "gemma", "unknown"])])
    root["normalizer"] = sequence("normalizers", [normalizer(rng) for _ in range(rng.randrange(4))])
    parts = [pre_tokenizer(rng) for _ in range(rng.randrange(3))]
    root["pre_tokenizer"] = sequence("pretokenizers", parts + ([byte_level(rng)] if of_bytes else []))
    root["decoder"] = sequence("decoders", decoder(rng, of_bytes))
    root["model"]["ignore_merges"] = rng.random() < 0.3
    root["model"]["fuse_unk"] = rng.random() < 0.5
    next_id = max([*root["model"]["vocab"].values(), *[t["id"] for t in root["added_tokens"]]]) + 1
    for content in rng.sample(["<tag>", "word", " the", "é", "An", "\u2581x", "end of"], 3):
        if content not in root["model"]["vocab"]:
            root["added_tokens"].append({"id": next_id, "content": content, **{
                flag: rng.random() < 0.4 for flag in ["single_word", "lstrip", "rstrip", "normalized", "special"]}})
            next_id += 1
    return json.dumps(root)


def quietly(function, *args):
    """None where the package itself fails: some of its decoders panic on short tokens."""
    try:
        return function(*args)
    except BaseException as error:  # its panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None


def decoded_case(tok, ids):
    return {"ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False),
            "skipped": tok.decode(ids_without_specials(tok, ids), skip_special_tokens=False)}


def compare(program, name, text, rng, texts, more=()):
    tok = quietly(Tokenizer.from_str, text)
    if tok is None:
        return None
    rows = [quietly(case, tok, random_text(rng)) for _ in range(texts)] + [quietly(case, tok, t) for t in more]
    count = tok.get_vocab_size()
    rows += [quietly(decoded_case, tok, [rng.randrange(count) for _ in range(rng.randrange(12))])
             for _ in range(texts // 4)]
    rows = [json.dumps(row) for row in rows if row]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([program, file.name], input="\n".join(rows) + "\n", capture_output=True, text=True)
    if "appears twice" in done.stdout:  # two names, one normal form: there, chance decides
        return None
    if done.returncode != 0:
        root = json.loads(text)
        root["model"].update(vocab=None, merges=None)
        print(f"{name}: {json.dumps(root)}\n{done.stdout[:3000]}{done.stderr[:2000]}")
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--pipelines", type=int, default=40)
    parser.add_argument("--every-character", action="store_true", help="also all code points, for the families")
    options = parser.parse_args()
    more = every_character() if options.every_character else ()
    program = Path(options.build) / "tests/tokenizer_compare"
    rng, models, good, bad, refused = random.Random(options.seed), {}, 0, 0, 0
    for name, text in tokenizers():
        models[name] = text
        same = compare(program, name, text, rng, options.texts, more)
        good, bad = good + (same is True), bad + (same is not True)
    for i in range(options.pipelines):
        same = compare(program, f"random pipeline {i}", random_pipeline(rng, models), rng, options.texts)
        good, bad, refused = good + (same is True), bad + (same is False), refused + (same is None)
    print(f"seed {options.seed}: {refused} pipelines the package itself refuses")
    print(f"tokenizers: {good} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
