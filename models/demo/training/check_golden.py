"""Load reference cases into our modules and compare the logits.

usage: check_golden.py DIRECTORY     (a directory that holds v2_peer_share05/, dense/, ...)
"""

import json
import os
import sys

import torch
from safetensors.torch import load_file

from model import Transformer

CASES = ("dense", "moe_topk_raw", "moe_topk_norm", "v2_peer_share05", "v2_demo_share05",
         "v2_glu_kx2_e1", "v2_glu_kx2_e4")
TOLERANCE = 2e-5


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def main(root):
    bad = 0
    for case in CASES:
        path = os.path.join(root, case)
        if not os.path.isdir(path):
            print(f"{case:18s} not there, skipped")
            continue
        cfg = json.load(open(os.path.join(path, "config.json")))
        model = Transformer(cfg).eval()
        missing, extra = model.load_state_dict(load_file(os.path.join(path, "model.safetensors")), strict=False)
        assert not missing and not extra, (case, missing, extra)
        want = load_file(os.path.join(path, "expected.safetensors"))
        seen = []
        with torch.no_grad():
            logits = model(want["input_ids"], seen)
        errors = {"logits": relative(logits, want["logits"])}
        ok = errors["logits"] <= TOLERANCE
        for tag, layer in (("mem0", 0), ("mem_last", -1)):
            if seen:
                s = seen[layer]
                lookup = want[tag + ".lookup_output"]
                if lookup.shape != s["lookup"].shape:              # ours are already summed over the slots
                    lookup = lookup.view(lookup.shape[0], -1, cfg["mem_vdim"]).sum(1)
                errors[tag] = relative(s["lookup"], lookup)
                ok = ok and errors[tag] <= TOLERANCE
                same = (torch.equal(s["index"], want[tag + ".best_indices"])
                        and torch.equal(s["row"], want[tag + ".rows"]))
                ok = ok and same
        bad += not ok
        print(f"{case:18s} {'ok ' if ok else 'BAD'} " + "  ".join(f"{k} {v:.1e}" for k, v in errors.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
