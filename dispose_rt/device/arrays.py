"""Tensors in a device's memory, and the host memory that copies fast from and to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError
from .bfloat16 import round_to_bfloat16, widen_bfloat16

if TYPE_CHECKING:
    from .base import Device, Stream
    from .pool import Block

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint8": 1}


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of the bits: numpy has no bfloat16, uint16 holds them."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class Array:
    """A C-contiguous tensor in a device's memory.

    It owns its memory until `free`; views share it, and must not be used after that. numpy has no bfloat16: on the
    host such tensors are float32, rounded to the nearest bfloat16, ties to even, on their way to the device.

    Attributes:
        device: where it lies.
        shape: of whole numbers.
        dtype: "float32", "float16", "bfloat16", "int32" or "uint8".
        address: of its first byte, a multiple of 256 unless it is a view.
    """

    def __init__(
        self, device: Device, shape: tuple[int, ...], dtype: str, view: tuple[Array, int] | None = None
    ) -> None:
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self._block: Block | None = None
        self._base = view[0] if view else None
        self._offset_bytes = view[1] if view else 0
        if view is None:
            check_form(shape, dtype)
            device.check_allocation()
            self._block = device.pool.take(self.nbytes)

    @property
    def address(self) -> int:
        """Where it starts.

        Raises:
            DeviceError: it was freed, or its device was closed.
        """
        if self._base is not None:
            return self._base.address + self._offset_bytes
        if self._block is None:
            raise DeviceError(f"the {self.dtype} {list(self.shape)} was freed")
        self.device.check_open()
        return self._block.address

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def rows(self, start: int, stop: int) -> Array:
        """View of rows start..stop - 1 of the first dimension.

        Raises:
            DeviceError: there are no such rows.
        """
        if not (self.shape and 0 <= start <= stop <= self.shape[0]):
            raise DeviceError(f"there are no rows {start}..{stop} in {list(self.shape)}")
        row_bytes = math.prod(self.shape[1:]) * DTYPE_BYTES[self.dtype]
        return Array(self.device, (stop - start, *self.shape[1:]), self.dtype, (self, start * row_bytes))

    def reshape(self, *shape: int) -> Array:
        """View of the same elements in another shape.

        Raises:
            DeviceError: the shape has another number of elements.
        """
        if math.prod(shape) != math.prod(self.shape):
            raise DeviceError(f"{list(self.shape)} cannot be seen as {list(shape)}")
        return Array(self.device, shape, self.dtype, (self, 0))

    def upload(self, values: NDArray[Any], stream: Stream) -> None:
        """Queue a copy from the host. The values may be changed or dropped once the stream was waited for.

        Args:
            values: float32 for bfloat16, else of this array's dtype; of this array's shape, or with fewer rows, for its
                front.
            stream: the copy is queued on it.

        Raises:
            DeviceError: the values do not fit, or the stream is capturing.
        """
        stream.refuse_capture("a copy from the host")
        self._check_host(values.shape, values.dtype)
        bits = round_to_bfloat16(values) if self.dtype == "bfloat16" else np.ascontiguousarray(values)
        self.device.copy(self.address, bits.ctypes.data, bits.nbytes, stream)
        stream.hold(bits)  # after the copy was queued: whoever waits for the stream from now on waits for the copy

    def download(self, stream: Stream, rows: int | None = None) -> NDArray[Any]:
        """Copy to the host, waiting for what the stream holds.

        Args:
            stream: of the work that fills the array.
            rows: how many from the front; None takes all.

        Returns:
            float32 for bfloat16, else of this array's dtype.

        Raises:
            DeviceError: something on the stream failed, or it is capturing.
        """
        stream.refuse_capture("a copy to the host")
        source = self if rows is None else self.rows(0, rows)
        bits = np.empty(source.shape, storage_dtype(self.dtype))
        self.device.copy(bits.ctypes.data, source.address, bits.nbytes, stream)
        stream.hold(bits)  # should waiting fail, the copy may still be under way
        stream.synchronize()
        return widen_bfloat16(bits) if self.dtype == "bfloat16" else bits

    def copy_from(self, source: Array | PinnedArray, stream: Stream) -> None:
        """Queue a copy of as many elements of the same dtype, from this device or from pinned memory.

        Raises:
            DeviceError: size, dtype or device differ, or the source is pinned and the stream is capturing.
        """
        _check_match(self, source)
        if isinstance(source, PinnedArray):
            stream.refuse_capture("a copy from the host")
        elif source.device.name != self.device.name:
            raise DeviceError(f"an array of {source.device.name} cannot be copied into one of {self.device.name}")
        self.device.copy(self.address, source.address, self.nbytes, stream)

    def clear(self, stream: Stream) -> None:
        """Queue filling it with zeros."""
        self.device.clear(self.address, self.nbytes, stream)

    def free(self) -> None:
        """Give the memory back. Calling it twice is fine; a view gives back nothing."""
        if self._block is not None:
            self.device.pool.give(self._block)
            self._block = None

    def _check_host(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        wanted = "float32" if self.dtype == "bfloat16" else self.dtype
        fits = (
            len(shape) == len(self.shape) and tuple(shape[1:]) == self.shape[1:] and tuple(shape[:1]) <= self.shape[:1]
        )
        if not fits or dtype != wanted:
            raise DeviceError(
                f"{dtype} {list(shape)} on the host does not fit {self.dtype} {list(self.shape)} on {self.device.name}"
            )


class PinnedArray:
    """Host memory that a device copies from and to without making the host wait.

    Args:
        bits: the memory as a numpy array; uint16 for bfloat16.
        dtype: as of `Array`.
        free: gives the memory back.
        base: for a view, the array that owns the memory.
    """

    def __init__(
        self, bits: NDArray[Any], dtype: str, free: Callable[[], None], base: PinnedArray | None = None
    ) -> None:
        self._bits: NDArray[Any] | None = bits
        self.dtype = dtype
        self._free = free
        self._base = base

    @property
    def bits(self) -> NDArray[Any]:
        """The memory as a numpy array; uint16 for bfloat16. Not to be touched once the memory or its device is gone.

        Raises:
            DeviceError: it was freed.
        """
        if self._bits is None or (self._base is not None and self._base._bits is None):
            raise DeviceError(f"the pinned {self.dtype} array was freed")
        return self._bits

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.bits.nbytes

    @property
    def address(self) -> int:
        """Where it starts."""
        return self.bits.ctypes.data

    def rows(self, start: int, stop: int) -> PinnedArray:
        """View of rows start..stop - 1, which owns nothing.

        Raises:
            DeviceError: there are no such rows.
        """
        bits = self.bits
        if not (bits.shape and 0 <= start <= stop <= len(bits)):
            raise DeviceError(f"there are no rows {start}..{stop} in {list(bits.shape)}")
        return PinnedArray(bits[start:stop], self.dtype, _owns_nothing, self._base or self)

    def copy_from(self, source: Array, stream: Stream) -> None:
        """Queue a copy of as many elements of the same dtype from the device.

        Raises:
            DeviceError: size or dtype differ, or the stream is capturing.
        """
        stream.refuse_capture("a copy to the host")
        _check_match(self, source)
        source.device.copy(self.address, source.address, self.nbytes, stream)

    def free(self) -> None:
        """Give the memory back, after the copies from and to it. Calling it twice is fine."""
        if self._bits is not None:
            self._bits = None
            self._free()


def check_form(shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a dtype that devices do not know, and dimensions below 0."""
    if dtype not in DTYPE_BYTES:
        raise DeviceError(f"arrays of {dtype} are not known here; expected one of {', '.join(DTYPE_BYTES)}")
    if any(dim < 0 for dim in shape):
        raise DeviceError(f"{list(shape)} is no shape: a dimension is negative")


def _check_match(target: Array | PinnedArray, source: Array | PinnedArray) -> None:
    if (source.nbytes, source.dtype) != (target.nbytes, target.dtype):
        raise DeviceError(
            f"{source.dtype} {list(source.shape)} cannot be copied into {target.dtype} {list(target.shape)}"
        )


def _owns_nothing() -> None:
    """Views give back nothing."""
