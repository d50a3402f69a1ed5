#!/usr/bin/env python3
"""Checkpoints of trainers, imported by tools/import-ultramem, against the tensors that were saved.

    tests/importer/run.py BUILD_DIR

Goal: every layout gives the model that was saved, bit for bit; what is spoilt or hostile gets one sentence, leaves
nothing behind and runs nothing. Method: checkpoints written by PyTorch (make_checkpoints.py), spoilt in one place
each; and a golden model whose logits after the import are the official code's."""
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TOOL = HERE.parent.parent / "tools" / "import-ultramem"
GOLDEN = HERE.parent / "golden"
MEMRACK = Path(sys.argv[1]) / "memrack"
TYPES = {"F32": np.float32, "I64": np.int64, "BF16": np.uint16}
passed = failed = 0


def read(folder):
    """{name: array} of a model folder, by a reader of our own: the header is JSON, the rest plain numbers."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        for name, info in json.loads(data[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                numbers = np.frombuffer(data[8 + size + begin:8 + size + end], TYPES[info["dtype"]])
                found[name] = numbers.reshape(info["shape"])
    return found


def run(checkpoint, out, *options):
    return subprocess.run([sys.executable, str(TOOL), str(checkpoint), str(out), *options], capture_output=True,
                          text=True, timeout=60)


def check(name, good, why=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(f"{'ok   ' if good else 'FAIL '} {name} {'' if good else why}", flush=True)


def same(found, wanted):
    wrong = sorted(set(found) ^ set(wanted)) or [n for n in wanted if found[n].shape != wanted[n].shape or
                                                 not np.array_equal(found[n], wanted[n])]
    return not wrong, f"differs: {wrong[:4]}"


def layouts(folder):
    expected = dict(np.load(HERE / "checkpoints" / "expected.npz"))
    for layout in ("full", "export", "columns", "sharded", "distcp"):
        result = run(HERE / "checkpoints" / layout, folder / layout)
        check(f"{layout} is imported", result.returncode == 0, result.stderr)
        if result.returncode == 0:
            check(f"{layout}: every tensor, bit for bit", *same(read(folder / layout), expected))
            inspected = subprocess.run([MEMRACK, "inspect", folder / layout], capture_output=True, text=True,
                                       timeout=60)
            check(f"{layout}: memrack reads it", inspected.returncode == 0, inspected.stderr)
    result = run(HERE / "checkpoints" / "full", folder / "half", "--dtype", "bf16")
    values = read(folder / "half")["transformer.wte.weight"]
    back = (values.astype(np.uint32) << 16).view(np.float32)
    check("--dtype bf16 rounds to nearest", values.dtype == np.uint16 and
          np.all(np.abs(back - expected["transformer.wte.weight"]) <= np.abs(back) * 2.0 ** -8), result.stderr)


def flat(folder):
    """Flat parameters hold no buffers, so a memory model cannot come from them; a dense one can."""
    result = run(HERE / "checkpoints" / "flat", folder / "flat")
    check("flat parameters of a memory model are refused: shuffle_index is not there",
          result.returncode == 1 and "shuffle_index" in result.stderr and not (folder / "flat").exists(), result.stderr)
    copy = folder / "flat_dense"
    shutil.copytree(HERE / "checkpoints" / "flat", copy)
    text = (copy / "config.yaml").read_text().replace("mem_type: ultramem_v2", "mem_type: null")
    (copy / "config.yaml").write_text(text)
    sys.path.insert(0, str(TOOL.parent))
    from importer import layouts as known
    from importer.tensors import whole
    expected = dict(np.load(HERE / "checkpoints" / "expected.npz"))
    found = {name: whole(tensor) for name, tensor in known.read_flat(copy).items()}
    wanted = {name: expected[name] for name in expected if name in found}
    check("flat parameters: every parameter, bit for bit", *same(found, wanted))
    check("flat parameters: all that are parameters", len(found) == len(expected) - 3, f"{len(found)}")


def write_torch_file(path, tensors):
    """What torch.save writes for {name: array}, made by hand: a zip of a pickle that names torch's functions."""
    class Call:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            return REBUILD, (Storage(self.key, self.array), 0, self.array.shape,
                             tuple(step // self.array.itemsize for step in self.array.strides), False, {})

    class Storage:
        def __init__(self, key, array):
            self.key, self.array = key, array

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            kind = FLOAT if thing.array.dtype == np.float32 else LONG
            return "storage", kind, str(thing.key), "cpu", thing.array.size

        def save_global(self, thing, name=None):
            names = {REBUILD: "torch._utils\n_rebuild_tensor_v2\n", FLOAT: "torch\nFloatStorage\n",
                     LONG: "torch\nLongStorage\n"}
            self.write(b"c" + names[thing].encode()) if thing in names else super().save_global(thing, name)

        dispatch = dict(pickle._Pickler.dispatch)
        dispatch[type(lambda: 0)] = save_global

    REBUILD, FLOAT, LONG = (lambda: 1), (lambda: 2), (lambda: 3)
    out = io.BytesIO()
    Pickler(out, 2).dump({name: Call(i, array) for i, (name, array) in enumerate(tensors.items())})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", out.getvalue())
        for i, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(array).tobytes())


def golden(folder):
    """A model of the official code goes out as a checkpoint, comes back, and gives the official logits."""
    for case in ("v2_peer_share05", "v1_ive4_skip"):
        config = json.loads((GOLDEN / case / "config.json").read_text())
        config.pop("golden", None)
        checkpoint = folder / f"{case}_checkpoint"
        checkpoint.mkdir()
        (checkpoint / "config.yaml").write_text(json.dumps({"model": config}))  # JSON is YAML
        write_torch_file(checkpoint / "model.pt", read(GOLDEN / case))
        out = folder / "cases" / case
        out.parent.mkdir(exist_ok=True)
        result = run(checkpoint, out)
        check(f"{case}: imported", result.returncode == 0, result.stderr)
        if result.returncode == 0:
            check(f"{case}: the same tensors", *same(read(out), read(GOLDEN / case)))
            shutil.copy(GOLDEN / case / "expected.safetensors", out)
    result = subprocess.run([sys.executable, str(GOLDEN / "run.py"), sys.argv[1], str(folder / "cases")],
                            capture_output=True, text=True, timeout=120)
    check("imported models give the official logits", result.returncode == 0, result.stdout[-300:])


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def spoilt(folder):
    """One thing wrong each: (what, layout, how to spoil it, what the sentence says)."""
    def cut(path, share):
        def spoil(base):
            data = (base / path).read_bytes()
            (base / path).write_bytes(data[:int(len(data) * share)])
        return spoil

    def remove(path):
        return lambda base: (base / path).unlink() if (base / path).is_file() else shutil.rmtree(base / path)

    def evil(path):
        def spoil(base):
            with zipfile.ZipFile(base / path, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps({"transformer.wte.weight": Evil()}))
        return spoil

    def write(path, data):
        return lambda base: (base / path).write_bytes(data)

    def patch(path, old, new):
        def spoil(base):
            data = (base / path).read_bytes()
            assert old in data
            (base / path).write_bytes(data.replace(old, new))
        return spoil

    cases = [("a pickle that would run a program", "full", evil("model.pt"), "system"),
             ("model.pt cut short", "full", cut("model.pt", 0.7), "cut short"),
             ("an empty model.pt", "full", write("model.pt", b""), "torch.save"),
             ("model.pt that is text", "full", write("model.pt", b"hello" * 99), "torch.save"),
             ("no model.pt", "full", remove("model.pt"), "no checkpoint that is known"),
             ("config.yaml that is not YAML", "full", write("config.yaml", b"model: [1, {"), "config.yaml"),
             ("config.yaml that makes objects", "full",
              write("config.yaml", b"model: !!python/object/apply:os.system ['touch pwned']"), "config.yaml"),
             ("config.yaml of something else", "full", write("config.yaml", b"a: 1"), "no `model` part"),
             ("config.yaml of bytes", "full", write("config.yaml", b"\xff\xfe\x00"), "config.yaml"),
             ("a rank's slices are missing", "columns", remove("rank_1"), "rank 1 is missing"),
             ("a wrong number of slices", "columns",
              patch("config.yaml", b"mem_parallel_size: 2", b"mem_parallel_size: 3"), "mem_parallel_size"),
             ("a rank of a sharded state is missing", "sharded", remove("rank1.pt"), "missing"),
             ("a rank is there twice", "sharded",
              lambda base: shutil.copy(base / "rank0.pt", base / "rank1.pt"), "overlap"),
             ("distcp cut short", "distcp", cut("model_and_optim/__1_0.distcp", 0.5), "cut short"),
             ("distcp file missing", "distcp", remove("model_and_optim/__0_0.distcp"), "__0_0.distcp"),
             (".metadata that is no pickle", "distcp",
              write("model_and_optim/.metadata", b"\x80\x04junk"), "not a pickle"),
             (".metadata that would run a program", "distcp",
              write("model_and_optim/.metadata", pickle.dumps(Evil())), "system"),
             ("an export with a broken header", "export", write("model.safetensors", b"\xff" * 64), "header"),
             ("an export cut short", "export", cut("model.safetensors", 0.9), "place"),
             ("Memory+ without params", "meta", remove("params.json"), "neither config.yaml"),
             ("Memory+ with broken params", "meta", write("params.json", b"{"), "params.json"),
             ("Memory+ gated", "meta", patch("params.json", b'"mem_share_values": true', b'"mem_gated": true'),
              "mem_gated"),
             ("Memory+ with other keys", "meta", patch("params.json", b'"mem_n_keys": 6', b'"mem_n_keys": 7'), "keys")]
    for name, layout, spoil, sentence in cases:
        base = folder / "spoilt"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(HERE / "checkpoints" / layout, base)
        spoil(base)
        result = run(base, folder / "never")
        told = result.stderr.strip()
        good = result.returncode == 1 and sentence in told and "\n" not in told and told.startswith("import-ultramem:")
        left = [p.name for p in folder.iterdir() if "never" in p.name] + [p for p in ("pwned",) if os.path.exists(p)]
        check(name, good and not left, f"-> {told[-400:]} {left}")


def meta(folder):
    expected = dict(np.load(HERE / "checkpoints" / "expected_meta.npz"))
    for layout in ("meta", "meta_distcp"):
        result = run(HERE / "checkpoints" / layout, folder / layout)
        check(f"{layout} is imported", result.returncode == 0, result.stderr)
        if result.returncode:
            continue
        found = read(folder / layout)
        query = expected["layers.0.attention.wq.weight"]
        halves = found["model.layers.0.self_attn.q_proj.weight"]
        pairs = halves.reshape(4, 2, 2, 16).transpose(0, 2, 1, 3).reshape(16, 16)
        values = (found["model.memory.values.weight"].astype(np.uint32) << 16).view(np.float32)
        check(f"{layout}: rotary halves, values, keys", np.array_equal(pairs, query) and
              np.array_equal(values, expected["layers.0.feed_forward.values.weight"]) and
              np.array_equal(found["model.layers.2.memory.keys"].reshape(24, 4),
                             expected["layers.2.feed_forward.keys"]))


def main():
    folder = Path(tempfile.mkdtemp(prefix="memrack-import-"))
    try:
        layouts(folder)
        flat(folder)
        golden(folder)
        meta(folder)
        spoilt(folder)
        (folder / "full" / "again").touch()
        result = run(HERE / "checkpoints" / "full", folder / "full")
        check("a folder that is there is not touched", result.returncode == 1 and "there already" in result.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"importer: {passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
