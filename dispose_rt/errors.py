"""Every error that dispose_rt raises on purpose. One root, so that one `except` clause is enough.

Messages say what happened, what was expected against what came, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

LISTED_PROBLEMS = 100
"""Problems in one message: a file can be made to have hundreds of thousands."""


class DisposeError(Exception):
    """Root of all errors raised on purpose by dispose_rt and its exporter."""


class InputError(DisposeError, ValueError):
    """The caller's image, video, setting or array cannot be used."""


class NoPersonError(InputError):
    """No person could be found where one is needed (the reference image, or a whole video)."""


class OutputError(InputError):
    """A result cannot be written where the caller wants it: no permission, no space, no such folder, unknown suffix."""


class BusyError(DisposeError):
    """The Animator is busy with another run, and the caller chose not to wait, or would wait for itself."""


class DownloadError(DisposeError):
    """A published file could not be fetched, or is not what was published."""


class ManifestError(DisposeError):
    """An engine directory is missing, damaged, stale or foreign. Lists the problems that were found."""

    def __init__(self, headline: str, problems: Sequence[str] = (), remedy: str = "") -> None:
        self.problems = tuple(problems)
        lines = [headline, *(f"  - {problem}" for problem in self.problems[:LISTED_PROBLEMS])]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"  - and {len(self.problems) - LISTED_PROBLEMS} more")
        if remedy:
            lines.append(remedy)
        super().__init__("\n".join(lines))


class CheckpointError(ManifestError):
    """Published weight files are missing, damaged, or hold other tensors than the networks need."""


class EngineError(DisposeError):
    """An engine could not be loaded or run."""


class VerificationError(DisposeError):
    """An exported network does not compute what its PyTorch original computes. The build stops here."""


class DeviceError(DisposeError):
    """A device (GPU or CPU) call failed, or the device lacks what the engine needs."""


class OutOfMemoryError(DeviceError):
    """A device or the host has less free memory than was asked for."""


class DeviceLostError(DeviceError):
    """Work on a GPU failed in a way that ends CUDA for this process: start the process again."""


class Cancelled(DisposeError):  # noqa: N818 - it is an outcome that the caller asked for
    """The caller's cancel event was set."""


class InputWarning(UserWarning):
    """Something about the input was corrected or worked around; the message says what."""


class PerformanceWarning(UserWarning):
    """A slower way, or one with less memory, was taken; the message says which, and how results are affected."""
