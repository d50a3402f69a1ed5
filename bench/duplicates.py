#!/usr/bin/env python3
"""Rows that several tokens of a batch ask for: pooled as they come, from a packed copy, row by row.

    bench/duplicates.py BUILD_DIR

Runs bench_duplicates for small and large batches of the presets' rows at skews 0, 0.8 and 1.2 and
adds the rows to bench/results/duplicates.csv."""
import subprocess
import sys

import record

COLUMNS = ("isa,row_bytes,tokens,entries,slots,skew,duplicates,as_it_comes_mrows_s,packed_mrows_s,"
           "row_by_row_mrows_s").split(",")
# tokens, slots, width, entries a token
BATCHES = [(1, 1, 1024, 84), (32, 4, 1024, 84), (512, 1, 1024, 84), (512, 4, 1024, 84),
           (512, 1, 192, 32)]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    bench = record.program(sys.argv[1], "bench", "bench_duplicates")
    rows = []
    print(",".join(COLUMNS))
    for tokens, slots, width, entries in BATCHES:
        out = subprocess.run(
            [bench, "--tokens", str(tokens), "--slots", str(slots), "--width", str(width),
             "--entries", str(entries), "--seconds", "0.3"],
            check=True, capture_output=True, text=True).stdout.strip()
        print(out, flush=True)
        rows += [line.split(",") for line in out.splitlines()]
    record.append("duplicates", COLUMNS, rows)


if __name__ == "__main__":
    main()
