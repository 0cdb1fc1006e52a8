"""Motion fields against the reference's arrays, and on tracks that leave the image, vanish or coincide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispose_rt import kernels
from dispose_rt.contract import Sizes
from dispose_rt.device import Array, CpuDevice
from dispose_rt.device.cpu import CpuStream
from dispose_rt.errors import InputError
from dispose_rt.stages.motion import MotionFields, joint_tracks_px, nearest_table, sparse_hints, trajectory_impulses
from dispose_rt.types import Motion, Track
from tests.every import each
from tests.fakes.deferred_device import DeferredDevice
from tests.fakes.engine import FakeEngine
from tests.fakes.scarce_memory import fail_at_every_allocation
from tests.golden_data import load_golden
from tests.kernels import references

SIZES = Sizes(64, 64)

TRAJECTORY_CASES = ("p192x128", "s64_edge", "two_frames_96x128")
E2E_CASES = ("one_tile_64", "tiles_128x192", "guidance_one_64")
FLOW_TOLERANCE = 1e-7  # px; the arrays reach 0.15, the error comes from float32 profiles and sums


COLUMN = np.arange(48, dtype=np.float32)[:, None]


def download(fields: MotionFields, frames: int) -> Motion:
    """The motion fields of a clip's first frames, on the host, batch by batch."""
    decoder, stream = fields._decoder, fields._stream
    batch = min(decoder.max_batch("frames"), max(frames - 1, 1))
    flows = np.empty((2, frames - 1, 2, fields._height, fields._width), np.float32)
    arrays = stream.device.empty((2 * batch, 2, fields._height, fields._width), "float32")
    try:
        for start in range(1, frames, batch):
            count = min(batch, frames - start)
            parts = arrays.rows(0, count), arrays.rows(batch, batch + count)
            fields.fill(start, start + count, *parts, stream)
            for flow, part in zip(flows, parts, strict=True):
                flow[start - 1 : start - 1 + count] = part.download(stream)
    finally:
        arrays.free()
    return Motion(*flows)


def cmp_encoder(stream: CpuStream, image_features: Any = COLUMN) -> FakeEngine:
    """Keeps the picture that it was asked for in `seen`."""

    def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        engine.seen.append(inputs["image"])
        return {"image_features": image_features, "skip_features_4": 4, "skip_features_2": 2}

    engine = FakeEngine("cmp_image_encoder", SIZES, compute, stream=stream)
    engine.seen = []
    return engine


def cmp_decoder(stream: CpuStream, flow: np.ndarray | None = None, limit: int = 2) -> FakeEngine:
    """Answers recorded rows, in order, or a flow of its own for each frame; keeps what it was asked in `asked`."""

    def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        done = sum(len(call["mask"]) for call in engine.asked)
        engine.asked.append(inputs)
        if flow is not None:
            return {"flow": flow[done : done + len(inputs["mask"])]}
        features = inputs["image_features"][0, 0, :, 0]
        spread = np.roll(inputs["sparse_flow"], 7, axis=3) + np.cumsum(inputs["mask"], axis=2) * np.float32(0.37)
        return {"flow": spread + np.repeat(features, 8)}

    engine = FakeEngine("cmp_flow_decoder", replace(SIZES, tile=max(limit, 2)), compute, stream=stream)
    if limit == 1:
        engine.max_batch = lambda dimension: 1
    engine.asked = []
    return engine


@contextmanager
def motion_fields(
    image: np.ndarray, track: Track, limit: int = 2, flow: np.ndarray | None = None
) -> Iterator[MotionFields]:
    """On a device of its own; checks that all that is allocated is freed."""
    stream = CpuDevice().stream()
    encoder, decoder = cmp_encoder(stream), cmp_decoder(stream, flow, limit)
    with MotionFields(image, track, encoder, decoder) as fields:
        yield fields
    encoder.close()
    decoder.close()
    assert stream.device.pool.used_bytes == 0
    stream.device.close()


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def trajectory_flow(track: Track, height: int, width: int) -> np.ndarray:
    """The kernel's flow of the impulses of a track."""
    impulses = trajectory_impulses(track, height, width)
    stream = CpuDevice().stream()
    flow = stream.device.empty((len(impulses.flow_px), 2, height, width), "float32")
    arrays = (stream.device.array(values, stream) for values in (impulses.positions_px, impulses.flow_px))
    kernels.splat_gaussian_flow(*arrays, flow, stream)
    return flow.download(stream)


def golden_track(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Track:
    """Person 0 of a golden case."""
    return Track(arrays[f"{prefix}candidate"][:, :18], arrays[f"{prefix}subset"][:, 0] >= 0)


def golden_case(file: str, case: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{case}."): a for name, a in load_golden(file).items() if name.startswith(f"{case}.")}


@each(case=TRAJECTORY_CASES)
def test_tracks_are_the_reference_s(case: str) -> None:
    arrays = golden_case("trajectory", case)
    tracks = joint_tracks_px(golden_track(arrays), *map(int, arrays["hw"]))
    np.testing.assert_array_equal(tracks.transpose(1, 0, 2), arrays["track"])


@each(case=TRAJECTORY_CASES)
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
    stream = CpuDevice().stream()
    impulse = (np.array([[[300, 250]]], np.int32), np.array([[[1, -2]]], np.float32))
    target = stream.device.empty((1, 2, 500, 600), "float32")
    kernels.splat_gaussian_flow(*(stream.device.array(values, stream) for values in impulse), target, stream)
    flow = target.download(stream)
    row = stored["gaussian_kernel_row"]
    np.testing.assert_allclose(flow[0, :, 250, 201:400], [row, -2 * row], rtol=1e-6, atol=0)
    np.testing.assert_allclose(flow[0, 0, 151:350, 300], row, rtol=1e-6, atol=0)
    np.testing.assert_allclose(flow.sum((0, 2, 3)), [1, -2], rtol=1e-5)


@each(case=TRAJECTORY_CASES)
def test_trajectory_flow_is_the_reference_s(case: str) -> None:
    arrays = golden_case("trajectory", case)
    flow = trajectory_flow(golden_track(arrays), *map(int, arrays["hw"]))
    np.testing.assert_allclose(flow, arrays["traj_flow"][0], rtol=0, atol=FLOW_TOLERANCE)


@each(case=E2E_CASES)
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


@each(case=[*TRAJECTORY_CASES, *E2E_CASES, "cmp"])
def test_hints_are_exact(case: str) -> None:
    track, height, width, expected_flow, expected_mask = all_hint_cases()[case]
    with motion_fields(blank(height, width), track) as fields:
        download(fields, len(track.joints))
        asked = fields._decoder.asked
    np.testing.assert_array_equal(np.concatenate([call["sparse_flow"] for call in asked]), expected_flow[0])
    np.testing.assert_array_equal(np.concatenate([call["mask"] for call in asked]), expected_mask[0])


@each(
    file__prefix__image=[
        *[("trajectory", f"{case}.", "image") for case in TRAJECTORY_CASES],
        *[("e2e", f"{c}.", "ref_crop") for c in E2E_CASES],
    ]
)
def test_cmp_sees_the_nearest_resize(file: str, prefix: str, image: str) -> None:
    arrays = load_golden(file)
    expected = arrays[f"{prefix}first_frame_384"].reshape(1, 3, 384, 384)
    stream = CpuDevice().stream()
    encoder = cmp_encoder(stream)
    MotionFields(arrays[f"{prefix}{image}"], still_track(1), encoder, cmp_decoder(stream))
    [seen] = encoder.seen
    np.testing.assert_array_equal(seen, expected.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1))


@each(length=[64, 320, 448, 576, 896, 1024, 1600])
def test_nearest_resize_rounds_as_torch_does(length: int) -> None:
    """Single precision decides which pixel is taken: at 448 and 896 the exact quotient would take another."""
    torch = pytest.importorskip("torch")
    for source, target in ((length, 384), (384, length)):
        places = torch.arange(source).float()[None, None]
        expected = torch.nn.functional.interpolate(places, target, mode="nearest")[0, 0]
        table = nearest_table(source, target)
        assert table.dtype == np.int32
        np.testing.assert_array_equal(table, expected.numpy())


def still_track(frames: int) -> Track:
    return Track(np.full((frames, 18, 2), 0.5), np.ones((frames, 18), bool))


def moving_track(frames: int, seed: int = 0) -> Track:
    rng = np.random.default_rng(seed)
    return Track(rng.uniform(-0.1, 1.1, (frames, 18, 2)), rng.random((frames, 18)) < 0.8)


def test_dense_flow_is_the_reference_s_after_the_network() -> None:
    """The recorded network output, resized and scaled; two batches of one frame."""
    arrays = load_golden("cmp")
    track = golden_track(arrays)
    with motion_fields(blank(192, 128), track, limit=1, flow=arrays["flow_384"][0]) as fields:
        flow = download(fields, len(track.joints)).dense_flow
        calls = fields._decoder.asked
    np.testing.assert_allclose(flow, arrays["controlnet_flow"][0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([call["sparse_flow"] for call in calls]), arrays["sparse_flow_384"][0])
    assert len(calls) == 2


@each(limit=[1, 2, 16], case=TRAJECTORY_CASES[:2])
def test_the_image_encoder_runs_once_and_frames_come_in_batches(case: str, limit: int) -> None:
    arrays = golden_case("trajectory", case)
    track, image = golden_track(arrays), arrays["image"]
    frames = len(track.joints)
    answer = np.random.default_rng(0).standard_normal((frames - 1, 2, 384, 384), np.float32)
    stream = CpuDevice().stream()
    features = np.random.default_rng(1).standard_normal((1, 256, 48, 48), np.float32)
    encoder, decoder = cmp_encoder(stream, features), cmp_decoder(stream, answer, limit)
    motion = download(MotionFields(image, track, encoder, decoder), frames)
    height, width = image.shape[:2]
    rows, columns = np.arange(height) * 384 // height, np.arange(width) * 384 // width
    factors = np.array([width / 384, height / 384], np.float32)[:, None, None]
    np.testing.assert_array_equal(motion.dense_flow, answer[:, :, rows[:, None], columns] * factors)
    np.testing.assert_array_equal(motion.trajectory_flow, trajectory_flow(track, height, width))
    assert len(encoder.seen) == 1
    assert [len(call["mask"]) for call in decoder.asked] == [
        min(limit, frames - 1 - start) for start in range(0, frames - 1, limit)
    ]
    for call in decoder.asked:
        np.testing.assert_array_equal(call["image_features"], features)
        assert (call["skip_features_4"] == 4).all()
        assert (call["skip_features_2"] == 2).all()


def test_the_decoder_reads_the_encoder_s_answer_where_it_lies() -> None:
    stream = CpuDevice().stream()
    encoder, decoder = cmp_encoder(stream), cmp_decoder(stream)
    MotionFields(blank(64, 64), still_track(2), encoder, decoder)
    for name in ("image_features", "skip_features_4", "skip_features_2"):
        assert decoder.tensor(name) is encoder.tensor(name)


def test_a_reference_alone_has_no_motion_and_asks_no_decoder() -> None:
    with motion_fields(blank(64, 128), still_track(1)) as fields:
        motion = download(fields, 1)
        trajectory, dense = fill(fields, 0, 1)
        assert fields._decoder.asked == []
    assert motion.dense_flow.shape == motion.trajectory_flow.shape == (0, 2, 64, 128)
    assert not trajectory.any()
    assert not dense.any()


def fill(fields: MotionFields, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Both fields of a range, in arrays that held something else before."""
    stream = fields._stream
    shape = (stop - start, 2, fields._height, fields._width)
    arrays = [stream.device.array(np.full(shape, np.nan, np.float32), stream) for _ in range(2)]
    fields.fill(start, stop, *arrays, stream)
    trajectory, dense = (array.download(stream) for array in arrays)
    for array in arrays:
        array.free()
    return trajectory, dense


def whole_motion(track: Track, height: int, width: int) -> Motion:
    with motion_fields(blank(height, width), track, limit=16) as fields:
        return download(fields, len(track.joints))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.sets(st.integers(0, 9)), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_split_of_a_clip_gives_the_same_fields(
    frames: int, limit: int, cuts: set[int], hidden: bool, seed: int
) -> None:
    """Frame 0 is still; frame f has row f - 1 of the whole clip's flows, whoever asks for it and with whom."""
    height, width = 70, 90
    track = moving_track(frames, seed)
    if hidden:
        track = Track(np.full_like(track.joints, np.nan), np.zeros_like(track.visible))
    expected = whole_motion(track, height, width)
    bounds = sorted({0, frames, *(cut for cut in cuts if cut < frames)})
    with motion_fields(blank(height, width), track, limit) as fields:
        # from behind, so that no range relies on the one before it
        parts = [fill(fields, start, stop) for start, stop in reversed(list(pairwise(bounds)))]
    trajectory, dense = (np.concatenate(kind) for kind in zip(*reversed(parts), strict=True))
    for flow, rows in ((trajectory, expected.trajectory_flow), (dense, expected.dense_flow)):
        assert not flow[0].any()
        np.testing.assert_array_equal(flow[1:], rows)
    assert hidden or frames == 1 or dense.any()


def test_filling_queues_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that does nothing before it is waited for; nothing goes to or comes from the host either."""
    track = moving_track(7)
    stream = DeferredDevice().stream()
    fields = MotionFields(blank(64, 64), track, cmp_encoder(stream), cmp_decoder(stream))
    trajectory, dense = (stream.device.empty((7, 2, 64, 64), "float32") for _ in range(2))
    queued = len(stream.calls)
    with monkeypatch.context() as patch:
        for name in ("upload", "download"):
            patch.setattr(Array, name, None)
        fields.fill(0, 7, trajectory, dense, stream)
    fields.close()
    assert stream.waits == 0
    assert len(stream.calls) > queued > 0
    flows = trajectory.download(stream), dense.download(stream)
    with motion_fields(blank(64, 64), track) as fields:
        for flow, expected in zip(flows, fill(fields, 0, 7), strict=True):
            np.testing.assert_array_equal(flow, expected)


@each(start__stop=[(-1, 2), (0, 5), (3, 2)])
def test_frames_that_are_not_there_are_refused(start: int, stop: int) -> None:
    with motion_fields(blank(64, 64), moving_track(4)) as fields:
        array = fields._stream.device.empty((2, 2, 64, 64), "float32")
        with pytest.raises(InputError, match="a clip of 4"):
            fields.fill(start, stop, array, array, fields._stream)
        array.free()


@each(shape__dtype=[((3, 2, 64, 64), "float32"), ((2, 2, 64, 64), "int32")], wrong=["trajectory", "dense"])
def test_arrays_of_another_shape_are_refused(wrong: str, shape: tuple[int, ...], dtype: str) -> None:
    with motion_fields(blank(64, 64), moving_track(4)) as fields:
        device = fields._stream.device
        arrays = {name: device.empty((2, 2, 64, 64), "float32") for name in ("trajectory", "dense")}
        arrays[wrong].free()
        arrays[wrong] = device.empty(shape, dtype)
        with pytest.raises(InputError, match=rf"{wrong} is {dtype} .*; expected float32 \[2, 2, 64, 64\]"):
            fields.fill(1, 3, **arrays, stream=fields._stream)
        for array in arrays.values():
            array.free()


def test_what_was_allocated_before_an_error_is_freed() -> None:
    """The decoder of another precision is refused after the picture was uploaded."""
    stream = CpuDevice().stream()
    encoder = cmp_encoder(stream)
    decoder = FakeEngine("cmp_flow_decoder", SIZES, dict, "float16", stream)
    with pytest.raises(InputError, match="cmp_flow_decoder needs image_features as float16"):
        MotionFields(blank(64, 64), still_track(3), encoder, decoder)
    encoder.close()
    decoder.close()
    assert stream.device.pool.used_bytes == 0


def test_everything_is_given_back_when_memory_runs_out() -> None:
    stream = CpuDevice().stream()
    encoder, decoder = cmp_encoder(stream), cmp_decoder(stream)
    for engine in (encoder, decoder):
        engine.allocate()
    for name in ("image_features", "skip_features_4", "skip_features_2"):  # opening the fields frees the decoder's own
        decoder.bind(name, encoder.tensor(name))

    def look() -> None:
        with MotionFields(blank(64, 64), moving_track(4), encoder, decoder) as fields:
            download(fields, 4)

    assert fail_at_every_allocation(stream.device, look) == 10


def test_memory_is_given_back_at_once_when_closed() -> None:
    stream = CpuDevice().stream()
    encoder, decoder = cmp_encoder(stream), cmp_decoder(stream)
    with MotionFields(blank(64, 64), moving_track(4), encoder, decoder) as fields:
        download(fields, 4)
        open_bytes = stream.device.pool.used_bytes
    kept = stream.device.pool.used_bytes
    assert kept < open_bytes
    fields.close()
    with MotionFields(blank(128, 64), moving_track(3), encoder, decoder) as fields:
        download(fields, 3)
    assert stream.device.pool.used_bytes == kept


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


@each(value=[np.nan, np.inf, -np.inf])
def test_visible_joints_that_are_not_finite_are_named(value: float) -> None:
    joints = np.full((4, 18, 2), 0.5)
    joints[[1, 3], 7, 0] = value
    track = Track(joints, np.ones((4, 18), bool))
    for prepare in (trajectory_impulses, sparse_hints):
        with pytest.raises(InputError, match=r"frames \[1, 3\]"):
            prepare(track, 64, 64)


@each(image=[np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3))])
def test_images_that_are_no_rgb_pixels_are_refused(image: np.ndarray) -> None:
    stream = CpuDevice().stream()
    with pytest.raises(InputError, match="uint8"):
        MotionFields(image, still_track(1), cmp_encoder(stream), cmp_decoder(stream))
