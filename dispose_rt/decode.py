"""Latents to pixels, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import kernels
from .backends import Engine
from .errors import EngineError
from .types import F32, U8


def decode_frames(latents: F32, vae_decoder: Engine) -> Iterator[U8]:
    """Decode a clip and drop its first frame, which is the reference.

    The decoder mixes the frames of one chunk over time with zero padding, so chunks start at frame 0 and the last one
    is decoded at its own length: as the reference does.

    Args:
        latents: float32 [frames, 4, height/8, width/8], straight from the sampler.
        vae_decoder: the "vae_decoder" engine.

    Yields:
        uint8 [n, height, width, 3], RGB; n is the chunk's length (one less in the first chunk).

    Raises:
        EngineError: the decoder answered non-finite values.
    """
    chunk = vae_decoder.max_batch("chunk")
    for start in range(0, len(latents), chunk):
        frames = vae_decoder.run({"latents": np.ascontiguousarray(latents[start : start + chunk])})["frames"]
        if not np.isfinite(frames).all():
            raise EngineError(
                f"the network vae_decoder answered non-finite values for frames {start}..{start + len(frames) - 1}: "
                "its precision is too small for these weights. Build the engines with --precision fp32."
            )
        pixels = kernels.frames_to_u8(frames)
        yield pixels[1:] if start == 0 else pixels
