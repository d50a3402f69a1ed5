#!/usr/bin/env python3
"""Writes common/model/jinja_unicode_table.c: what Python's str methods know of each character.

    tests/chat_templates/make_unicode.py > common/model/jinja_unicode_table.c

Only the standard library is asked: str.isalpha(), str.upper() and so on, of the Python that runs it."""
import sys
import unicodedata

FLAGS = [
    "alpha", "decimal", "digit", "numeric", "space", "printable", "upper", "lower", "title", "cased", "case ignorable"
]


def characters():
    return (i for i in range(0x110000) if not 0xD800 <= i < 0xE000)


def flags(i):
    c = chr(i)
    cased = (c + "a").title()[-1] == "a"
    ignorable = ("a" + c + "Σ").lower()[-1] == "ς" and (c + "Σ").lower()[-1] != "ς"
    known = [
        c.isalpha(),
        c.isdecimal(),
        c.isdigit(),
        c.isnumeric(),
        c.isspace(),
        c.isprintable(),
        c.isupper(),
        c.islower(),
        c.istitle() and not c.isupper(), cased, ignorable
    ]
    return sum(1 << bit for bit, is_so in enumerate(known) if is_so)


def runs(convert, other=None):
    """(first, last, distance, step) of the single characters; the rest as (from, to...)."""
    rows, special = [], []
    for i in characters():
        to = convert(chr(i))
        if to == (other(chr(i)) if other else chr(i)):
            continue
        if len(to) > 1:
            special.append((i, [ord(c) for c in to]))
            continue
        distance = ord(to) - i
        if rows and rows[-1][2] == distance:
            first, last, _, step = rows[-1]
            if first == last and i - last in (1, 2):
                rows[-1] = (first, i, distance, i - last)
                continue
            if i - last == step:
                rows[-1] = (first, i, distance, step)
                continue
        rows.append((i, i, distance, 1))
    return rows, special


def count(array):
    return [f"const size_t {array}_count =", f"    sizeof({array}) / sizeof({array}[0]);", ""]


def write_rows(lines, name, items):
    lines.append(f"const jinja_case_run jinja_{name}[] = {{")
    row = "   "
    for first, last, distance, step in items:
        piece = f" {{0x{first:X}, 0x{last:X}, {distance}, {step}}},"
        if len(row) + len(piece) > 100:
            lines.append(row)
            row = "   "
        row += piece
    lines += [row, "};", *count(f"jinja_{name}")]


def write_special(lines, name, items):
    lines.append(f"const jinja_case_special jinja_{name}[] = {{")
    row = "   "
    for i, to in items:
        piece = f" {{0x{i:X}, {{{', '.join(f'0x{c:X}' for c in to)}}}}},"
        if len(row) + len(piece) > 100:
            lines.append(row)
            row = "   "
        row += piece
    lines += [row, "};", *count(f"jinja_{name}")]


def main():
    kinds, words, last = [], [], None
    for i in characters():
        now = flags(i)
        if now != last:
            if now not in kinds:
                kinds.append(now)
            words.append(i << 5 | kinds.index(now))
            last = now
    assert len(kinds) <= 32
    lines = [
        "/* jinja_unicode_table.c - what Python's str methods know of each character "
        f"(Unicode {unicodedata.unidata_version}).",
        " * Written by tests/chat_templates/make_unicode.py; see jinja_unicode.h. */",
        '#include "common/model/jinja_unicode.h"', "", "/* clang-format off */",
        "const uint16_t jinja_char_kinds[] = {"
    ]
    ascii_lines = ["const uint16_t jinja_ascii_flags[128] = {"]
    for at in range(0, 128, 12):
        ascii_lines.append("    " + " ".join(f"0x{flags(i):03X}," for i in range(at, min(at + 12, 128))))
    lines[-1:-1] = ascii_lines + ["};", ""]
    lines += ["    " + " ".join(f"0x{k:03X}," for k in kinds[at:at + 12]) for at in range(0, len(kinds), 12)]
    lines += ["};", ""]
    lines.append("/* the first character of each range, shifted by 5, and its place in jinja_char_kinds */")
    lines.append("const uint32_t jinja_char_ranges[] = {")
    for at in range(0, len(words), 9):
        lines.append("    " + " ".join(f"0x{w:X}," for w in words[at:at + 9]))
    lines += ["};", *count("jinja_char_ranges")]
    upper, lower, title = runs(str.upper), runs(str.lower), runs(str.title, str.upper)
    for name, (rows, special) in (("upper", upper), ("lower", lower), ("title", title)):
        write_rows(lines, name, rows)
        if special:
            write_special(lines, name + "_special", special)
    sys.stdout.write("\n".join(lines).rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
