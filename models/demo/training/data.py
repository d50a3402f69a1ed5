"""Training samples: question and answer in the chat format, or a plain dictionary line."""

import json
import os
import random

import torch
from tokenizers import Tokenizer

QUESTIONS = [("define {w}", 56), ("what does {w} mean?", 12), ("Define {w}.", 8), ("what is the meaning of {w}?", 7),
             ("{w}", 7)]
SYSTEM = "You are a dictionary."
IGNORE = -100


class Data:
    def __init__(self, work, seed):
        self.tok = Tokenizer.from_file(os.path.join(work, "tokenizer.json"))
        entries = json.load(open(os.path.join(work, "entries.json")))
        self.train, self.held = entries["train"], entries["held"]
        i = self.tok.token_to_id
        self.eot, self.pad, self.sys, self.user, self.bot, self.end = (
            i(t) for t in ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"))
        self.cache = {}
        self.random = random.Random(seed)
        self.order, self.buffer, self.epoch = [], [], 0

    def ids(self, text):
        got = self.cache.get(text)
        if got is None:
            got = self.cache[text] = self.tok.encode(text, add_special_tokens=False).ids
        return got

    def chat(self, question):
        return [self.user] + self.ids(question) + [self.end, self.bot]

    def plain(self, word, pos):
        return self.ids(f"{word} ({pos}):")

    def sample(self, entry, rnd):
        """(prompt ids, answer ids)"""
        word, pos, gloss, first = entry
        pick = rnd.random()
        if pick < (0.10 if first else 0.4):
            return self.plain(word, pos), self.ids(" " + gloss) + [self.end]
        if not first or pick < 0.15:
            question = f"define the {pos} {word}"
        else:
            question = rnd.choices([q for q, _ in QUESTIONS], [n for _, n in QUESTIONS])[0].format(w=word)
        prompt = self.chat(question)
        if rnd.random() < 0.02:
            prompt = [self.sys] + self.ids(SYSTEM) + [self.end] + prompt
        return prompt, self.ids(gloss) + [self.end]

    def next_sample(self):
        if not self.order:
            self.order = list(range(len(self.train)))
            self.random.shuffle(self.order)
            self.epoch += 1
        return self.sample(self.train[self.order.pop()], self.random)

    def row(self, length):
        """One row of whole samples; what fits best is taken from a small buffer.

        Returns ids, targets, and for each target its place in the answer."""
        ids, targets, place = [], [], []
        while True:
            while len(self.buffer) < 48:
                self.buffer.append(self.next_sample())
            room = length - len(ids)
            fits = [i for i, (p, a) in enumerate(self.buffer) if len(p) + len(a) <= room]
            if not fits:
                break
            # the oldest that fits, but close the row with the longest that fits
            best = fits[0] if room > 48 else max(fits, key=lambda i: len(self.buffer[i][0]) + len(self.buffer[i][1]))
            prompt, answer = self.buffer.pop(best)
            ids += prompt + answer
            targets += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
            place += [0] * (len(prompt) - 1) + list(range(len(answer))) + [0]
            if self.random.random() < 0.5 and len(ids) < length:
                ids.append(self.eot)
                targets.append(IGNORE)
                place.append(0)
        fill = length - len(ids)
        return ids + [self.pad] * fill, targets + [IGNORE] * fill, place + [0] * fill

    def batch(self, tokens, length):
        rows = [self.row(length) for _ in range(tokens // length)]
        return tuple(torch.tensor([r[i] for r in rows]) for i in range(3))

    def state(self):
        return dict(random=self.random.getstate(), order=self.order, buffer=self.buffer, epoch=self.epoch)

    def restore(self, s):
        self.random.setstate(s["random"])
        self.order, self.buffer, self.epoch = s["order"], s["buffer"], s["epoch"]
