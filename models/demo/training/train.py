"""Train one of the three models; resumes from WORK/NAME.ckpt when it exists.

usage: train.py NAME WORK [--steps N] ...      NAME: ultramemv2 | dense | moe
"""

import argparse
import json
import math
import os
import time

import torch
import torch.nn.functional as F

from configs import CONFIGS
from data import IGNORE, Data
from model import Transformer


def groups(model, a):
    matrices, vectors, keys, tables = [], [], [], []
    for name, p in model.named_parameters():
        if "for_look_up" in name:
            tables.append(p)
        elif name.endswith(".keys"):
            keys.append(p)
        elif p.dim() == 1 or "tucker_core" in name:
            vectors.append(p)
        else:
            matrices.append(p)
    made = [dict(params=matrices, base=a.lr, weight_decay=a.decay, betas=(0.9, 0.98), eps=1e-8),
            dict(params=vectors, base=a.lr, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8)]
    if tables:
        made += [dict(params=keys, base=a.key_lr, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-10),
                 dict(params=tables, base=a.table_lr, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-12)]
    return made


def scale(step, a):
    if step < a.warmup:
        return (step + 1) / a.warmup
    done = (step - a.warmup) / max(1, a.steps - a.warmup)
    return a.floor + (1 - a.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def held_out_loss(model, data, entries):
    """Mean loss of the answer tokens, each entry asked alone as `define WORD`."""
    model.eval()
    total = count = 0
    for i in range(0, len(entries), 64):
        pairs = [(data.chat(f"define {w}"), data.ids(g) + [data.end]) for w, _, g, _ in entries[i:i + 64]]
        width = max(len(p) + len(t) for p, t in pairs)
        ids = torch.full((len(pairs), width), data.pad)
        target = torch.full((len(pairs), width), IGNORE)
        for r, (p, t) in enumerate(pairs):
            ids[r, :len(p) + len(t)] = torch.tensor(p + t)
            target[r, len(p) - 1:len(p) + len(t) - 1] = torch.tensor(t)
        logits = model(ids)
        total += F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="sum").item()
        count += (target != IGNORE).sum().item()
    model.train()
    return total / count


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("name", choices=CONFIGS)
    ap.add_argument("work")
    ap.add_argument("--steps", type=int, default=4600)
    ap.add_argument("--stop", type=int, default=0, help="leave after this step (trial runs)")
    ap.add_argument("--tokens", type=int, default=1024, help="tokens per step")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--key-lr", type=float, default=3e-3)
    ap.add_argument("--table-lr", type=float, default=8e-3)
    ap.add_argument("--decay", type=float, default=0.02)
    ap.add_argument("--warmup", type=int, default=150)
    ap.add_argument("--floor", type=float, default=0.01)
    ap.add_argument("--focus-from", type=int, default=2500, help="from this step the first answer tokens weigh more")
    ap.add_argument("--focus", default="4,3,2", help="their weights")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--save-every", type=int, default=500)
    ap.add_argument("--tag", default="")
    ap.add_argument("--float32", action="store_true", help="no bfloat16 in matrix products")
    a = ap.parse_args()
    torch.set_num_threads(1)
    label = a.name + a.tag
    data = Data(a.work, a.seed)
    model = Transformer(CONFIGS[a.name])
    model.initialise(a.seed)
    model.train()
    optimiser = torch.optim.AdamW(groups(model, a), lr=1.0, fused=True)
    clipped = [p for n, p in model.named_parameters() if "for_look_up" not in n]
    path = os.path.join(a.work, label + ".ckpt")
    step, spent = 0, 0.0
    if os.path.exists(path):
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        data.restore(saved["data"])
        step, spent = saved["step"], saved["spent"]
    log = open(os.path.join(a.work, label + ".log"), "a")

    def say(text):
        print(text, flush=True)
        log.write(text + "\n")
        log.flush()

    total, active = model.parameter_counts()
    say(json.dumps(dict(label=label, parameters=total, active=active, from_step=step, **vars(a))))
    sample = data.train[:: max(1, len(data.train) // 200)]
    sample = [e for e in sample if e[3]]
    focus = torch.tensor([float(w) for w in a.focus.split(",")] + [1.0])
    sums, n = 0.0, 0
    while step < a.steps and not (a.stop and step >= a.stop):
        began = time.process_time()
        s = scale(step, a)
        for g in optimiser.param_groups:
            g["lr"] = g["base"] * s
        ids, target, place = data.batch(a.tokens, 256 if step % 4 == 3 else 64)
        target = target.view(-1)
        keep = (target != IGNORE).nonzero().squeeze(-1)
        model.refresh_uv()
        with torch.autocast("cpu", torch.bfloat16, enabled=not a.float32):
            x = model.hidden(ids)
            logits = model.head(x.view(-1, x.shape[-1]).index_select(0, keep))
        each = F.cross_entropy(logits.float(), target[keep], reduction="none")
        loss = each.detach().mean()
        if step >= a.focus_from:
            w = focus[place.view(-1)[keep].clamp(max=len(focus) - 1)]
            whole = (each * w).sum() / w.sum()
        else:
            whole = each.mean()
        if a.name == "moe":
            cfg = model.cfg
            for b in model.transformer.blocks:
                whole = whole + cfg["moe_loss_weight"] * b.ffn.aux[0] + cfg["moe_zloss_weight"] * b.ffn.aux[1]
        whole.backward()
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
        spent += time.process_time() - began
        sums, n, step = sums + loss.item(), n + 1, step + 1
        if step % 100 == 0:
            say(f"step {step} epoch {data.epoch} loss {sums / n:.4f} tokens {step * a.tokens} cpu {spent:.0f}s")
            sums = n = 0
        if step % 500 == 0 or step == a.steps or step == a.stop:
            say(f"step {step} held-out loss {held_out_loss(model, data, [e for e in data.held if e[3]]):.4f} "
                f"trained-words loss {held_out_loss(model, data, sample):.4f}")
        if step % a.save_every == 0 or step == a.steps:
            torch.save(dict(model=model.state_dict(), optimiser=optimiser.state_dict(), data=data.state(), step=step,
                            spent=spent, args=vars(a)), path + ".tmp")
            os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
