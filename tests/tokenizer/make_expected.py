#!/usr/bin/env python3
"""Writes small tokenizers and what the PyPI package `tokenizers` makes of difficult texts.

    python3 -m venv V && V/bin/pip install tokenizers==0.23.3 && V/bin/python tests/tokenizer/make_expected.py

The results are committed (NAME.json, NAME.expected.json), so that tests/unit/test_tokenizer.c needs
no Python. With --check MODEL_DIR... nothing is written: cases for those tokenizer.json files go to
stdout, for a comparison by hand."""
import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u0085", "\u180e", "\u200b", "\u2028"]
TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", " \n \n", "\t\t x", "a", " a", "a ", "hello world", "Hello, World!  It's",
    "I'll we've you're he'd I'm can't won't DON'T I'LL", "x=1;y = 22 ;  zzz=333333", "3.14159 1,000,000 ²³ ½ Ⅷ ٣٤٥ १२३",
    "def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\n", "int main(void) { printf(\"%d\\n\", 42); }",
    "naïve café Ångström œuvre ﬁne ſ K", "e\u0301 a\u0308o\u0308 \u0301\u0301\u0301", "Привет, мир! Как дела?",
    "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界！这是一个测试。",
    "こんにちは世界。カタカナ", "안녕하세요 세계", "👋🌍 👩‍👩‍👧‍👦 🇩🇪 ✌🏽 ☺️", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀𓁐 \U0010ffff",
    "a\u0000b\u0001\u001f\u007f", "tab\there\r\nnew line\rold mac\u0085nel\u2028ls", "   leading and trailing   ",
    "word" * 40, "a" * 300, " " * 100, " " * 100 + "x", "\n" * 50 + "y", "!?" * 60, "aaaa bbbb" * 12,
    "<|end|>", "x<|end|>y", "  <|end|>  <|user|>\n", "<|end|><|end|>", "<|en", "<|<|end|>|>", "a <tag> b<tag>c <tag>",
    "single word sing singing sing_ sing sing.", "éword word\u0301 wordé", "the lefty   <left>   and <right>   text",
    "long longer longest longestlongest", "ab\u3000<left>\u3000cd <both>\n\n x", "http://example.com/a?b=c&d=%20#frag",
]


def fuzz_texts():
    rng = random.Random(7)
    alphabet = list("abcXYZ0129 '.,!-_<|>end\n\t") + SPACES + list("éßñЖ中あ한🙂\u0301٣Ⅷ²")
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))) for _ in range(60)]


CORPUS = [t for t in TEXTS if len(t) > 8] * 3 + fuzz_texts() + [
    "The quick brown fox jumps over the lazy dog. 1234567890", "a stream of water flowing to the sea; a river",
    "memory layers hold values in large tables and a shard answers with one pooled vector",
    "for (size_t i = 0; i < count; i++) total += values[i];", "return status == MR_OK ? 0 : 1;",
] * 4

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def build(pre, vocab=700, ignore_merges=False, added=(), post=None, merges_as_strings=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<|endoftext|>", "<|user|>", "<|end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    for token in added:
        tok.add_tokens([token])
    if post:
        tok.post_processor = post(tok)
    text = tok.to_str()
    if merges_as_strings:
        data = json.loads(text)
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        text = json.dumps(data, ensure_ascii=False)
    return text


def tokenizers():
    P = pre_tokenizers
    template = lambda tok: processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|endoftext|> $A <|end|>", pair=None,
                                      special_tokens=[("<|endoftext|>", 0), ("<|end|>", 2)])])
    yield "gpt2", build(P.ByteLevel(add_prefix_space=False), merges_as_strings=True)
    yield "prefix", build(P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=True)]))
    yield "llama", build(P.Sequence([P.Split(Regex(LLAMA), "isolated"),
                                     P.ByteLevel(add_prefix_space=False, use_regex=False)]),
                         ignore_merges=True, post=template)
    yield "deepseek", build(P.Sequence([P.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                                        P.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
                                        P.Split(Regex(DEEPSEEK), "isolated"), P.Digits(False),
                                        P.ByteLevel(add_prefix_space=False, use_regex=False)]))
    yield "split", build(P.Sequence([P.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True), P.Split("a", "isolated"),
                                     P.Split(Regex(r"(?=[A-Z])|^x"), "isolated"),
                                     P.ByteLevel(add_prefix_space=False, use_regex=False)]))
    yield "added", build(P.ByteLevel(add_prefix_space=False), added=[
        AddedToken("<tag>", normalized=True), AddedToken("sing", single_word=True, normalized=True),
        AddedToken("word", single_word=True, normalized=False), special("<left>", lstrip=True),
        special("<right>", rstrip=True), special("<both>", lstrip=True, rstrip=True),
        AddedToken("long", normalized=False), AddedToken("longest", normalized=False),
        AddedToken("é中", normalized=True)])


def cases(tok):
    rows = []
    for text in TEXTS + fuzz_texts():
        tok.encode_special_tokens = False
        ids = tok.encode(text, add_special_tokens=False).ids
        full = tok.encode(text, add_special_tokens=True).ids
        tok.encode_special_tokens = True
        plain = tok.encode(text, add_special_tokens=False).ids
        row = {"text": text, "ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False)}
        if full != ids:
            row["template"] = full
        if plain != ids:
            row["plain"] = plain
        rows.append(row)
    return rows


def main():
    if sys.argv[1:2] == ["--check"]:
        for path in sys.argv[2:]:
            tok = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
            json.dump({"tokenizer": str(Path(path) / "tokenizer.json"), "cases": cases(tok)}, sys.stdout)
        return
    for name, text in tokenizers():
        (HERE / f"{name}.json").write_text(text + "\n")
        tok = Tokenizer.from_str(text)
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in cases(tok))
        (HERE / f"{name}.expected.json").write_text(f'{{"cases":[\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
