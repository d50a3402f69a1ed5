#!/usr/bin/env python3
"""Tables stored in every type, engine against reference.py; and the same bits from every grid.

    tests/parity/table_types.py BUILD_DIR [--cases N] [--seed S] [--keep FOLDER]

Needs numpy. The tables of random models (random_models.py) are quantised by the few lines here, which
share nothing with the engine's own encoder: scales and codes are drawn from the values by plain NumPy
and laid out as docs/MODELS.md says. The reference gets the numbers that scale and code stand for. Then
`memrack logits` is asked once more for each of several grids, down to one column a slice, and with
every instruction set: the hash may not change.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

import random_models
import reference

TYPES = ["f32", "bf16", "f16", "int8", "int8-block", "int4", "fp8", "fp8-block"]
TOLERANCE = 2e-5

# What each of the 256 codes of E4M3 stands for.
E4M3 = np.array([(-1 if c & 128 else 1) * (((c & 7) / 8 + 1) * 2.0 ** ((c >> 3 & 15) - 7) if c & 120 else (c & 7) / 512)
                 for c in range(256)])
E4M3[[0x7f, 0xff]] = np.nan


def e4m3_codes(x):
    """The nearest code; ties to the even one."""
    magnitude = E4M3[:127]
    at = np.clip(np.searchsorted(magnitude, np.abs(x)), 1, 126)
    low, high = np.abs(x) - magnitude[at - 1], magnitude[at] - np.abs(x)
    code = np.where((low < high) | ((low == high) & (at % 2 == 1)), at - 1, at).astype(np.uint8)
    return code | np.where(np.signbit(x), 128, 0).astype(np.uint8)


def spread(scale, block, width):
    return np.repeat(scale, block, 1)[:, :width]


def maxima(x, block):
    """[rows][blocks]: the largest magnitude of each block."""
    rows, width = x.shape
    blocks = -(-width // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :width] = np.abs(x)
    return padded.reshape(rows, blocks, block).max(2)


def quantise(x, kind):
    """(array to write, its dtype, the float32 values it stands for)."""
    rows, width = x.shape
    if kind == "f32":
        return x, "F32", x
    if kind == "bf16":
        bits = random_models.to_bf16(x)
        return x, "BF16", (bits.astype(np.uint32) << 16).view(np.float32)
    if kind == "f16":
        half = x.astype(np.float16)
        return half, "F16", half.astype(np.float32)
    block = {"int8": width, "fp8": width, "fp8-block": 128}.get(kind, 32)
    limit = {"int8": 127, "int8-block": 127, "int4": 7}.get(kind, 448)
    scale = (maxima(x, block) / np.float32(limit)).astype(np.float32)
    if kind == "fp8-block":  # one for 128 rows
        for first in range(0, rows, 128):
            scale[first:first + 128] = scale[first:first + 128].max(0)
    if kind in ("int8-block", "int4"):
        scale = scale.astype(np.float16)
    wide = spread(scale.astype(np.float32), block, width)
    ratio = np.divide(x, wide, out=np.zeros_like(x), where=wide > 0)
    if kind.startswith("fp8"):
        codes = e4m3_codes(np.clip(ratio, -448, 448))
        values = E4M3[codes].astype(np.float32) * wide
    else:
        codes = np.clip(np.rint(ratio), -limit, limit).astype(np.int8)
        values = codes.astype(np.float32) * wide
    parts = []
    for number, first in enumerate(range(0, width, block)):
        one = codes[:, first:first + block]
        parts.append(np.ascontiguousarray(scale[:, number:number + 1]).view(np.uint8))
        if kind == "int4":
            full = np.full((rows, 32), 8, np.uint8)
            full[:, :one.shape[1]] = one + 8
            parts.append(full[:, :16] | full[:, 16:] << 4)
        else:
            parts.append(np.ascontiguousarray(one).view(np.uint8))
    return np.concatenate(parts, 1), "U8", values


def is_table(name):
    return name.endswith((".values_for_look_up", ".pre_values_for_look_up", ".values.weight"))


def convert(config, tensors, dtypes, kind, pre_kind):
    """Copies with tables stored as kind, pre-value tables as pre_kind; the third: what they stand for."""
    config, stored, dtypes, values = dict(config), dict(tensors), dict(dtypes), dict(tensors)
    overrides = {}
    for name in tensors:
        if is_table(name):
            one = pre_kind if ".pre_values" in name else kind
            stored[name], dtypes[name], values[name] = quantise(tensors[name].astype(np.float32), one)
            if one != kind:
                overrides[name] = one
    config["quantization_config"] = {"quant_method": "memrack", "tables": kind, "overrides": overrides}
    return config, stored, dtypes, values


def draw(rng, family, kind, pre_kind):
    for _ in range(200):
        config, tensors, dtypes, ids = random_models.draw(rng, family)
        if family == "ultramem_v2" and config["mem_pre_vdim"] and rng.integers(2):
            config["mem_use_glu_act"] = True
        config, stored, dtypes, values = convert(config, tensors, dtypes, kind, pre_kind)
        try:
            want = reference.forward(ids, random_models.as_float64(values), config)
        except reference.NearTie:
            continue
        return config, stored, dtypes, values, ids, want
    return None


def one_case(build, rng, family, kind, folder, names):
    pre_kind = TYPES[rng.integers(len(TYPES))]
    drawn = draw(rng, family, kind, pre_kind)
    if not drawn:
        return "no instance without near ties"
    config, stored, dtypes, values, ids, want = drawn
    digest, got = random_models.engine(build, folder, config, stored, dtypes, ids)
    error = np.abs(got - want).max() / np.abs(want).max()
    if not error <= max(TOLERANCE, 4 * random_models.error_of_fp32(config, values, ids, want)):
        return f"error {error:.1e}, pre-values {pre_kind}"
    width = config["mem_vdim"]
    grids = ["1x1", f"1x{width}", f"2x{width - 1 or 1}", f"1x{rng.integers(1, 9)}",
             f"{rng.integers(1, 9)}x{rng.integers(1, width + 1)}"]
    for extra in [["--table-grid", g] for g in grids] + [["--isa", i] for i in names]:
        again = subprocess.run([os.path.join(build, "memrack"), "logits", folder, "--input",
                                os.path.join(folder, "ids.st"), "--output", os.path.join(folder, "out.st"), *extra],
                               capture_output=True, text=True, timeout=60, check=False)
        if again.returncode != 0:
            return again.stderr.strip()
        if again.stdout.split()[-1] != digest:
            return f"other bits with {' '.join(extra)}, width {width}, pre-values {pre_kind}"
    return None


def isas():
    """Those this processor has."""
    with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
        flags = file.read()
    return (["ref"] + ["avx2"] * (" avx2 " in flags) + ["avx512"] * (" avx512bw " in flags)
            + ["neon"] * (os.uname().machine == "aarch64"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--cases", type=int, default=1, help="of each type and family")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="leave the first failing model here")
    a = parser.parse_args()
    passed = failed = 0
    for number, kind in enumerate(TYPES):
        for place, family in enumerate(["pkm", "memory_plus", "ultramem_v1", "ultramem_v2"]):
            for i in range(a.cases):
                rng = np.random.default_rng([a.seed, number, place, i])
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        problem = one_case(a.build, rng, family, kind, a.keep or folder, isas())
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        problem = str(error)
                if problem:
                    print(f"FAIL {kind} {family} seed {a.seed} case {number}.{place}.{i}: {problem}")
                    if a.keep:
                        return 1
                passed, failed = passed + (not problem), failed + bool(problem)
    print(f"table types: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
