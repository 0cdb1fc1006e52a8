"""The settings as a form: what each is called, what it does, and what it may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract import Sizes
from ..errors import InputError
from ..settings import CONTROLS, LIMITS, PLACES, Settings

CONTROL_LABELS = {"motion": "Motion fields", "points": "Keypoint correspondence"}
PLACE_LABELS = {"auto": "Automatic", "device": "Device memory", "host": "Host memory", "recompute": "Computed again"}


@dataclass(frozen=True)
class Field:
    """One setting in the form.

    Attributes:
        name: of `Settings`, or another argument of `Animator.run`.
        label: for people.
        hint: what it does, and its range.
        kind: "integer", "number", "many", "one" or "switch".
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
        sizes: of the engine directories that a run may take, at least one; they narrow some ranges.
    """
    default = Settings()
    longest_overlap = min(one.tile for one in sizes) - 2
    chunk = min(one.chunk for one in sizes)

    def number(name: str, label: str, hint: str, *, is_common: bool = False, high: float | None = None) -> Field:
        low, limit = LIMITS[name]
        bounds = f"{low:g} to {limit if high is None else high:g}"
        if limit >= 2**31:
            bounds = f"{low:g} or more"
        value = getattr(default, name)
        if high is not None:
            value = min(value, high)  # what the settings begin with may be more than these engines can
        kind = "integer" if isinstance(value, int) else "number"
        return Field(name, label, f"{hint} {bounds}.", kind, value, is_common=is_common)

    return [
        number("steps", "Steps", "More is slower and finer.", is_common=True),
        number("guidance_scale", "Guidance", "Weight of the picture.", is_common=True),
        number("stride", "Stride", "Use every n-th frame.", is_common=True),
        number("seed", "Seed", "Of the noise.", is_common=True),
        Field(
            "controls",
            "Guidance signals",
            "With none, the result is plain MimicMotion.",
            "many",
            list(default.controls),
            tuple((CONTROL_LABELS.get(name, name), name) for name in CONTROLS),
            is_common=True,
        ),
        number("overlap", "Overlap", "Frames that neighbouring tiles share.", high=longest_overlap),
        Field(
            "fps",
            "Frames per second",
            "Of the result. Empty keeps the video's speed.",
            "number",
            default.fps,
            is_optional=True,
        ),
        number("noise_aug_strength", "Noise on the picture", "Loosens the hold of its details."),
        number("motion_bucket_id", "Amount of motion", "What the video model is told."),
        Field(
            "decode_chunk",
            "Frames decoded at once",
            f"1 to {chunk}. Empty takes what the memory allows.",
            "integer",
            default.decode_chunk,
            is_optional=True,
        ),
        Field(
            "conditions_memory",
            "Conditions wait in",
            "No result depends on it.",
            "one",
            default.conditions_memory,
            tuple((PLACE_LABELS.get(name, name), name) for name in PLACES),
        ),
        Field("audio", "Keep the sound", "Of the driving video, if it has any.", "switch", True),
    ]


def read_form(fields: Iterable[Field], values: Iterable[Any]) -> dict[str, Any]:
    """Turn what a form holds into arguments of `Animator.run`, which checks them.

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
            arguments[field.name] = field.default  # an emptied box asks for nothing special
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
