"""When each picture of a video is shown: its container's time stamps, judged before they are believed."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
        first: number of the picture that the first time stamp belongs to.
    """

    ticks: Sequence[int]
    tick_s: Fraction
    missing: int
    by_number: bool = False
    first: int = 0

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

    @property
    def is_trusted(self) -> bool:
        """Whether they tell when pictures are shown."""
        return not (self.is_absent or self.is_broken)

    def at(self, number: int) -> Fraction | None:
        """Time stamp of a picture in seconds, by its number."""
        place = number - self.first
        return self.ticks[place] * self.tick_s if 0 <= place < len(self.ticks) else None

    def between(self, start_s: Fraction, stop_s: Fraction | None) -> Stamps:
        """The time stamps from one time on and before another one, in seconds; all where they are not to be trusted."""
        if not self.is_trusted:
            return self
        begin = bisect_left(self.ticks, start_s / self.tick_s)
        end = None if stop_s is None else bisect_left(self.ticks, stop_s / self.tick_s)
        return replace(self, ticks=self.ticks[begin:end], missing=0, first=self.first + begin)

    def is_even(self, fps: float) -> bool:
        """Whether every picture is shown where an even row of `fps` pictures per second would have it."""
        if not self.is_trusted:
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
    if stamps is None or not stamps.is_trusted:
        if stamps is not None and stamps.is_broken:
            _warn(f"{name} has missing or broken time stamps; {fps:g} pictures per second are assumed")
        begin = None
        for number, _, frame in frames:
            begin = number if begin is None else begin
            yield frame, even_time(number - begin, fps)
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
