"""WordNet -> tokenizer and training entries.

Picks the most common words, their first sense per part of speech, cleans the glosses, trains a
byte-level BPE tokenizer and writes WORK/entries.json and WORK/tokenizer.json.

usage: prepare.py WORK [--wordnet DIR] [--words N] [--vocab N]
"""

import argparse
import json
import os
import random
import re
import zlib
from collections import defaultdict

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
POS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
LONGEST = 95            # characters of a gloss; later clauses are dropped to stay below


def clean(gloss):
    """The definition without examples, cut at a clause boundary when it is long."""
    gloss = re.split(r'[;,:]?\s*"', gloss, maxsplit=1)[0]
    gloss = re.sub(r"\s+", " ", gloss).replace("`", "'").strip(" ;:,-")
    clauses = gloss.split("; ")
    text = clauses[0]
    for clause in clauses[1:]:
        if len(text) + len(clause) + 2 > LONGEST:
            break
        text += "; " + clause
    while len(text) > LONGEST and ", " in text[30:]:
        text = text[: text.rindex(", ")]
    if len(text) > LONGEST:
        short = re.sub(r"\s*\([^)]*\)", "", text)
        text = short if 20 <= len(short) <= LONGEST else ""
    if text.count("(") != text.count(")"):
        text = re.sub(r"\s*\([^)]*$", "", text) if text.count("(") > text.count(")") else text
    return text.strip(" ;:,-")


def read_wordnet(root):
    glosses = {}
    for p, name in FILES.items():
        for line in open(os.path.join(root, "data." + name), encoding="utf-8", errors="replace"):
            if not line.startswith("  "):
                glosses[p, line[:8]] = line.split(" | ", 1)[1].strip()
    tagged = defaultdict(int)
    for line in open(os.path.join(root, "cntlist.rev"), encoding="utf-8", errors="replace"):
        key, _, count = line.split()
        lemma, rest = key.rsplit("%", 1)
        p = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}[rest[0]]
        tagged[lemma, p] += int(count)
    senses = defaultdict(dict)
    for p, name in FILES.items():
        for line in open(os.path.join(root, "index." + name), encoding="utf-8", errors="replace"):
            if line.startswith("  "):
                continue
            f = line.split()
            lemma, count = f[0], int(f[2])
            offsets = f[-count:]
            if re.fullmatch(r"[a-z]+(?:['-][a-z]+)*", lemma) and len(lemma) > 1:
                senses[lemma][p] = (tagged[lemma, p], count, offsets)
    return glosses, senses


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("work")
    ap.add_argument("--wordnet", default="/usr/share/wordnet")
    ap.add_argument("--words", type=int, default=6000)
    ap.add_argument("--vocab", type=int, default=4096)
    a = ap.parse_args()
    os.makedirs(a.work, exist_ok=True)
    glosses, senses = read_wordnet(a.wordnet)

    def weight(lemma):
        s = senses[lemma].values()
        return (-sum(x[0] for x in s), -sum(x[1] for x in s), zlib.crc32(lemma.encode()))

    entries, words = [], 0
    for lemma in sorted(senses, key=weight):
        if words == a.words:
            break
        kinds = sorted(senses[lemma].items(), key=lambda kv: (-kv[1][0], -kv[1][1], "nvar".index(kv[0])))
        mine = []
        for p, (count, _, offsets) in kinds:
            if mine and count == 0:
                continue
            text = next((t for t in (clean(glosses[p, o]) for o in offsets[:2])
                         if len(t) >= 8 and t.lower() != lemma), None)
            if text:
                mine.append([lemma, POS[p], text])
        if not mine:
            continue
        words += 1
        # Only the commonest words keep more than one part of speech.
        for rank, e in enumerate(mine[: 2 if words <= a.words // 4 else 1]):
            entries.append(e + [rank == 0])

    names = sorted({e[0] for e in entries})
    held = set(random.Random(7).sample(names, len(names) // 50))
    train = [e for e in entries if e[0] not in held]
    test = [e for e in entries if e[0] in held]

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=a.vocab, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    corpus = []
    for w, p, g, _ in train:
        corpus += [g, f"define {w}", f"{w} ({p}): "]
    corpus += ["what does it mean?", "What is the meaning of the word?", "Define the noun, verb, adjective, adverb.",
               "You are a dictionary.", "What is an adverb?"] * 200
    tok.train_from_iterator(corpus, trainer)
    tok.save(os.path.join(a.work, "tokenizer.json"))
    json.dump({"train": train, "held": test}, open(os.path.join(a.work, "entries.json"), "w"), indent=0)
    gl = [len(tok.encode(e[2]).ids) for e in train]
    wl = [len(tok.encode("define " + e[0]).ids) - 1 for e in train]
    print(f"{words} words, {len(train)} training entries, {len(test)} held out; vocabulary {tok.get_vocab_size()}; "
          f"gloss tokens mean {sum(gl) / len(gl):.1f} max {max(gl)}; word tokens mean {sum(wl) / len(wl):.2f}")


if __name__ == "__main__":
    main()
