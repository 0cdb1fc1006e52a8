"""Images and answers of the pose networks, on and off their device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import Engine
from ..device import Array
from ..errors import InputError
from ..types import U8


@contextmanager
def place_image(image: U8 | Array, engine: Engine) -> Iterator[Array]:
    """Lend an image on an engine's device: as it is if it lies there already, else uploaded for that long.

    Args:
        image: uint8 [H, W, 3].
        engine: whose stream carries the copy; what reads the image is waited for inside.

    Raises:
        InputError: the image is not such an array.
    """
    if isinstance(image, Array):
        yield image
        return
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"the image is {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3]")
    uploaded = engine.device.array(image, engine.stream)
    try:
        yield uploaded
    finally:
        uploaded.free()


def answer(engine: Engine, *outputs: str) -> list[NDArray[Any]]:
    """Run an engine on inputs that are in place, and copy outputs to the host.

    Raises:
        EngineError: the engine failed, or answered values that are not finite.
    """
    engine.enqueue(engine.stream)
    arrays = [engine.read(name) for name in outputs]
    if not all(np.isfinite(array).all() for array in arrays):
        engine.check_finite()
    return arrays
