"""What an area of the fuzzer is, and what counts as a failure in all of them."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dispose_rt.errors import DisposeError, InputWarning, PerformanceWarning

LONGEST_MESSAGE = 20_000


class Problem(Exception):  # noqa: N818 - what the fuzzer looks for
    """Something that must not happen.

    Attributes:
        kind: one word for the table of failures.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Area(ABC):
    """One kind of input. A case is drawn, which leaves its files in a folder, and then run.

    Args:
        folder: for what lasts from case to case; it is empty.

    Attributes:
        limit_s: most that a case may take, in seconds.
        limit_bytes: most by which resident memory may grow in a case.
        watched_pid: process whose memory is measured; None is the one that runs the cases.
    """

    limit_s = 10.0
    limit_bytes = 2**30
    watched_pid: int | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def draw(self, rng: random.Random, case: Path, number: int) -> str:
        """Write the files of a case into an empty folder.

        Args:
            rng: the only source of chance.
            case: the folder.
            number: of the case.

        Returns:
            What was done, in words.
        """

    @abstractmethod
    def run(self, case: Path) -> bool:
        """Use the files of a case as a user would.

        Returns:
            Whether they were accepted; False and any `DisposeError` stand for refused.

        Raises:
            Exception: anything but a `DisposeError` is a failure.
        """

    def close(self) -> None:  # noqa: B027 - most areas have nothing to end
        """End what lasts from case to case."""


def check_refusal(error: DisposeError) -> None:
    """Check that a refusal is fit to be read by people. What a terminal obeys may be in it: commands escape that.

    Raises:
        Problem: it is not.
    """
    _check_size(str(error))


def check_printed(text: str) -> None:
    """Check what a command has printed.

    Raises:
        Problem: it holds a traceback, or something that a terminal obeys, or is too much, or nothing.
    """
    _check_size(text)
    if not all(line.isprintable() for line in text.replace("\t", " ").split("\n")):
        raise Problem("obeyed", f"a terminal obeys some of it: {text!a:.1000}")


def _check_size(text: str) -> None:
    if not text.strip():
        raise Problem("mute", "the message is empty")
    if len(text) > LONGEST_MESSAGE:
        raise Problem("endless", f"the message has {len(text)} characters: {text:.300}...")
    if "Traceback (most recent" in text:
        raise Problem("traceback", text)


@contextmanager
def watched_warnings() -> Iterator[None]:
    """Check that what is warned of is meant for users.

    Raises:
        Problem: a library warned.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if not issubclass(one.category, InputWarning | PerformanceWarning):
            raise Problem("warning", f"{one.category.__name__}: {one.message} ({one.filename}:{one.lineno})")
        _check_size(str(one.message))
