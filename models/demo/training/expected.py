"""Write OUT/expected.json: prompts with the greedy continuation of the exported weights in float32.

usage: expected.py WORK OUT     (OUT is a directory written by export.py)

Prompts are chosen so that the best token is always well ahead of the second best.
"""

import json
import os
import sys

import torch

from data import Data
from evaluate import greedy, load

CHAT, PLAIN, SHORT = 6, 2, 4
FAMILIAR = ("house", "water", "money", "music", "king", "river", "bread", "doctor",
            "window", "winter", "letter", "city")


@torch.no_grad()
def margins(model, prompt, answer):
    """Distance of the chosen token to the runner-up for each answer token, and the logits of the first."""
    logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1:-1]
    top = logits.topk(2, dim=-1)
    assert top.indices[:, 0].tolist() == answer
    return (top.values[:, 0] - top.values[:, 1]).tolist(), logits[0]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    work, out = sys.argv[1:]
    data, model = Data(work, 0), load(out)
    questions = ["define {}", "what does {} mean?", "Define {}.", "what is the meaning of {}?"]
    known = {e[0]: e for e in data.train if e[3]}
    longs = [e for e in known.values() if len(data.ids(e[2])) >= 24]
    asked = []
    for i, e in enumerate(longs):
        question = questions[i % len(questions)].format(e[0])
        asked.append(("chat", question, data.chat(question)))
        asked.append(("plain", f"{e[0]} ({e[1]}):", data.plain(e[0], e[1])))
    asked += [("short", f"define {w}", data.chat(f"define {w}")) for w in FAMILIAR if w in known]
    answers = greedy(model, [p for _, _, p in asked], data.end, 60)
    found = []
    for (kind, text, prompt), answer in zip(asked, answers):
        answer = answer + [data.end]
        if len(answer) > 60 or (kind != "short" and len(answer) < 25):
            continue
        gaps, first = margins(model, prompt, answer)
        rendered = text if kind == "plain" else f"<|user|>{text}<|end|><|assistant|>"
        assert data.tok.encode(rendered, add_special_tokens=False).ids == prompt
        item = dict(kind=kind)
        if kind != "plain":
            item["messages"] = [dict(role="user", content=text)]
        top = first.topk(5)
        item.update(prompt=rendered, prompt_ids=prompt, continuation_ids=answer,
                    continuation=data.tok.decode(answer), min_margin=round(min(gaps), 4),
                    first_top_ids=top.indices.tolist(), first_top_logits=[round(v, 5) for v in top.values.tolist()])
        found.append(item)
    found.sort(key=lambda x: -x["min_margin"])
    chosen, words = [], set()
    for kind, most in (("chat", CHAT), ("plain", PLAIN), ("short", SHORT)):
        taken = 0
        for x in found:
            word = x["prompt"]
            if x["kind"] == kind and taken < most and word not in words:
                words.add(word)
                chosen.append(x)
                taken += 1
    with open(os.path.join(out, "expected.json"), "w") as f:
        json.dump(dict(note="greedy, float32 arithmetic on the stored weights; "
                            "continuation_ids end with <|end|>; min_margin "
                            "is the smallest distance in logits between the best and the second token on the way",
                       cases=chosen), f, indent=1, ensure_ascii=False)
        f.write("\n")
    for x in chosen:
        print(x["kind"], x["min_margin"], len(x["continuation_ids"]), x["prompt"], "->", x["continuation"])


if __name__ == "__main__":
    main()
