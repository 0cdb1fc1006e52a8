"""Writes files of named tensors in the layouts of safetensors and torch, with one tensor in memory at a time."""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

Draw = Callable[[str], Tensor]
"""Returns the values of the tensor of a name."""


@dataclass(frozen=True)
class StoredTensor:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


_SAFETENSORS_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
_STORAGES = {torch.float16: torch.HalfStorage, torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}
_HEADER_ALIGNMENT = 8
_ARCHIVE = "archive"
_ENTRY_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_PADDING_FIELD = b"FB"
"""Kind of the extra field by which torch aligns the values in an archive."""
_PICKLE_PROTOCOL = 2
_FORMAT_VERSION, _BYTE_ORDER = b"3\n", b"little"


def write_safetensors(file: BinaryIO, tensors: Mapping[str, StoredTensor], draw: Draw) -> None:
    """Write a safetensors file; widest dtypes come first, so that all values are aligned.

    Args:
        file: open for writing.
        tensors: what the file holds.
        draw: called once per tensor, in the order of the file.

    Raises:
        OSError: the file cannot be written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].size_bytes
        kind = _SAFETENSORS_NAMES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": tensors[name].shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_values(name, tensors[name], draw))


def write_archive(
    file: BinaryIO, tensors: Mapping[str, StoredTensor], draw: Draw, *, nested: str = "", **others: object
) -> None:
    """Write a zip archive of `torch.save`: a dictionary of tensors, stored without compression.

    Args:
        file: open for writing; must be seekable.
        tensors: what the file holds.
        draw: called once per tensor, in the order of `tensors`.
        nested: key of the dictionary of tensors in the file; "" makes it the whole content.
        others: what stands beside a nested dictionary.

    Raises:
        OSError: the file cannot be written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        stored = {name: _Stored(str(key), tensor) for key, (name, tensor) in enumerate(tensors.items())}
        _add(archive, "data.pkl", _pickle({nested: stored, **others} if nested else stored))
        _add(archive, ".format_version", b"1")
        _add(archive, "byteorder", _BYTE_ORDER)
        for key, (name, tensor) in enumerate(tensors.items()):
            _add(archive, f"data/{key}", _values(name, tensor, draw))
        _add(archive, "version", _FORMAT_VERSION)


def _values(name: str, wanted: StoredTensor, draw: Draw) -> memoryview:
    tensor = draw(name)
    if (tuple(tensor.shape), tensor.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, the header says {wanted}")
    values: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(values)


def _add(archive: zipfile.ZipFile, name: str, body: bytes | memoryview) -> None:
    """Add an entry whose bytes begin at a multiple of 64, as torch maps them."""
    entry = zipfile.ZipInfo(f"{_ARCHIVE}/{name}")
    begin = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(entry.filename) + 2 * 2  # type: ignore[union-attr]
    padding = -begin % _ENTRY_ALIGNMENT
    entry.extra = _PADDING_FIELD + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(entry, body)


class _Stored:
    """Stands for a tensor in the pickle. Its storage is written elsewhere."""

    def __init__(self, key: str, tensor: StoredTensor) -> None:
        self.key = key
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.tensor.shape
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return torch._utils._rebuild_tensor_v2, (_Storage(self), 0, shape, strides, False, OrderedDict())


@dataclass(frozen=True)
class _Storage:
    """Stands for the storage of a tensor."""

    of: _Stored


class _Pickler(pickle.Pickler):
    """Refers to storages by key, as the unpickler of torch expects it."""

    def persistent_id(self, value: Any) -> Any:
        """Return what stands for a storage, None for everything else."""
        if not isinstance(value, _Storage):
            return None
        tensor = value.of.tensor
        return "storage", _STORAGES[tensor.dtype], value.of.key, "cpu", math.prod(tensor.shape)


def _pickle(content: Mapping[str, object]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, _PICKLE_PROTOCOL).dump(content)
    return buffer.getvalue()
