"""Random damage to bytes and to JSON. The same generator gives the same damage."""

from __future__ import annotations

import copy
import random
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
)
"""Values that programs compute wrongly with, or allocate memory for."""
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31 - 1, 2**31, -(2**31), 2**63, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *("", "x", "\x1b[31m", "../../etc/passwd", "/dev/zero", "a" * 5000, "\ud800", "0", "'; touch x; echo '", [], {}),
    *([0] * 3000, [[]], {"a": {"b": {}}}, {"": 0}, {"path": "/etc/passwd"}),
)
_TAG = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")
"""What names a part of most kinds of media files. Sizes and numbers stand beside it."""


def damage_bytes(rng: random.Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    """Damage a file in one to eight places.

    Args:
        rng: decides.
        data: the file.
        other: another file, of which parts are spliced in.

    Returns:
        The damaged file, and what was done.
    """
    damaged, done = bytearray(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not damaged:
            break
        kind = rng.choice(list(_KINDS))
        done.append(_KINDS[kind](rng, damaged, other))
    return bytes(damaged), ", ".join(done) or "nothing"


def _place(rng: random.Random, data: bytearray) -> int:
    """A place in a file, more often near its ends or behind a tag than elsewhere."""
    way = rng.random()
    if way < 0.3:
        return rng.randrange(len(data))
    if way < 0.5:
        return rng.randrange(min(len(data), 128))
    if way < 0.6:
        return len(data) - 1 - rng.randrange(min(len(data), 256))
    tags = [found.start() for found in _TAG.finditer(bytes(data[:65536]))]
    return min(len(data) - 1, max(0, rng.choice(tags) + rng.randrange(-4, 44))) if tags else rng.randrange(len(data))


def _flip(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, bit = _place(rng, data), rng.randrange(8)
    data[at] ^= 1 << bit
    return f"flip bit {bit} at {at}"


def _set(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, value = _place(rng, data), rng.randrange(256)
    data[at] = value
    return f"set {value} at {at}"


def _extreme(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, width = _place(rng, data), rng.choice((1, 2, 3, 4, 4, 4, 8))
    value, order = rng.choice(_NUMBERS) % 2 ** (8 * width), rng.choice(("big", "little"))
    data[at : at + width] = value.to_bytes(width, "big" if order == "big" else "little")
    return f"write {value} as {width} bytes, {order}, at {at}"


def _remove(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, count = _place(rng, data), rng.choice((1, 2, 4, rng.randrange(1, 64), rng.randrange(1, 4096)))
    del data[at : at + count]
    return f"remove {count} at {at}"


def _insert(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, count = _place(rng, data), rng.choice((1, 2, 4, rng.randrange(1, 64), rng.randrange(1, 4096)))
    data[at:at] = rng.randbytes(count)
    return f"insert {count} at {at}"


def _clear(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, count, value = _place(rng, data), rng.randrange(1, 512), rng.choice((0, 0xFF))
    data[at : at + count] = bytes([value]) * len(data[at : at + count])
    return f"fill {count} at {at} with {value}"


def _repeat(rng: random.Random, data: bytearray, other: bytes) -> str:
    at, count = _place(rng, data), rng.randrange(1, 256)
    times = rng.choice((1, 2, 50))
    data[at:at] = data[at : at + count] * times
    return f"repeat {count} at {at} {times} times"


def _truncate(rng: random.Random, data: bytearray, other: bytes) -> str:
    at = _place(rng, data)
    del data[at:]
    return f"cut at {at}"


def _splice(rng: random.Random, data: bytearray, other: bytes) -> str:
    if not other:
        return "nothing"
    at, begin = _place(rng, data), rng.randrange(len(other))
    end = min(len(other), begin + rng.choice((16, 256, 4096, len(other))))
    if rng.random() < 0.5:
        del data[at:]
    data[at:at] = other[begin:end]
    return f"splice in {end - begin} of another file at {at}"


_KINDS = {
    one.__name__: one
    for one in (_flip, _set, _extreme, _extreme, _remove, _insert, _clear, _repeat, _truncate, _splice)
}


def damage_json(rng: random.Random, body: Any) -> tuple[Any, str]:
    """Change, remove, add or rename one to three entries of a JSON document, at any depth."""
    damaged, done = copy.deepcopy(body), []
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(damaged, ""))
        if not places:
            break
        parent, key, name = rng.choice(places)
        value, way = copy.deepcopy(rng.choice(_VALUES)), rng.random()
        if way < 0.7:
            parent[key] = value
            done.append(f"{name} = {value!a:.60}")
        elif way < 0.85:
            del parent[key]
            done.append(f"without {name}")
        elif isinstance(parent, dict):
            parent[rng.choice(("x", "", "\x1b[2J", "path", "a" * 3000))] = parent.pop(key)
            done.append(f"another name for {name}")
        else:
            parent.insert(key, value)
            done.append(f"{value!a:.60} before {name}")
    return damaged, ", ".join(done) or "nothing"


def _places(body: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    pairs = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in pairs:
        yield body, key, f"{name}.{key}"
        yield from _places(value, f"{name}.{key}")


def mend_png(data: bytes) -> bytes:
    """Write the right checksum behind every chunk, so that damage reaches what is behind the check."""
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        (length,) = struct.unpack_from(">I", mended, at)
        if at + 12 + length > len(mended):
            break
        struct.pack_into(">I", mended, at + 8 + length, zlib.crc32(mended[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(mended)
