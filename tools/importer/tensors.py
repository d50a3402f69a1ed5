"""Tensors that are read in rows, from wherever their pieces lie; nothing holds one whole.

Numbers stay in their storage type; bf16, which NumPy does not know, travels as uint16."""
import numpy as np

from .errors import ImportRefused

# safetensors' name: (NumPy type of the bytes, bytes)
DTYPES = {"F64": (np.float64, 8), "F32": (np.float32, 4), "F16": (np.float16, 2), "BF16": (np.uint16, 2),
          "I64": (np.int64, 8), "I32": (np.int32, 4), "I16": (np.int16, 2), "I8": (np.int8, 1), "U8": (np.uint8, 1),
          "BOOL": (np.uint8, 1)}


def count_of(shape):
    total = 1
    for size in shape:
        total *= size
    return total


class Stored:
    """A tensor in a storage (a flat array, usually a mapped file)."""

    def __init__(self, dtype, storage, offset, shape, stride):
        self.dtype, self.shape = dtype, tuple(int(size) for size in shape)
        if any(size < 0 for size in self.shape) or offset < 0 or len(stride) != len(self.shape):
            raise ImportRefused(f"a tensor of shape {list(shape)} at {offset} makes no sense")
        last = offset + sum((size - 1) * step for size, step in zip(self.shape, stride))
        if any(step < 0 for step in stride) or (count_of(self.shape) and last >= len(storage)):
            raise ImportRefused(f"a tensor of shape {list(shape)} reaches beyond its storage of {len(storage)} "
                                f"elements")
        self.storage, self.offset, self.stride = storage, int(offset), tuple(int(step) for step in stride)

    def rows(self, first, count):
        """Rows [first, first + count) of the first dimension."""
        if not self.shape:
            return np.array(self.storage[self.offset])
        start = self.offset + first * self.stride[0]
        item = self.storage.itemsize
        if count == 0 or count_of(self.shape) == 0:
            return np.empty((count, *self.shape[1:]), self.storage.dtype)
        view = np.lib.stride_tricks.as_strided(self.storage[start:], (count, *self.shape[1:]),
                                               tuple(step * item for step in self.stride))
        return np.ascontiguousarray(view)


class Assembled:
    """A tensor made of rectangular parts: [(offset of each dimension, tensor)]."""

    def __init__(self, name, dtype, shape, parts):
        self.dtype, self.shape, self.parts = dtype, tuple(shape), []
        covered = 0
        for offsets, part in parts:
            if part.dtype != dtype or len(part.shape) != len(self.shape) or len(offsets) != len(self.shape):
                raise ImportRefused(f"{name}: a part is {part.dtype} {list(part.shape)}, the tensor {dtype} "
                                    f"{list(shape)}")
            if any(at < 0 or at + size > whole for at, size, whole in zip(offsets, part.shape, self.shape)):
                raise ImportRefused(f"{name}: a part at {list(offsets)} of shape {list(part.shape)} reaches beyond "
                                    f"{list(shape)}")
            covered += count_of(part.shape)
            self.parts.append((tuple(offsets), part))
        if covered != count_of(self.shape):
            raise ImportRefused(f"{name}: the parts hold {covered} elements, {count_of(self.shape)} are needed: a file "
                                f"of a rank is missing or there twice")
        self._refuse_overlaps(name)

    def _refuse_overlaps(self, name):
        for i, (a_at, a) in enumerate(self.parts):
            for b_at, b in self.parts[:i]:
                if all(x < y + n and y < x + m for x, m, y, n in zip(a_at, a.shape, b_at, b.shape)):
                    raise ImportRefused(f"{name}: the parts at {list(b_at)} and {list(a_at)} overlap")

    def rows(self, first, count):
        out = np.empty((count, *self.shape[1:]), DTYPES[self.dtype][0])
        for offsets, part in self.parts:
            begin, end = max(first, offsets[0]), min(first + count, offsets[0] + part.shape[0])
            if begin >= end:
                continue
            where = (slice(begin - first, end - first),
                     *(slice(at, at + size) for at, size in zip(offsets[1:], part.shape[1:])))
            out[where] = part.rows(begin - offsets[0], end - begin)
        return out


class Flat:
    """A tensor made of runs of its elements: [(first element, flat tensor)]."""

    def __init__(self, name, dtype, shape, runs):
        self.dtype, self.shape = dtype, tuple(shape)
        self.runs = sorted(((at, run) for at, run in runs if run.shape[0]), key=lambda item: item[0])
        at = 0
        for first, run in self.runs:
            if first != at or run.dtype != dtype:
                raise ImportRefused(f"{name}: the runs of elements do not join at element {at}: a file of a rank is "
                                    f"missing or there twice")
            at += run.shape[0]
        if at != count_of(self.shape):
            raise ImportRefused(f"{name}: the runs hold {at} elements, {count_of(self.shape)} are needed")

    def rows(self, first, count):
        row = count_of(self.shape[1:])
        begin, end = first * row, (first + count) * row
        out = np.empty(end - begin, DTYPES[self.dtype][0])
        for at, run in self.runs:
            low, high = max(begin, at), min(end, at + run.shape[0])
            if low < high:
                out[low - begin:high - begin] = run.rows(low - at, high - low)
        return out.reshape((count, *self.shape[1:]))


class Made:
    """A tensor that is computed, small enough to be there whole."""

    def __init__(self, dtype, array):
        self.dtype, self.array, self.shape = dtype, array, array.shape

    def rows(self, first, count):
        return np.ascontiguousarray(self.array[first:first + count])


def whole(tensor):
    """All of it as an array."""
    return tensor.rows(0, tensor.shape[0] if tensor.shape else 1)


def to_bf16(values):
    """f32 (as an array) rounded to nearest even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where((bits & 0x7fffffff) > 0x7f800000, ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def to_f32(values, dtype):
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
