"""Who looks at a run's intermediate results, and at which of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError

Observer = Callable[[str, Any], None]
"""`observer(name, value)` sees intermediate results, in this order:

- "reference": uint8 [H, W, 3], the photo as it was fitted;
- "driving": uint8 [h, w, 3], once per driving frame;
- "detected": pipeline.Detected, the followed person in the photo and in every driving frame;
- "aligned": list of types.Pose, the reference first, then the driving poses on its body;
- "poses": uint8 [frames, 3, H, W], all of them drawn;
- "motion_part": (first frame: int, types.Motion), range by range; "motion": types.Motion of the whole clip;
- "conditions": types.Conditions;
- "denoise_step": denoise.StepTrace, once per step;
- "latents": float32 [frames, 4, H/8, W/8];
- "frames": uint8 [n, H, W, 3], once per decoded chunk.

An observer with an attribute `wants`, a set of these names, gets those alone; nothing is computed, copied or kept for
the others, some of which take much memory with long clips.
"""

NAMES = (
    "reference",
    "driving",
    "detected",
    "aligned",
    "poses",
    "motion_part",
    "motion",
    "conditions",
    "denoise_step",
    "latents",
    "frames",
)


class Observation:
    """An observer, told what it wants to hear of.

    Args:
        observer: the caller's.

    Attributes:
        wants: names that are shown to it; all of them where it does not say.

    Raises:
        InputError: it wants something that does not exist.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.wants = frozenset(getattr(observer, "wants", NAMES))
        unknown = sorted(self.wants - set(NAMES), key=str)
        if unknown:
            raise InputError(f"the observer wants {unknown}; choose from {list(NAMES)}")

    def __call__(self, name: str, value: Any) -> None:
        """Show a value, if it is wanted."""
        if name in self.wants:
            self._observer(name, value)


def is_wanted(observe: Observer | None, name: str) -> bool:
    """Whether somebody looks at a value, so that it has to be computed."""
    return observe is not None and name in getattr(observe, "wants", NAMES)


def watch(observer: Observer | None) -> Observation | None:
    """Wrap a caller's observer; None where nobody looks at anything.

    Raises:
        InputError: it cannot be called, or wants something that does not exist.
    """
    if observer is not None and not callable(observer):
        raise InputError(f"the observer is {observer!r}; pass a function (name, value), or None")
    observation = None if observer is None else Observation(observer)
    return observation if observation is not None and observation.wants else None
