"""What stages, kernels and engines see of a device: memory, streams, events and graphs, the same on CPU and GPU.

The CPU is a device whose streams are done at once. It follows the rules of a GPU all the same: what a graph holds was
recorded when it was captured, with the arguments of that moment; nothing may allocate, copy from or to the host, or
wait while a graph is captured. So what is captured wrongly fails on the CPU as well.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from ..errors import DeviceError
from .arrays import Array, PinnedArray
from .pool import Pool


class Event(ABC):
    """A mark in a stream."""

    @abstractmethod
    def record(self, stream: Stream) -> None:
        """Mark what the stream holds now."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait on the host until everything before the mark is done.

        Raises:
            DeviceError: something before it failed.
        """

    @abstractmethod
    def seconds_since(self, earlier: Event) -> float:
        """Time between two marks that are done, as the device measures it."""

    @abstractmethod
    def close(self) -> None:
        """Give it back. Calling it twice is fine."""


class Graph(ABC):
    """Work that was captured once and is launched as a whole."""

    @property
    def is_usable(self) -> bool:
        """Whether everything that it works on is still where it was when it was captured, as far as it knows."""
        return True

    @abstractmethod
    def launch(self, stream: Stream) -> None:
        """Queue all of it on a stream.

        Raises:
            DeviceError: the device refuses, or the graph was closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give it back. Calling it twice is fine."""


class Stream(ABC):
    """A queue of work on one device. One thread at a time queues work on it.

    Attributes:
        device: where the work is done.
        capturing: whether work is being recorded instead of done.
    """

    device: Device
    capturing: bool

    def __init__(self, device: Device) -> None:
        device.check_open()
        self.device = device
        self.capturing = False
        self._held: list[Any] = []

    @property
    @abstractmethod
    def handle(self) -> int:
        """A cudaStream_t as an integer; 0 on the CPU.

        Raises:
            DeviceError: the stream or its device was closed.
        """

    def hold(self, value: object) -> None:
        """Keep something alive until the stream was waited for: what a copy that was just queued reads, say."""
        self._held.append(value)

    def synchronize(self) -> None:
        """Wait until everything on it is done.

        Raises:
            DeviceError: something on it failed, or the stream is capturing.
        """
        self.refuse_capture("waiting for a stream")
        held = len(self._held)  # another thread may hold more meanwhile
        self._synchronize()
        del self._held[:held]

    def refuse_capture(self, what: str) -> None:
        """Raise a DeviceError if a graph is being captured."""
        if self.capturing:
            raise DeviceError(f"{what} cannot be part of a graph; do it before the graph is captured")

    @abstractmethod
    def _synchronize(self) -> None: ...

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait for an event of another stream, without making the host wait."""

    @abstractmethod
    def capture(self, body: Callable[[], None]) -> Graph:
        """Record what `body` queues on this stream, without doing it.

        What it queues on other streams is not recorded: on a GPU it is done at once, or refused. Run the body once
        before, and wait for it: a kernel's code is loaded, and an engine allocates, when it first runs.

        Raises:
            DeviceError: something in it cannot be captured. The stream can be used again afterwards.
        """

    @abstractmethod
    def close(self) -> None:
        """Give it back. Calling it twice is fine."""


class Device(ABC):
    """A CPU or GPU: memory, streams, and the compiled kernels. Any thread may use it.

    Args:
        name: "cpu", or "cuda:N".
        allocate: as of `Pool`.
        release: as of `Pool`.

    Attributes:
        name: "cpu", or "cuda:N".
        pool: where all arrays live.
        synchronous: whether work is done as soon as it is queued, so that nothing runs beside the host.
        closed: whether it was closed. Its arrays are gone then, and everything but freeing and closing is refused.
    """

    synchronous: bool = False

    def __init__(self, name: str, allocate: Callable[[int], int], release: Callable[[int], None]) -> None:
        self.name = name
        self.pool = Pool(allocate, release)
        self.closed = False
        self._captures = threading.local()

    @property
    def peak_bytes(self) -> int:
        """The most memory that arrays took at one time since `pool.reset_peak`."""
        return self.pool.peak_bytes

    @property
    def capturing(self) -> bool:
        """Whether the calling thread is capturing a graph on this device."""
        return getattr(self._captures, "depth", 0) > 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Mark the calling thread as capturing a graph; streams do so."""
        self._captures.depth = getattr(self._captures, "depth", 0) + 1
        try:
            yield
        finally:
            self._captures.depth -= 1

    def refuse_capture(self, what: str) -> None:
        """Raise a DeviceError if the calling thread is capturing a graph."""
        if self.capturing:
            raise DeviceError(f"{what} cannot be part of a graph; do it before the graph is captured")

    def check_open(self) -> None:
        """Raise a DeviceError if the device was closed."""
        if self.closed:
            raise DeviceError(f"the device {self.name} was closed; open it again")

    def check_allocation(self) -> None:
        """Raise a DeviceError if nothing may be allocated now: a graph is being captured, or the device was closed."""
        self.check_open()
        self.refuse_capture("an allocation")

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Allocate an array; what it holds is undefined.

        Args:
            shape: of whole numbers from 0 on.
            dtype: "float32", "float16", "bfloat16", "int32" or "uint8".

        Raises:
            OutOfMemoryError: there is no room.
            DeviceError: a graph is being captured.
        """
        return Array(self, tuple(shape), dtype)

    def array(self, values: NDArray[Any], stream: Stream, dtype: str | None = None) -> Array:
        """Allocate an array and copy values into it.

        Args:
            values: any of the dtypes; float32 for bfloat16.
            stream: the copy is queued on it.
            dtype: of the array; None takes that of the values.
        """
        array = self.empty(values.shape, dtype or values.dtype.name)
        array.upload(values, stream)
        return array

    def zeros(self, shape: Sequence[int], dtype: str, stream: Stream) -> Array:
        """Allocate an array of zeros, queued on a stream."""
        array = self.empty(shape, dtype)
        array.clear(stream)
        return array

    @abstractmethod
    def pinned(self, shape: Sequence[int], dtype: str) -> PinnedArray:
        """Allocate host memory that copies from and to this device do not wait for.

        Raises:
            OutOfMemoryError: there is no room.
        """

    @abstractmethod
    def stream(self) -> Stream:
        """Create a stream; streams do not wait for each other."""

    @abstractmethod
    def event(self) -> Event:
        """Create an event."""

    @abstractmethod
    def launch(self, kernel: str, arguments: Sequence[Array | int | float], stream: Stream) -> None:
        """Queue one of our compiled kernels; `dispose_rt.kernels` is the only caller.

        Raises:
            DeviceError: the kernels were not built for this device, or the launch fails.
        """

    @abstractmethod
    def copy(self, target: int, source: int, size_bytes: int, stream: Stream) -> None:
        """Queue a copy between two addresses, each of this device or of the host.

        Host memory must stay as it is until the stream was waited for, pinned or not: a GPU may read or write it at
        any time until then.
        """

    @abstractmethod
    def clear(self, target: int, size_bytes: int, stream: Stream) -> None:
        """Queue filling bytes of this device with zeros."""

    @property
    def kept_host_bytes(self) -> int:
        """Pinned memory of the host that was given back and is kept for later; it serves the next run."""
        return 0

    @abstractmethod
    def memory_bytes(self) -> tuple[int, int]:
        """How much memory is free, and how much there is. What the pool keeps for later counts as free."""

    @abstractmethod
    def close(self) -> None:
        """Wait for its streams and free everything that came from it. Calling it twice is fine.

        Raises:
            DeviceError: work on a stream failed, and nobody had waited for it.
        """
