"""Measure exported models: perplexity on held-out words, recall of trained words.

usage: evaluate.py WORK DIR...              prints one JSON object per model directory
       evaluate.py --no-tables WORK DIR...  the same with the memory tables set to zero, first question only
       evaluate.py --ask WORK DIR QUESTION  one greedy answer
"""

import glob
import json
import math
import os
import random
import sys
import time
from collections import Counter, defaultdict

import torch
from safetensors.torch import load_file

from data import Data
from model import Transformer
from train import held_out_loss

SAMPLE = 1000
LONGEST = 44


def load(path):
    cfg = json.load(open(os.path.join(path, "config.json")))
    model = Transformer(cfg)
    state = {}
    for file in sorted(glob.glob(os.path.join(path, "*.safetensors"))):
        state.update(load_file(file))
    state = {k: v if v.dtype == torch.long else v.float() for k, v in state.items()}
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def greedy(model, prompts, stop, most):
    """Greedy continuations (without the stop token) of many prompts; equal lengths run together."""
    out = [None] * len(prompts)
    by_length = defaultdict(list)
    for i, p in enumerate(prompts):
        by_length[len(p)].append(i)
    for members in by_length.values():
        for at in range(0, len(members), 50):
            part = members[at:at + 50]
            ids = torch.tensor([prompts[i] for i in part])
            start = ids.shape[1]
            live = list(part)
            while live and ids.shape[1] - start < most:
                nxt = model.head(model.hidden(ids)[:, -1]).argmax(-1)
                ids = torch.cat([ids, nxt[:, None]], 1)
                keep = []
                for r, i in enumerate(live):
                    if nxt[r].item() == stop:
                        out[i] = ids[r, start:-1].tolist()
                    else:
                        keep.append(r)
                live = [live[r] for r in keep]
                ids = ids[keep]
            for r, i in enumerate(live):
                out[i] = ids[r, start:].tolist()
    return out


def f1(got, want):
    same = sum((Counter(got) & Counter(want)).values())
    return 2 * same / (len(got) + len(want)) if got or want else 1.0


def recall(model, data, pairs):
    answers = greedy(model, [p for p, _ in pairs], data.end, LONGEST)
    exact = sum(a == w for a, (_, w) in zip(answers, pairs)) / len(pairs)
    token = sum(f1(a, w) for a, (_, w) in zip(answers, pairs)) / len(pairs)
    return exact, token, answers


def measure(path, work, tables=True):
    began = time.time()
    data, model = Data(work, 0), load(path)
    if not tables:
        model.transformer.full_memory_layer.values_for_look_up.data.zero_()
    total, active = model.parameter_counts()
    first = [e for e in data.train if e[3]]
    sample = random.Random(2024).sample(first, min(SAMPLE, len(first)))
    held = [e for e in data.held if e[3]]
    result = dict(model=os.path.basename(os.path.normpath(path)), tables=tables, parameters=total, active=active,
                  held_out_words=len(held), held_out_perplexity=math.exp(held_out_loss(model, data, held)),
                  sample_words=len(sample), trained_perplexity=math.exp(held_out_loss(model, data, sample)))
    gloss = [data.ids(e[2]) for e in sample]
    exact, token, answers = recall(model, data, [(data.chat(f"define {e[0]}"), g) for e, g in zip(sample, gloss)])
    result.update(exact=exact, f1=token)
    if not tables:
        return result
    exact, token, _ = recall(model, data, [(data.chat(f"what does {e[0]} mean?"), g) for e, g in zip(sample, gloss)])
    result.update(exact_other_question=exact, f1_other_question=token)
    exact, token, _ = recall(model, data, [(data.plain(e[0], e[1]), data.ids(" " + e[2])) for e in sample])
    result.update(exact_plain=exact, f1_plain=token)
    result["seconds"] = round(time.time() - began)
    result["examples"] = [[e[0], data.tok.decode(a), e[2]] for e, a in list(zip(sample, answers))[:25]]
    return result


def main():
    torch.set_num_threads(1)
    if len(sys.argv) == 5 and sys.argv[1] == "--ask":
        data, model = Data(sys.argv[2], 0), load(sys.argv[3])
        print(data.tok.decode(greedy(model, [data.chat(sys.argv[4])], data.end, 60)[0]))
        return
    args = [a for a in sys.argv[1:] if a != "--no-tables"]
    if len(args) < 2 or args[0].startswith("-"):
        sys.exit(__doc__)
    for path in args[1:]:
        print(json.dumps(measure(path, args[0], "--no-tables" not in sys.argv), indent=1), flush=True)


if __name__ == "__main__":
    main()
