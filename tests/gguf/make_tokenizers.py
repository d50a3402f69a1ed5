#!/usr/bin/env python3
"""Makes tokenizers in GGUF keys and the tokenizer.json that importing them must give.

    tests/gguf/make_tokenizers.py      (needs gguf, tokenizers, sentencepiece, transformers from PyPI)

tokenizer_NAME.gguf, tokenizer_NAME.expected.json
    NAME is a pre-tokenizer, or spm for a SentencePiece vocabulary; the expected file holds tokenizer.json as the
    tokenizers package writes it, and ids of texts: by sentencepiece itself for spm, by tokenizers for the rest

The vocabularies are trained here on a few sentences. The SentencePiece one has no merges in the file; those
expected are made by the converter of the transformers package, and must give sentencepiece's ids."""
import io
import json
import os

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import generate_merges
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = """The river runs through the valley, and the valley is wide.
In 1999 there were 12345 trees; in 2024 they're gone!
def add(a, b):\n    return a + b  # sum\n\tif x == 1:\n        print("one")
It's what we'll see, isn't it? I'VE SEEN IT. Der Fluß fließt durch das Tal. Où est la rivière? ¿Dónde está el río?
Река течёт через долину. 河流穿过山谷。 강은 계곡을 흐른다.
the the the the river river river valley valley through through
100 200 300 1000 2000   spaces    and     more      spaces
"""
TEXTS = ["", "The river runs.", "  two spaces and a tab\t.", "12345 trees in 2024", "they'll I'VE it's", "a\r\n\r\nb\n",
         "河流穿过山谷", "Où est la rivière? e\u0301 a\u0308", "🙂 emoji 👩\u200d👩\u200d👧", "camelCase and UPPERCase WORDs",
         "x == 1:\n        print(\"one\")", "   ", "<|end|>the river<|user|> valley", "Ångström ﬁ ² ½ Ⅷ",
         "\u00a0nbsp\u3000wide", "…“quotes” — dash_under~tilde^hat`tick"]


def path(name):
    return os.path.join(HERE, name)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save(name, tokenizer, ids):
    with open(path(f"tokenizer_{name}.expected.json"), "w", encoding="utf-8") as file:
        json.dump({"tokenizer": json.loads(tokenizer.to_str()), "texts": [[t, i] for t, i in zip(TEXTS, ids)]}, file,
                  ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def template(bos, eos, ids):
    a = ([f"{bos}:0"] if bos else []) + ["$A:0"] + ([f"{eos}:0"] if eos else [])
    b = [x.replace(":0", ":1").replace("$A", "$B") for x in a]
    return processors.TemplateProcessing(single=a, pair=a + b,
                                         special_tokens=[(t, ids[t]) for t in (bos, eos) if t])


# --- byte-level BPE ---------------------------------------------------------------------------------

CL100K = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(regex):
    return [pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


# name: (steps, NFC, ignore_merges, adds a beginning token)
PRE = {
    "gpt-2": ([pre_tokenizers.ByteLevel(add_prefix_space=False)], False, False, False),
    "llama-bpe": (split(CL100K), False, True, True),
    "qwen2": (split(QWEN2), True, False, False),
    "tekken": (split(TEKKEN), False, True, True),
    "olmo": ([pre_tokenizers.ByteLevel(add_prefix_space=False)], True, False, False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
               False, False, False),
}
ADDED = [("<|begin|>", True), ("<|end|>", True), ("<|user|>", False)]


def make_bpe(name):
    steps, nfc, ignore_merges, adds_bos = PRE[name]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=330, show_progress=False,
                                                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]],
                                     ignore_merges=ignore_merges))
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t, special in ADDED])
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.get_vocab()
    if adds_bos:
        tokenizer.post_processor = template("<|begin|>", None, ids)
    tokens = sorted(ids, key=ids.get)
    writer = gguf.GGUFWriter(path(f"tokenizer_{name}.gguf"), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens + [f"[PAD{len(tokens)}]", f"[PAD{len(tokens) + 1}]"])
    kinds = {text: gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED for text, special in ADDED}
    writer.add_token_types([kinds.get(t, gguf.TokenType.NORMAL) for t in tokens] + [gguf.TokenType.UNUSED] * 2)
    writer.add_token_merges([" ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(ids["<|begin|>"])
    writer.add_eos_token_id(ids["<|end|>"])
    if name == "gpt-2":
        writer.add_eot_token_id(ids["<|user|>"])
        writer.add_chat_template([{"name": "default", "template": "{{ messages }}"},
                                  {"name": "tool_use", "template": "{{ tools }}"}])
    else:
        writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %} é")
    finish(writer)
    save(name, tokenizer, [tokenizer.encode(t).ids for t in TEXTS])


# --- SentencePiece ----------------------------------------------------------------------------------

def make_spm(name, space):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in TEXT.split("\n") if line]), model_writer=out, model_type="bpe",
        vocab_size=400, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, add_dummy_prefix=space, allow_whitespace_only_pieces=True, minloglevel=2,
        character_coverage=0.98,
        user_defined_symbols=["<|user|>"])
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    scores = [sp.get_score(i) for i in range(len(pieces))]
    types = []
    for i in range(len(pieces)):
        types.append(gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i) else
                     gguf.TokenType.BYTE if sp.is_byte(i) else
                     gguf.TokenType.USER_DEFINED if pieces[i] == "<|user|>" else gguf.TokenType.NORMAL)
    vocab = {p: i for i, p in enumerate(pieces)}
    skipped = [p for p, t in zip(pieces, types)
               if t in (gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.BYTE)]
    merges = generate_merges(vocab, dict(zip(pieces, scores)), skipped)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_tokens([AddedToken(p, normalized=False, special=t != gguf.TokenType.USER_DEFINED)
                          for p, t in zip(pieces, types)
                          if t in (gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)])
    before, after = [normalizers.Prepend("▁")] if space else [], [decoders.Strip(" ", 1, 0)] if space else []
    tokenizer.normalizer = normalizers.Sequence(before + [normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           *after])
    tokenizer.post_processor = template("<s>", None, vocab)
    for text in TEXTS:
        if "<|" not in text and text:
            assert tokenizer.encode(text).ids == [1] + sp.encode(text), text
    writer = gguf.GGUFWriter(path(f"tokenizer_{name}.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    writer.add_pad_token_id(0xffffffff)
    if not space:
        writer.add_add_space_prefix(False)
    finish(writer)
    save(name, tokenizer, [tokenizer.encode(t).ids for t in TEXTS])


if __name__ == "__main__":
    for pre in PRE:
        make_bpe(pre)
    make_spm("spm", True)
    make_spm("spm_bare", False)
