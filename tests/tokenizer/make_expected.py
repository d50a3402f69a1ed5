#!/usr/bin/env python3
"""Writes small tokenizers and what the PyPI package `tokenizers` makes of difficult texts.

    python3 -m venv V && V/bin/pip install tokenizers==0.23.3 && V/bin/python tests/tokenizer/make_expected.py

The results are committed (NAME.json, NAME.expected.json), so that tests/unit/test_tokenizer.c needs
no Python. With --check TOKENIZER.json... nothing is written: those files' cases go to stdout, as
build/release/tests/tokenizer_compare reads them."""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from families import TEXTS, fuzz_texts, tokenizers

HERE = Path(__file__).resolve().parent


def ids_without_specials(tok, ids):
    """Those that decode shows: by their flag, not by how the normalizer spells their name."""
    special = {i for i, token in tok.get_added_tokens_decoder().items() if token.special}
    return [i for i in ids if i not in special]


def case(tok, text):
    tok.encode_special_tokens = False
    ids = tok.encode(text, add_special_tokens=False).ids
    full = tok.encode(text, add_special_tokens=True).ids
    tok.encode_special_tokens = True
    plain = tok.encode(text, add_special_tokens=False).ids
    row = {"text": text, "ids": ids}
    if full != ids:
        row["template"] = full
    if plain != ids:
        row["plain"] = plain
    row["decoded"] = tok.decode(ids, skip_special_tokens=False)
    skipped = tok.decode(ids_without_specials(tok, ids), skip_special_tokens=False)
    if skipped != row["decoded"]:
        row["skipped"] = skipped
    return row


def cases(tok):
    return [case(tok, text) for text in TEXTS + fuzz_texts()]


def main():
    if sys.argv[1:2] == ["--check"]:
        for path in sys.argv[2:]:
            for row in cases(Tokenizer.from_file(path)):
                print(json.dumps(row))
        return
    for name, text in tokenizers():
        (HERE / f"{name}.json").write_text(text + "\n")
        tok = Tokenizer.from_str(text)
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in cases(tok))
        (HERE / f"{name}.expected.json").write_text(f'{{"cases":[\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
