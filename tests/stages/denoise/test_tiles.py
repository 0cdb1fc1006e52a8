"""Tiles and the blending of their predictions against the reference, and where the reference fails."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispose_rt import kernels
from dispose_rt.device import CpuDevice
from dispose_rt.errors import InputError
from dispose_rt.stages.denoise.step import sum_weights
from dispose_rt.stages.denoise.tiles import Tile, plan_tiles, tile_weights
from tests.every import each
from tests.golden_data import load_golden
from tests.kernels.targets import Target

CASES = ("one_tile_64", "tiles_128x192", "guidance_one_64")


def frames_of(tiles: tuple[Tile, ...]) -> list[list[int]]:
    return [tile.frames.tolist() for tile in tiles]


@each(case=CASES)
def test_tiles_are_the_reference_s(case: str) -> None:
    arrays = load_golden("e2e")
    frames, tile, overlap = map(int, arrays[f"{case}.config"][:3])
    assert frames_of(plan_tiles(frames, tile, overlap)) == arrays[f"{case}.tiles"].tolist()


@each(case=CASES)
def test_blending_guidance_and_euler_steps_have_the_reference_s_bits(case: str) -> None:
    """From the recorded outputs of the UNet to the recorded latents, every step."""
    arrays = {name.removeprefix(f"{case}."): a for name, a in load_golden("e2e").items() if name.startswith(case)}
    frames, tile, overlap = map(int, arrays["config"][:3])
    tiles, guidance = plan_tiles(frames, tile, overlap), float(arrays["guidance"])
    latents, target = arrays["latents_0"][0].copy(), Target(CpuDevice())
    weights = sum_weights(tiles, frames)
    table = kernels.step_table(arrays["sigmas"], arrays["timesteps"], guidance)
    for step, unet_out in enumerate(arrays["unet_out"]):
        sums, nonfinite = np.zeros((2, *latents.shape), np.float32), np.zeros(1, np.int32)
        for one, prediction in zip(tiles, unet_out, strict=True):
            target.run(kernels.accumulate_tile, prediction, one.frames, one.weights, sums, nonfinite)
        mean = sums / weights[:, None, None, None]
        noise_pred = mean[0] + np.float32(guidance) * (mean[1] - mean[0])
        np.testing.assert_array_equal(noise_pred, arrays["noise_pred"][step, 0])
        next_input = np.empty_like(latents)
        target.run(kernels.guided_euler_step, latents, sums, weights, table[step], nonfinite, next_input)
        np.testing.assert_array_equal(latents, arrays["latents"][step, 0])


@each(case=CASES)
def test_pixels_are_the_reference_s(case: str) -> None:
    arrays = load_golden("e2e")
    decoded = arrays[f"{case}.decoded"]
    frames, _, height, width = decoded.shape
    pixels = np.empty((frames, height, width, 3), np.uint8)
    Target(CpuDevice()).run(kernels.frames_to_u8, decoded, pixels, np.zeros(1, np.int32))
    np.testing.assert_array_equal(pixels[1:].transpose(0, 3, 1, 2), arrays[f"{case}.frames_u8"])


def test_weights_rise_to_the_middle_and_the_reference_slot_has_one_share() -> None:
    np.testing.assert_allclose(tile_weights(4), [0.25, 0.75, 0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(tile_weights(5), [0.2, 0.6, 1.0, 0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(
        tile_weights(8), np.array([2, 3, 5, 7, 7, 5, 3, 1]) / [16, 8, 8, 8, 8, 8, 8, 8], rtol=1e-6
    )


@given(st.data())
def test_every_frame_is_covered_once_per_tile_at_most(data: st.DataObject) -> None:
    tile = data.draw(st.integers(2, 20))
    overlap = data.draw(st.integers(0, tile - 2))
    frames = data.draw(st.integers(1, 90))
    tiles = plan_tiles(frames, tile, overlap)
    covered = np.zeros(frames, int)
    for one in tiles:
        assert one.frames.shape == one.weights.shape == (tile,)
        assert one.frames[0] == 0
        assert one.weights[0] > 0
        used = one.frames[one.weights > 0]
        assert len(set(used.tolist())) == len(used)
        np.testing.assert_array_equal(np.diff(used[1:]), 1)
        covered[used] += 1
    assert (covered > 0).all()
    assert covered[0] == len(tiles)


def test_overlap_zero_covers_the_frames_that_the_reference_leaves_out() -> None:
    """The reference divides 0 by 0 in frames 4 and 8 of this clip."""
    left_out = load_golden("e2e")["exception.overlap_0_nan_frames"]
    assert left_out.tolist() == [4, 8]
    tiles = plan_tiles(12, 4, 0)
    assert frames_of(tiles) == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9], [0, 9, 10, 11]]
    assert frames_of(tiles) == frames_of(plan_tiles(12, 4, 1))


@each(frames=[1, 2, 5, 7])
def test_a_short_clip_fills_one_tile_and_its_spare_slots_are_dropped(frames: int) -> None:
    (tile,) = plan_tiles(frames, 8, 6)
    assert tile.frames.tolist() == [*range(frames), *[frames - 1] * (8 - frames)]
    assert (tile.weights > 0).tolist() == [slot < frames for slot in range(8)]
    assert tile.frames.dtype == np.int32
    assert tile.weights.dtype == np.float32


@each(
    arguments__message=[
        ((0, 8, 2), "0 frames"),
        ((9, 1, 0), "tile is 1"),
        ((9, 8, 7), r"overlap is 7; .*0\.\.6"),
        ((9, 8, -1), "overlap is -1"),
        ((9, 8, 100), "overlap is 100"),
    ]
)
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_tiles(*arguments)
