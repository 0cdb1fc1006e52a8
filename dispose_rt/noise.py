"""Random draws by name, so that the same seed gives the same bits whatever is drawn first or left out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from .errors import InputError
from .types import F32

NoiseSource = Callable[[str, tuple[int, ...]], F32]
"""`source(name, shape)` returns a float32 array of that shape, drawn from the unit normal distribution.

Names: "latents" (1, tile, 4, height/8, width/8), "dift_posterior" and "dift_noise" (8, 4, height/8, width/8), and
"image" (1, 3, height, width), which is drawn only where the noise augmentation strength is not 0.
"""


def seeded_noise(seed: int) -> NoiseSource:
    """Return a source with one independent PCG64 stream per name."""

    def draw(name: str, shape: tuple[int, ...]) -> F32:
        stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        return stream.standard_normal(shape, dtype=np.float32)

    return draw


def draw_checked(source: NoiseSource, name: str, shape: Sequence[int]) -> F32:
    """Draw from a caller's source and check what came.

    Raises:
        InputError: the array has another shape, is not float32, or is not finite.
    """
    array = np.asarray(source(name, tuple(shape)))
    if array.shape != tuple(shape) or array.dtype != np.float32:
        raise InputError(
            f'the noise source returned {array.dtype} {array.shape} for "{name}"; expected float32 {tuple(shape)}'
        )
    if not np.isfinite(array).all():
        raise InputError(f'the noise source returned non-finite values for "{name}"')
    return array
