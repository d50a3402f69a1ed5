"""Files of torch.save: a zip archive of one pickle and its storages, which are mapped, not read."""
import io
import mmap
import os
import struct
import zipfile

import numpy as np

from . import pickles
from .errors import ImportRefused
from .tensors import DTYPES


class _Part(io.RawIOBase):
    """Bytes [first, first + size) of a mapping as a file."""

    def __init__(self, data, first, size):
        super().__init__()
        self.data, self.first, self.size, self.at = data, first, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.at

    def seek(self, offset, whence=0):
        self.at = max(0, offset + (0 if whence == 0 else self.at if whence == 1 else self.size))
        return self.at

    def read(self, count=-1):
        left = max(0, self.size - self.at)
        count = left if count is None or count < 0 else min(count, left)
        begin = self.first + self.at
        self.at += count
        return self.data[begin:begin + count]


class MappedFile:
    """A read-only mapping of a file."""

    def __init__(self, path):
        self.path = str(path)
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as error:
            raise ImportRefused(f"{path}: {error.strerror}") from None


def _storages(archive, mapped, first, prefix, what):
    """The function that finds a storage's numbers in the archive."""
    seen = {}

    def storage_of(dtype, key, elements):
        if (key, dtype) in seen:
            return seen[key, dtype]
        name = f"{prefix}/data/{key}"
        try:
            info = archive.getinfo(name)
        except KeyError:
            raise ImportRefused(f"{what}: storage {key} is not in the archive") from None
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ImportRefused(f"{what}: storage {key} is compressed or encrypted, which torch.save never does")
        header = mapped.data[first + info.header_offset:first + info.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise ImportRefused(f"{what}: storage {key} has no header where the archive says")
        begin = first + info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        kind, size = DTYPES[dtype]
        if elements < 0 or elements * size > info.file_size or begin + elements * size > mapped.size:
            raise ImportRefused(f"{what}: storage {key} has {info.file_size} bytes, {elements} elements are {dtype}")
        array = np.frombuffer(mapped.data, kind, elements, begin) if elements else np.empty(0, kind)
        seen[key, dtype] = dtype, array
        return seen[key, dtype]

    return storage_of


def load_part(mapped, first, size, what):
    """The object of a torch.save that lies in bytes [first, first + size) of a mapped file."""
    if bytes(mapped.data[first:first + 4]) != b"PK\3\4":
        raise ImportRefused(f"{what} is not a file of torch.save since version 1.6 (a zip archive)")
    try:
        archive = zipfile.ZipFile(_Part(mapped.data, first, size))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ImportRefused(f"{what} is cut short or spoilt: {error}") from None
    names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise ImportRefused(f"{what}: an archive with {len(names)} pickles, one is expected")
    prefix = names[0].split("/")[0]
    try:
        if f"{prefix}/byteorder" in archive.namelist() and archive.read(f"{prefix}/byteorder").strip() != b"little":
            raise ImportRefused(f"{what} was written on a big-endian machine")
        data = archive.read(names[0])
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImportRefused(f"{what} is cut short or spoilt: {error}") from None
    return pickles.load(data, what, _storages(archive, mapped, first, prefix, what))


def load(path):
    mapped = MappedFile(path)
    return load_part(mapped, 0, mapped.size, str(path))
