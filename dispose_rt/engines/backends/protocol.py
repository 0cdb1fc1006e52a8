"""Engines as stages see them, whatever built them: tensors at fixed addresses, and runs that are queued on a stream."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from ...contract import NETWORKS, Sizes, TensorSpec
from ...device import Array, Device, Graph, Stream
from ...errors import EngineError, InputError
from .validation import check_alive, check_inputs, check_outputs_finite

ALIGNMENT_BYTES = 256
"""Tensors of every engine start at multiples of this."""


class Engine(ABC):
    """One loaded network.

    Every input and output is an array of the engine's device at its largest shape; runs with smaller dynamic
    dimensions use the front of it. Arrays are allocated when they are first needed, or lent by the caller (`bind`).

    Args:
        name: name of the network.
        sizes: sizes of its directory.
        compute_dtype: dtype of its "compute" tensors.
        device: device that it runs on.
        stream: stream that `run` uses.

    Attributes:
        name: name of the network.
        device: device that it runs on, with its tensors.
        stream: stream that `run` uses; engines of one directory share it, as they share memory.
    """

    def __init__(self, name: str, sizes: Sizes, compute_dtype: str, device: Device, stream: Stream) -> None:
        self.name = name
        self.device = device
        self.stream = stream
        self._spec = NETWORKS[name]
        self._sizes = sizes
        self._compute_dtype = compute_dtype
        self._specs = {tensor.name: tensor for tensor in (*self._spec.inputs, *self._spec.outputs)}
        self._tensors: dict[str, Array] = {}
        self._owned: list[Array] = []
        self._limits = {symbol: sizes.limit(symbol) for symbol in self._spec.dynamic}
        self._dynamic = dict(self._limits)
        self._closed = False
        self._running = threading.Lock()

    def tensor(self, name: str) -> Array:
        """Return the array of an input or output, at its largest shape.

        Raises:
            InputError: the network has no such tensor.
            EngineError: the engine was closed.
            OutOfMemoryError: the device lacks memory for it.
        """
        if name not in self._tensors:
            spec = self._find(name)
            self._check_open()
            array = self.device.empty(self._largest(spec), spec.resolve_dtype(self._compute_dtype))
            self._owned.append(array)
            self._tensors[name] = array
            self._place(name, array)
        return self._tensors[name]

    def allocate(self) -> None:
        """Allocate everything that the first run would allocate: arrays for all tensors, and scratch memory.

        Raises:
            EngineError: the engine was closed.
            OutOfMemoryError: the device lacks memory.
        """
        for name in self._specs:
            self.tensor(name)

    def bind(self, name: str, array: Array) -> None:
        """Use the caller's array for an input or output from now on, for example another engine's output.

        The engine's own array is freed. Graphs that were captured before still use it and must not be launched again.

        Args:
            name: name of the tensor.
            array: array of this device, with the tensor's dtype and largest shape. It must outlive the engine's runs.

        Raises:
            InputError: the array does not fit.
            EngineError: the engine was closed.
        """
        self._check_open()
        spec = self._find(name)
        wanted = (self.device.name, spec.resolve_dtype(self._compute_dtype), self._largest(spec))
        if (array.device.name, array.dtype, array.shape) != wanted:
            where, dtype, shape = wanted
            raise InputError(
                f"the network {self.name} needs {name} as {dtype} {list(shape)} on {where}, got {array.dtype} "
                f"{list(array.shape)} on {array.device.name}"
            )
        if array.address % ALIGNMENT_BYTES:
            raise InputError(
                f"the network {self.name} needs {name} at a multiple of {ALIGNMENT_BYTES} bytes, got a view at "
                f"{array.address:#x}; copy it into an array of its own"
            )
        replaced = self._tensors.get(name)
        if replaced is array:
            return
        self._tensors[name] = array
        self._place(name, array)
        if replaced is not None:
            self._drop(replaced)

    def set_batch(self, **dynamic: int) -> None:
        """Choose the dynamic sizes of the runs that follow.

        Args:
            dynamic: a value from 1 to `max_batch` for dynamic dimensions, e.g. frames=3; others stay as they are.

        Raises:
            InputError: a value is out of range, or there is no such dimension.
            EngineError: the engine was closed.
        """
        self._check_open()
        for symbol, value in dynamic.items():
            if not 1 <= value <= self.max_batch(symbol):
                raise InputError(f"{self.name} takes 1..{self.max_batch(symbol)} {symbol}, got {value}")
        changed = {**self._dynamic, **dynamic}
        if changed != self._dynamic:
            self._dynamic = changed
            self._resize()

    def limit_batch(self, **dynamic: int) -> None:
        """Lower the largest sizes of dynamic dimensions, for a device that lacks the memory for them; or raise them.

        The runs that follow have these sizes. Arrays of other sizes are given up: the engine's own are freed, bound
        ones are forgotten. Graphs that were captured before must not be launched again.

        Args:
            dynamic: a value from 1 to the directory's own limit for dynamic dimensions, e.g. chunk=4.

        Raises:
            InputError: a value is out of range, or there is no such dimension.
            EngineError: the engine was closed.
        """
        self._check_open()
        for symbol, value in dynamic.items():
            self.max_batch(symbol)
            if not 1 <= value <= self._sizes.limit(symbol):
                raise InputError(f"{self.name} was built for 1..{self._sizes.limit(symbol)} {symbol}, got {value}")
        self._limits.update(dynamic)
        self._dynamic.update(dynamic)
        for name, array in list(self._tensors.items()):
            if array.shape != self._largest(self._specs[name]):
                del self._tensors[name]
                self._drop(array)
        self._resize()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the runs that follow."""
        return tuple(int(dim) for dim in self._sizes.resolve(self._find(name).shape, self._dynamic))

    def enqueue(self, stream: Stream) -> None:
        """Queue one run on a stream, from and to the arrays of `tensor`, without waiting.

        The first run of a shape may compile, allocate or tune. Once a run of the same shape, by the same thread, has
        been waited for, this can be captured into a graph, unless `capture_problem` says otherwise. Runs of engines of
        one directory must not overlap: they share their scratch memory. Outputs are not checked for finite values.

        Raises:
            EngineError: the engine failed, or was closed.
            OutOfMemoryError: the device lacks memory.
            DeviceError: a bound array has been freed.
        """
        self._check_open()
        self.allocate()
        check_alive(self._tensors.values())
        self._queue(stream)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once, from and to the host. Concurrent calls run one after the other.

        Args:
            inputs: every input by name, with the dtype and shape of the contract; float32 for bfloat16.

        Returns:
            Every output by name.

        Raises:
            InputError: a tensor is missing, unknown, or of another dtype or shape than the contract's.
            EngineError: the engine failed, or returned non-finite values.
        """
        dynamic = check_inputs(self._spec, self._sizes, self._compute_dtype, inputs)
        with self._running:
            self._check_open()
            self.set_batch(**dynamic)
            for name, values in inputs.items():
                self.tensor(name).upload(values, self.stream)
            self.enqueue(self.stream)
            return self.read_outputs()

    def read(self, name: str) -> NDArray[Any]:
        """Wait for the last run, and copy one of its tensors to the host."""
        array, shape = self.tensor(name), self.shape(name)
        return array.download(self.stream) if shape == array.shape else array.download(self.stream, shape[0])

    def read_outputs(self) -> dict[str, NDArray[Any]]:
        """Wait for the last run, and copy its outputs to the host.

        Raises:
            EngineError: some values are not finite; names the tensors and the precision to use instead.
        """
        outputs = {tensor.name: self.read(tensor.name) for tensor in self._spec.outputs}
        check_outputs_finite(self.name, self._compute_dtype, outputs)
        return outputs

    def check_finite(self) -> None:
        """Wait for the last run, and check that its outputs are finite; see `read_outputs`."""
        self.read_outputs()

    def max_batch(self, dimension: str) -> int:
        """Return the largest size of a dynamic dimension of the contract, e.g. "frames"; see `limit_batch`.

        Raises:
            InputError: the network has no such dimension.
        """
        if dimension not in self._limits:
            raise InputError(f"{dimension!r} is no dynamic dimension of {self.name}; it has {self._spec.dynamic}")
        return self._limits[dimension]

    @property
    def placement(self) -> tuple[object, ...]:
        """What a captured run of this engine depends on: the engine itself, its arrays, and the sizes of its runs."""
        places = sorted((name, array.address) for name, array in self._tensors.items())
        return (self, *places, *sorted(self._dynamic.items()))

    def capture_problem(self, stream: Stream) -> str | None:
        """Return why runs on this stream cannot be captured into a graph, or None where only an attempt can tell."""
        return None

    def close(self) -> None:
        """Free the engine, after its runs and the graphs that contain them. Calling it twice is fine."""
        with self._running:
            if self._closed:
                return
            self._closed = True
            self._free()
            for array in self._owned:
                array.free()
            self._owned.clear()
            self._tensors.clear()

    def _drop(self, array: Array) -> None:
        if array in self._owned:
            self._owned.remove(array)
            array.free()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"the network {self.name} was closed")

    def _find(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise InputError(f"the network {self.name} has no tensor {name!r}; it has {', '.join(self._specs)}")
        return self._specs[name]

    def _largest(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self._sizes.resolve(spec.shape, self._limits))

    @abstractmethod
    def _place(self, name: str, array: Array) -> None:
        """React to a new array of a tensor."""

    @abstractmethod
    def _resize(self) -> None:
        """React to new dynamic sizes, or new limits of them."""

    @abstractmethod
    def _queue(self, stream: Stream) -> None:
        """Queue a run; all tensors have their arrays."""

    @abstractmethod
    def _free(self) -> None:
        """Free everything but the tensors."""


class EngineLoader(ABC):
    """Loads the networks of one engine directory, and holds what they share: a device, a stream, scratch memory.

    Attributes:
        device: device of the engines.
        stream: stream of their runs.
        uncapturable: why their runs cannot be captured into a graph, once that is known.
        keeps_graphs: whether graphs of single networks may wait for the next run: they hold no memory worth mentioning.
    """

    device: Device
    stream: Stream
    uncapturable: str | None = None
    keeps_graphs: bool = True

    @cached_property
    def _graphs(self) -> dict[str, tuple[tuple[object, ...], Graph]]:
        """A graph per network, and the placement that it was captured with."""
        return {}

    @abstractmethod
    def open(self, network: str) -> Engine:
        """Load one network.

        Raises:
            EngineError: the backend is not installed, or refuses the file.
            DeviceError: the device is not there, or does not fit.
        """

    def capture(self, body: Callable[[], None]) -> Graph:
        """Record what `body` queues on the stream, including runs of these engines.

        Run it once before, in this thread, and wait for it: engines compile, tune and allocate in their first runs.

        Returns:
            The graph, to be closed before the engines. Launching it is refused once the engines' shared memory has
            moved, which only an engine that was not allocated or run before the capture can cause: capture it again.

        Raises:
            DeviceError: something in it cannot be captured.
            EngineError: a network failed on being captured.
        """
        return self.stream.capture(body)

    def find_graph(self, engine: Engine) -> Graph | None:
        """Return the graph of one run of an engine, if one was captured and nothing has moved since."""
        placement, graph = self._graphs.get(engine.name, ((), None))
        return graph if graph is not None and graph.is_usable and placement == engine.placement else None

    def capture_run(self, engine: Engine) -> Graph:
        """Return a graph of one run of an engine: what `find_graph` finds, or a new one; see `capture`.

        It belongs to the loader.
        """
        graph = self.find_graph(engine)
        if graph is None:
            if engine.name in self._graphs:
                self._graphs.pop(engine.name)[1].close()
            graph = self.capture(lambda: engine.enqueue(self.stream))
            self._graphs[engine.name] = engine.placement, graph
        return graph

    def drop_graphs(self, networks: Collection[str] | None = None) -> None:
        """Close graphs of single networks, after the work with them and before these networks are closed.

        Args:
            networks: whose; None for all.
        """
        for name in list(self._graphs):
            if networks is None or name in networks:
                self._graphs.pop(name)[1].close()

    def trim(self) -> None:
        """Give memory of a GPU that is kept for later back, before someone else allocates; nothing on the CPU."""
        if self.device.name != "cpu":
            if self.device.pool.reclaim is not None:
                self.device.pool.reclaim()
            self.device.pool.trim()

    @abstractmethod
    def close(self) -> None:
        """Free the shared resources, after the engines and `drop_graphs`. Calling it twice is fine."""
