"""Motion fields against the reference's arrays, and on tracks that leave the image, vanish or coincide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import kernel_references as references
import numpy as np
import pytest
from golden_data import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from dispose_rt.errors import InputError
from dispose_rt.kernels import splat_gaussian_flow
from dispose_rt.motion import build_motion, cmp_image, dense_flow, joint_tracks_px, sparse_hints, trajectory_flow
from dispose_rt.types import Track

TRAJECTORY_CASES = ("p192x128", "s64_edge", "two_frames_96x128")
E2E_CASES = ("one_tile_64", "tiles_128x192", "guidance_one_64")
FLOW_TOLERANCE = 1e-7  # px; the arrays reach 0.15, the error comes from float32 profiles and sums


@dataclass
class FakeEngine:
    """Answers recorded rows, in order, and keeps what it was asked."""

    name: str
    answers: Mapping[str, np.ndarray]
    limit: int = 2
    calls: list[dict[str, np.ndarray]] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert all(array.flags.c_contiguous for array in inputs.values())
        done = sum(len(call["sparse_flow"]) for call in self.calls if "sparse_flow" in call)
        self.calls.append(dict(inputs))
        if "sparse_flow" not in inputs:
            return dict(self.answers)
        rows = slice(done, done + len(inputs["sparse_flow"]))
        return {name: array[rows] for name, array in self.answers.items()}

    def max_batch(self, dimension: str) -> int:
        assert dimension == "frames"
        return self.limit

    def close(self) -> None:
        pass


def golden_track(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Track:
    """Person 0 of a golden case."""
    return Track(arrays[f"{prefix}candidate"][:, :18], arrays[f"{prefix}subset"][:, 0] >= 0)


def golden_case(file: str, case: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{case}."): a for name, a in load_golden(file).items() if name.startswith(f"{case}.")}


@pytest.mark.parametrize("case", TRAJECTORY_CASES)
def test_tracks_are_the_reference_s(case: str) -> None:
    arrays = golden_case("trajectory", case)
    tracks = joint_tracks_px(golden_track(arrays), *map(int, arrays["hw"]))
    np.testing.assert_array_equal(tracks.transpose(1, 0, 2), arrays["track"])


@pytest.mark.parametrize("case", TRAJECTORY_CASES)
def test_impulses_are_the_reference_s(case: str) -> None:
    """What is blurred: displacements, assigned in joint order at truncated positions, where the joint is visible."""
    arrays = golden_case("trajectory", case)
    track = golden_track(arrays)
    np.testing.assert_array_equal(track.visible.T, arrays["track_subset"][..., 0] != -1)
    tracks = joint_tracks_px(track, *map(int, arrays["hw"]))
    impulses = np.zeros_like(arrays["sparse_traj"])
    for frame, joint in np.argwhere(track.visible[:-1]):
        x, y = tracks[frame, joint].astype(int)
        impulses[frame, y, x] = tracks[frame + 1, joint] - tracks[frame, joint]
    np.testing.assert_array_equal(impulses, arrays["sparse_traj"])


def test_one_impulse_spreads_as_the_reference_s_kernel() -> None:
    stored = load_golden("trajectory")
    assert float(stored["gaussian_kernel_sum"]) == pytest.approx(1)
    flow = splat_gaussian_flow(np.array([[[300, 250]]], np.int32), np.array([[[1, -2]]], np.float32), 500, 600)
    row = stored["gaussian_kernel_row"]
    np.testing.assert_allclose(flow[0, :, 250, 201:400], [row, -2 * row], rtol=1e-6, atol=0)
    np.testing.assert_allclose(flow[0, 0, 151:350, 300], row, rtol=1e-6, atol=0)
    np.testing.assert_allclose(flow.sum((0, 2, 3)), [1, -2], rtol=1e-5)


@pytest.mark.parametrize("case", TRAJECTORY_CASES)
def test_trajectory_flow_is_the_reference_s(case: str) -> None:
    arrays = golden_case("trajectory", case)
    flow = trajectory_flow(golden_track(arrays), *map(int, arrays["hw"]))
    np.testing.assert_allclose(flow, arrays["traj_flow"][0], rtol=0, atol=FLOW_TOLERANCE)


@pytest.mark.parametrize("case", E2E_CASES)
def test_trajectory_flow_of_the_end_to_end_cases(case: str) -> None:
    arrays = golden_case("e2e", case)
    height, width = arrays["ref_crop"].shape[:2]
    flow = trajectory_flow(golden_track(arrays, "aligned_"), height, width)
    np.testing.assert_allclose(flow, arrays["traj_flow"][0], rtol=0, atol=FLOW_TOLERANCE)


def all_hint_cases() -> dict[str, tuple[Track, int, int, np.ndarray, np.ndarray]]:
    """Track, height, width, hints and mask of every golden case that records them."""
    cases = {}
    for name in TRAJECTORY_CASES:
        arrays = golden_case("trajectory", name)
        cases[name] = (golden_track(arrays), *map(int, arrays["hw"]), arrays["sparse_flow_384"], arrays["mask_384"])
    for name in E2E_CASES:
        arrays = golden_case("e2e", name)
        size = arrays["ref_crop"].shape[:2]
        cases[name] = (golden_track(arrays, "aligned_"), *size, arrays["sparse_flow_384"], arrays["mask_384"])
    arrays = load_golden("cmp")
    cases["cmp"] = (golden_track(arrays), 192, 128, arrays["sparse_flow_384"], arrays["mask_384"])
    return cases


@pytest.mark.parametrize("case", [*TRAJECTORY_CASES, *E2E_CASES, "cmp"])
def test_hints_are_exact(case: str) -> None:
    track, height, width, expected_flow, expected_mask = all_hint_cases()[case]
    hints = sparse_hints(track, height, width)
    flow, mask = hints.rasterize(0, len(hints.flow_px))
    np.testing.assert_array_equal(flow, expected_flow[0])
    np.testing.assert_array_equal(mask, expected_mask[0])


@pytest.mark.parametrize(
    ("file", "prefix", "image"),
    [
        *[("trajectory", f"{case}.", "image") for case in TRAJECTORY_CASES],
        *[("e2e", f"{c}.", "ref_crop") for c in E2E_CASES],
    ],
)
def test_cmp_image_is_the_nearest_resize(file: str, prefix: str, image: str) -> None:
    arrays = load_golden(file)
    expected = arrays[f"{prefix}first_frame_384"].reshape(1, 3, 384, 384)
    signed = cmp_image(arrays[f"{prefix}{image}"])
    np.testing.assert_array_equal(signed, expected.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1))


@pytest.mark.parametrize("length", [64, 320, 448, 576, 896, 1024, 1600])
def test_nearest_resize_rounds_as_torch_does(length: int) -> None:
    """Single precision decides which pixel is taken: at 448 and 896 the exact quotient would take another."""
    torch = pytest.importorskip("torch")
    image = np.broadcast_to(np.arange(length)[:, None, None] % 251, (length, 64, 3)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(torch.arange(length).float()[None, None], 384, mode="nearest")[0, 0]
    np.testing.assert_array_equal(cmp_image(image)[0, 0, :, 0], (expected % 251).numpy() / np.float32(255) * 2 - 1)


def test_dense_flow_is_the_reference_s_after_the_network() -> None:
    """The recorded network output, resized and scaled; two batches of one frame."""
    arrays = load_golden("cmp")
    hints = sparse_hints(golden_track(arrays), 192, 128)
    features = {"image_features": np.zeros((1, 2), np.float16)}
    decoder = FakeEngine("cmp_flow_decoder", {"flow": arrays["flow_384"][0]}, limit=1)
    flow = dense_flow(features, hints, decoder, 192, 128)
    np.testing.assert_allclose(flow, arrays["controlnet_flow"][0], rtol=0, atol=1e-6)
    asked = np.concatenate([call["sparse_flow"] for call in decoder.calls])
    np.testing.assert_array_equal(asked, arrays["sparse_flow_384"][0])
    assert len(decoder.calls) == 2
    assert all(call["image_features"] is features["image_features"] for call in decoder.calls)


@pytest.mark.parametrize("case", TRAJECTORY_CASES[:2])
@pytest.mark.parametrize("limit", [1, 2, 16])
def test_build_motion_runs_the_image_encoder_once_and_batches_the_frames(case: str, limit: int) -> None:
    arrays = golden_case("trajectory", case)
    track, image = golden_track(arrays), arrays["image"]
    frames = len(track.joints)
    answer = np.random.default_rng(0).standard_normal((frames - 1, 2, 384, 384), np.float32)
    encoder = FakeEngine("cmp_image_encoder", {"image_features": np.ones((1, 2), np.float32)})
    decoder = FakeEngine("cmp_flow_decoder", {"flow": answer}, limit)
    motion = build_motion(image, track, encoder, decoder)
    height, width = image.shape[:2]
    rows, columns = np.arange(height) * 384 // height, np.arange(width) * 384 // width
    factors = np.array([width / 384, height / 384], np.float32)[:, None, None]
    np.testing.assert_array_equal(motion.dense_flow, answer[:, :, rows[:, None], columns] * factors)
    np.testing.assert_array_equal(motion.trajectory_flow, trajectory_flow(track, height, width))
    assert len(encoder.calls) == 1
    assert [len(call["mask"]) for call in decoder.calls] == [
        min(limit, frames - 1 - start) for start in range(0, frames - 1, limit)
    ]


def test_a_reference_alone_has_no_motion_and_asks_no_decoder() -> None:
    track = Track(np.full((1, 18, 2), 0.5), np.ones((1, 18), bool))
    encoder = FakeEngine("cmp_image_encoder", {"image_features": np.ones((1, 2), np.float32)})
    decoder = FakeEngine("cmp_flow_decoder", {"flow": np.zeros((0, 2, 384, 384), np.float32)})
    motion = build_motion(np.zeros((64, 128, 3), np.uint8), track, encoder, decoder)
    assert motion.dense_flow.shape == motion.trajectory_flow.shape == (0, 2, 64, 128)
    assert decoder.calls == []


COORDINATES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, 0.5, -0.0, 1 - 1e-12]))


@st.composite
def tracks(draw: st.DrawFn) -> Track:
    """Tracks on and off the image; some joints coincide, hidden ones may hold anything."""
    frames = draw(st.integers(1, 3))
    flat = draw(st.lists(COORDINATES, min_size=8, max_size=8))
    choice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    joints = choice.choice(flat, (frames, 18, 2))
    visible = choice.random((frames, 18)) < 0.7
    joints[~visible & (choice.random((frames, 18)) < 0.5)] = np.nan
    return Track(joints, visible)


@settings(max_examples=50, deadline=None)
@given(tracks(), st.integers(1, 120), st.integers(1, 120))
def test_trajectory_flow_follows_the_rules_on_any_track(track: Track, height: int, width: int) -> None:
    """Clamped, missing at (0, 0), last joint wins, then the 199-tap filter: one pixel at a time."""
    frames = len(track.joints)
    clamped = np.zeros((frames, 18, 2))
    for frame, joint in np.argwhere(track.visible):
        x, y = track.joints[frame, joint]
        clamped[frame, joint] = min(max(x * width, 0), width - 1), min(max(y * height, 0), height - 1)
    positions = clamped[:-1].astype(int)
    positions[~track.visible[:-1]] = -1
    expected = references.splat_gaussian_flow(positions, clamped[1:] - clamped[:-1], height, width)
    flow = trajectory_flow(track, height, width)
    assert flow.shape == (frames - 1, 2, height, width)
    np.testing.assert_allclose(flow, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_visible_joints_that_are_not_finite_are_named(value: float) -> None:
    joints = np.full((4, 18, 2), 0.5)
    joints[[1, 3], 7, 0] = value
    with pytest.raises(InputError, match=r"frames \[1, 3\]"):
        trajectory_flow(Track(joints, np.ones((4, 18), bool)), 64, 64)


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3))]
)
def test_images_that_are_no_rgb_pixels_are_refused(image: np.ndarray) -> None:
    engine = FakeEngine("unused", {})
    with pytest.raises(InputError, match="uint8"):
        build_motion(image, Track(np.zeros((1, 18, 2)), np.ones((1, 18), bool)), engine, engine)
