"""Strict JSON: readers of types, ranges and patterns that combine into tables, and a checksum of the contents.

A reader takes a value and its place in the file, such as "sizes.width", and returns the value or raises ValueError.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

LARGEST_BYTES = 1 << 24
"""Files above this size are not ours: a manifest takes some 50 KB."""

Reader = Callable[[Any, str], Any]


class RefusedError(ValueError):
    """A value was refused, for every reason in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def read_json(path: Path) -> Any:
    """Read a JSON file. Duplicate names, NaN, infinities and anything but a regular file are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON of that kind; the message says why.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise ValueError("it is not a file")
    if status.st_size > LARGEST_BYTES:
        raise ValueError(f"it has {status.st_size} bytes, at most {LARGEST_BYTES} are sensible")
    return parse_json(path.read_bytes().decode("utf-8"))


def parse_json(text: str) -> Any:
    """Parse JSON. Duplicate names, NaN and infinities are refused.

    Raises:
        ValueError: it is not JSON of that kind; the message says why.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=refuse_constant, parse_float=finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checksum_of(body: Mapping[str, Any]) -> str:
    """Hex digest of an object's values, independent of the order of its keys and the layout of the file."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return body


def refuse_constant(text: str) -> NoReturn:
    """Refuse NaN and infinities, which JSON does not have: `parse_constant` of `json.loads`."""
    raise ValueError(f"{text} is no number that belongs there")


def finite(text: str) -> float:
    """Read a number, but none that is too large for a float: `parse_float` of `json.loads`."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def integer(low: int, high: int) -> Reader:
    """Read a whole number in low..high."""
    return _reader(lambda value: _is_number(value, int) and low <= value <= high, f"a whole number in {low}..{high}")


def number(low: float, high: float) -> Reader:
    """Read a number in low..high."""
    wanted = f"a number in {low:g}..{high:g}"
    return _reader(lambda value: _is_number(value, int | float) and low <= value <= high, wanted)


def text(pattern: str, wanted: str) -> Reader:
    """Read printable text that matches a pattern as a whole; messages describe the pattern as `wanted`."""
    full = re.compile(pattern)
    return _reader(lambda value: isinstance(value, str) and value.isprintable() and full.fullmatch(value), wanted)


def choice(*known: str) -> Reader:
    """Read one of the known names."""
    return _reader(lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}")


def text_or(read: Reader, read_text: Reader) -> Reader:
    """Read text with `read_text`, and anything else with `read`."""
    return lambda value, what: read_text(value, what) if isinstance(value, str) else read(value, what)


def items(read: Reader, least: int = 0, most: int | None = None) -> Reader:
    """Read a list of `least` to `most` entries as a tuple."""

    def read_items(value: Any, what: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _unexpected(value, what, "a list")
        if len(value) < least or (most is not None and len(value) > most):
            expected = f"{least}" if least == most else f"{least} or more"
            raise ValueError(f"{what} has {len(value)} entries, expected {expected}")
        return tuple(
            _accept(*read_all({i: partial(read, one, f"{what}[{i}]") for i, one in enumerate(value)})).values()
        )

    return read_items


def entries(read_name: Reader, read: Reader) -> Reader:
    """Read an object with any number of entries."""

    def read_entries(value: Any, what: str) -> dict[str, Any]:
        body: dict[str, Any] = an_object(value, what)
        _accept(*read_all({name: partial(read_name, name, f"a name in {what}") for name in body}))
        return _accept(*read_all({name: partial(read, one, f"{what}.{name}") for name, one in body.items()}))

    return read_entries


def record(make: Callable[..., Any], **table: Reader) -> Reader:
    """Read an object with exactly the entries of a table, and pass them to `make`."""
    return lambda value, what: make(**_accept(*read_fields(value, what, table)))


def read_fields(value: Any, what: str, table: Mapping[str, Reader]) -> tuple[dict[str, Any], list[str]]:
    """Read an object that has exactly the entries of a table.

    Args:
        value: from JSON.
        what: its place in the file; "" for the file as a whole.
        table: readers by name.

    Returns:
        The entries that are as expected, and everything that is wrong with the others.

    Raises:
        ValueError: the value is no object.
    """
    body = an_object(value, what or "it")
    present = {
        key: partial(read, body[key], f"{what}.{key}" if what else key) for key, read in table.items() if key in body
    }
    values, problems = read_all(present)
    names = {"missing": [key for key in table if key not in body], "unknown": [key for key in body if key not in table]}
    if wrong := [f"{kind} {', '.join(map(_show, keys[:5]))}" for kind, keys in names.items() if keys]:
        problems.insert(0, f"{what or 'the file'}: {'; '.join(wrong)}")
    return values, problems


def read_all(readings: Mapping[Any, Callable[[], Any]]) -> tuple[dict[Any, Any], list[str]]:
    """Make every reading. Returns the values of those that succeed, and everything that is wrong with the others."""
    values: dict[Any, Any] = {}
    problems: list[str] = []
    for key, read in readings.items():
        try:
            values[key] = read()
        except ValueError as error:
            problems += error.problems if isinstance(error, RefusedError) else [str(error)]
    return values, problems


def _reader(accepts: Callable[[Any], Any], wanted: str) -> Reader:
    def read(value: Any, what: str) -> Any:
        if not accepts(value):
            raise _unexpected(value, what, wanted)
        return value

    return read


an_object = _reader(lambda value: isinstance(value, dict), "an object")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _accept(values: dict[Any, Any], problems: list[str]) -> dict[Any, Any]:
    if problems:
        raise RefusedError(problems)
    return values


def _unexpected(value: Any, what: str, wanted: str) -> ValueError:
    return ValueError(f"{what} is {_show(value)}, expected {wanted}")


def _show(value: Any) -> str:
    """A value as it stands in an error message: short and printable."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
