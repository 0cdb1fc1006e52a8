"""When each picture of a video is shown: its container's time stamps, judged before they are believed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from ..errors import InputWarning

T = TypeVar("T")
MAX_GAP_S = 3600
"""A picture that is shown for longer than this has a broken time stamp."""
MAX_BROKEN_SHARE = 0.1
"""Where more of the time stamps are missing or equal, none of them is believed."""
EVEN_S = Fraction(1, 100)
"""A picture may be this much before or behind its place in an even row (or a quarter of a frame, if that is less)."""
_NUDGE_S = Fraction(1, 1000)


def even_time(number: int, fps: float) -> Fraction:
    """Time in seconds at which picture `number` of an even row is shown."""
    return number / Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True)
class Stamps:
    """The time stamps of a file's pictures in the order of display.

    Attributes:
        ticks: time stamps in units of `tick_s`, ascending; those that are missing are left out.
        tick_s: length of one unit, seconds.
        missing: how many pictures have none.
        by_number: whether the n-th stamp belongs to the n-th picture shown, whatever the decoder says.
    """

    ticks: Sequence[int]
    tick_s: Fraction
    missing: int
    by_number: bool = False

    @property
    def is_absent(self) -> bool:
        """The container keeps none (a raw stream does not): its rate is all there is to know."""
        return not self.ticks

    @property
    def is_broken(self) -> bool:
        """Too many are missing or equal, or one is far away from the others."""
        gaps = [later - earlier for earlier, later in zip(self.ticks, self.ticks[1:], strict=False)]
        bad = self.missing + sum(not gap for gap in gaps)
        limit = MAX_BROKEN_SHARE * (len(self.ticks) + self.missing)
        return not self.is_absent and (bad > limit or max(gaps, default=0) * self.tick_s > MAX_GAP_S)

    def at(self, number: int) -> Fraction | None:
        """Time stamp of a picture in seconds, by its number."""
        return self.ticks[number] * self.tick_s if number < len(self.ticks) else None

    def is_even(self, fps: float) -> bool:
        """Whether every picture is shown where an even row of `fps` pictures per second would have it."""
        if self.is_absent or self.is_broken:
            return True
        period = 1 / Fraction(fps).limit_denominator(1001)
        tolerance = max(min(EVEN_S, period / 4), Fraction(3, 2) * self.tick_s)  # containers round to their unit
        return all(
            abs((tick - self.ticks[0]) * self.tick_s - number * period) <= tolerance
            for number, tick in enumerate(self.ticks)
        )


def time_frames(
    frames: Iterable[tuple[int, Fraction | None, T]], stamps: Stamps | None, fps: float, name: str
) -> Iterator[tuple[T, Fraction]]:
    """Give each frame its time since the first one.

    Args:
        frames: number, time stamp in seconds and pixels of each frame in use.
        stamps: all time stamps of the file; None takes them to be absent.
        fps: rate of the even row that stands in where they are absent or broken.
        name: what the warning calls the video.

    Yields:
        The frame and its time in seconds: 0 for the first one, then ascending.

    Warns:
        InputWarning: time stamps are broken.
    """
    if stamps is None or stamps.is_absent or stamps.is_broken:
        if stamps is not None and stamps.is_broken:
            _warn(f"{name} has missing or broken time stamps; {fps:g} pictures per second are assumed")
        yield from ((frame, even_time(number, fps)) for number, _, frame in frames)
        return
    first, last = None, Fraction(0)
    warned = False
    for number, decoded, frame in frames:
        stamp = stamps.at(number) if stamps.by_number else decoded
        if first is None:
            first = stamp if stamp is not None else Fraction(0)
            yield frame, Fraction(0)
            continue
        if stamp is not None and stamp - first > last:
            last = stamp - first
        else:
            last += _NUDGE_S
            if not warned:
                _warn(f"{name} has missing or broken time stamps; frame {number} is shown right after the one before")
            warned = True
        yield frame, last


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=3)
