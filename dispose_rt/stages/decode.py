"""Latents to pixels, chunk by chunk: a chunk is decoded while the one before it is on its way to the caller."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass

from .. import kernels
from ..device import Array
from ..engines.backends import Engine
from ..errors import EngineError, InputError, OutOfMemoryError, PerformanceWarning
from ..types import U8


@dataclass(frozen=True)
class _Chunk:
    start: int
    stop: int
    slot: _Slot


def decode_frames(latents: Array, vae_decoder: Engine, chunk: int | None = None) -> Generator[U8]:
    """Decode a clip and drop its first frame, which is the reference.

    The decoder mixes the frames of one chunk over time with zero padding, so chunks start at frame 0 and the last one
    is decoded at its own length: as the reference does.

    Args:
        latents: float32 [frames, 4, height/8, width/8], straight from the sampler, on the decoder's device.
        vae_decoder: the "vae_decoder" engine.
        chunk: frames to decode at once, 1 to the decoder's largest chunk. None takes the largest, or, where the device
            lacks the memory for it, a half, a quarter and so on of it, with a PerformanceWarning, since pixels depend
            a little on the length.

    Yields:
        uint8 [n, height, width, 3], RGB; n is the chunk's length (one less in the first chunk).

    Raises:
        InputError: the decoder does not take such chunks.
        EngineError: the decoder failed, or returned non-finite values.
        OutOfMemoryError: the device has no room for a chunk.
    """
    stream, frames = vae_decoder.stream, latents.shape[0]
    length = check_chunk(chunk, vae_decoder.max_batch("chunk"))
    _, _, height, width = vae_decoder.tensor("frames").shape
    slots: list[_Slot] = []
    queued: deque[_Chunk] = deque()
    ahead = 0 if stream.device.synchronous else 1
    try:

        def attempt(fits: int) -> None:
            stream.synchronize()  # a longer chunk may have been queued in part
            while slots:
                slots.pop().close()
            for _ in range(ahead + 1):
                slots.append(_Slot(vae_decoder, fits, height, width))
            slots[0].decode(latents.rows(0, min(fits, frames)))

        length = _shorten(vae_decoder, chunk, length, attempt)
        for number, start in enumerate(range(0, frames, length)):
            part = _Chunk(start, min(start + length, frames), slots[number % len(slots)])
            if start > 0:
                part.slot.decode(latents.rows(part.start, part.stop))
            queued.append(part)
            if len(queued) > ahead:
                yield _finish(queued.popleft())
        while queued:
            yield _finish(queued.popleft())
    finally:
        stream.synchronize()
        for slot in slots:
            slot.close()


def check_chunk(chunk: int | None, largest: int) -> int:
    """Return the chunk to start with: the one that the caller chose, or the largest.

    Raises:
        InputError: the engines do not take such chunks.
    """
    if chunk is not None and not 1 <= chunk <= largest:
        raise InputError(
            f"decode_chunk is {chunk}; these engines decode 1..{largest} frames at once. Build others with "
            "--decode-chunk."
        )
    return chunk or largest


def fit_decoder(vae_decoder: Engine, chunk: int | None, largest: int) -> None:
    """Place the decoder's tensors and workspace for as long a chunk as the device has room for.

    Args:
        vae_decoder: the "vae_decoder" engine; its largest chunk is set.
        chunk: frames to decode at once, see `decode_frames`.
        largest: the chunk that the engines were built for.

    Raises:
        InputError: the engines do not take such chunks.
        OutOfMemoryError: there is no room for the chosen chunk, or for one frame.
    """
    length = check_chunk(chunk, largest)
    if vae_decoder.max_batch("chunk") != length:
        vae_decoder.limit_batch(chunk=length)
    _shorten(vae_decoder, chunk, length, lambda _: vae_decoder.allocate())


def _shorten(vae_decoder: Engine, chunk: int | None, length: int, attempt: Callable[[int], None]) -> int:
    """Attempt something for chunks of a length, or, where memory is short and the caller chose no length, for halves.

    Args:
        vae_decoder: its largest chunk is lowered to what fits.
        chunk: that the caller chose, which is not shortened; None for none.
        length: to begin with.
        attempt: gets a length.

    Returns:
        The length that fits.

    Raises:
        OutOfMemoryError: the chosen chunk, or a single frame, does not fit.
    """
    while True:
        try:
            attempt(length)
        except OutOfMemoryError:
            if chunk is not None or length == 1:
                raise
            length //= 2
            warnings.warn(
                f"the device lacks the memory to decode a whole chunk, so {length} frames are decoded at once. The "
                "pixels differ a little from those of longer chunks. Close other programs on the GPU, or pass "
                "decode_chunk to choose.",
                PerformanceWarning,
                stacklevel=3,
            )
            vae_decoder.limit_batch(chunk=length)
        else:
            return length


def _finish(part: _Chunk) -> U8:
    pixels = part.slot.take(part.stop - part.start)
    if pixels is None:
        raise EngineError(
            f"the network vae_decoder returned non-finite values for frames {part.start}..{part.stop - 1}: its "
            "precision is too small for these weights. Build the engines with --precision fp32."
        )
    return pixels[1:] if part.start == 0 else pixels


class _Slot:
    """Pixels of one chunk on the device, and on their way to the host."""

    def __init__(self, vae_decoder: Engine, length: int, height: int, width: int) -> None:
        self._decoder = vae_decoder
        self._stream = vae_decoder.stream
        device = self._stream.device
        with ExitStack() as undo:
            self._pixels = device.empty((length, height, width, 3), "uint8")
            undo.callback(self._pixels.free)
            self._nonfinite = device.empty((1,), "int32")
            undo.callback(self._nonfinite.free)
            self._host_pixels = device.pinned(self._pixels.shape, "uint8")
            undo.callback(self._host_pixels.free)
            self._host_nonfinite = device.pinned((1,), "int32")
            undo.callback(self._host_nonfinite.free)
            self._arrived = undo.enter_context(closing(device.event()))
            self._held = undo.pop_all()

    def decode(self, latents: Array) -> None:
        """Queue decoding, colour conversion and the copy to the host of one chunk."""
        decoder, stream, frames = self._decoder, self._stream, latents.shape[0]
        decoder.tensor("latents").rows(0, frames).copy_from(latents, stream)
        decoder.set_batch(chunk=frames)
        decoder.enqueue(stream)
        pixels = self._pixels.rows(0, frames)
        self._nonfinite.clear(stream)
        kernels.frames_to_u8(decoder.tensor("frames").rows(0, frames), pixels, self._nonfinite, stream)
        self._host_pixels.rows(0, frames).copy_from(pixels, stream)
        self._host_nonfinite.copy_from(self._nonfinite, stream)
        self._arrived.record(stream)

    def take(self, frames: int) -> U8 | None:
        """Wait for a chunk and copy it out of the slot; None if a decoded value was not finite."""
        self._arrived.synchronize()
        if self._host_nonfinite.bits[0]:
            return None
        pixels: U8 = self._host_pixels.bits[:frames].copy()
        return pixels

    def close(self) -> None:
        self._held.close()
