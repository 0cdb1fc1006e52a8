"""Engines that compute what a test says, from and to arrays of the CPU or of a fake GPU, as every backend does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dispose_rt.contract import Sizes
from dispose_rt.device import Array, CpuDevice, Device, Stream
from dispose_rt.engines.backends import Engine, EngineLoader
from tests.fakes.cuda import as_numpy, submit

Compute = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


class FakeEngine(Engine):
    """A network by name, with the contract's tensors.

    Args:
        name: of the network.
        sizes: of its directory.
        compute: the inputs by name, at the shape of the run, to the outputs by name; what is broadcast to an output's
            shape may be smaller.
        compute_dtype: of its "compute" tensors; bfloat16 shows as its bits in uint16.
        stream: to share a device and a stream with other engines.
    """

    def __init__(
        self, name: str, sizes: Sizes, compute: Compute, compute_dtype: str = "float32", stream: Stream | None = None
    ) -> None:
        stream = stream or CpuDevice().stream()
        super().__init__(name, sizes, compute_dtype, stream.device, stream)
        self.compute = compute
        self.batches: list[dict[str, int]] = []

    def _place(self, name: str, array: Array) -> None:
        pass

    def _resize(self) -> None:
        pass

    def _queue(self, stream: Stream) -> None:
        views = {name: self._front(name) for name in self._specs}
        submit(stream, self._run_views, views, dict(self._dynamic))

    def _front(self, name: str) -> np.ndarray:
        shape = self.shape(name)
        view = as_numpy(self.tensor(name))
        return view if view.shape == shape else view[: shape[0]]

    def _run_views(self, views: dict[str, np.ndarray], dynamic: dict[str, int]) -> None:
        self._check_open()
        self.batches.append(dynamic)
        outputs = self.compute({tensor.name: views[tensor.name].copy() for tensor in self._spec.inputs})
        for tensor in self._spec.outputs:
            views[tensor.name][...] = outputs[tensor.name]

    def _free(self) -> None:
        pass


class FakeLoader(EngineLoader):
    """What fake engines of one directory share."""

    def __init__(self, device: Device | None = None) -> None:
        self.device = device or CpuDevice()
        self.stream = self.device.stream()

    def open(self, network: str) -> Engine:
        raise NotImplementedError(network)

    def close(self) -> None:
        self.device.close()
