"""The settings of a run: one table of types, ranges, defaults and descriptions, which everything else reads.

`Settings` validates with it; `Animator.run` and `Animator.stream`, the command line, the page and the API reference
take their ranges, defaults and sentences from it.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from itertools import islice
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeAlias, TypedDict, TypeVar

from .errors import InputError

PUBLISHED_OVERLAP = 6
"""Frames that neighbouring tiles of the published 16 frames share."""

MIN_FPS, MAX_FPS = 0.01, 1000.0
"""Range of frame rates, of videos and of results: a picture in 100 seconds, and a thousand in one."""

LARGEST = "largest"
"""The most prominent person: the one with the largest box and the surest joints."""

PersonChoice: TypeAlias = str | int | tuple[float, float]
"""Which person: "largest", a number from left to right, or a point in fractions of the picture."""

_DOC_WIDTH = 116


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        kind: "integer", "number", "many" (any of the choices), "one" (of the choices) or "person" (a `PersonChoice`).
        default: value where none is given.
        sentence: what it does, without the range and the full stop; it begins with a capital letter.
        label: name in the form of the page.
        low, high: smallest and largest number; the engines may allow less.
        none_means: what None stands for; empty where None is not allowed.
        choices: value and label in the form, for "many" and "one".
        detail: further sentences for the API reference.
        group: where the command lists the option: "output", "method" or "run".
        is_common: whether the page shows it at once.
    """

    kind: str
    default: Any
    sentence: str
    label: str
    low: float = 0
    high: float = 0
    none_means: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    detail: str = ""
    group: str = "method"
    is_common: bool = False

    @property
    def is_optional(self) -> bool:
        """Whether None is allowed."""
        return bool(self.none_means)

    @property
    def values(self) -> tuple[str, ...]:
        """The choices without their labels."""
        return tuple(value for value, _ in self.choices)

    def describe_range(self, high: float | None = None) -> str:
        """The range in words, for example "1 to 1000"; empty for choices.

        Args:
            high: largest number, where the engines allow less than the table.
        """
        if self.kind not in ("integer", "number"):
            return ""
        if high is None and self.high >= 2**31:
            return f"{self.low:g} or more"
        return f"{self.low:g} to {self.high if high is None else high:g}"

    def read(self, name: str, value: Any) -> Any:
        """Check a value and return it as a plain int, float, str or tuple.

        Args:
            name: name of the setting, for messages.
            value: any integral or real number where one is expected, numpy's among them.

        Raises:
            InputError: the value has another type, is out of range, or is no choice.
        """
        if value is None and self.is_optional:
            return None
        if self.kind == "many":
            return self._read_many(name, value)
        if self.kind == "person":
            return _read_person(name, value)
        if self.kind == "one":
            if not isinstance(value, str) or value not in self.values:
                raise InputError(f"{name} is {value!r}; choose from {list(self.values)}")
            return value
        return self._read_number(name, value)

    def _read_many(self, name: str, value: Any) -> tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            what = "the string " if isinstance(value, str) else ""
            raise InputError(f"{name} is {what}{value!r}; pass a tuple such as {self.values}")
        given = tuple(value)
        unknown = [one for one in given if one not in self.values]
        if unknown:
            raise InputError(f"unknown {name} {unknown}; choose from {list(self.values)}")
        return tuple(value for value in self.values if value in given)

    def _read_number(self, name: str, value: Any) -> int | float:
        is_integer = self.kind == "integer"
        number: int | float | None = None
        if isinstance(value, Integral if is_integer else Real) and not isinstance(value, bool):
            plain: Any = value  # the abstract number types do not promise what int and float take
            try:
                number = int(plain) if is_integer else float(plain)
            except OverflowError:
                number = math.inf
        if number is None or not (is_integer or math.isfinite(number)):
            kind = "an integer" if is_integer else "a finite number"
            raise InputError(f"{name} is {value!r}; it must be {kind}")
        if not self.low <= number <= self.high:
            or_none = ", or be None" if self.is_optional else ""
            raise InputError(f"{name} is {value}; it must lie in {self.low}..{self.high}{or_none}")
        return number


def _read_person(name: str, value: Any) -> PersonChoice:
    """Check a `PersonChoice`."""
    if isinstance(value, str) and value == LARGEST:
        return LARGEST
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0:
        return int(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        point = tuple(islice(value, 3))
        if len(point) == 2 and all(_is_share(one) for one in point):
            return float(point[0]), float(point[1])
    raise InputError(
        f"{name} is {value!r}; pass {LARGEST!r}, the person's number from left to right (0, 1, ...), or a point (x, y) "
        "in fractions of the picture, 0..1 from its top left corner"
    )


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def parse_person(name: str, text: str) -> PersonChoice:
    """Read a `PersonChoice` from text: "largest", "1" or "0.3,0.5".

    Args:
        name: name of the setting, for messages.
        text: what was typed.

    Raises:
        InputError: it is none of these.
    """
    value: Any = text.strip()
    with suppress(ValueError):
        parts = value.split(",")
        value = int(value) if len(parts) == 1 else tuple(float(part) for part in parts)
    return _read_person(name, value)


def _row(kind: str, default: Any, sentence: str, label: str, **named: Any) -> Any:
    """Declare a field of `Settings` together with its row."""
    return dataclass_field(default=default, metadata={"row": Setting(kind, default, sentence, label, **named)})


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    Numbers may be of any integral or real type, numpy's among them; they become int and float.

    Raises:
        InputError: lists every value that cannot be used.
    """

    steps: int = _row(
        "integer", 25, "Denoising steps; more is slower and finer", "Steps", low=1, high=1000, is_common=True
    )
    guidance_scale: float = _row(
        "number",
        2.0,
        "Classifier-free guidance; 1 turns it off",
        "Guidance",
        low=1.0,
        high=100.0,
        is_common=True,
        detail="It is g of u + g (c - u), with the predictions u without and c with the conditions.",
    )
    overlap: int | None = _row(
        "integer",
        None,
        "Frames that neighbouring tiles share",
        "Overlap",
        low=0,
        high=10_000,
        none_means=f"{PUBLISHED_OVERLAP}, or what shorter tiles allow",
        detail="The engines allow at most their tile - 2.",
    )
    stride: int = _row(
        "integer",
        2,
        "Every n-th frame of a 24 to 47 fps video is used; faster videos are thinned to match",
        "Stride",
        low=1,
        high=10_000,
        is_common=True,
        detail="Used frames are `stride * max(1, int(source fps / 24))` source frames apart.",
    )
    person: str | int | tuple[float, float] = _row(
        "person",
        LARGEST,
        'Person of the driving video who is followed: the most prominent one ("largest"), the n-th from the left (0 is '
        "the leftmost), or the one nearest to a point (x, y) in fractions of the frame",
        "Person in the video",
        detail="A number counts in the first frame that shows so many people, a point is looked at in the first frame "
        "that shows anyone. While a person chosen so is out of sight, no one else takes over.",
    )
    reference_person: str | int | tuple[float, float] = _row(
        "person",
        LARGEST,
        'Person of the photo who is animated: the most prominent one ("largest"), the n-th from the left (0 is the '
        "leftmost), or the one nearest to a point (x, y) in fractions of the photo",
        "Person in the picture",
        detail="The whole photo counts, with what the crop to the engines' size cuts off.",
    )
    crop: str = _row(
        "one",
        "centre",
        "What the crop of a photo of another shape than the engines' keeps",
        "Crop of the picture",
        choices=(("centre", "The centre"), ("person", "The person")),
        detail='"centre", as the reference does; or "person": the place nearest to the centre that shows the person.',
    )
    start_s: float = _row(
        "number",
        0.0,
        "Seconds of the driving video that are skipped",
        "Start in the video, seconds",
        low=0.0,
        high=2.0**31,
        detail="The first used frame is the first one that is shown then or later.",
    )
    duration_s: float | None = _row(
        "number",
        None,
        "Seconds of the driving video that are used, from the start on",
        "Seconds of the video",
        low=0.001,
        high=2.0**31,
        none_means="to the end of the video",
    )
    seed: int = _row("integer", 0, "Seed of the noise", "Seed", low=0, high=2**63 - 1, is_common=True)
    fps: float | None = _row(
        "number",
        None,
        "Frames per second of the result",
        "Frames per second",
        low=MIN_FPS,
        high=MAX_FPS,
        none_means="the speed of the video is kept",
        detail="None also keeps time stamps that are uneven.",
        group="output",
    )
    controls: tuple[str, ...] = _row(
        "many",
        ("motion", "points"),
        "Guidance signals; with none of them, the result is plain MimicMotion",
        "Guidance signals",
        choices=(("motion", "Motion fields"), ("points", "Keypoint correspondence")),
        is_common=True,
        detail='Any of "motion" (sparse and dense motion fields) and "points" (keypoint correspondence).',
    )
    noise_aug_strength: float = _row(
        "number",
        0.0,
        "Noise added to the reference; it loosens the hold of details",
        "Noise on the picture",
        low=0.0,
        high=1.0,
        detail="It is a standard deviation, added before the VAE.",
    )
    motion_bucket_id: int = _row(
        "integer", 127, "Amount of motion that the video model is given", "Amount of motion", low=0, high=1023
    )
    alignment: str = _row(
        "one",
        "reference",
        "How the dancer is fitted to the person of the picture",
        "Fit of the dancer",
        choices=(("reference", "As published"), ("robust", "By what both show")),
        detail='"reference" is the published fit, which assumes that picture and video show the same joints in about '
        'the same posture; "robust" compares only the parts of the body that both show.',
    )
    bridge_gaps: int = _row(
        "integer",
        0,
        "Gaps of up to so many frames in which a joint is unseen are bridged by straight lines",
        "Bridge gaps of joints",
        low=0,
        high=100,
        detail="Never at the ends of the clip, nor next to frames without the person.",
    )
    decode_chunk: int | None = _row(
        "integer",
        None,
        "Frames that the VAE decodes at once",
        "Frames decoded at once",
        low=1,
        high=1000,
        none_means="the engines' chunk, or less where memory is short",
        detail="Pixels depend a little on it; the engines allow at most their chunk.",
        group="run",
    )
    conditions_memory: str = _row(
        "one",
        "auto",
        "Where the conditions of a clip's frames are kept; no result depends on it",
        "Conditions are kept in",
        choices=(
            ("auto", "Automatic"),
            ("device", "Device memory"),
            ("host", "Host memory"),
            ("recompute", "Computed again"),
        ),
        detail='"device"; "host" (streamed tile by tile); "recompute" (nowhere: they are computed again for every '
        'tile, which is slower and takes the least memory); or "auto", the first of these that takes no more than half '
        "of the free memory.",
        group="run",
    )

    def __post_init__(self) -> None:
        problems = []
        for name, setting in SETTINGS.items():
            try:
                object.__setattr__(self, name, setting.read(name, getattr(self, name)))
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError("unusable settings: " + "; ".join(problems))

    def overlap_in(self, tile: int) -> int:
        """The overlap with tiles of so many frames."""
        return min(PUBLISHED_OVERLAP, tile - 2) if self.overlap is None else self.overlap


SETTINGS: Mapping[str, Setting] = MappingProxyType({one.name: one.metadata["row"] for one in fields(Settings)})
"""The table, by name, in the order of `Settings`."""

CONTROLS = SETTINGS["controls"].values
"""Motion fields (sparse and dense) and keypoint correspondence, the two guidance signals of the DisPose paper."""

PLACES = SETTINGS["conditions_memory"].values
"""Where the per-frame conditions of a clip may wait for the denoiser; "recompute": nowhere."""


class SettingsOptions(TypedDict, total=False):
    """The settings as keywords of `Animator.run` and `Animator.stream`; see `Settings`."""

    steps: int
    guidance_scale: float
    overlap: int | None
    stride: int
    person: str | int | Sequence[float]
    reference_person: str | int | Sequence[float]
    crop: str
    start_s: float
    duration_s: float | None
    seed: int
    fps: float | None
    controls: Sequence[str]
    noise_aug_strength: float
    motion_bucket_id: int
    alignment: str
    bridge_gaps: int
    decode_chunk: int | None
    conditions_memory: str


_Function = TypeVar("_Function", bound=Callable[..., Any])


def list_settings(function: _Function) -> _Function:
    """Show every setting, with its type and default, in the signature of a function that takes `**settings`."""
    signature = inspect.signature(function)
    given = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    first_named = next((at for at, one in enumerate(given) if one.kind is inspect.Parameter.KEYWORD_ONLY), len(given))
    given[first_named:first_named] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=row.default, annotation=_type_of(name))
        for name, row in SETTINGS.items()
    ]
    function.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
    return function


def _type_of(name: str) -> str:
    return str(SettingsOptions.__annotations__[name].__forward_arg__)


def _describe(name: str, row: Setting) -> str:
    """An entry of the docstring."""
    span, none = row.describe_range(), row.none_means
    text = f"{name}: {row.sentence[0].lower()}{row.sentence[1:]}{f' ({span})' if span else ''}."
    text += f" None: {none}." if none else ""
    lines = textwrap.wrap(f"{text} {row.detail}".strip(), _DOC_WIDTH - 8, subsequent_indent="    ")
    return "\n".join(f"        {line}" for line in lines)


_attributes = "\n".join(_describe(name, row) for name, row in SETTINGS.items())
Settings.__doc__ = str(Settings.__doc__).replace("    Raises:", f"    Attributes:\n{_attributes}\n\n    Raises:")
