"""Pickles read without running them.

A pickle is a program that may call anything. Here it can only build tuples, lists, dicts, numbers, texts, and
records (Record) that remember what they were told: no module is imported and no function of the file's choosing is
called. A name outside the modules that checkpoints use is refused at once, with the name."""
import io
import pickle
from collections import OrderedDict

from .errors import ImportRefused
from .tensors import Stored

STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
            "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
            "ByteStorage": "U8", "BoolStorage": "BOOL"}
TORCH_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
                "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
# Their classes become records; nothing of them is imported.
KNOWN_MODULES = ("torch", "numpy", "collections", "olmo", "lingua", "omegaconf", "pathlib", "datetime", "random",
                 "copyreg", "_codecs", "apps")
PLAIN = {("builtins", name): kind for name, kind in
         (("set", set), ("frozenset", frozenset), ("list", list), ("dict", dict), ("tuple", tuple), ("int", int),
          ("float", float), ("bool", bool), ("str", str), ("bytearray", bytearray), ("slice", slice))}
PLAIN.update({("collections", "OrderedDict"): OrderedDict, ("torch", "Size"): tuple})


class Record:
    """An object of a class that is not here: its name, its arguments, and its attributes."""
    class_name = "?"

    def __new__(cls, *arguments, **_named):
        record = object.__new__(cls)
        record.arguments, record.fields, record.items = arguments, {}, []
        return record

    def __init__(self, *_arguments, **_named):
        pass

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict) and not state[0]:
            state = state[1]  # slots
        if isinstance(state, dict):
            self.fields.update(state)
        else:
            self.fields["state"] = state

    def append(self, item):
        self.items.append(item)

    def extend(self, items):
        self.items.extend(items)

    def __setitem__(self, key, value):
        self.fields[key] = value

    def __getattr__(self, name):
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None


def record_class(module, name):
    full = f"{module}.{name}"
    return type(name.rsplit(".", 1)[-1], (Record,), {"class_name": full})


class StorageType:
    """torch.FloatStorage and its kin: stands for a type of number."""

    def __init__(self, dtype):
        self.dtype = dtype


def rebuild_tensor(storage, offset, shape, stride, *_rest):
    if not isinstance(storage, tuple) or len(storage) != 2:
        raise ImportRefused("a tensor without a storage")
    dtype, array = storage
    return Stored(dtype, array, offset, shape, stride)


def rebuild_typed(storage, offset, shape, stride, _requires_grad, _hooks, dtype, *_rest):
    if not isinstance(storage, tuple) or not isinstance(dtype, StorageType):
        raise ImportRefused("a tensor without a storage")
    from .tensors import DTYPES
    return Stored(dtype.dtype, storage[1].view(DTYPES[dtype.dtype][0]), offset, shape, stride)


def member_of(owner, name, *_rest):
    """getattr as pickles use it: a member of an enumeration, or a class within a class, that is not here."""
    if not (isinstance(owner, type) and issubclass(owner, Record) and isinstance(name, str)):
        raise ImportRefused("the pickle asks for an attribute of something that is not a class of the checkpoint's")
    return record_class(owner.class_name, name)


def rebuild_from_type(function, kind, arguments, state, *_rest):
    """A tensor of a class of its own: a record of it with its state, or the plain tensor under it."""
    if isinstance(kind, type) and issubclass(kind, Record):
        record = kind()
        record.__setstate__(state)
        return record
    if function not in (rebuild_tensor, rebuild_typed):
        raise ImportRefused("a tensor is made in a way that is not known")
    return function(*arguments)


FUNCTIONS = {("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
             ("builtins", "getattr"): member_of,
             ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
             ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
             ("torch._utils", "_rebuild_tensor_v3"): rebuild_typed,
             ("torch._utils", "_rebuild_parameter"): lambda data, *_rest: data,
             ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_rest: data,
             ("collections", "defaultdict"): lambda *_rest: {}}


class Reader(pickle.Unpickler):
    """storage_of(dtype name, key, elements) -> (dtype name, array): what a persistent id stands for."""

    def __init__(self, file, what, storage_of=None):
        super().__init__(file, encoding="latin1")
        self.what, self.storage_of = what, storage_of

    def find_class(self, module, name):
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if (module, name) in FUNCTIONS:
            return FUNCTIONS[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name])
        if module == "torch" and name in TORCH_DTYPES:
            return StorageType(TORCH_DTYPES[name])
        if module == "torch.storage" and name == "UntypedStorage":
            return StorageType("U8")
        if module.split(".")[0] in KNOWN_MODULES:
            return record_class(module, name)
        raise ImportRefused(f"{self.what}: the pickle asks for {module}.{name}, which no checkpoint needs: it is not "
                            f"opened")

    def persistent_load(self, pid):
        if not self.storage_of or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or \
                not isinstance(pid[1], StorageType):
            raise ImportRefused(f"{self.what}: a reference to data outside the pickle that is not a storage")
        return self.storage_of(pid[1].dtype, str(pid[2]), int(pid[4]))


def load(data, what, storage_of=None):
    """The object in a pickle. data: bytes or a binary file."""
    file = io.BytesIO(data) if isinstance(data, (bytes, bytearray, memoryview)) else data
    try:
        return Reader(file, what, storage_of).load()
    except ImportRefused:
        raise
    except RecursionError:
        raise ImportRefused(f"{what}: the pickle is nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - whatever a broken pickle makes Python raise
        raise ImportRefused(f"{what} is not a pickle that can be read: {type(error).__name__}: {error}") from None
