#!/usr/bin/env python3
"""Pooled gather against torch's embedding_bag and FBGEMM's table-batched embedding, in one run.

    PYTHON_WITH_TORCH bench/embedding_bag.py BUILD_DIR [--quick] [--now]

All sum weighted random rows of a table of the same size, row bytes and thread count, much larger than
the last-level cache: embedding_bag with per_sample_weights and mode sum, FBGEMM's
IntNBitTableBatchedEmbeddingBagsCodegen on the CPU with weights (its training class is slower), and
bench_pool with the product's kernel (whose result is in fixed point and does not depend on the order).
Each round runs one after the other (--quick: one thread, three rounds; --now: without
waiting for a quiet machine). Adds rows to bench/results/pool_peers.csv. Goal: twice the better.

FBGEMM has no bf16 rows on the CPU (1.9.0: KeyError, and 'not implemented for BFloat16' in the training
class): its rows of 2 bytes an element are fp16. embedding_bag has no rows with scales: where it has no
row of the type its columns stay empty.

python3 -m venv V && V/bin/pip install torch==2.14.1 numpy fbgemm-gpu-cpu==1.9.0"""
import os
import statistics
import subprocess
import sys
import time

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # huge pages for torch's table too

import torch  # noqa: E402  (after the environment is set)

import record  # noqa: E402

try:
    import fbgemm_gpu
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
except (ImportError, OSError):
    fbgemm_gpu = None

COLUMNS = ("torch,fbgemm,element,width,row_bytes,table_mib,threads,tokens,entries,rounds,pool_mrows_s,"
           "torch_mrows_s,fbgemm_mrows_s,pool_to_torch,pool_to_fbgemm,pool_to_better").split(",")
SHAPES = [(1024, 84), (192, 32), (768, 128)]
TORCH_TYPE = {"f32": torch.float32, "bf16": torch.bfloat16}
FBGEMM_TYPE = {"f32": "FP32", "bf16": "FP16", "int8": "INT8", "int4": "INT4"}
TABLE_MIB, TOKENS, SECONDS = 1024, 16, 0.15
IDS = 1 << 19


def rate_of(call, ids, count):
    """Million rows a second of call(ids of one batch)."""
    done, begin, at = 0, time.perf_counter(), 0
    while True:
        for _ in range(8):
            call(ids[at:at + count])
            at = at + count if at + 2 * count <= IDS else 0
            done += count
        took = time.perf_counter() - begin
        if took >= SECONDS:
            return done / took / 1e6


def torch_call(element, count, width, entries):
    table = torch.empty(count, width, dtype=TORCH_TYPE[element])
    table.fill_(0.5)
    weights = torch.rand(TOKENS * entries, dtype=table.dtype)
    offsets = torch.arange(0, TOKENS * entries, entries)
    return lambda ids: torch.nn.functional.embedding_bag(ids, table, offsets, mode="sum",
                                                         per_sample_weights=weights)


def fbgemm_call(element, count, width, entries):
    spec = ("", count, width, SparseType[FBGEMM_TYPE[element]], EmbeddingLocation.HOST)
    table = IntNBitTableBatchedEmbeddingBagsCodegen([spec], pooling_mode=PoolingMode.SUM, device="cpu",
                                                    output_dtype=SparseType.FP32)
    table.initialize_weights()
    table.weights_host.fill_(0x33)
    weights = torch.rand(TOKENS * entries)
    offsets = torch.arange(0, TOKENS * entries + 1, entries, dtype=torch.int32)
    return lambda ids: table(ids, offsets, per_sample_weights=weights)


def pool_rate(bench, element, width, entries, threads):
    """Bytes of a row, and million rows a second of the kernel."""
    out = subprocess.run([bench, "--element", element, "--width", str(width), "--entries",
                          str(entries), "--threads", str(threads), "--tokens", str(TOKENS),
                          "--table-mib", str(TABLE_MIB), "--alone", "--rounds", "1", "--seconds",
                          str(SECONDS)], check=True, capture_output=True, text=True).stdout
    fields = out.split(",")
    return int(fields[3]), float(fields[10])


@torch.no_grad()
def measure(bench, element, width, entries, threads, rounds):
    torch.set_num_threads(threads)
    row_bytes, _ = pool_rate(bench, element, width, entries, threads)
    count = (TABLE_MIB << 20) // row_bytes
    long_ids = torch.randint(0, count, (IDS,))
    calls = {}
    if element in TORCH_TYPE:
        calls["torch"] = (torch_call(element, count, width, entries), long_ids)
    if fbgemm_gpu:
        calls["fbgemm"] = (fbgemm_call(element, count, width, entries), long_ids.int())
    pools, others = [], {name: [] for name in calls}
    for call, ids in calls.values():
        rate_of(call, ids, TOKENS * entries)
    for _ in range(rounds):
        record.wait_until_quiet(0 if "--now" in sys.argv else 20)
        pools.append(pool_rate(bench, element, width, entries, threads)[1])
        for name, (call, ids) in calls.items():
            others[name].append(rate_of(call, ids, TOKENS * entries))
    better = [max(rates) for rates in zip(*others.values())]

    def ratio(rates):
        return f"{statistics.median(p / r for p, r in zip(pools, rates)):.3f}" if rates else ""

    def middle(rates):
        return f"{statistics.median(rates):.3f}" if rates else ""

    of_torch, of_fbgemm = others.get("torch"), others.get("fbgemm")
    return [torch.__version__, fbgemm_gpu.__version__ if fbgemm_gpu else "", element, width, row_bytes, TABLE_MIB,
            threads, TOKENS, entries, rounds, middle(pools), middle(of_torch), middle(of_fbgemm), ratio(of_torch),
            ratio(of_fbgemm), ratio(better)]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    bench = record.program(sys.argv[1], "bench", "bench_pool")
    quick = "--quick" in sys.argv[2:]
    rows = []
    print(",".join(COLUMNS))
    for element in ("bf16", "f32", "int8", "int4"):
        for width, entries in SHAPES:
            for threads in (1,) if quick else (1, 2):
                rows.append(measure(bench, element, width, entries, threads, 3 if quick else 5))
                print(",".join(str(x) for x in rows[-1]), flush=True)
    record.append("pool_peers", COLUMNS, rows)


if __name__ == "__main__":
    main()
