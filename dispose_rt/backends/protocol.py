"""What a stage needs of an engine, whatever built it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray


@runtime_checkable
class Engine(Protocol):
    """One loaded network."""

    name: str

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once.

        Args:
            inputs: every input of the network's contract, by name, C-contiguous, with the contract's dtype and shape.

        Returns:
            Every output by name.

        Raises:
            InputError: a tensor is missing, unknown, or of another dtype or shape than the contract's.
            EngineError: the engine failed.
        """
        ...

    def max_batch(self, dimension: str) -> int:
        """Largest size of a dynamic dimension of the contract, e.g. "frames"."""
        ...

    def close(self) -> None:
        """Free the engine. Calling it twice is fine."""
        ...


class Opener(Protocol):
    """Loads the networks of one engine directory, and holds what they share: a runtime, a stream, scratch memory."""

    def open(self, network: str) -> Engine:
        """Load one network.

        Raises:
            EngineError: the backend is not installed, or refuses the file.
            DeviceError: the device is not there, or does not fit.
        """
        ...

    def close(self) -> None:
        """Free what the engines share, after the engines. Calling it twice is fine."""
        ...
