"""The layouts in which checkpoints lie on disk, each turned into {name: tensor}.

  model.pt                      one state_dict (torch.save)
  model.safetensors             the trainer's own export: names are base64 of pickled tuples; or plain names
  rank_N/model.pt               one state_dict a rank, value tables cut by columns among the ranks
  rankN.pt                      FSDP's sharded state_dict, saved by each rank (ShardedTensor)
  model/rankN.pt                FSDP's flat parameters as each rank holds them
  model_and_optim/, *.distcp    torch.distributed.checkpoint
"""
import base64
import binascii
import json
import re
from pathlib import Path

import numpy as np

from . import pickles, torch_files
from .errors import ImportRefused
from .pickles import Record
from .tensors import DTYPES, Assembled, Flat, Stored, count_of


def _is_tensor(value):
    return hasattr(value, "rows") and hasattr(value, "dtype") and not isinstance(value, Record)


def _tensors_of(state, what):
    """{name: tensor} of a state_dict, perhaps under 'model'."""
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict):
        raise ImportRefused(f"{what} holds no state_dict")
    found = {}
    for name, value in state.items():
        if isinstance(name, str) and _is_tensor(value):
            found[name] = value
        elif isinstance(value, Record):
            raise ImportRefused(f"{what}: {name} is a {value.class_name}, not a tensor")
    if not found:
        raise ImportRefused(f"{what} holds no tensors")
    return found


def read_full(path):
    return _tensors_of(torch_files.load(path), str(path))


# --- safetensors ------------------------------------------------------------------------------------------------------

def _decoded_name(key, what):
    """The names that the trainer's export made of a path of keys: base64 of a pickle of (keys, is pickled)."""
    if re.fullmatch(r"[A-Za-z0-9_.]+", key) and "." in key:
        return key, False  # a plain name
    try:
        data = base64.urlsafe_b64decode(key.encode())
    except (binascii.Error, ValueError, UnicodeEncodeError):
        return key, False
    if not data.startswith(b"\x80"):
        return key, False
    value = pickles.load(data, f"{what}: the name {key[:40]}")
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple) and value[0] and
            all(isinstance(part, (str, int)) for part in value[0]) and isinstance(value[1], bool)):
        raise ImportRefused(f"{what}: the name {key[:40]} is not one that the trainer writes")
    keys = [str(part) for part in value[0]]
    if len(keys) > 1 and keys[0] in ("model", "optim"):
        keys = keys[1:] if keys[0] == "model" else keys
    return ".".join(keys), value[1]


def read_safetensors(path):
    mapped = torch_files.MappedFile(path)
    if mapped.size < 8:
        raise ImportRefused(f"{path} is too short for a safetensors file")
    size = int.from_bytes(mapped.data[:8], "little")
    if size > min(mapped.size - 8, 100 << 20):
        raise ImportRefused(f"{path}: a header of {size} bytes in a file of {mapped.size}")
    try:
        header = json.loads(mapped.data[8:8 + size].decode())
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{path}: the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ImportRefused(f"{path}: the header is not a JSON object")
    found = {}
    for key, info in header.items():
        if key == "__metadata__":
            continue
        name, is_pickled = _decoded_name(key, str(path))
        if is_pickled:
            continue  # something that is not a tensor
        try:
            dtype, shape, (begin, end) = info["dtype"], [int(n) for n in info["shape"]], info["data_offsets"]
            kind, item = DTYPES[dtype]
            good = 0 <= begin <= end <= mapped.size - 8 - size and end - begin == count_of(shape) * item
        except (KeyError, TypeError, ValueError):
            raise ImportRefused(f"{path}: tensor {name[:100]} is not described as safetensors does, or of a type that "
                                f"is not known") from None
        if not good or name in found:
            raise ImportRefused(f"{path}: tensor {name[:100]} does not fit its place, or is there twice")
        array = np.empty(0, kind)
        if begin < end:
            array = np.frombuffer(mapped.data, kind, count_of(shape), 8 + size + begin)
        stride = [count_of(shape[i + 1:]) for i in range(len(shape))]
        found[name] = Stored(dtype, array, 0, shape, stride)
    return found


# --- one file a rank --------------------------------------------------------------------------------------------------

def _ranks(folder, pattern):
    """[path] of rank 0, 1, .. without gaps."""
    found = {}
    for path in folder.iterdir():
        match = re.fullmatch(pattern, path.name)
        if match:
            found[int(match.group(1))] = path
    missing = sorted(set(range(max(found) + 1)) - set(found)) if found else []
    if missing:
        raise ImportRefused(f"{folder}: rank {missing[0]} is missing ({len(found)} ranks, the last is {max(found)})")
    return [found[rank] for rank in sorted(found)]


def read_column_slices(folder, parts):
    """rank_N/model.pt: value tables have 1 / parts of their columns, by N mod parts; all else is everywhere."""
    ranks = _ranks(folder, r"rank_(\d+)")
    if parts < 1 or len(ranks) % parts:
        raise ImportRefused(f"{folder}: {len(ranks)} ranks, but config.yaml says mem_parallel_size {parts}")
    states = [read_full(path / "model.pt") for path in ranks[:parts]]
    result = {}
    for name, tensor in states[0].items():
        if any(name not in state for state in states):
            raise ImportRefused(f"{folder}: {name} is not in every rank's model.pt")
        if not name.endswith("values_for_look_up"):
            result[name] = tensor
            continue
        rows, columns = tensor.shape
        if any(state[name].shape != (rows, columns) for state in states):
            raise ImportRefused(f"{folder}: the slices of {name} are not all of one shape")
        result[name] = Assembled(name, tensor.dtype, (rows, columns * parts),
                                 [((0, rank * columns), state[name]) for rank, state in enumerate(states)])
    return result


def _field(record, name, what):
    value = record.fields.get(name) if isinstance(record, Record) else None
    if value is None:
        raise ImportRefused(f"{what}: no {name} where a sharded tensor has one")
    return value


def _sharded_parts(record, what):
    """(shape, [(offsets, tensor)]) of one rank's ShardedTensor: its state is (local shards, metadata, ...)."""
    state = record.fields.get("state")
    if not (record.class_name.endswith("ShardedTensor") and isinstance(state, tuple) and len(state) >= 2):
        raise ImportRefused(f"{what} is a {record.class_name}, not a ShardedTensor")
    parts = []
    for shard in state[0]:
        tensor, metadata = _field(shard, "tensor", what), _field(shard, "metadata", what)
        offsets, sizes = _field(metadata, "shard_offsets", what), _field(metadata, "shard_sizes", what)
        if not _is_tensor(tensor) or tuple(sizes) != tensor.shape:
            raise ImportRefused(f"{what}: a shard's tensor is not of the shape it says")
        parts.append((tuple(int(at) for at in offsets), tensor))
    return tuple(int(size) for size in _field(state[1], "size", what)), parts


def read_sharded(folder):
    """rankN.pt: {'model': {name: ShardedTensor}} of every rank."""
    shapes, parts, result = {}, {}, {}
    for path in _ranks(folder, r"rank(\d+)\.pt"):
        state = torch_files.load(path)
        model = state.get("model") if isinstance(state, dict) else None
        if not isinstance(model, dict):
            raise ImportRefused(f"{path} holds no sharded state_dict")
        for name, value in model.items():
            if _is_tensor(value):  # not sharded: a buffer, the same everywhere
                result.setdefault(name, value)
                continue
            shape, found = _sharded_parts(value, f"{path}: {name}")
            if shapes.setdefault(name, shape) != shape:
                raise ImportRefused(f"{path}: {name} has shape {list(shape)}, another rank says {list(shapes[name])}")
            parts.setdefault(name, []).extend(found)
    for name, found in parts.items():
        if not found:
            raise ImportRefused(f"{folder}: no rank holds a part of {name}")
        found = [(offsets, tensor) for offsets, tensor in found if count_of(tensor.shape)]
        result[name] = Assembled(name, found[0][1].dtype, shapes[name], found)
    return result


def _flat_runs(handle, prefix, what):
    """(name, shape, first element, flat tensor) of what one flat parameter holds of each parameter."""
    data, names, shapes = (handle.get(f"flat_param.{key}") for key in ("data", "_fqns", "_shapes"))
    if not _is_tensor(data) or len(data.shape) != 1 or names is None or shapes is None:
        raise ImportRefused(f"{what}: a flat parameter without its names or shapes")

    def run(first, count):
        if first < 0 or count < 0 or first + count > data.shape[0]:
            raise ImportRefused(f"{what}: a parameter reaches beyond the flat parameter")
        return Stored(data.dtype, data.storage, data.offset + first, (count,), (1,))

    infos = handle.get("flat_param._shard_param_infos")
    if infos is not None:  # torch 2.1 and later
        for name, shape, info in zip(names, shapes, infos):
            values = info.arguments if isinstance(info, Record) else tuple(info)
            if len(values) != 5:
                raise ImportRefused(f"{what}: a shard's place has {len(values)} numbers, 5 are expected")
            in_shard, offset, count, start, _end = values
            if in_shard:
                yield prefix + name, tuple(shape), int(start), run(int(offset), int(count))
        return
    indices, offsets = handle.get("flat_param._shard_indices"), handle.get("flat_param._shard_param_offsets")
    if indices is None or offsets is None:
        raise ImportRefused(f"{what}: nothing says which parameters this rank holds")
    at = 0
    for name, shape, (start, end) in zip(names[indices[0]:], shapes[indices[0]:], offsets):
        yield prefix + name, tuple(shape), int(start), run(at, int(end) - int(start) + 1)
        at += int(end) - int(start) + 1


def read_flat(folder):
    """model/rankN.pt: {'modules': [{'name', 'handles': [flat parameter and where its parts lie]}]}."""
    shapes, runs, result = {}, {}, {}
    for path in _ranks(folder / "model", r"rank(\d+)\.pt"):
        state = torch_files.load(path)
        modules = state.get("modules") if isinstance(state, dict) else None
        if not isinstance(modules, list):
            raise ImportRefused(f"{path} holds no flat parameters")
        for module in modules:
            prefix = module["name"].replace("_fsdp_wrapped_module.", "").replace("_fsdp_wrapped_module", "")
            prefix = prefix + "." if prefix else ""
            for handle in module["handles"]:
                for name, shape, start, run in _flat_runs(handle, prefix, str(path)):
                    shapes.setdefault(name, shape)
                    runs.setdefault(name, []).append((start, run))
    for name, found in runs.items():
        result[name] = Flat(name, found[0][1].dtype, shapes[name], found)
    if not result:
        raise ImportRefused(f"{folder / 'model'} holds no parameters")
    return result


# --- torch.distributed.checkpoint -------------------------------------------------------------------------------------

def read_distcp(folder):
    """.metadata says which chunk of which tensor lies where in the *.distcp files."""
    metadata = pickles.load((folder / ".metadata").read_bytes(), str(folder / ".metadata"))
    tensors, places = {}, {}
    entries = _field(metadata, "state_dict_metadata", ".metadata")
    for index, info in _field(metadata, "storage_data", ".metadata").items():
        offset = index.fields.get("offset")
        places[index.fields.get("fqn"), tuple(offset) if offset is not None else None] = info
    files = {}
    for name, entry in entries.items():
        if not isinstance(entry, Record) or not entry.class_name.endswith("TensorStorageMetadata") or \
                not re.match(r"(model\.)?(transformer|tok_embeddings|norm|output|layers)\.", name):
            continue  # bytes, or the optimizer's
        parts, shape = [], tuple(int(n) for n in _field(entry, "size", name))
        for chunk in _field(entry, "chunks", name):
            offsets = tuple(int(n) for n in _field(chunk, "offsets", name))
            info = places.get((name, offsets)) or places.get((name, None))
            if info is None:
                raise ImportRefused(f"{folder}: nothing says where the part of {name} at {list(offsets)} lies")
            file = str(_field(info, "relative_path", name))
            if "/" in file or file.startswith("."):
                raise ImportRefused(f"{folder}: {name} is said to lie in {file}, which is not a file beside .metadata")
            mapped = files.setdefault(file, None) or torch_files.MappedFile(folder / file)
            files[file] = mapped
            first, size = int(_field(info, "offset", name)), int(_field(info, "length", name))
            if first < 0 or size < 0 or first + size > mapped.size:
                raise ImportRefused(f"{folder / file} is cut short: {name} lies at {first}, {size} bytes")
            tensor = torch_files.load_part(mapped, first, size, f"{folder / file}, {name}")
            if not _is_tensor(tensor):
                raise ImportRefused(f"{folder / file}: {name} is not a tensor")
            parts.append((offsets, tensor))
        if not parts:
            raise ImportRefused(f"{folder}: {name} has no parts")
        plain = name[len("model."):] if name.startswith("model.") else name
        tensors[plain] = Assembled(name, parts[0][1].dtype, shape, parts)
    if not tensors:
        raise ImportRefused(f"{folder}/.metadata names no model tensors")
    return tensors


def find(folder, parts=1):
    """(layout's name, {name: tensor}) of a checkpoint folder."""
    folder = Path(folder)
    looks = [(folder / "model.safetensors", "safetensors export",
              lambda: read_safetensors(folder / "model.safetensors")),
             (folder / "model.pt", "model.pt", lambda: read_full(folder / "model.pt")),
             (folder / "consolidated" / "consolidated.pth", "consolidated.pth",
              lambda: read_full(folder / "consolidated" / "consolidated.pth")),
             (folder / "consolidated.pth", "consolidated.pth", lambda: read_full(folder / "consolidated.pth")),
             (folder / "rank_0" / "model.pt", "column slices by rank", lambda: read_column_slices(folder, parts)),
             (folder / "rank0.pt", "FSDP sharded", lambda: read_sharded(folder)),
             (folder / "model" / "rank0.pt", "FSDP flat parameters", lambda: read_flat(folder)),
             (folder / "model_and_optim" / ".metadata", "torch.distributed.checkpoint",
              lambda: read_distcp(folder / "model_and_optim")),
             (folder / ".metadata", "torch.distributed.checkpoint", lambda: read_distcp(folder))]
    for path, name, read in looks:
        if path.exists():
            return name, read()
    raise ImportRefused(f"{folder} holds no checkpoint that is known: none of "
                        + ", ".join(str(path.relative_to(folder)) for path, _, _ in looks))
