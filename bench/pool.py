#!/usr/bin/env python3
"""Pooled gather against a plain random-row read loop of the same machine in the same run.

    bench/pool.py BUILD_DIR [--quick]

Runs bench_pool for the row shapes of the presets, bf16, f32, int8 and int4, 1 and 2 threads, and adds the rows
to bench/results/pool.csv. Goal: pool_to_plain of at least 0.9."""
import subprocess
import sys

import record

COLUMNS = ("isa,element,width,row_bytes,table_mib,pages,threads,tokens,entries,slots,pool_mrows_s,"
           "pool_gb_s,plain_mrows_s,plain_prefetch,grouped_mrows_s,grouped_prefetch,"
           "pool_to_plain,pool_to_grouped").split(",")
# width of a row (a slice of it is a narrower row) and entries a token: v1 1.6B and 151M, v2 227M and
# 1B/7B, a quarter of a 1.6B row
SHAPES = [(1024, 84), (512, 84), (192, 32), (768, 128), (256, 84)]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    quick = "--quick" in sys.argv[2:]
    bench = record.program(sys.argv[1], "bench", "bench_pool")
    rows = []
    print(",".join(COLUMNS))
    for element in ("bf16", "f32", "int8", "int4"):
        for width, entries in SHAPES[:2] if quick else SHAPES:
            for threads in (1, 2):
                record.wait_until_quiet()
                out = subprocess.run(
                    [bench, "--element", element, "--width", str(width), "--entries", str(entries),
                     "--threads", str(threads), "--rounds", "3" if quick else "5"],
                    check=True, capture_output=True, text=True).stdout.strip()
                print(out, flush=True)
                rows.append(out.split(","))
    record.append("pool", COLUMNS, rows)


if __name__ == "__main__":
    main()
