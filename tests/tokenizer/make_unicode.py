#!/usr/bin/env python3
"""Writes common/model/tokenizer_unicode_data.c: where the PyPI package `tokenizers` knows other
characters than the libraries linked here.

    python3 -m venv V && V/bin/pip install tokenizers==0.23.3 && V/bin/python tests/tokenizer/make_unicode.py

Each part of that package follows a Unicode version of its own: split expressions 16, digits 17,
accents and normal forms 12, punctuation 8. Every code point is shown to each of those parts; what
they make of it becomes a table of ranges, or the difference to PCRE2's and utf8proc's answer."""
import ctypes
import sys
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

OUT = Path(__file__).resolve().parents[2] / "common/model/tokenizer_unicode_data.c"
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = ["L", "N", "M", "P", "S", "Lu", "Ll", "Lt", "Lm", "Lo", "Nd"]
WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}"
SCRIPTS = ["Han", "Hiragana", "Katakana", "Hangul", "Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Thai"]


def cut_out(pre, around):
    """The characters that `pre` does not leave together with one of another kind."""
    return {c for c in POINTS if chr(c) != around and len(pre.pre_tokenize_str(around + chr(c) + around)) > 1}


def matched(expression):
    pre = pre_tokenizers.Split(Regex(expression), "isolated")
    return cut_out(pre, "\x01")


def pcre2_matched(expression):
    lib = ctypes.CDLL("libpcre2-8.so.0")
    lib.pcre2_compile_8.restype = lib.pcre2_match_data_create_8.restype = ctypes.c_void_p
    number, where = ctypes.c_int(), ctypes.c_size_t()
    utf, ucp = 0x00080000, 0x00020000
    code = lib.pcre2_compile_8(expression.encode(), ctypes.c_size_t(len(expression)), utf | ucp,
                               ctypes.byref(number), ctypes.byref(where), None)
    data = ctypes.c_void_p(lib.pcre2_match_data_create_8(1, None))
    found = set()
    for c in POINTS:
        text = chr(c).encode()
        if lib.pcre2_match_8(ctypes.c_void_p(code), text, ctypes.c_size_t(len(text)), ctypes.c_size_t(0), 0, data,
                             None) >= 0:
            found.add(c)
    return found


class Utf8proc:
    FORMS = {"NFD": 1 << 4, "NFC": 1 << 3, "NFKD": 1 << 4 | 1 << 2, "NFKC": 1 << 3 | 1 << 2}

    def __init__(self):
        self.lib = ctypes.CDLL("libutf8proc.so.2")
        self.lib.utf8proc_map.restype = ctypes.c_ssize_t
        self.lib.utf8proc_get_property.restype = ctypes.POINTER(ctypes.c_uint16)

    def form(self, name, text):
        out, raw = ctypes.c_void_p(), text.encode()
        count = self.lib.utf8proc_map(raw, ctypes.c_ssize_t(len(raw)), ctypes.byref(out), 1 << 1 | self.FORMS[name])
        answer = ctypes.string_at(out, count).decode()
        ctypes.CDLL(None).free(out)
        return answer

    def combining_class(self, c):
        return self.lib.utf8proc_get_property(c)[1]

    def lower(self, c):
        return self.lib.utf8proc_tolower(c)


def ranges(points):
    merged = []
    for c in sorted(points):
        if merged and merged[-1][1] == c - 1:
            merged[-1][1] = c
        else:
            merged.append([c, c])
    return merged


def inert_points():
    """What utf8proc decomposes, composes or reorders and the package leaves as it is."""
    lib, inert = Utf8proc(), set()
    for name in Utf8proc.FORMS:
        form = getattr(normalizers, name)()
        inert |= {c for c in POINTS if form.normalize_str(chr(c)) != lib.form(name, chr(c))}
    order = normalizers.NFD()
    for c in POINTS:
        rank = lib.combining_class(c)
        if rank == 0 or lib.form("NFD", chr(c)) != chr(c):
            continue
        other = "\u0316" if rank == 230 else "\u0301"
        pair = other + chr(c) if rank < 230 else chr(c) + other
        if order.normalize_str("a" + pair) == "a" + pair:
            inert.add(c)
    return inert


def lower_exceptions():
    """Runs of code points with the same distance to their lower case, where utf8proc says otherwise."""
    lib, lower, runs = Utf8proc(), normalizers.Lowercase(), []
    for c in POINTS:
        to = lower.normalize_str(chr(c))
        if c == 0x130 or to == chr(lib.lower(c)):
            continue
        if len(to) != 1:
            sys.exit(f"U+{c:04X} has a lower case of {len(to)} characters")
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == ord(to) - c:
            runs[-1][1] = c
        else:
            runs.append([c, c, ord(to) - c])
    return runs


def rows(items, width=96):
    line, lines = "   ", []
    for item in items:
        if len(line) + len(item) + 1 > width:
            lines.append(line)
            line = "   "
        line += " " + item
    return "\n".join(lines + [line])


def table(name, why, points):
    cells = [f"{{0x{a:x}, 0x{b:x}}}," for a, b in ranges(points)]
    return (f"/* {why} */\nconst tokenizer_range tokenizer_{name}[] = {{\n{rows(cells)}\n}};\n"
            f"const size_t tokenizer_{name}_count = {len(cells)};\n")


def addition(name, truth, inner, young):
    have = pcre2_matched(f"[{inner}]")
    more, less = truth - have, have - truth
    young |= more
    if less:
        sys.exit(f"{name}: PCRE2 has {sorted(map(hex, less))[:20]} more")
    text = "".join(f"\\\\x{{{a:x}}}" + (f"-\\\\x{{{b:x}}}" if b > a else "") for a, b in ranges(more))
    pieces, width = [], 80
    while text:
        cut = text.rfind("\\\\x", 0, width) if len(text) > width else len(text)
        cut = cut - 1 if len(text) > width and text[cut - 1] == "-" else cut
        pieces.append(text[:cut])
        text = text[cut:]
    lines = "\n".join(f'     "{piece}"' for piece in pieces) or '     ""'
    inner = inner.replace("\\", "\\\\")
    return f'    {{"{name}", "{inner}",\n{lines}}},\n'


def main():
    words = set(POINTS) - cut_out(pre_tokenizers.Whitespace(), "a") | {ord("a")}
    accents = {c for c in POINTS if normalizers.StripAccents().normalize_str("a" + chr(c)) == "a"}
    digits = cut_out(pre_tokenizers.Digits(True), "a")
    punctuation = cut_out(pre_tokenizers.Punctuation(), "a")
    additions, young = "", set()
    for name in CATEGORIES:
        additions += addition(name, matched(f"\\p{{{name}}}"), f"\\p{{{name}}}", young)
    for name in SCRIPTS:
        additions += addition(name, matched(f"\\p{{{name}}}"), f"\\p{{sc:{name}}}", young)
    additions += addition("w", matched("\\w"), WORD, young)
    additions += addition("d", matched("\\d"), "\\p{Nd}", young)
    runs = lower_exceptions()
    inert = inert_points() | (set(POINTS) - pcre2_matched("\\P{Cn}"))  # younger ones too
    cells = [f"{{0x{a:x}, 0x{b:x}, {d}}}," for a, b, d in runs]
    OUT.write_text(f'''/* tokenizer_unicode_data.c - characters the reference tokenizer knows and our libraries do not,
 * or the other way round. Written by tests/tokenizer/make_unicode.py. */
#include "common/model/tokenizer_unicode.h"

{table("words", "Word characters of added tokens and of the Whitespace pre-tokenizer.", words)}
{table("digits", "Digits of the Digits pre-tokenizer.", digits)}
{table("punctuation", "Punctuation of the pre-tokenizer of that name.", punctuation)}
{table("accents", "What StripAccents takes away.", accents)}
{table("inert", "Untouched by the normal forms there.", inert)}
/* Lower case where utf8proc has another. */
const tokenizer_lower tokenizer_lowers[] = {{
{rows(cells)}
}};
const size_t tokenizer_lowers_count = {len(cells)};

{table("young", "All that PCRE2 lacks below.", young)}
/* Properties by their name there: as PCRE2 writes them in a set, and the members it lacks. */
const tokenizer_property tokenizer_properties[] = {{
{additions}}};
const size_t tokenizer_properties_count = {len(CATEGORIES) + len(SCRIPTS) + 2};
''')


if __name__ == "__main__":
    main()
