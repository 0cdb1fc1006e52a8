"""Which frames of a video are used: every n-th one of a part of its time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NoReturn, TypeVar

from ..errors import InputError
from .time_stamps import Stamps, even_time

T = TypeVar("T")
SLACK_S = Fraction(1, 2000)
"""A frame that is shown this much before a time counts as shown at it: containers round to milliseconds."""


@dataclass(frozen=True)
class Clock:
    """When the frames of a video are shown, in seconds from its first one.

    Attributes:
        name: what messages call the video.
        fps: rate of the even row that is assumed where there are no time stamps to believe.
        stated: number of frames, as far as the source tells.
        stamps: all time stamps of the file; None takes them to be absent.
        zero_s: time stamp of the first frame.
    """

    name: str
    fps: float
    stated: int | None
    stamps: Stamps | None = None
    zero_s: Fraction = Fraction(0)

    @cached_property
    def _trusted(self) -> Stamps | None:
        return self.stamps if self.stamps is not None and self.stamps.is_trusted else None

    def read(self, number: int, stamp: Fraction | None) -> Fraction | None:
        """Time of a frame; None where it has no time stamp while others have.

        Args:
            number: number of the frame in the source.
            stamp: its time stamp, as the decoder says.
        """
        stamps = self._trusted
        if stamps is None:
            return even_time(number, self.fps)
        if stamps.by_number:
            stamp = stamps.at(number)
        return None if stamp is None else stamp - self.zero_s

    def count_before(self, time_s: Fraction) -> int:
        """Number of frames that are shown before a time, as far as the time stamps tell."""
        stamps = self._trusted
        if stamps is None:
            return max(0, -(-time_s // even_time(1, self.fps)))
        before = bisect_left(stamps.ticks, time_s + self.zero_s, key=lambda tick: tick * stamps.tick_s)
        return max(0, before - self._skipped)

    def time_of(self, number: int) -> Fraction:
        """Time of a frame, by its number."""
        stamps = self._trusted
        stamp = None if stamps is None else stamps.at(number + self._skipped)
        return even_time(number, self.fps) if stamp is None else stamp - self.zero_s

    @property
    def count(self) -> int | None:
        """Number of all frames; what the source states where there are no time stamps."""
        return self.stated if self._trusted is None else len(self._trusted.ticks) - self._skipped

    @cached_property
    def _skipped(self) -> int:
        """Pictures before the first one that can be decoded, as of a broadcast that was cut."""
        stamps = self._trusted
        if stamps is None or stamps.by_number:
            return 0
        return bisect_left(stamps.ticks, self.zero_s, key=lambda tick: tick * stamps.tick_s)


@dataclass(frozen=True)
class Part:
    """The frames of a video that are shown from one time on and before another one.

    Attributes:
        clock: times of the video's frames.
        start_s: earliest time of its first frame, seconds from the first frame of the video.
        stop_s: time from which on frames do not belong to it; None: it ends with the video.
    """

    clock: Clock
    start_s: Fraction
    stop_s: Fraction | None

    @property
    def stamps(self) -> Stamps | None:
        """The time stamps of its frames."""
        stamps, zero_s = self.clock.stamps, self.clock.zero_s
        if stamps is None:
            return None
        stop_s = None if self.stop_s is None else self.stop_s - SLACK_S + zero_s
        return stamps.between(self.start_s - SLACK_S + zero_s, stop_s)

    def find(self) -> tuple[int, int | None]:
        """Number of its first frame in the source, and how many frames it has; None where that is not known.

        Raises:
            InputError: the video ends before the part begins, or shows no frame in it.
        """
        clock = self.clock
        first, total = clock.count_before(self.start_s - SLACK_S), clock.count
        if total is not None and first >= total:
            self.refuse_start(clock.time_of(total - 1) + even_time(1, clock.fps))
        if self.stop_s is None:
            return first, None if total is None else total - first
        stop = clock.count_before(self.stop_s - SLACK_S)
        if stop <= first:
            raise InputError(
                f"no frame of {clock.name} is shown between {float(self.start_s):g} and {float(self.stop_s):g} s, the "
                f"next one is at {float(clock.time_of(first)):.3f} s; pass a longer duration_s, or another start_s"
            )
        return first, None if total is None else min(stop, total) - first

    def refuse_start(self, length_s: Fraction) -> NoReturn:
        """Raise the error of a part that begins after the end of the video.

        Args:
            length_s: length of the video.
        """
        raise InputError(
            f"start_s is {float(self.start_s):g}, but {self.clock.name} is over after {float(length_s):.3f} s; pass an "
            "earlier start_s"
        )


class Choice:
    """Chooses the frames that are used, asked about every frame in the order of display.

    Args:
        step: distance between the frames that are used, >= 1; the first one of the part is one of them.
        part: the part of the video; None takes all of it.

    Attributes:
        is_over: whether the part has ended: no later frame is used.
    """

    def __init__(self, step: int, part: Part | None = None) -> None:
        self._step = step
        self._part = part
        self._first: int | None = 0 if part is None else None
        self._end_s = Fraction(0)
        self.is_over = False

    def takes(self, number: int, stamp: Fraction | None) -> bool:
        """Whether a frame is used.

        Args:
            number: its number in the source.
            stamp: its time stamp in seconds, if it has one.
        """
        if self._part is not None and not self._lies_in(self._part, number, stamp):
            return False
        if self._first is None:
            self._first = number
        return (number - self._first) % self._step == 0

    def _lies_in(self, part: Part, number: int, stamp: Fraction | None) -> bool:
        time_s = part.clock.read(number, stamp)
        if time_s is None:
            return self._first is not None
        self._end_s = time_s + even_time(1, part.clock.fps)
        if part.stop_s is not None and time_s >= part.stop_s - SLACK_S:
            self.is_over = True
            return False
        return self._first is not None or time_s >= part.start_s - SLACK_S

    def check(self, frames: Iterator[T]) -> Iterator[T]:
        """Yield frames that were chosen.

        Raises:
            InputError: all frames of the video were shown before the part.
        """
        yield from frames
        if self._part is not None and self._first is None and not self.is_over:
            self._part.refuse_start(self._end_s)
