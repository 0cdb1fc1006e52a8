"""Reads files of named tensors. Layout, sizes and checksums are verified, and no code of a file is run.

safetensors are mapped; the library checks that the tensors fill the file without gap or overlap. In a zip archive of
`torch.save`, every entry's CRC-32 is verified, every storage must be as large as its entry, stored entries are mapped
and compressed ones are loaded. Pickles from before torch 1.6 are loaded; torch checks every storage's size.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor

from dispose_rt.errors import CheckpointError, DisposeError, OutOfMemoryError
from dispose_rt.system.files import format_bytes
from dispose_rt.system.memory import free_host_bytes

Tensors: TypeAlias = dict[str, Tensor]

_PIECE_BYTES = 1 << 24
_ENCRYPTED = 0x1
_ZIP = b"PK\x03\x04"
_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE)
_ELEMENT_BYTES = {
    **dict.fromkeys(("UntypedStorage", "ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
}
"""Bytes of an element by the name of the storage's type."""
_FOREIGN_OBJECT = re.compile(r"GLOBAL ([\w.]+)")


def read_tensors(path: Path, nested: str = "") -> Tensors:
    """Read a file of named tensors, verifying what is read.

    Args:
        path: the file.
        nested: key of the dictionary of tensors in the file; "" where the file holds nothing else.

    Returns:
        Tensors by name, mapped from the file where its format allows: they must not be written to.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors.
        OutOfMemoryError: its entries are compressed, and memory for them is lacking.
    """
    with _named_failures(path):
        return _find_tensors(path, _read(path, verify=True), nested)


def read_headers(path: Path, nested: str = "") -> Tensors:
    """Read names, dtypes and shapes without verifying or even reading the values; see `read_tensors`.

    Files that cannot be mapped are read completely.

    Returns:
        Tensors on the meta device by name.
    """
    with _named_failures(path):
        tensors = _find_tensors(path, _read(path, verify=False), nested)
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def find_impostor(path: Path) -> str:
    """Return what a file is that stands in for a published one, such as "an empty file"; "" if nothing tells."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.startswith(_LFS_POINTER):
        return "a Git LFS pointer, not the file itself: `git lfs pull` was never run"
    return "a web page, such as an error or a login" if _WEB_PAGE.match(start) else ""


def download_again(path: Path) -> str:
    """Return the remedy for a file that is not what was published."""
    return f"Download {path} again, for example with `dispose-rt download`."


@contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a CheckpointError that names it."""
    try:
        if impostor := find_impostor(path):
            raise CheckpointError(f"{path} is damaged: it is {impostor}", remedy=download_again(path))
        yield
    except (DisposeError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        found = _FOREIGN_OBJECT.search(str(error))
        raise CheckpointError(
            f"{path} cannot be unpickled: it is damaged, or holds Python objects other than tensors"
            f"{f' ({found[1]})' if found else ''}, which are not loaded because they could run code",
            remedy=download_again(path),
        ) from error
    except Exception as error:  # a damaged file makes torch, zipfile and safetensors raise a dozen unrelated types
        raise CheckpointError(f"{path} is damaged: {first_line(error)}", remedy=download_again(path)) from error


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _read(path: Path, *, verify: bool) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:
        is_archive = file.read(len(_ZIP)) == _ZIP
    # pickles from before torch 1.6 are no archives, and cannot be mapped
    maps = is_archive and _check_archive(path, verify)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=maps)


def _find_tensors(path: Path, content: Any, nested: str) -> Tensors:
    tensors = content.get(nested) if nested and isinstance(content, dict) else content
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        where = f" under '{nested}'" if nested else ""
        raise CheckpointError(f"{path} holds no dictionary of named tensors{where}", remedy=download_again(path))
    return dict(tensors)


def _check_archive(path: Path, verify: bool) -> bool:
    """Check a zip archive of `torch.save`, which torch maps without a look at sizes, compression and checksums.

    Args:
        path: the file.
        verify: read every entry and compare its CRC-32.

    Returns:
        Whether all entries are stored as they are, so that they can be mapped.

    Raises:
        ValueError, zipfile.BadZipFile: something does not fit.
        OutOfMemoryError: memory for the compressed entries is lacking.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise ValueError("two entries of the archive have the same name")
        if min(entry.header_offset for entry in entries.values()):
            raise ValueError("something stands before the archive")
        if any(entry.flag_bits & _ENCRYPTED for entry in entries.values()):
            raise ValueError("the archive is encrypted")
        compressed = [entry for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED]
        _check_free(path, sum(entry.file_size for entry in compressed))
        pickled = next(name for name in entries if name.endswith("/data.pkl"))
        _check_storages(archive.read(pickled), {
            name.removeprefix(pickled.removesuffix("data.pkl")): entry.file_size for name, entry in entries.items()
        })  # fmt: skip
        with path.open("rb") as raw:
            for entry in entries.values():
                _check_extent(raw, entry, archive.start_dir)
        for entry in entries.values() if verify else ():
            with archive.open(entry) as file:  # compares the checksum at the end
                while file.read(_PIECE_BYTES):
                    pass
    return not compressed


def _check_free(path: Path, needed: int) -> None:
    free = free_host_bytes()
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"the entries of {path} are compressed, and take {format_bytes(needed)} of memory, of which "
            f"{format_bytes(free)} are free. Use the file as it was published: its entries are not compressed"
        )


def _check_extent(file: BinaryIO, entry: zipfile.ZipInfo, end: int) -> None:
    """Check that the bytes of an entry lie in the archive; `end` is where its directory begins."""
    file.seek(entry.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    begin = entry.header_offset + 30 + name_bytes + extra_bytes
    if begin + entry.compress_size > end:
        raise ValueError(f"the entry {entry.filename} is longer than the file")
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise ValueError(f"the entry {entry.filename} has two sizes")


def _check_storages(pickled: bytes, sizes: Mapping[str, int]) -> None:
    """Compare the size of every storage that a pickle refers to with that of its entry, without running the pickle."""
    unpickler = _StorageFinder(pickled)
    unpickler.load()
    for key, size_bytes in unpickler.storages.items():
        if sizes.get(f"data/{key}") != size_bytes:
            raise ValueError(
                f"the storage {key} takes {size_bytes} bytes, its entry has {sizes.get(f'data/{key}', 'none')}"
            )


class _Inert(dict[Any, Any]):
    """Stands for every object of a pickle: accepts what unpickling does with an object, and ignores it."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # keys of dictionaries and items of sets, too

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, _: Any) -> None:
        """Ignore items of a list."""

    def add(self, _: Any) -> None:
        """Ignore an item of a set."""


class _StorageFinder(pickle.Unpickler):
    """Collects the storages that a pickle refers to. Nothing that it names is imported or called.

    Attributes:
        storages: sizes in bytes by key.
    """

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type[_Inert]:
        """Return a stand-in of that name."""
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> _Inert:
        """Note one storage: ("storage", its type, key, device, number of elements)."""
        _, kind, key, _, count = pid
        self.storages[str(key)] = int(count) * _ELEMENT_BYTES[kind.__name__]
        return _Inert()
