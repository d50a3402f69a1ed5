#!/usr/bin/env python3
"""The same bits from tables of every storage type over real processes.

    tests/cluster/table_types.py BUILD_DIR

Goal: where rows of scales and codes lie, in how many slices and who fetches them changes no bit.
Method: golden cases whose tables are stored in each type (parity/table_types.py writes them, without the
engine), then as in exact_grids.py: several grids over one to three memshards, down to one column a slice,
every second memshard with its rows in a tier, and a worker with a row cache; the logits' SHA-256 must be
that of one process. Needs numpy."""
import json
import os
import sys

try:
    import numpy as np
except ImportError:
    print("table types over a cluster: skipped, no numpy here")
    sys.exit(0)

import cluster
import exact_grids

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "parity"))
import random_models  # noqa: E402
import table_types  # noqa: E402

CASES = ["v1_ive4_skip", "v2_glu_kx2_e4", "memory_plus"]
SPLITS = [("1x1", 1), ("3x1", 2), ("1x3", 1), ("2x5", 3), ("1x32", 3)]
TIER, CACHE = ["--tier-ram", "1MiB"], ["--row-cache", "4MiB"]


def converted(case, kind):
    """A folder with the case's model, its tables stored as kind and its pre-values as the next type."""
    source, folder = os.path.join(HERE, "..", "golden", case), os.path.join(exact_grids.FOLDER, f"{case}-{kind}")
    tensors = random_models.read(os.path.join(source, "model.safetensors"))
    with open(os.path.join(source, "config.json")) as file:
        config = json.load(file)
    dtypes = {n: "I64" if x.dtype == np.int64 else "F32" for n, x in tensors.items()}
    pre_kind = table_types.TYPES[(table_types.TYPES.index(kind) + 3) % len(table_types.TYPES)]
    config, stored, dtypes, _ = table_types.convert(config, tensors, dtypes, kind, pre_kind)
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    random_models.write(os.path.join(folder, "model.safetensors"), stored, dtypes)
    return folder, config["vocab_size"]


def make_check(case, kind):
    def check():
        model, vocab = converted(case, kind)
        expected = exact_grids.one_process(model, vocab)
        single, whole = [1] * exact_grids.TOKENS, [exact_grids.TOKENS]
        for grid, shards in SPLITS:
            exact_grids.check_split(model, grid, shards, False, expected, vocab,
                                    [single, whole] if grid == "2x5" else [whole], TIER, CACHE)
        exact_grids.check_split(model, "2x1", 2, True, expected, vocab, [whole])
    check.__doc__ = f"{case}, tables in {kind}: {len(SPLITS) + 1} splits give the same bits"
    return check


cluster.run([make_check(case, kind) for case in CASES for kind in table_types.TYPES], 300, exact_grids.FOLDER)
