"""The settings as a form, made from the table of settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract import Sizes
from ..errors import InputError
from ..settings import SETTINGS, Setting, parse_person


@dataclass(frozen=True)
class Field:
    """One setting in the form.

    Attributes:
        name: a field of `Settings`, or another argument of `Animator.run`.
        label: for people.
        hint: what it does, and its range.
        kind: "integer", "number", "many", "one", "person" or "switch".
        default: what the form begins with.
        choices: (label, value) for "many" and "one".
        is_common: whether it is seen at once.
        is_optional: whether a number may be left empty.
    """

    name: str
    label: str
    hint: str
    kind: str
    default: Any
    choices: tuple[tuple[str, str], ...] = ()
    is_common: bool = False
    is_optional: bool = False


def list_fields(sizes: Sequence[Sizes]) -> list[Field]:
    """List the form's fields, the common ones first.

    Args:
        sizes: sizes of the engine directories that a run may take, at least one; they narrow some ranges.
    """
    limits = {"overlap": min(one.tile for one in sizes) - 2, "decode_chunk": min(one.chunk for one in sizes)}
    rows = sorted(SETTINGS.items(), key=lambda item: not item[1].is_common)
    settings = [_make_field(name, row, limits.get(name)) for name, row in rows]
    return [*settings, Field("audio", "Keep the sound", "Of the driving video, if it has any.", "switch", True)]


def _make_field(name: str, row: Setting, high: float | None) -> Field:
    """A row of the table of settings as a field.

    Args:
        name: name of the setting.
        row: row of the table.
        high: largest number, where the engines allow less than the table.
    """
    span = row.describe_range(high)
    hint = f"{row.sentence}." + (f" {span[0].upper()}{span[1:]}." if span else "")
    hint += f" Empty: {row.none_means}." if row.is_optional else ""
    default = list(row.default) if row.kind == "many" else row.default
    choices = tuple((label, value) for value, label in row.choices)
    return Field(name, row.label, hint, row.kind, default, choices, row.is_common, row.is_optional)


def read_form(fields: Iterable[Field], values: Iterable[Any]) -> dict[str, Any]:
    """Turn the values of a form into arguments of `Animator.run`, which checks them.

    Args:
        fields: the form's.
        values: one for each; None where a number was left empty, text where it may be.

    Raises:
        InputError: a text is no number.
    """
    arguments: dict[str, Any] = {}
    for field, value in zip(fields, values, strict=True):
        if field.is_optional:
            arguments[field.name] = _read_optional(field, value)
        elif value is None:
            arguments[field.name] = field.default  # an emptied box means the default
        elif field.kind == "person":
            arguments[field.name] = parse_person(field.label, value) if value.strip() else field.default
        elif field.kind == "integer" and isinstance(value, float) and value.is_integer():
            arguments[field.name] = int(value)  # JSON knows one kind of number
        elif field.kind == "number":
            arguments[field.name] = float(value)
        elif field.kind == "many":
            arguments[field.name] = tuple(value)
        else:
            arguments[field.name] = value
    return arguments


def _read_optional(field: Field, text: str | None) -> float | int | None:
    if text is None or not text.strip():
        return None
    try:
        return int(text) if field.kind == "integer" else float(text)
    except ValueError as error:
        kind = "a whole number" if field.kind == "integer" else "a number"
        raise InputError(f"{field.label} is {text!r}; enter {kind}, or leave the box empty") from error
