"""Where the kernel tests run: on the CPU, and on a GPU, with arrays that are aligned or not.

A run copies numpy arrays to the device, calls a kernel, and copies everything back. Around every array lies a margin
that no kernel may write to, of values that show where they were read. On a GPU the same run on the CPU must leave the
same bits. So a test of a kernel checks there that it agrees with its numpy reference and with the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dispose_rt.device import Array, CpuDevice, Device, Stream, compiled_module, find_gpus, open_device
from dispose_rt.errors import DeviceError

MARGIN_BYTES = 256
MARGIN_VALUE = 0xFF  # NaN as float32, float16 and bfloat16, -1 as int32

Argument = Any
"""A numpy array, a sequence of them, or a plain number. uint16 stands for the bits of bfloat16."""


def missing_for_cuda() -> str | None:
    """Why the CUDA kernels cannot run here, or None if they can."""
    try:
        compiled_module("cuda")
        return None if find_gpus() else "no NVIDIA GPU"
    except DeviceError as error:
        return str(error)


class Target:
    """A device to run kernels on.

    Args:
        device: the device; closed by `close`.
        offsets: elements between a boundary of 256 bytes and an array; every run is repeated at each. At 0 kernels
            move words of 16 bytes; at 1 they have to take one element at a time.
    """

    def __init__(self, device: Device, offsets: Sequence[int] = (0,)) -> None:
        self.device = device
        self.stream = device.stream()
        self._offsets = offsets

    def run(self, kernel: Callable[..., None] | str, *arguments: Argument) -> None:
        """Call a kernel with copies of the arguments, and write what it left in its arrays into the arguments.

        Args:
            kernel: a wrapper of `dispose_rt.kernels`, or the name of a compiled kernel.
            arguments: of the kernel, without the stream.
        """
        self._run_and_compare(self._queue, kernel, arguments)

    def run_captured(self, kernel: Callable[..., None] | str, *arguments: Argument) -> None:
        """Do the same through a graph: capturing does nothing, launching it does the work."""
        # a kernel is loaded on its first launch, which cannot be captured
        self._run(self._queue, kernel, [_copied(argument) for argument in arguments], self._offsets[0])
        self._run_and_compare(self._capture, kernel, arguments)

    def _run_and_compare(
        self, call: Callable[..., None], kernel: Callable[..., None] | str, arguments: Sequence[Argument]
    ) -> None:
        expected = [_copied(argument) for argument in arguments]
        if self.device.name != "cpu":
            on_cpu = cpu_target()
            on_cpu.run(kernel, *expected)
            on_cpu.close()
        before = [_copied(argument) for argument in arguments]
        for offset in self._offsets:
            for argument, value in zip(_arrays(arguments), _arrays(before), strict=True):
                argument[...] = value
            self._run(call, kernel, arguments, offset)
            if self.device.name != "cpu":
                for i, (got, wanted) in enumerate(zip(_arrays(arguments), _arrays(expected), strict=True)):
                    message = f"array {i} of {kernel}: {self.device.name} at offset {offset}, and CPU"
                    assert_same_bits(got, wanted, message)

    def _run(
        self, call: Callable[..., None], kernel: Callable[..., None] | str, arguments: Sequence[Argument], offset: int
    ) -> None:
        placed: list[_Placed] = []
        try:
            call(kernel, [self._place(argument, placed, offset) for argument in arguments], placed)
            self.stream.synchronize()
            for one in placed:
                one.take_back(self.stream)
        finally:
            for one in placed:
                one.free()

    def _queue(self, kernel: Callable[..., None] | str, arguments: list[Any], _: list[_Placed]) -> None:
        if isinstance(kernel, str):
            self.device.launch(kernel, arguments, self.stream)
        else:
            kernel(*arguments, self.stream)

    def _capture(self, kernel: Callable[..., None] | str, arguments: list[Any], placed: list[_Placed]) -> None:
        graph = self.stream.capture(lambda: self._queue(kernel, arguments, placed))
        for one in placed:
            assert_same_bits(one.download(self.stream), one.values, "capturing did the work")
        graph.launch(self.stream)
        self.stream.synchronize()
        graph.close()

    def _place(self, argument: Argument, placed: list[_Placed], offset: int) -> Any:
        if isinstance(argument, (list, tuple)):
            return [self._place(one, placed, offset) for one in argument]
        if not isinstance(argument, np.ndarray):
            return argument
        placed.append(_Placed(argument, offset, self.stream))
        return placed[-1].array

    def close(self) -> None:
        self.stream.close()
        self.device.close()


class _Placed:
    """A numpy array's copy on a device, between two margins."""

    def __init__(self, values: NDArray[Any], offset: int, stream: Stream) -> None:
        assert values.flags.c_contiguous
        self.values = values
        margin = MARGIN_BYTES // values.itemsize
        self._inside = slice(margin + offset, margin + offset + values.size)
        self._bits = np.full(values.size + offset + 2 * margin, MARGIN_VALUE, np.uint8).repeat(values.itemsize)
        self._bits = self._bits.view(values.dtype)
        self._bits[self._inside] = values.reshape(-1)
        dtype = "bfloat16" if values.dtype == np.uint16 else values.dtype.name
        self._base = stream.device.empty(self._bits.shape, dtype)
        stream.device.copy(self._base.address, self._bits.ctypes.data, self._bits.nbytes, stream)
        stream.synchronize()
        self.array: Array = self._base.rows(self._inside.start, self._inside.stop).reshape(*values.shape)

    def download(self, stream: Stream) -> NDArray[Any]:
        bits = np.empty_like(self._bits)
        stream.device.copy(bits.ctypes.data, self._base.address, bits.nbytes, stream)
        stream.synchronize()
        for margin in (slice(0, self._inside.start), slice(self._inside.stop, None)):
            assert (bits[margin].view(np.uint8) == MARGIN_VALUE).all(), "a kernel wrote beside its array"
        return bits[self._inside].reshape(self.values.shape)

    def take_back(self, stream: Stream) -> None:
        self.values[...] = self.download(stream)

    def free(self) -> None:
        self._base.free()


def cpu_target() -> Target:
    return Target(CpuDevice())


def cuda_target() -> Target:
    """A GPU, real or fake, with arrays that are aligned, and again with arrays that are not."""
    return Target(open_device("cuda:0"), (0, 1))


TARGETS = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def open_target(name: str) -> Iterator[Target]:
    """The target of a test's parameter, closed in the end; skips the test where it cannot run here."""
    if name != "cpu" and (reason := missing_for_cuda()):
        pytest.skip(reason)
    opened = cpu_target() if name == "cpu" else cuda_target()
    yield opened
    opened.close()


def _copied(argument: Argument) -> Argument:
    if isinstance(argument, (list, tuple)):
        return [_copied(one) for one in argument]
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def _arrays(arguments: Sequence[Argument]) -> list[NDArray[Any]]:
    flat: list[NDArray[Any]] = []
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            flat += _arrays(argument)
        elif isinstance(argument, np.ndarray):
            flat.append(argument)
    return flat


def assert_same_bits(got: NDArray[Any], wanted: NDArray[Any], message: str) -> None:
    """Every number has the same bits; a NaN may have any."""
    if got.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted), err_msg=message)
        got, wanted = (np.where(np.isnan(array), 0, array).astype(array.dtype) for array in (got, wanted))
    bits = f"u{got.itemsize}"
    np.testing.assert_array_equal(got.view(bits), wanted.view(bits), err_msg=message)
