"""Small tokenizers with the pipelines published models have, trained on a few hundred difficult texts.

Used by make_expected.py, which commits what comes out, and random_texts.py, which compares afresh."""
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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


TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
BOS_ONLY = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def build(pre, vocab=700, ignore_merges=False, added=(), post=None, merges_as_strings=False, normalizer=None):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
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


def pieces(normalizer, pre, decoder, vocab=420, added=(), byte_fallback=True, unk="<unk>", fuse_unk=True,
           normalized_specials=False, post=BOS_ONLY):
    """A vocabulary of characters, as converted from SentencePiece: <unk> <s> </s>, the bytes, then the pieces."""
    tok = Tokenizer(models.BPE())
    if normalizer:
        tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    words = tok if pre else Tokenizer(models.BPE())
    if not pre:  # training needs words; the model merges across them only as far as it has seen
        words.normalizer = normalizer
        words.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab, limit_alphabet=150, show_progress=False))
    trained = json.loads(words.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256) if byte_fallback]
    names += [name for name, _ in sorted(trained["vocab"].items(), key=lambda item: item[1])]
    if "\u2581" not in names:
        names.append("\u2581")
    spaces, merges = ["\u2581" * n for n in (2, 4, 8)], trained["merges"]
    names += [s for s in spaces if s not in names]
    merges += [[s[:len(s) // 2]] * 2 for s in spaces if [s[:len(s) // 2]] * 2 not in merges]
    tok.model = models.BPE({n: i for i, n in enumerate(names)}, [tuple(m) for m in merges], unk_token=unk,
                           fuse_unk=fuse_unk, byte_fallback=byte_fallback)
    tok.decoder = decoder
    tok.add_special_tokens([AddedToken(n, special=True, normalized=normalized_specials) for n in names[:3]])
    for token in added:
        tok.add_tokens([token])
    if post:
        tok.post_processor = post
    return tok.to_str()


def legacy():
    return normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def llama_decoder():
    return decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def piece_families():
    N, P, D = normalizers, pre_tokenizers, decoders
    yield "llama2", pieces(legacy(), None, llama_decoder())
    yield "llama2old", pieces(legacy(), None, llama_decoder(), normalized_specials=True,
                              added=[AddedToken("<tag>"), AddedToken("word", single_word=True)])
    yield "mistral", pieces(None, P.Metaspace("\u2581", prepend_scheme="first", split=False), llama_decoder(),
                            added=[special("[INST]"), special("[/INST]")])
    yield "gemma", pieces(N.Replace(" ", "\u2581"), P.Split(" ", "merged_with_previous"),
                          D.Sequence([D.Replace("\u2581", " "), D.ByteFallback(), D.Fuse()]),
                          added=[AddedToken("\n\n", normalized=False), special("<start_of_turn>")])
    yield "metaspace", pieces(N.Sequence([N.NFKC(), N.Lowercase()]), P.Metaspace("\u2581", prepend_scheme="always"),
                              D.Sequence([D.ByteFallback(), D.Metaspace("\u2581")]), byte_fallback=True,
                              added=[AddedToken("<Tag>"), special("<both>", lstrip=True, rstrip=True)])
    yield "unknown", pieces(N.Sequence([N.NFD(), N.StripAccents(), N.Strip(), N.Replace(Regex(r"[0-9]+"), "0")]),
                            P.Sequence([P.Whitespace(), P.Punctuation("contiguous")]), D.Metaspace("\u2581"),
                            byte_fallback=False, fuse_unk=False, post=None)
    yield "splits", pieces(N.NFKD(), P.Sequence([
        P.Split(Regex(r"[A-Z]"), "merged_with_next"), P.Split("e", "merged_with_previous"),
        P.Split(Regex(r"\W+"), "contiguous"), P.Digits(True), P.WhitespaceSplit(), P.Punctuation("merged_with_next")]),
        D.Sequence([D.Strip("a", 1, 0), D.Fuse(), D.Replace("an", "<n>")]), byte_fallback=False, post=None)


def byte_families():
    N, P = normalizers, pre_tokenizers
    split = lambda expression: P.Sequence([P.Split(Regex(expression), "isolated"),
                                           P.ByteLevel(add_prefix_space=False, use_regex=False)])
    yield "qwen", build(split(QWEN), normalizer=N.NFC(), added=[special("<|im_start|>"), AddedToken("\u00e9\u0301")])
    yield "tekken", build(split(TEKKEN), ignore_merges=True, post=lambda tok: processors.TemplateProcessing(
        single="<|endoftext|> $A", pair=None, special_tokens=[("<|endoftext|>", 0)]))
    yield "neox", build(P.ByteLevel(add_prefix_space=False), normalizer=N.NFC(), added=[
        AddedToken(" " * n, normalized=True) for n in range(12, 1, -1)] + [special("<|padding|>")])


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
    yield from byte_families()
    yield from piece_families()
