"""Images on the device of the pose networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ...device import Array
from ...engines.backends import Engine
from ...errors import InputError
from ...types import U8


@contextmanager
def place_image(image: U8 | Array, engine: Engine) -> Iterator[Array]:
    """Lend an image on an engine's device: unchanged if it lies there already, else uploaded while it is lent.

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
