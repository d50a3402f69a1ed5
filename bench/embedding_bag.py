#!/usr/bin/env python3
"""Pooled gather against torch.nn.functional.embedding_bag, in turn, in one run.

    PYTHON_WITH_TORCH bench/embedding_bag.py BUILD_DIR [--quick]

Both sum weighted random rows of a table of the same size, rows, type and thread count, much larger
than the last-level cache: embedding_bag with per_sample_weights and mode sum, bench_pool with the
product's kernel (whose result is in fixed point and does not depend on the order). Each round runs
one, then the other. Adds rows to bench/results/embedding_bag.csv. Goal: a ratio of at least 1.5.

Any Python with a CPU build of torch will do: python3 -m venv V && V/bin/pip install torch"""
import os
import statistics
import subprocess
import sys
import time

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # huge pages for torch's table too

import torch  # noqa: E402  (after the environment is set)

import record  # noqa: E402

COLUMNS = ("torch,element,width,row_bytes,table_mib,threads,tokens,entries,rounds,pool_mrows_s,"
           "torch_mrows_s,pool_to_torch").split(",")
SHAPES = [(1024, 84), (192, 32), (768, 128)]
TABLE_MIB, TOKENS, SECONDS = 2048, 16, 0.3
IDS = 1 << 19


def torch_rate(table, ids, weights, offsets, entries):
    """Million rows a second."""
    call = TOKENS * entries
    done, begin, at = 0, time.perf_counter(), 0
    while True:
        for _ in range(8):
            torch.nn.functional.embedding_bag(ids[at:at + call], table, offsets, mode="sum",
                                              per_sample_weights=weights)
            at = at + call if at + 2 * call <= IDS else 0
            done += call
        took = time.perf_counter() - begin
        if took >= SECONDS:
            return done / took / 1e6


def pool_rate(bench, element, width, entries, threads):
    """Million rows a second of the kernel."""
    out = subprocess.run([bench, "--element", element, "--width", str(width), "--entries",
                          str(entries), "--threads", str(threads), "--tokens", str(TOKENS),
                          "--table-mib", str(TABLE_MIB), "--rounds", "1", "--seconds",
                          str(SECONDS)], check=True, capture_output=True, text=True).stdout
    return float(out.split(",")[10])


@torch.no_grad()
def measure(bench, element, width, entries, threads, rounds):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[element]
    row_bytes = width * dtype.itemsize
    count = (TABLE_MIB << 20) // row_bytes
    table = torch.empty(count, width, dtype=dtype)
    table.fill_(0.5)
    ids = torch.randint(0, count, (IDS,))
    weights = torch.rand(TOKENS * entries, dtype=dtype)
    offsets = torch.arange(0, TOKENS * entries, entries)
    torch.set_num_threads(threads)
    torch_rate(table, ids, weights, offsets, entries)
    pools, torches = [], []
    for _ in range(rounds):
        record.wait_until_quiet()
        pools.append(pool_rate(bench, element, width, entries, threads))
        torches.append(torch_rate(table, ids, weights, offsets, entries))
    ratio = statistics.median(p / t for p, t in zip(pools, torches))
    return [torch.__version__, element, width, row_bytes, TABLE_MIB, threads, TOKENS, entries, rounds,
            f"{statistics.median(pools):.3f}", f"{statistics.median(torches):.3f}", f"{ratio:.3f}"]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    bench = record.program(sys.argv[1], "bench", "bench_pool")
    quick = "--quick" in sys.argv[2:]
    rows = []
    print(",".join(COLUMNS))
    for element in ("bf16", "f32"):
        for width, entries in SHAPES[:1] if quick else SHAPES:
            for threads in (1, 2):
                rows.append(measure(bench, element, width, entries, threads, 3 if quick else 5))
                print(",".join(str(x) for x in rows[-1]), flush=True)
    record.append("embedding_bag", COLUMNS, rows)


if __name__ == "__main__":
    main()
