"""What an ONNX file refers to outside of itself, found without opening it in ONNX Runtime: data files and operators.

The file is walked as protocol buffers are laid out; see onnx.proto of the ONNX standard for the numbers of the fields.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft",
                     "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc"))  # fmt: skip
"""Domains of the operators that ONNX Runtime brings itself; all others need a library of native code."""

_MODEL = {7: "graph", 20: "training", 25: "function"}
"""Fields of a message that lead to tensors and operators, by number."""
_TREE: dict[str, dict[int, str]] = {
    "model": _MODEL,
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {},
}
_DOMAIN = {"node": 7, "function": 10}
_KEY, _VALUE = 1, 2
_LOCATION = b"location"

_DEEPEST = 64
"""Nesting of messages; ONNX Runtime itself refuses more than 100."""
_MOST_FIELDS = 5_000_000
"""Fields of a file; the full-size UNet has 200,000."""
_ORT_MAGIC = b"ORTM"
_SHOWN = 5


def find_foreign_parts(path: Path, listed: Collection[str]) -> list[str]:
    """Find everything that an ONNX file would make ONNX Runtime open or load besides itself.

    Args:
        path: the file.
        listed: names of the data files beside it that it may refer to.

    Returns:
        One line per data file that is not listed or does not lie in the same folder, and per unknown domain of
        operators, phrased to follow the file's name.

    Raises:
        ValueError: it is no ONNX file; the message says why.
        OSError: the file cannot be read.
    """
    locations, domains, own = _collect(path)
    lines = [_judge(path, location, listed) for location in sorted(locations)]
    lines += [f"needs operators of {domain!a:.80}, which ONNX Runtime does not have: a library of native code"
              for domain in sorted(domains - own - DOMAINS)]  # fmt: skip
    found = list(filter(None, lines))
    return found[:_SHOWN] + ([f"and {len(found) - _SHOWN} more of that kind"] if len(found) > _SHOWN else [])


def _judge(path: Path, location: str, listed: Collection[str]) -> str:
    if location not in listed:
        where = "outside of its folder" if "/" in location or "\\" in location else "that is not listed"
        return f"takes its data from {location!a:.80}, a file {where}"
    data = path.with_name(location)
    if data.resolve().parent != path.resolve().parent:
        return f"takes its data from {location!a:.80}, a link that leads to another folder"
    return ""


def _collect(path: Path) -> tuple[set[str], set[str], set[str]]:
    """Locations of external data, domains of operators, and domains of the functions that the file defines."""
    locations: set[str] = set()
    domains: set[str] = set()
    own: set[str] = set()
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[4:8] == _ORT_MAGIC:
                raise ValueError("it has ONNX Runtime's own format")
            todo, left = [("model", 0, len(data), 0)], _MOST_FIELDS
            while todo:
                kind, begin, end, depth = todo.pop()
                if depth > _DEEPEST:
                    raise ValueError("it is nested too deeply")
                key = value = b""
                for number, start, stop in _fields(data, begin, end):
                    left -= 1
                    if left < 0:
                        raise ValueError("it has more parts than any network")
                    if number in _TREE[kind]:
                        todo.append((_TREE[kind][number], start, stop, depth + 1))
                    elif number == _DOMAIN.get(kind):
                        (own if kind == "function" else domains).add(data[start:stop].decode("utf-8", "replace"))
                    elif kind == "external" and number in (_KEY, _VALUE):
                        key, value = (data[start:stop], value) if number == _KEY else (key, data[start:stop])
                if key == _LOCATION:
                    locations.add(value.decode("utf-8", "replace"))
    return locations, domains, own


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of every field of a message; those without a length are empty."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at, end)
            yield 0, at, at
        elif kind == 2:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError("it is cut short, or damaged")
            yield tag >> 3, at, at + length
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield 0, at, at
        else:
            raise ValueError("its layout is not that of ONNX")
    if at > end:
        raise ValueError("it is cut short, or damaged")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Read a number of variable length; return it and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is cut short, or damaged")
