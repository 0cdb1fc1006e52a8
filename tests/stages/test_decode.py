"""Decoding chunk by chunk, on the CPU and with the overlap of a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from dispose_rt.contract import Sizes
from dispose_rt.device import Array, CpuDevice
from dispose_rt.errors import EngineError, InputError, OutOfMemoryError, PerformanceWarning
from dispose_rt.stages.decode import decode_frames, fit_decoder
from tests.every import each
from tests.fakes.engine import FakeEngine
from tests.kernels.references import frames_to_u8

SIZES = Sizes(64, 64, chunk=4)


def decoder_of(latents: np.ndarray) -> np.ndarray:
    """Frames that show their latents, their place in the chunk and its length."""
    places = np.arange(len(latents), dtype=np.float32).reshape(-1, 1, 1, 1) / 50
    enlarged = latents[:, :3].repeat(8, axis=2).repeat(8, axis=3)
    return enlarged * np.float32(0.3) + places + np.float32(len(latents)) / 100


class Decoder(FakeEngine):
    """A decoder whose device has room for chunks of some length."""

    def __init__(self, fits: int = 99, synchronous: bool = True) -> None:
        device = CpuDevice()
        device.synchronous = synchronous
        super().__init__("vae_decoder", SIZES, self._decode, stream=device.stream())
        self.fits = fits

    def _decode(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(inputs["latents"]) > self.fits:
            raise OutOfMemoryError("the GPU is out of memory")
        return {"frames": decoder_of(inputs["latents"])}


def draw(frames: int, decoder: FakeEngine) -> tuple[np.ndarray, Array]:
    latents = np.random.default_rng(frames).standard_normal((frames, 4, 8, 8)).astype(np.float32)
    return latents, decoder.device.array(latents, decoder.stream)


def decode_plainly(latents: np.ndarray, chunk: int) -> np.ndarray:
    parts = [decoder_of(latents[start : start + chunk]) for start in range(0, len(latents), chunk)]
    return frames_to_u8(np.concatenate(parts))[1:]


@pytest.fixture(params=[True, False], ids=["in turn", "overlapped"])
def decoder(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    one = Decoder(synchronous=request.param)
    yield one
    one.close()
    assert one.device.pool.used_bytes == 0


@each(chunk=[None, 1, 3], frames=[1, 2, 4, 5, 8, 11])
def test_chunks_start_at_the_reference_which_is_dropped(decoder: Decoder, frames: int, chunk: int | None) -> None:
    values, latents = draw(frames, decoder)
    parts = list(decode_frames(latents, decoder, chunk))
    length = chunk or 4
    assert [len(part) for part in parts] == [
        min(length, frames - start) - (start == 0) for start in range(0, frames, length)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), decode_plainly(values, length))
    latents.free()


def test_a_chunk_that_does_not_fit_is_halved_and_that_is_said() -> None:
    decoder = Decoder(fits=1)
    values, latents = draw(6, decoder)
    with pytest.warns(PerformanceWarning) as caught:
        parts = list(decode_frames(latents, decoder))
    assert [str(one.message).partition(", so ")[2].partition(" at once")[0] for one in caught] == [
        "2 frames are decoded",
        "1 frames are decoded",
    ]
    np.testing.assert_array_equal(np.concatenate(parts), decode_plainly(values, 1))


@each(fits__chunk=[(2, 4), (0, None)])
def test_a_chosen_chunk_and_a_single_frame_are_not_halved(fits: int, chunk: int | None) -> None:
    decoder = Decoder(fits)
    _, latents = draw(6, decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)
        with pytest.raises(OutOfMemoryError):
            list(decode_frames(latents, decoder, chunk))
    latents.free()
    decoder.close()
    assert decoder.device.pool.used_bytes == 0


def test_a_chunk_beyond_the_engines_is_refused(decoder: Decoder) -> None:
    _, latents = draw(6, decoder)
    with pytest.raises(InputError, match=r"decode_chunk is 5; these engines decode 1\.\.4"):
        list(decode_frames(latents, decoder, 5))
    latents.free()


def test_a_decoder_that_does_not_fit_gets_a_lower_limit_and_later_all_it_can_have() -> None:
    decoder = Decoder()
    place, room = decoder.allocate, [2]

    def allocate() -> None:
        if decoder.max_batch("chunk") > room[0]:
            raise OutOfMemoryError("the GPU is out of memory")
        place()

    decoder.allocate = allocate  # type: ignore[method-assign]
    with pytest.warns(PerformanceWarning, match="2 frames are decoded at once"):
        fit_decoder(decoder, None, 4)
    assert decoder.max_batch("chunk") == 2
    assert decoder.tensor("frames").shape[0] == 2
    values, latents = draw(5, decoder)
    np.testing.assert_array_equal(np.concatenate(list(decode_frames(latents, decoder))), decode_plainly(values, 2))
    room[0] = 4
    fit_decoder(decoder, None, 4)
    np.testing.assert_array_equal(np.concatenate(list(decode_frames(latents, decoder))), decode_plainly(values, 4))
    fit_decoder(decoder, 3, 4)
    assert decoder.max_batch("chunk") == 3
    room[0] = 0
    with pytest.raises(OutOfMemoryError):
        fit_decoder(decoder, 3, 4)
    with pytest.raises(InputError, match="decode_chunk is 5"):
        fit_decoder(decoder, 5, 4)


def test_non_finite_pixels_name_the_frames(decoder: Decoder) -> None:
    values, _ = draw(6, decoder)
    values[5, 0, 0, 0] = np.nan
    latents = decoder.device.array(values, decoder.stream)
    parts = decode_frames(latents, decoder)
    assert len(next(parts)) == 3
    with pytest.raises(EngineError, match=r"vae_decoder returned non-finite values for frames 4\.\.5"):
        next(parts)
    decoder.device.pool.close()


def test_stopping_half_way_frees_the_slots(decoder: Decoder) -> None:
    _, latents = draw(9, decoder)
    decoder.allocate()
    before = decoder.device.pool.used_bytes
    parts = decode_frames(latents, decoder)
    next(parts)
    parts.close()
    assert decoder.device.pool.used_bytes == before
    latents.free()


def test_the_caller_may_keep_every_chunk(decoder: Decoder) -> None:
    _, latents = draw(12, decoder)
    parts, copies = [], []
    for part in decode_frames(latents, decoder):
        parts.append(part)
        copies.append(part.copy())
    for part, copy in zip(parts, copies, strict=True):
        np.testing.assert_array_equal(part, copy)
    latents.free()
