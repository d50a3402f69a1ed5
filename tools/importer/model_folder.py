"""Writes a model folder: config.json, safetensors files of bounded size, the tokenizer's files.

Tensors are streamed in pieces, so that memory stays small whatever the model's size. Everything goes to a folder beside
the wanted one, which gets its name when all is there."""
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from .errors import ImportRefused
from .tensors import DTYPES, count_of, to_bf16, to_f32

PIECE_BYTES = 32 << 20
SHARD_BYTES = 4 << 30
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                   "generation_config.json")


class Progress:
    """One line on a terminal, nothing elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.shown = max(total, 1), 0, 0.0

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self.shown > 0.1 or self.done >= self.total):
            self.shown = now
            share = self.done / self.total
            end = "\n" if self.done >= self.total else ""
            print(f"\rwriting [{'#' * int(30 * share):30}] {100 * share:3.0f} %", end=end, file=sys.stderr, flush=True)


def stored_type(name, tensor, wanted):
    """The type a tensor is written as: --dtype changes matrices and tables of floating point."""
    if tensor.dtype not in DTYPES:
        raise ImportRefused(f"{name} has type {tensor.dtype}, which is not known")
    if tensor.dtype == "F64":
        return wanted if wanted and len(tensor.shape) == 2 else "F32"
    if wanted and len(tensor.shape) == 2 and tensor.dtype in ("F32", "F16", "BF16"):
        return wanted
    return tensor.dtype


def _converted(values, dtype, wanted):
    if dtype == wanted:
        return values
    floats = to_f32(values, dtype)
    if wanted == "BF16":
        return to_bf16(floats)
    with np.errstate(over="ignore"):
        return floats.astype(DTYPES[wanted][0])


def _header(entries):
    """The file's beginning; the data is aligned to 64 bytes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor, dtype in entries:
        size = count_of(tensor.shape) * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file, name, tensor, dtype, progress):
    rows = tensor.shape[0] if tensor.shape else 1
    row_bytes = max(1, count_of(tensor.shape[1:]) * DTYPES[dtype][1])
    step = max(1, PIECE_BYTES // row_bytes)
    for first in range(0, rows, step):
        values = _converted(tensor.rows(first, min(step, rows - first)), tensor.dtype, dtype)
        if dtype in ("F32", "F16", "BF16") and not np.isfinite(to_f32(values, dtype)).all():
            raise ImportRefused(f"{name} holds a number that is not finite (rows {first} to {first + step - 1}), as "
                                f"read or after rounding to {dtype}")
        values.tofile(file)
        progress.add(values.nbytes)


def _shards(entries, shard_bytes):
    """Entries in files of at most shard_bytes, one tensor at least in each."""
    shards, size = [[]], 0
    for entry in entries:
        more = count_of(entry[1].shape) * DTYPES[entry[2]][1]
        if shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += more
    return shards


def write(out, config, tensors, tokenizer=None, dtype=None, shard_bytes=SHARD_BYTES):
    """tensors: {name: tensor}. tokenizer: a folder or a tokenizer.json, or None. Returns the bytes written."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ImportRefused(f"{out} is there already: name a folder that is not, or remove it")
    entries = [(name, tensor, stored_type(name, tensor, dtype)) for name, tensor in sorted(tensors.items())]
    total = sum(count_of(tensor.shape) * DTYPES[kind][1] for _, tensor, kind in entries)
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ImportRefused(f"{parent} is not a folder")
    free = shutil.disk_usage(parent).free
    if total > free:
        raise ImportRefused(f"the model needs {total >> 20} MiB in {parent}, {free >> 20} are free")
    under_way = parent / f".{out.name}.importing.{os.getpid()}"
    under_way.mkdir()
    try:
        progress, shards = Progress(total), _shards(entries, shard_bytes)
        index = {}
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            with open(under_way / name, "wb") as file:
                file.write(_header(shard))
                for entry in shard:
                    _write_tensor(file, *entry, progress)
                    index[entry[0]] = name
                file.flush()
                os.fsync(file.fileno())
        if len(shards) > 1:
            (under_way / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1) + "\n")
        (under_way / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        copied = _copy_tokenizer(under_way, tokenizer)
        if out.is_dir():
            out.rmdir()
        under_way.rename(out)
    except BaseException:
        shutil.rmtree(under_way, ignore_errors=True)
        raise
    return total, copied


def _copy_tokenizer(folder, tokenizer):
    copied = []
    if tokenizer is None:
        return copied
    tokenizer = Path(tokenizer)
    if tokenizer.is_dir():
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
                copied.append(name)
    elif tokenizer.is_file():
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        copied.append("tokenizer.json")
    else:
        raise ImportRefused(f"{tokenizer} is neither a tokenizer.json nor a folder that has one")
    return copied
