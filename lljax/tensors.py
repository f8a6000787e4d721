"""Reading other programs' weight files: safetensors, PyTorch, TensorFlow.

None of them runs code from a file, and neither PyTorch nor TensorFlow is needed.

A PyTorch file is a pickle that says how to make its objects, and beside it the tensors' raw
content: in a zip archive, or, before PyTorch 1.6, one after the other in one file. The pickle is
read with stand-ins for everything that it names: tensors become places in the file, all else
becomes an object without content.

TensorFlow's V2 checkpoint ("bundle") is an index, PREFIX.index, a sorted table in LevelDB's format
whose values are small protocol buffers, beside raw little-endian arrays in
PREFIX.data-00000-of-00001 and so on.

Source: github.com/pytorch/pytorch, torch/serialization.py and torch/_utils.py;
github.com/tensorflow/tensorflow, core/protobuf/tensor_bundle.proto and core/util/tensor_bundle;
github.com/google/leveldb, doc/table_format.md.
"""

from __future__ import annotations

import functools
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lljax.errors import InputError

# Where a PyTorch checkpoint keeps its network; the first that holds one is taken.
_NETWORKS = ("state_dict", "model")
_BUNDLE = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
_FOOTER, _MAGIC = 48, 0xdb4775248b80fb57
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?",
           17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8"}  # TensorFlow's DataType
_STRING = 7
# What a training keeps beside its networks: optimiser slots and counters.
_TRAINING = re.compile(r"/(Adam|AdamOptimizer|Momentum|RMSProp|Adagrad)(_\d+)?$"
                       r"|(^|/)(beta[12]_power(_\d+)?|global_step)$")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of another program's weights file, by name.

    Of a PyTorch file that is no dict of tensors itself, the dict of tensors under `state_dict` is
    taken or, without one, that under `model`; an optimiser's state, averaged weights and whatever
    else the file holds is not looked at. The `module.` that DataParallel puts before names is
    removed, and bfloat16 becomes float32. Of a TensorFlow checkpoint the optimisers' slots and
    counters are left out.

    Args:
      path: a .safetensors file, a PyTorch checkpoint, or a TensorFlow V2 checkpoint: its .index
        file, one of its .data files, or what their names have in common.

    Raises:
      InputError: no such file, damaged, or not a file of named tensors.
    """
    path = os.fspath(path)
    prefix = _prefix(path)
    if prefix is not None:
        return _read_bundle(prefix)
    if not os.path.isfile(path):
        raise InputError(f"no file {path!r}")
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error
    if path.endswith(".meta"):
        raise InputError(f"{path} is the graph of a TensorFlow checkpoint and holds no weights; "
                         "give the .index beside it")
    return _read_torch(path)


def files(path: str | os.PathLike) -> list[str]:
    """The files that `read` reads for a path: one, or a TensorFlow checkpoint's index and data.

    Raises:
      InputError: a TensorFlow checkpoint of which one is missing or whose index is damaged.
    """
    path = os.fspath(path)
    prefix = _prefix(path)
    return [path] if prefix is None else [f"{prefix}.index", *_open_bundle(prefix)[1]]


class _Damaged(Exception):
    """What is wrong with a file, in words."""


# ---- PyTorch files ----

_Fetch = Callable[[str, str], np.ndarray]  # (key, dtype) -> the elements of a storage
_BIG_ENDIAN = "its tensors are stored big-endian, which is not supported"
_FIRST, _VERSION = 0x1950a86a20f9469cfc6c, 1001  # what a file without an archive begins with
_STORAGES = {f"{name}Storage": dtype for name, dtype in {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": "bfloat16", "Long": "<i8",
    "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
    "ComplexFloat": "<c8", "ComplexDouble": "<c16"}.items()}
_WIDE = {"bfloat16": "<u2"}  # how numpy holds what it does not know


# A pickle can also write attributes, of what it made and of the classes that it was given. Where
# there is a __setstate__ it calls that instead, and on a class the call fails.


class _Inert:
    """Stands for what a file names and this reader does not know, and for what it makes of it."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __call__(self, *args: Any) -> _Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    append = extend = add = __setstate__


class _Dict(dict):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    """Content that tensors share; a view of it has its own `first` and `size`."""

    dtype: str
    key: str
    first: int
    size: int


class _Tensor:
    """A tensor as a file describes it: its elements' places, in elements."""

    __slots__ = ("storage", "offset", "shape", "strides")

    def __new__(cls, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
        made = super().__new__(cls)
        made.storage, made.offset, made.shape, made.strides = storage, offset, shape, strides
        return made

    def __setstate__(self, state: Any) -> None:
        pass


class _Parameter:
    __slots__ = ()

    def __new__(cls, data: Any, *rest: Any) -> Any:
        return data

    __setstate__ = _Inert.__setstate__


_STAND_INS = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    **{(module, name): dtype for module in ("torch", "torch.cuda")
       for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows stand-ins only, and so has nothing to run."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8", errors="replace")  # strings of Python 2
        self.dtypes: dict[str, str] = {}  # of every storage that is met

    def find_class(self, module: str, name: str) -> Any:
        return _STAND_INS.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != "storage":
            return _Inert()
        _, dtype, key, _, size, *view = pid
        first = 0
        if view and view[0] is not None:
            _, first, size = view[0]
        self.dtypes[key] = dtype
        return _Storage(dtype, key, first, size)


def _read_torch(path: str) -> dict[str, np.ndarray]:
    try:
        file = open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    with file:
        try:
            zipped = file.read(4) == b"PK\3\4"
            file.seek(0)
            content, fetch = (_open_archive if zipped else _open_stream)(file)
            fetch = functools.cache(fetch)  # tensors may share
            return {name.removeprefix("module."): _torch_array(name, tensor, fetch)
                    for name, tensor in _network(content).items()}
        except Exception as error:  # a reader of bytes: damage may raise any exception
            detail = error if isinstance(error, _Damaged) else (
                "not a PyTorch checkpoint, or damaged")
            raise InputError(f"{path} is refused: {detail} (code and other objects in a file are "
                             "never run)") from error


def _network(content: Any) -> dict[str, _Tensor]:
    parts = [content.get(name) for name in _NETWORKS] if isinstance(content, dict) else []
    for part in (content, *parts):
        if isinstance(part, dict) and part and all(
                isinstance(k, str) and isinstance(v, _Tensor) for k, v in part.items()):
            return part
    raise _Damaged("it holds no dict of named tensors (a network's state_dict), neither itself "
                   f"nor as {' or '.join(_NETWORKS)}")


def _torch_array(name: str, tensor: _Tensor, fetch: _Fetch) -> np.ndarray:
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if not isinstance(storage, _Storage) or storage.dtype not in _STORAGES.values():
        raise _Damaged(f"{name!r} is a kind of tensor that is not supported; save it as float32")
    data = fetch(storage.key, storage.dtype)[storage.first:storage.first + storage.size]
    count = math.prod(shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if (min(storage.first, tensor.offset, *shape, *strides) < 0 or count > len(data)
            or count and last >= len(data)):
        raise _Damaged(f"{name!r} is not inside the file's content")
    array = np.lib.stride_tricks.as_strided(
        data[tensor.offset:], shape, [step * data.itemsize for step in strides], writeable=False)
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (array.astype("<u4") << 16).view("<f4")
    return array


def _open_archive(file: BinaryIO) -> tuple[Any, _Fetch]:
    """(the pickled object, what reads a storage) of a zip archive."""
    archive = zipfile.ZipFile(file)
    # PyTorch does not compress: nothing here grows beyond the size of the file.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise _Damaged("a compressed archive, not a PyTorch checkpoint")
    names = archive.namelist()
    folder = next((name.removesuffix("data.pkl") for name in names
                   if name.endswith("/data.pkl") and name.count("/") == 1), None)
    if folder is None:
        raise _Damaged("an archive without data.pkl, not a PyTorch checkpoint")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise _Damaged(_BIG_ENDIAN)
    with archive.open(f"{folder}data.pkl") as pickled:
        content = _Unpickler(pickled).load()
    return content, lambda key, dtype: np.frombuffer(archive.read(f"{folder}data/{key}"),
                                                     _WIDE.get(dtype, dtype))


def _open_stream(file: BinaryIO) -> tuple[Any, _Fetch]:
    """(the pickled object, what reads a storage) of a file from before PyTorch 1.6."""
    if _Unpickler(file).load() != _FIRST or _Unpickler(file).load() != _VERSION:
        raise _Damaged("it does not begin as PyTorch's files do")
    if not _Unpickler(file).load()["little_endian"]:
        raise _Damaged(_BIG_ENDIAN)
    unpickler = _Unpickler(file)
    content, keys = unpickler.load(), _Unpickler(file).load()
    places, at, end = {}, file.tell(), os.fstat(file.fileno()).st_size
    for key in keys:  # a count of elements, and they
        file.seek(at)
        (size,) = struct.unpack("<Q", file.read(8))
        dtype = np.dtype(_WIDE.get(unpickler.dtypes[key], unpickler.dtypes[key]))
        places[key] = at + 8, size * dtype.itemsize
        at = sum(places[key])
        if at > end:
            raise _Damaged(f"it has {end:,} bytes and needs {at:,} or more; it is incomplete")

    def fetch(key, dtype):
        start, length = places[key]
        file.seek(start)
        return np.frombuffer(file.read(length), _WIDE.get(dtype, dtype))

    return content, fetch


# ---- TensorFlow bundles ----


def _prefix(path: str) -> str | None:
    """What the names of a bundle's files begin with; None if the path is no bundle's."""
    if _BUNDLE.search(path):
        return _BUNDLE.sub("", path)
    return path if not os.path.isfile(path) and os.path.isfile(f"{path}.index") else None


def _open_bundle(prefix: str) -> tuple[dict[str, dict[int, list]], list[str]]:
    """(name -> fields of its BundleEntryProto, data files) of a bundle."""
    index = f"{prefix}.index"
    try:
        with open(index, "rb") as file:
            table = dict(_table(file.read()))
        header = _fields(table.pop(b""))
        shards = header.get(1, [0])[0]
        if header.get(2, [0])[0]:
            raise InputError(f"{index}: the tensors are stored big-endian, which is not "
                             "supported; save the checkpoint on a little-endian machine")
        if not 1 <= shards <= 99999:
            raise _Damaged(f"it names {shards} data files")
        # Keys that begin with a zero belong to slices of other entries, see _tensor.
        entries = {key.decode(): _fields(value) for key, value in table.items() if key[0]}
    except FileNotFoundError:
        raise InputError(f"no file {index!r}, which a TensorFlow checkpoint needs") from None
    except OSError as error:
        raise InputError(f"{index} cannot be read: {error}") from error
    except (_Damaged, LookupError, struct.error, UnicodeDecodeError, TypeError) as error:
        detail = error if isinstance(error, _Damaged) else "it cannot be parsed"
        raise InputError(f"{index} is no index of a TensorFlow checkpoint, or damaged: "
                         f"{detail}") from error
    data = [f"{prefix}.data-{i:05}-of-{shards:05}" for i in range(shards)]
    for path in data:
        if not os.path.isfile(path):
            raise InputError(f"no file {path!r}: it holds the weights that {index} lists; get it "
                             "from where the index came from")
    return entries, data


def _read_bundle(prefix: str) -> dict[str, np.ndarray]:
    entries, data = _open_bundle(prefix)
    tensors = {}
    for name, entry in entries.items():
        # Strings are the notes that TensorFlow 2 makes about its objects.
        if not _TRAINING.search(name) and entry.get(1) != [_STRING]:
            tensors[name] = _tensor(prefix, name, entry, data)
    if not tensors:
        raise InputError(f"{prefix}.index lists no weights, only {len(entries)} of a training's "
                         "counters and notes")
    return tensors


def _tensor(prefix: str, name: str, entry: dict[int, list], data: list[str]) -> np.ndarray:
    """One tensor, by its BundleEntryProto: 1 dtype, 2 shape, 3 shard, 4 offset, 5 size, 6 crc."""
    index = f"{prefix}.index"
    if 7 in entry:
        raise InputError(f"{index}: {name} is stored in slices (a partitioned variable), which is "
                         "not supported; save the checkpoint without a partitioner")
    kind, shard, offset, size = (entry.get(field, [0])[0] for field in (1, 3, 4, 5))
    if kind not in _DTYPES:
        raise InputError(f"{index}: {name} is of TensorFlow's data type {kind}, which is not "
                         "supported; save it as float32")
    try:
        shape = [_fields(dim).get(1, [0])[0] for part in entry.get(2, ()) for dim in
                 _fields(part).get(2, ())]
        dtype = np.dtype(_DTYPES[kind])
        end = offset + size
        if size != math.prod(shape) * dtype.itemsize or shard >= len(data):
            raise _Damaged("shape and size disagree")
    except (_Damaged, LookupError, struct.error, TypeError) as error:
        raise InputError(f"{index}: the entry of {name} is damaged") from error
    path = data[shard]
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            if end > length:
                raise InputError(f"{path}: has {length:,} bytes and {name} ends at {end:,}; "
                                 "the file is incomplete, get a new copy")
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if 6 in entry and _masked_crc(content) != entry[6][0]:
        raise InputError(f"{path}: the checksum of {name} is wrong; the file is damaged or not "
                         f"the one that {index} was written with, get a new copy of both")
    return np.frombuffer(content, dtype).reshape(shape)


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a LevelDB table: blocks, found by a block of their places, by a footer."""
    footer = content[-_FOOTER:]
    if len(content) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise _Damaged("its last bytes are not those of an index")
    places = [_place(footer, _place(footer, 0)[1])[0]]
    for _, value in _entries(_block(content, *places[0])):
        yield from _entries(_block(content, *_place(value, 0)[0]))


def _place(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, where the next field begins)."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(content: bytes, offset: int, size: int) -> bytes:
    """A block's entries; behind a block stand its compression (a byte) and its checksum."""
    end = offset + size
    if size < 4 or end + 5 > len(content) - _FOOTER:
        raise _Damaged("a block lies outside the file")
    if _masked_crc(content[offset:end + 1]) != struct.unpack_from("<I", content, end + 1)[0]:
        raise _Damaged("a block's checksum is wrong")
    if content[end]:
        raise _Damaged(f"its blocks are compressed (type {content[end]}; 1 is snappy), which is "
                       "not supported")
    (restarts,) = struct.unpack_from("<I", content, end - 4)
    return content[offset:max(offset, end - 4 - 4 * restarts)]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys share their beginnings with the key before; at a restart they share nothing."""
    at, key = 0, b""
    while at < len(block):
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        end = at + unshared + length
        if shared > len(key) or end > len(block):
            raise _Damaged("an entry is longer than its block")
        key = key[:shared] + block[at:at + unshared]
        yield key, block[at + unshared:end]
        at = end


def _fields(message: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number: ints, or the bytes of strings and messages."""
    at, fields = 0, {}
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            value, at = message[at:at + length], at + length
            if at > len(message):
                raise _Damaged("a field is longer than its entry")
        elif tag & 7 in (1, 5):
            form, width = ("<Q", 8) if tag & 7 == 1 else ("<I", 4)
            (value,), at = struct.unpack_from(form, message, at), at + width
        else:
            raise _Damaged(f"a field of kind {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where the next field begins): seven bits a byte, lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at + shift // 7] & 127) << shift
        if data[at + shift // 7] < 128:
            return value, at + shift // 7 + 1
    raise _Damaged("a number of more than ten bytes")


def _masked_crc(data: bytes) -> int:
    """CRC-32C, disguised as LevelDB stores it. A tenth of a second a MB, which is little here."""
    crc, table = 0xffffffff, _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xffffffff
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


@functools.cache
def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82f63b78 if value & 1 else 0) for value in table]
    return table
