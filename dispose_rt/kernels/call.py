"""How a kernel is called: it takes bare addresses and trusts them, so everything is checked before."""

from __future__ import annotations

from collections.abc import Sequence

from ..device import Array, Stream
from ..errors import InputError

ANY_DTYPE: tuple[str, ...] = ()


def check_array(
    name: str, array: Array, dtypes: str | Sequence[str], shape: Sequence[int | str], stream: Stream
) -> None:
    """Refuse an array of another kind, dtype, shape or device.

    Args:
        name: of the argument, for the message.
        array: what was handed over.
        dtypes: one, or those to choose from; none at all allows any.
        shape: lengths; a name stands for any length.
        stream: of the launch.

    Raises:
        InputError: it does not fit; says what was expected.
    """
    if not isinstance(array, Array):
        raise InputError(f"{name} is a {type(array).__name__}; expected an array of {stream.device.name}")
    choices = (dtypes,) if isinstance(dtypes, str) else tuple(dtypes)
    fits = len(array.shape) == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or (choices and array.dtype not in choices):
        expected = ", ".join(str(length) for length in shape)
        kinds = " or ".join(choices) or "any dtype"
        raise InputError(f"{name} is {array.dtype} {list(array.shape)}; expected {kinds} [{expected}]")
    if array.device.name != stream.device.name:
        raise InputError(f"{name} lies on {array.device.name}; expected the stream's device, {stream.device.name}")


def check_map(height: int, width: int) -> None:
    """Refuse a map without pixels.

    Raises:
        InputError: it has none.
    """
    if height < 1 or width < 1:
        raise InputError(f"a map of {height} rows and {width} columns is empty; both must be at least 1")


def launch(kernel: str, stream: Stream, *arguments: Array | int | float) -> None:
    """Queue a kernel; its stream comes last.

    Raises:
        DeviceError: the kernels were not built for this device, or the launch fails.
    """
    stream.device.launch(kernel, arguments, stream)
