"""Observers see a run's intermediate results; what no observer looks at is neither computed, copied nor kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..types import F32, U8, Conditions, Detected, Motion, Pose, StepTrace


class Observer:
    """Sees a run's intermediate results: subclass it, override what you want to see, and pass an instance.

    Methods are called in the order in which they are listed, in the thread that runs. What a method that is not
    overridden would show is neither computed, copied nor kept, and some of it takes much memory with long clips. An
    exception ends the run.

    The older form is a callable `observer(name, value)`, which gets the names of these methods and what they show
    ("motion_part" with the tuple of its two arguments). An attribute `wants`, a set of names, says which; without it,
    the callable gets all of them.
    """

    def reference(self, image: U8) -> None:
        """Gets the fitted photo, uint8 [height, width, 3]."""

    def driving(self, frame: U8) -> None:
        """Gets every driving frame that is used, uint8 [h, w, 3] in the size of the video."""

    def detected(self, detected: Detected) -> None:
        """Gets the followed person in the photo and in every driving frame."""

    def aligned(self, poses: list[Pose]) -> None:
        """Gets the reference's pose, then the driving poses on its body."""

    def poses(self, drawn: U8) -> None:
        """Gets all poses as they are drawn for the networks, uint8 [frames, 3, height, width]."""

    def motion_part(self, first_frame: int, motion: Motion) -> None:
        """Gets the motion fields range by range; frame 0, the reference, has none."""

    def motion(self, motion: Motion) -> None:
        """Gets the motion fields of the whole clip."""

    def conditions(self, conditions: Conditions) -> None:
        """Gets all that the denoising loop reads and no timestep changes."""

    def denoise_step(self, trace: StepTrace) -> None:
        """Gets every denoising step; the device waits for it."""

    def latents(self, latents: F32) -> None:
        """Gets the denoised latents, float32 [frames, 4, height/8, width/8]."""

    def frames(self, frames: U8) -> None:
        """Gets every decoded chunk, uint8 [n, height, width, 3]."""


NAMES = tuple(name for name in vars(Observer) if not name.startswith("_"))
"""What can be observed, in the order of a run."""

NO_OBSERVER = Observer()

ObserverFunction = Callable[[str, Any], None]
"""The older form of an observer, see `Observer`."""


class _CalledObserver(Observer):
    """Calls the older form of an observer."""

    def __init__(self, function: ObserverFunction, wants: Iterable[str]) -> None:
        for name in wants:
            setattr(self, name, partial(function, name))
        if "motion_part" in wants:
            setattr(self, "motion_part", lambda *part: function("motion_part", part))  # noqa: B010 - not a method


def is_wanted(observer: Observer, name: str) -> bool:
    """Whether an observer looks at something, so that it has to be computed."""
    method = getattr(observer, name)
    return getattr(method, "__func__", method) is not getattr(Observer, name)


def as_observer(given: Observer | ObserverFunction | None) -> Observer:
    """Turn what a caller passed into an observer; None becomes one that looks at nothing.

    Raises:
        InputError: it is neither an observer nor callable, or wants something that does not exist.
    """
    if given is None:
        return NO_OBSERVER
    if isinstance(given, Observer):
        return given
    if not callable(given) or isinstance(given, type):
        raise InputError(
            f"the observer is {given!r}; pass a function (name, value), an instance of a subclass of Observer, or None"
        )
    wants = frozenset(getattr(given, "wants", NAMES))
    unknown = sorted(wants - set(NAMES), key=str)
    if unknown:
        raise InputError(f"the observer wants {unknown}; choose from {list(NAMES)}")
    return _CalledObserver(given, wants)
