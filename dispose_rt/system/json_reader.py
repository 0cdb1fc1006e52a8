"""JSON objects read without mercy, and the checksum that proves one unchanged."""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

LARGEST_BYTES = 1 << 24
"""Files above this size are not ours: a manifest takes some 50 KB."""


def read_json(path: Path) -> Any:
    """Read a JSON file. Names given twice, NaN, infinities and files that are no regular files are refused.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON of that kind; says why.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise ValueError("it is not a file")
    if status.st_size > LARGEST_BYTES:
        raise ValueError(f"it has {status.st_size} bytes, at most {LARGEST_BYTES} are sensible")
    try:
        return json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checksum_of(body: Mapping[str, Any]) -> str:
    """Hex digest of an object's values, whatever the order of its keys and the layout of the file."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return body


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that belongs there")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def expect_object(value: Any, what: str) -> dict[str, Any]:
    """Return the value if it is an object; ValueError otherwise, as in all functions below."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_show(value)}, expected an object")
    return value


def expect_keys(value: Any, what: str, keys: Collection[str]) -> dict[str, Any]:
    """Return the value if it is an object with exactly these keys."""
    body = expect_object(value, what)
    missing = [key for key in keys if key not in body]
    unknown = [key for key in body if key not in keys]
    if missing or unknown:
        raise ValueError(f"{what} lacks {_list(missing)} and has unknown {_list(unknown)}")
    return body


def expect_list(value: Any, what: str) -> list[Any]:
    """Return the value if it is a list."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {_show(value)}, expected a list")
    return value


def expect_integer(value: Any, what: str, low: int, high: int) -> int:
    """Return the value if it is a whole number in low..high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{what} is {_show(value)}, expected a whole number in {low}..{high}")
    return value


def expect_number(value: Any, what: str, low: float, high: float) -> float:
    """Return the value if it is a number in low..high."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{what} is {_show(value)}, expected a number in {low:g}..{high:g}")
    return value


def expect_text(value: Any, what: str, pattern: str = ".*") -> str:
    """Return the value if it is printable text that matches a pattern as a whole."""
    if not isinstance(value, str) or not value.isprintable() or not re.fullmatch(pattern, value):
        wanted = "text" if pattern == ".*" else f"text like {pattern}"
        raise ValueError(f"{what} is {_show(value)}, expected {wanted}")
    return value


def expect_choice(value: Any, what: str, known: Iterable[str]) -> str:
    """Return the value if it is one of the known names."""
    names = sorted(known)
    if value not in names:
        raise ValueError(f"{what} is {_show(value)}, expected one of {', '.join(names)}")
    return str(value)


def _show(value: Any) -> str:
    """A value as it stands in an error message: short and printable."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(names: list[str]) -> str:
    return ", ".join(_show(name) for name in names[:5]) or "nothing"
