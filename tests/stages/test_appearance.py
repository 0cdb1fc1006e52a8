"""Point features against the reference's arrays, and the grouping of joints that share a cell."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispose_rt.contract import Sizes
from dispose_rt.device import CpuDevice, round_to_bfloat16, widen_bfloat16
from dispose_rt.errors import EngineError, InputError
from dispose_rt.stages.appearance import encode_points, group_points, joint_embeddings, scatter
from dispose_rt.types import PointTables, Track
from tests.every import each
from tests.fakes.engine import FakeEngine
from tests.fakes.scarce_memory import fail_at_every_allocation
from tests.golden_data import load_golden
from tests.kernels import references

CASES = ("p192x128", "s64", "l128x192", "dense")
E2E_CASES = ("one_tile_64", "tiles_128x192", "guidance_one_64")
EMBEDDING_TOLERANCE = 2e-6  # absolute, on values up to 4: torch fuses products and sums, our kernels never do
LEVEL_TOLERANCE = (
    1e-6  # absolute, on values up to 1.6: numpy's and torch's matrix products order their sums differently
)


Layers = list[tuple[np.ndarray, ...]]
"""Two-layer perceptrons: weights and biases of both layers, per level."""


def encode(layers: Layers, rows: np.ndarray) -> list[np.ndarray]:
    answers = []
    for first, first_bias, second, second_bias in layers:
        hidden = rows @ first.T + first_bias
        hidden = hidden / (1 + np.exp(-hidden))
        answers.append(hidden @ second.T + second_bias)
    return answers


def point_encoder(layers: Layers, limit: int = 256, compute_dtype: str = "float32") -> FakeEngine:
    """On a device of its own."""

    def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {f"point_features_{i}": answer for i, answer in enumerate(encode(layers, inputs["embeddings"]))}

    channels = tuple(len(level[3]) for level in layers)
    sizes = Sizes(64, 64, channels=channels, dift=layers[0][0].shape[1], points=limit)
    return FakeEngine("point_encoder", sizes, compute, compute_dtype)


def random_layers(rng: np.random.Generator) -> Layers:
    shapes = [((5, 6), (5,), (channels, 5), (channels,)) for channels in (2, 3, 4, 4)]
    return [tuple(rng.standard_normal(shape, np.float32) for shape in four) for four in shapes]


def dift_engine(features: np.ndarray, height: int, width: int) -> FakeEngine:
    """Has answered the features."""
    sizes = Sizes(width, height, dift=features.shape[1])
    engine = FakeEngine("dift", sizes, lambda inputs: {"features": features})
    engine.enqueue(engine.stream)
    return engine


def read_joints(features: np.ndarray, track: Track, height: int, width: int) -> np.ndarray:
    """`joint_embeddings`; checks that all that is allocated is freed."""
    engine = dift_engine(features, height, width)
    used_bytes = engine.device.pool.used_bytes
    embeddings = joint_embeddings(engine, track, height, width)
    assert engine.device.pool.used_bytes == used_bytes
    return embeddings


def point_features(
    track: Track, embeddings: np.ndarray, encoder: FakeEngine, height: int, width: int
) -> tuple[np.ndarray, ...]:
    """All frames' features on the host; checks that all that is allocated is freed."""
    with closing(encode_points(track, embeddings, encoder, height, width)) as points:
        levels = scatter(points, 0, len(track.joints), encoder.stream)
    encoder.close()
    assert encoder.device.pool.used_bytes == 0
    return levels


@pytest.fixture(scope="module")
def golden_layers(golden_checkpoint: Path) -> Layers:
    torch = pytest.importorskip("torch")
    state = torch.load(golden_checkpoint / "DisPose.pth", weights_only=True)
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    return [tuple(state[f"point_adapter.model_list.{i}.mlp.{name}"].numpy() for name in names) for i in range(4)]


def golden_case(case: str) -> tuple[dict[str, np.ndarray], Track, int, int]:
    prefix = f"{case}."
    arrays = {name.removeprefix(prefix): a for name, a in load_golden("points").items() if name.startswith(prefix)}
    height, width = map(int, arrays["hw"])
    return arrays, Track(arrays["candidate"][:, :18], arrays["subset"][:, 0] >= 0), height, width


@each(case=CASES)
def test_joint_embeddings_are_the_reference_s(case: str) -> None:
    arrays, track, height, width = golden_case(case)
    embeddings = read_joints(arrays["dift"], track, height, width)
    np.testing.assert_allclose(embeddings, arrays["ref_point_emb"][0], rtol=0, atol=EMBEDDING_TOLERANCE)
    np.testing.assert_array_equal(embeddings.any(axis=1), track.visible[0])


@each(case=E2E_CASES)
def test_joint_embeddings_of_the_end_to_end_cases(case: str) -> None:
    arrays = load_golden("e2e")
    track = Track(arrays[f"{case}.aligned_candidate"][:, :18], arrays[f"{case}.aligned_subset"][:, 0] >= 0)
    height, width = arrays[f"{case}.ref_crop"].shape[:2]
    embeddings = read_joints(arrays[f"{case}.dift_feature"], track, height, width)
    np.testing.assert_allclose(embeddings, arrays[f"{case}.ref_point_emb"][0], rtol=0, atol=EMBEDDING_TOLERANCE)


def test_height_and_width_are_swapped_on_purpose() -> None:
    """Reading the map as it stands gives other values: the test above can see the swap."""
    arrays, track, height, width = golden_case("p192x128")
    visible = track.visible[0]
    positions = np.clip(track.joints[0, visible] * (width, height), 0, (width - 1, height - 1)).astype(int)
    straight = references.sample_points(arrays["dift"][0], positions, height, width)
    assert np.abs(straight - arrays["ref_point_emb"][0, visible]).max() > 0.1


@each(case=CASES, limit=[1, 7, 256])
def test_point_features_are_the_reference_s(case: str, limit: int, golden_layers: Layers) -> None:
    arrays, track, height, width = golden_case(case)
    encoder = point_encoder(golden_layers, limit)
    levels = point_features(track, arrays["ref_point_emb"][0], encoder, height, width)
    for index, level in enumerate(levels):
        expected = arrays[f"level{index}"][0]
        np.testing.assert_array_equal(level == 0, expected == 0)
        np.testing.assert_allclose(level, expected, rtol=0, atol=LEVEL_TOLERANCE)
    assert any(levels[0].any(axis=(1, 2, 3)))


def test_levels_two_and_three_are_reached_by_a_golden_case() -> None:
    assert load_golden("points")["dense.level2"].any()
    assert not load_golden("points")["p192x128.level2"].any()


def one_frame(joints: Mapping[int, tuple[float, float]], frames: int = 1) -> Track:
    track = Track(np.zeros((frames, 18, 2)), np.zeros((frames, 18), bool))
    for joint, place in joints.items():
        track.joints[:, joint] = place
        track.visible[:, joint] = True
    return track


def test_coincident_joints_share_a_mean_and_missing_references_count() -> None:
    embeddings = np.arange(36, dtype=np.float32).reshape(18, 2)
    embeddings[5] = 0  # missing in the reference
    groups = group_points(one_frame({3: (0.1, 0.1), 5: (0.12, 0.12), 9: (0.9, 0.1)}), embeddings, 64, 64)
    np.testing.assert_array_equal(groups.embeddings, [embeddings[3] / 2, embeddings[9]])
    np.testing.assert_array_equal(groups.cells[0, 0], [0, -1, -1, 1])
    assert (groups.cells[0, 1:] == -1).all()


def test_the_same_set_of_joints_is_encoded_once_over_the_clip() -> None:
    track = one_frame({3: (0.1, 0.1), 5: (0.12, 0.12), 9: (0.9, 0.1)}, frames=5)
    track.joints[2:] += 0.05
    track.joints[4, 5] = 0.6
    groups = group_points(track, np.eye(18, dtype=np.float32), 128, 64)
    assert groups.cells.shape == (5, 8, 4)
    assert len(groups.embeddings) == 4  # {3, 5}, {9}, {3}, {5}
    assert [np.count_nonzero(frame >= 0) for frame in groups.cells] == [2, 2, 2, 2, 3]


@each(
    place__cell=[
        ((-1e-9, 0.5), None),
        ((0.5, -0.2), None),
        ((1.0, 1.0), (3, 3)),
        ((7.5, 0.3), (1, 3)),
        ((0.0, 0.0), (0, 0)),
    ]
)
def test_joints_outside_are_skipped_or_clamped_by_side(
    place: tuple[float, float], cell: tuple[int, int] | None
) -> None:
    groups = group_points(one_frame({4: place}), np.ones((18, 1), np.float32), 64, 64)
    assert [tuple(index) for index in np.argwhere(groups.cells[0] >= 0)] == ([] if cell is None else [cell])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 300))
def test_point_features_equal_a_loop_over_frames_and_joints(
    seed: int, frames: int, rows: int, columns: int, limit: int
) -> None:
    """The reference's order of work: average on the grid, encode every cell, mask, reduce, mask."""
    rng = np.random.default_rng(seed)
    height, width = 64 * rows, 64 * columns
    track = Track(rng.uniform(-0.2, 1.2, (frames, 18, 2)), rng.random((frames, 18)) < 0.6)
    track.joints[:, 4] = track.joints[:, 11]
    embeddings = rng.standard_normal((18, 6), np.float32)
    layers = random_layers(rng)
    encoder = point_encoder(layers, limit)

    grid = (frames, 4 * rows, 4 * columns)
    totals, counts = np.zeros((*grid, 6), np.float32), np.zeros(grid, int)
    for frame, joint in np.argwhere(track.visible):
        x, y = track.joints[frame, joint]
        if x >= 0 and y >= 0:
            cell = (frame, min(int(y * grid[1]), grid[1] - 1), min(int(x * grid[2]), grid[2] - 1))
            totals[cell] += embeddings[joint]
            counts[cell] += 1
    means = (totals / np.maximum(counts, 1)[..., None]).reshape(-1, 6).astype(np.float32)
    index = np.where(counts, np.arange(counts.size).reshape(grid), -1)
    expected = references.scatter_point_features(encode(layers, means), index)

    for ours, theirs in zip(point_features(track, embeddings, encoder, height, width), expected, strict=True):
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # values reach 50
    groups = len(group_points(track, embeddings, height, width).embeddings)
    expected_batches = [min(limit, max(groups, 1) - start) for start in range(0, max(groups, 1), limit)]
    assert [batch["points"] for batch in encoder.batches] == expected_batches


def test_a_clip_without_visible_joints_has_zero_features_of_the_encoder_s_shape() -> None:
    track = Track(np.full((3, 18, 2), np.nan), np.zeros((3, 18), bool))
    encoder = point_encoder(random_layers(np.random.default_rng(0)))
    with closing(encode_points(track, np.zeros((18, 6), np.float32), encoder, 128, 64)) as points:
        assert [table.shape for table in points.tables] == [(1, 2), (1, 3), (1, 4), (1, 4)]
        levels = scatter(points, 0, 3, encoder.stream)
    assert [level.shape for level in levels] == [(3, 2, 8, 4), (3, 3, 4, 2), (3, 4, 2, 1), (3, 4, 2, 1)]
    assert not any(level.any() for level in levels)


@each(compute_dtype=["float16", "bfloat16"])
def test_the_encoder_s_precision_passes_through(compute_dtype: str) -> None:
    layers = random_layers(np.random.default_rng(0))
    halves = {"float16": np.float16, "bfloat16": round_to_bfloat16}  # bfloat16 shows as its bits in a fake engine
    answers = [halves[compute_dtype](answer) for answer in encode(layers, np.ones((1, 6), np.float32))]
    sizes = Sizes(64, 64, channels=(2, 3, 4, 4), dift=6)
    encoder = FakeEngine(
        "point_encoder", sizes, lambda _: {f"point_features_{i}": answers[i] for i in range(4)}, compute_dtype
    )
    with closing(encode_points(one_frame({0: (0.5, 0.5)}), np.ones((18, 6), np.float32), encoder, 64, 64)) as points:
        assert {table.dtype for table in points.tables} == {compute_dtype}
        levels = scatter(points, 0, 1, encoder.stream)
    expected = widen_bfloat16(answers[0]) if compute_dtype == "bfloat16" else answers[0]
    assert all(level.dtype == expected.dtype for level in levels)
    np.testing.assert_array_equal(levels[0][0, :, 2, 2], expected[0])


def test_any_range_of_frames_can_be_looked_at() -> None:
    rng = np.random.default_rng(3)
    track = Track(rng.uniform(0, 1, (5, 18, 2)), rng.random((5, 18)) < 0.6)
    encoder = point_encoder(random_layers(rng))
    with closing(encode_points(track, rng.standard_normal((18, 6), np.float32), encoder, 64, 128)) as points:
        whole = scatter(points, 0, 5, encoder.stream)
        for start, stop in ((0, 1), (1, 4), (4, 5), (2, 2)):
            for part, level in zip(scatter(points, start, stop, encoder.stream), whole, strict=True):
                np.testing.assert_array_equal(part, level[start:stop])


@each(cell=[-2, 3])
def test_cells_of_groups_that_do_not_exist_are_refused(cell: int) -> None:
    stream = CpuDevice().stream()
    tables = tuple(stream.device.zeros((3, channels), "float32", stream) for channels in (2, 3, 4, 4))
    cells = np.full((2, 4, 4), -1, np.int32)
    PointTables(cells, tables)
    cells[1, 2, 3] = cell
    with pytest.raises(InputError, match=rf"-?{abs(cell)}.*one of 3 groups"):
        PointTables(cells, tables)


@each(height__width=[(96, 64), (64, 80)])
def test_sizes_that_the_pyramid_cannot_have_are_refused(height: int, width: int) -> None:
    encoder = point_encoder(random_layers(np.random.default_rng(0)))
    with pytest.raises(InputError, match=f"{width} x {height}.*divisible by 64"):
        encode_points(one_frame({}), np.ones((18, 6), np.float32), encoder, height, width)


def test_an_encoder_that_answers_nan_is_named_and_nothing_stays_allocated() -> None:
    layers = random_layers(np.random.default_rng(0))
    layers[2][3][1] = np.nan
    encoder = point_encoder(layers)
    with pytest.raises(EngineError, match="point_encoder returned non-finite values in float32: point_features_2"):
        encode_points(one_frame({0: (0.5, 0.5)}), np.ones((18, 6), np.float32), encoder, 64, 64)
    encoder.close()
    assert encoder.device.pool.used_bytes == 0


def test_dift_features_that_are_nan_at_a_joint_are_named() -> None:
    features = np.ones((1, 5, 4, 4), np.float32)
    features[0, 2, 1, 1] = np.nan
    engine = dift_engine(features, 64, 64)
    with pytest.raises(EngineError, match="dift returned non-finite values in float32: features"):
        joint_embeddings(engine, one_frame({2: (0.4, 0.4)}), 64, 64)


def test_everything_is_given_back_when_memory_runs_out() -> None:
    rng = np.random.default_rng(0)
    track = Track(rng.uniform(0, 1, (3, 18, 2)), np.ones((3, 18), bool))
    dift, encoder = dift_engine(np.ones((1, 6, 4, 4), np.float32), 64, 64), point_encoder(random_layers(rng))
    encoder.allocate()
    assert fail_at_every_allocation(dift.device, lambda: joint_embeddings(dift, track, 64, 64)) == 2

    def look() -> None:
        with closing(encode_points(track, rng.random((18, 6), np.float32), encoder, 64, 64)) as points:
            scatter(points, 0, 3, encoder.stream)

    assert fail_at_every_allocation(encoder.device, look) == 4 + 5


def test_closing_twice_is_fine() -> None:
    encoder = point_encoder(random_layers(np.random.default_rng(0)))
    with closing(encode_points(one_frame({0: (0.5, 0.5)}), np.ones((18, 6), np.float32), encoder, 64, 64)) as points:
        points.close()


def test_a_reference_without_visible_joints_has_zero_embeddings() -> None:
    track = Track(np.full((2, 18, 2), np.nan), np.zeros((2, 18), bool))
    embeddings = read_joints(np.ones((1, 5, 4, 4), np.float32), track, 64, 64)
    np.testing.assert_array_equal(embeddings, np.zeros((18, 5), np.float32))


def test_joints_that_are_missing_in_the_reference_have_zero_embeddings() -> None:
    features = np.ones((1, 5, 4, 4), np.float32)
    track = one_frame({2: (0.5, 0.5), 3: (-3.0, 40.0)})
    embeddings = read_joints(features, track, 64, 64)
    np.testing.assert_array_equal(embeddings.any(axis=1), np.isin(np.arange(18), [2, 3]))


@each(value=[np.nan, np.inf])
def test_visible_joints_that_are_not_finite_are_named(value: float) -> None:
    track = one_frame({2: (0.5, value)}, frames=2)
    with pytest.raises(InputError, match=r"frames \[0, 1\]"):
        read_joints(np.ones((1, 5, 4, 4), np.float32), track, 64, 64)
    with pytest.raises(InputError, match=r"frames \[0, 1\]"):
        group_points(track, np.ones((18, 5), np.float32), 64, 64)
