#!/usr/bin/env python3
"""Retrievals against memshards: requests/s, latency and bytes, by what could matter.

    bench/retrieve.py BUILD_DIR [--quick] [--faults]

One thing is varied at a time: batch, entries a token (k), row bytes, skew, shards, replicas, fabric, mode, looking
before sleeping. Each row stands beside a bare ping-pong of the same bytes and the shards' own work, measured in
turn in the same run (bench/retrieve.c). Adds rows to bench/results/retrieve.csv; the last column says how many
cores other work kept busy just before: rows beside more than a tenth of a core are noisy, and with more
processes than cores (shards * replicas + 1 of them) all of them wait for each other.

With --faults: what a replica of two that is killed or stopped adds to the slowest of the 40 retrievals after it
(one is made every 0.3 ms), and to the median of the next 100, over many repetitions (bench/results/faults.csv)."""
import os
import subprocess
import sys
import tempfile

import record

COLUMNS = ("transport,mode,shards,replicas,tokens,entries,slots,row_bytes,skew,spin_us,bytes_up,bytes_down,"
           "retrievals_s,p50_us,p99_us,p999_us,bare_p50_us,bare_p99_us,work_p50_us,in_process_p50_us,rest_us,"
           "ratio,others_busy_cores").split(",")


def cases(quick):
    """Options of bench_retrieve; what is not said is tcp, pool, 1 token of 84 entries, rows of 2 kB, even."""
    fabrics = ["tcp", "unix", "shm"]
    batches = [1, 32] if quick else [1, 8, 32, 128]
    for fabric in fabrics:
        for tokens in batches:
            yield ["--fabric", fabric, "--tokens", str(tokens)]
        yield ["--fabric", fabric, "--spin-us", "200"]
        yield ["--fabric", fabric, "--spin-us", "200", "--tokens", "32"]
    for mode in ("gated", "topk", "gather"):
        for tokens in (1, 4) if mode == "gather" else batches[:2]:  # a gather must fit in one frame
            yield ["--mode", mode, "--tokens", str(tokens)]
    for skew in ("0.8", "1.2"):
        for tokens in batches:
            yield ["--skew", skew, "--tokens", str(tokens)]
    for shards, replicas in ((2, 1), (4, 1), (1, 2), (2, 2)):
        for tokens in (1, 32):
            yield ["--shards", str(shards), "--replicas", str(replicas), "--tokens", str(tokens)]
    if quick:
        return
    for entries in (16, 32, 128):
        yield ["--entries", str(entries)]
    for row_bytes in (256, 512, 1024):
        for tokens in (1, 32):
            yield ["--width", str(row_bytes // 2), "--tokens", str(tokens)]


FAULT_COLUMNS = ("transport,fault,shards,replicas,faults,p50_us,p99_us,added_p50_us,added_p90_us,added_max_us,"
                 "after_p50_us,after_max_us,others_busy_cores").split(",")


def faults(bench, quick):
    rows = []
    print(",".join(FAULT_COLUMNS))
    for fabric in ("tcp", "unix", "shm"):
        for fault in ("kill", "stop"):
            busy = record.busy_cores(0.3)
            run = subprocess.run([bench, "--fault", fault, "--replicas", "2", "--fabric", fabric, "--rounds",
                                  "10" if quick else "50"], capture_output=True, text=True, timeout=300, check=False)
            if run.returncode != 0:
                print(f"{fault} over {fabric}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            rows.append(run.stdout.strip().split(",") + [f"{busy:.1f}"])
            print(",".join(rows[-1]), flush=True)
    record.append("faults", FAULT_COLUMNS, rows)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    build, quick = sys.argv[1], "--quick" in sys.argv[2:]
    bench = record.program(build, "bench", "bench_retrieve")
    if "--faults" in sys.argv[2:]:
        faults(bench, quick)
        return
    rows = []
    print(",".join(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "topk")
        subprocess.run([record.program(build, "memrack"), "synth", "ultramem-151m-x12", model, "--scale", "0.25"],
                       check=True, stdout=subprocess.DEVNULL)
        for options in cases(quick):
            if "topk" in options:
                options = options + ["--model", model]
            busy = record.busy_cores(0.3)
            run = subprocess.run([bench, "--rounds", "3", "--seconds", "0.1" if quick else "0.3"] + options,
                                 capture_output=True, text=True, timeout=120, check=False)
            if run.returncode != 0:
                print(f"{' '.join(options)}: {run.stderr.strip()}", file=sys.stderr)
                continue
            rows.append(run.stdout.strip().split(",") + [f"{busy:.1f}"])
            print(",".join(rows[-1]), flush=True)
    record.append("retrieve", COLUMNS, rows)


if __name__ == "__main__":
    main()
