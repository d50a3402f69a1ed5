#!/usr/bin/env python3
"""Prefill and decode rates of the presets, all roles in one process, random bf16 weights.

    bench/decode.py BUILD_DIR [--quick] [--only NAME]

Each preset is written at the largest scale whose files stay below --budget-gb (labelled; 1 is the
published shape), measured for batches of 1 and 8, and removed again. Adds rows to
bench/results/decode.csv."""
import argparse
import os
import re
import shutil
import subprocess
import tempfile

import record

COLUMNS = ("preset,scale,file_gb,threads,batch,prompt,tokens,prefill_tok_s,decode_tok_s,step_p50_ms,"
           "step_max_ms,retrieval_wait_percent,weights_gb,read_gb_s,weights_read_ms").split(",")
PRESETS = ["dense-151m", "pkm-151m", "memoryplus-151m", "ultramem-151m-x12", "moe-151m",
           "dense-227m", "ultramemv2-227m-1.2b", "moe-227m", "ultramem-680m-x12", "ultramem-1.6b-x12",
           "ultramemv2-1b-7b"]
QUICK = ["dense-227m", "ultramemv2-227m-1.2b"]


def gigabytes(memrack, preset):
    """Size of the published shape in bf16, from `memrack synth --list`."""
    listing = subprocess.run([memrack, "synth", "--list"], check=True, capture_output=True, text=True)
    return float(re.search(rf"^{re.escape(preset)} .* ([0-9.]+)$", listing.stdout, re.M).group(1))


def scale_for(size, budget):
    """Tables grow with the third power of the scale, dense parts with the second."""
    for scale in (1, 0.75, 0.5, 0.375, 0.25):
        if size * scale ** 2.5 <= budget:
            return scale
    return 0.125


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="one preset")
    parser.add_argument("--budget-gb", type=float, default=5.0)
    options = parser.parse_args()
    memrack = record.program(options.build, "memrack")
    bench = record.program(options.build, "bench", "bench_decode")
    presets = [options.only] if options.only else QUICK if options.quick else PRESETS
    rows = []
    print(",".join(COLUMNS))
    for preset in presets:
        folder = tempfile.mkdtemp()
        try:
            scale = scale_for(gigabytes(memrack, preset), options.budget_gb)
            model = os.path.join(folder, preset)
            subprocess.run([memrack, "synth", preset, model, "--scale", str(scale)], check=True,
                           stdout=subprocess.DEVNULL)
            size = sum(os.path.getsize(os.path.join(model, f)) for f in os.listdir(model)) / 1e9
            for batch in (1, 8):
                record.wait_until_quiet()
                out = subprocess.run([bench, "--model", model, "--batch", str(batch), "--prompt", "128",
                                      "--tokens", "16"], check=True, capture_output=True,
                                     text=True).stdout.strip()
                rows.append([preset, scale, f"{size:.2f}"] + out.split(","))
                print(",".join(str(x) for x in rows[-1]), flush=True)
        finally:
            shutil.rmtree(folder)
    record.append("decode", COLUMNS, rows)


if __name__ == "__main__":
    main()
