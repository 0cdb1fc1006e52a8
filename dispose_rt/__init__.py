"""dispose_rt animates a person's photo with somebody's dance video: the DisPose method, deployed.

import dispose_rt

with dispose_rt.Animator("engines/576x1024") as animator:
    animator.run("photo.jpg", "dance.mp4", output="out.mp4")
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import BusyError, Cancelled, DisposeError, InputError

if TYPE_CHECKING:
    from .animation import Animation
    from .animator import Animator
    from .hooks.observer import Observer
    from .hooks.progress import ProgressCallback
    from .settings import Settings

__all__ = [
    "Animation",
    "Animator",
    "BusyError",
    "Cancelled",
    "DisposeError",
    "InputError",
    "Observer",
    "ProgressCallback",
    "Settings",
    "errors",
]

# ONNX Runtime would keep an id of this machine and report to its makers, from its import on
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("dispose-rt")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "Animation": "animation",
    "Animator": "animator",
    "Observer": "hooks.observer",
    "ProgressCallback": "hooks.progress",
    "Settings": "settings",
}


def __getattr__(name: str) -> Any:
    """Load the runtime on first use: the exporter imports the contract alone and needs neither OpenCV nor PyAV."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *_LAZY})
