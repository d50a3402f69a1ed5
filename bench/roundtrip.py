#!/usr/bin/env python3
"""Retrieval round trip against a bare ping-pong of the same bytes on the same fabric.

    bench/roundtrip.py BUILD_DIR [--quick] [--fabrics]

Without --fabrics over TCP loopback, for several grids; with it over TCP, Unix sockets and shared memory, with and
without a MAC on every frame, sleeping and looking first (bench/results/roundtrip_fabric.csv).

Writes a random model (an UltraMem table of the 1.6B preset's row shape, fewer rows), starts one
memrack-memshard for it per grid, and adds rows to bench/results/roundtrip.csv."""
import os
import subprocess
import sys
import tempfile

import record

COLUMNS = ("model,grid,tokens,rows,slots,accumulator_bits,bytes_up,bytes_down,retrieve_p50_us,"
           "retrieve_p99_us,bare_p50_us,bare_p99_us,shard_work_p50_us,retrieve_to_bare,rest_us").split(",")
MODELS = {
    # the memory layers as published; a small backbone and fewer rows, which the trip does not see
    "ultramem-1.6b rows": ["ultramem-1.6b-x12", "--layers", "6", "--d-model", "256", "--vdim", "1024",
                           "--knum", "600", "--vocab", "256"],
    "ultramemv2-1b rows": ["ultramemv2-1b-7b", "--layers", "4", "--d-model", "256", "--vdim", "768",
                           "--pre-vdim", "384", "--knum", "400", "--vocab", "256"],
}
GRIDS = ["1x1", "1x4", "1x8"]


def start_memshard(build, model, grid):
    """The process and its address. Shard 0 of as many as there are cells: it holds cell 0."""
    rows, columns = map(int, grid.split("x"))
    ready, written = os.pipe()
    process = subprocess.Popen(
        [record.program(build, "memrack-memshard"), "--model", model, "--grid", grid, "--index", "0",
         "--of", str(rows * columns), "--threads", "1", "--ready-fd", str(written)],
        pass_fds=[written], stdout=subprocess.DEVNULL)
    os.close(written)
    with os.fdopen(ready) as pipe:
        address = pipe.readline().strip()
    if not address:
        sys.exit("the memshard did not start")
    return process, address


FABRIC_COLUMNS = ["model", "grid", "transport", "mac", "spin_us"] + COLUMNS[2:] + ["others_busy_cores"]


def fabrics(bench, name, model, quick):
    """One memshard thread and one asker, a core each where there are two."""
    record.wait_until_quiet()
    for fabric in ("tcp", "unix", "shm"):
        for spin in (0, 200):
            for mac in ([], ["--mac"]):
                for tokens in (1,) if quick else (1, 32):
                    busy = record.busy_cores()  # figures beside more than a tenth of a core are noisy
                    out = subprocess.run(
                        [bench, "--model", model, "--fabric", fabric, "--grid", "1x8", "--spin-us", str(spin),
                         "--tokens", str(tokens), "--rounds", "3" if quick else "5", "--seconds", "0.2"] + mac,
                        check=True, capture_output=True, text=True).stdout.strip()
                    yield [name, "1x8"] + out.split(",") + [f"{busy:.1f}"]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    build, quick = sys.argv[1], "--quick" in sys.argv[2:]
    bench = record.program(build, "bench", "bench_roundtrip")
    rows = []
    print(",".join(FABRIC_COLUMNS if "--fabrics" in sys.argv[2:] else COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MODELS.items():
            model = os.path.join(folder, options[0])
            subprocess.run([record.program(build, "memrack"), "synth", options[0], model] + options[1:],
                           check=True, stdout=subprocess.DEVNULL)
            if "--fabrics" in sys.argv[2:]:
                for row in fabrics(bench, name, model, quick):
                    rows.append(row)
                    print(",".join(row), flush=True)
                break
            for grid in GRIDS[:1] if quick else GRIDS:
                process, address = start_memshard(build, model, grid)
                try:
                    for tokens in (1, 8) if quick else (1, 8, 64):
                        record.wait_until_quiet()
                        out = subprocess.run(
                            [bench, "--model", model, "--connect", address, "--tokens", str(tokens),
                             "--rounds", "3" if quick else "7", "--seconds", "0.3"],
                            check=True, capture_output=True, text=True).stdout.strip()
                        rows.append([name, grid] + out.split(","))
                        print(",".join(rows[-1]), flush=True)
                finally:
                    process.terminate()
                    process.wait(timeout=10)
    if "--fabrics" in sys.argv[2:]:
        record.append("roundtrip_fabric", FABRIC_COLUMNS, rows)
    else:
        record.append("roundtrip", COLUMNS, rows)


if __name__ == "__main__":
    main()
