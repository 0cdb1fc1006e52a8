"""torch on the fake GPU of `fake_cuda`: what the AOTInductor backend calls of it, queued on the streams of that GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.fakes.cuda import CallError, FakeCuda


class FakeTensor:
    """Memory of the fake GPU; work on it goes to torch's current stream."""

    def __init__(self, owner: FakeTorch, bits: NDArray[Any], dtype: torch.dtype | None = None) -> None:
        self._owner = owner
        self.bits = bits
        self.dtype = dtype
        self.shape = bits.shape

    def __getitem__(self, rows: slice) -> FakeTensor:
        return FakeTensor(self._owner, self.bits[rows], self.dtype)

    def view(self, dtype: torch.dtype) -> FakeTensor:
        assert dtype.itemsize == self.bits.itemsize
        return FakeTensor(self._owner, self.bits, dtype)

    def copy_(self, source: FakeResult, non_blocking: bool = False) -> None:
        assert non_blocking
        assert self.shape == source.shape
        self._owner.queue(lambda: self.bits.__setitem__(slice(None), source.compute()))


class FakeResult:
    """An output of a package: computed when its stream gets to it."""

    def __init__(self, shape: tuple[int, ...], compute: Callable[[], NDArray[Any]]) -> None:
        self.shape = shape
        self.compute = compute


class FakeMemPool:
    """A place of torch's allocator."""


class FakeTorch:
    """torch, but for its CUDA half.

    Attributes:
        current: the handle of the stream that torch would use.
        pool: where allocations would go.
        pools: those that are alive.
        out_of_memory: how often its allocator has failed.
        emptied: how often its cache was emptied; kept_bytes: what is in it.
    """

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake
        self.current = 0
        self.pool: FakeMemPool | None = None
        self.pools: weakref.WeakSet[FakeMemPool] = weakref.WeakSet()
        self.out_of_memory = 0
        self.emptied = 0
        self.kept_bytes = 0
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            get_device_capability=lambda device: (8, 6 + torch.device(device).index),
            ExternalStream=self._external_stream,
            stream=self._stream,
            device=lambda name: contextlib.nullcontext(),
            synchronize=self._synchronize,
            empty_cache=self._empty_cache,
            MemPool=self._mem_pool,
            use_mem_pool=self._use_mem_pool,
            memory_stats=lambda device: {"num_ooms": self.out_of_memory},
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def queue(self, work: Callable[[], None]) -> None:
        try:
            self._fake.submit(self.current, work)
        except CallError as error:
            raise RuntimeError(f"CUDA error: {error}") from error

    def as_tensor(self, memory: Any, device: str) -> FakeTensor:
        assert device == "cuda:0"
        interface = dict(memory.__cuda_array_interface__)
        address, read_only = interface.pop("data")
        shape, kind = interface.pop("shape"), interface.pop("typestr")
        assert (interface, read_only) == ({"version": 3}, False)
        assert np.dtype(kind).kind != "u"  # torch takes no unsigned ones but bytes
        return FakeTensor(self, self._fake.floats(address, shape, kind))

    def _external_stream(self, handle: int, device: str) -> int:
        assert handle in self._fake.streams
        assert device == "cuda:0"
        return handle

    @contextlib.contextmanager
    def _stream(self, handle: int) -> Iterator[None]:
        before, self.current = self.current, handle
        try:
            yield
        finally:
            self.current = before

    def _synchronize(self, device: str | None = None) -> None:
        if any(stream.capture is not None for stream in self._fake.streams.values()):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def _empty_cache(self) -> None:
        self.emptied += 1
        self._fake.memory_bytes += self.kept_bytes
        self.kept_bytes = 0

    def _mem_pool(self) -> FakeMemPool:
        pool = FakeMemPool()
        self.pools.add(pool)
        return pool

    @contextlib.contextmanager
    def _use_mem_pool(self, pool: FakeMemPool) -> Iterator[None]:
        assert self.pool is None
        self.pool = pool
        try:
            yield
        finally:
            self.pool = None


class FakePackage:
    """A loaded package of the point encoder: returns the first channels, doubled.

    Attributes:
        streams: on which it ran; pools: from which its allocations came.
        error: what its next runs raise.
    """

    def __init__(self, owner: FakeTorch, channels: tuple[int, ...]) -> None:
        self._owner = owner
        self._channels = channels
        self.streams: list[int] = []
        self.pools: list[FakeMemPool | None] = []
        self.dtypes: list[torch.dtype | None] = []
        self.errors: list[Callable[[], Exception]] = []
        self.closed = False

    def run(self, inputs: list[FakeTensor]) -> list[FakeResult]:
        [embeddings] = inputs
        self.streams.append(self._owner.current)
        self.pools.append(self._owner.pool)
        if self.errors:
            raise self.errors.pop(0)()
        rows = embeddings.shape[0]
        return [FakeResult((rows, channels), self._double(embeddings, channels)) for channels in self._channels]

    @staticmethod
    def _double(embeddings: FakeTensor, channels: int) -> Callable[[], NDArray[Any]]:
        return lambda: 2 * embeddings.bits[:, :channels]

    def close(self) -> None:
        self.closed = True
