"""Point features against the reference's arrays, and the grouping of joints that share a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kernel_references as references
import numpy as np
import pytest
from golden_data import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from dispose_rt.appearance import group_points, joint_embeddings, point_features
from dispose_rt.errors import InputError
from dispose_rt.types import Track

CASES = ("p192x128", "s64", "l128x192", "dense")
E2E_CASES = ("one_tile_64", "tiles_128x192", "guidance_one_64")
EMBEDDING_TOLERANCE = 2e-6  # absolute, on values up to 4: torch fuses products and sums, our kernels never do
LEVEL_TOLERANCE = (
    1e-6  # absolute, on values up to 1.6: numpy's and torch's matrix products order their sums differently
)


@dataclass
class FakePointEncoder:
    """Two-layer perceptrons in numpy: (weights, biases) of both layers, per level."""

    layers: list[tuple[np.ndarray, ...]]
    limit: int = 256
    name: str = "point_encoder"
    batches: list[int] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        rows = inputs["embeddings"]
        assert rows.flags.c_contiguous
        assert rows.dtype == np.float32
        assert 1 <= len(rows) <= self.limit
        self.batches.append(len(rows))
        answers = {}
        for level, (first, first_bias, second, second_bias) in enumerate(self.layers):
            hidden = rows @ first.T + first_bias
            hidden = hidden / (1 + np.exp(-hidden))
            answers[f"point_features_{level}"] = hidden @ second.T + second_bias
        return answers

    def max_batch(self, dimension: str) -> int:
        assert dimension == "points"
        return self.limit

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def golden_layers(golden_checkpoint: Path) -> list[tuple[np.ndarray, ...]]:
    torch = pytest.importorskip("torch")
    state = torch.load(golden_checkpoint / "DisPose.pth", weights_only=True)
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    return [tuple(state[f"point_adapter.model_list.{i}.mlp.{name}"].numpy() for name in names) for i in range(4)]


def golden_case(case: str) -> tuple[dict[str, np.ndarray], Track, int, int]:
    prefix = f"{case}."
    arrays = {name.removeprefix(prefix): a for name, a in load_golden("points").items() if name.startswith(prefix)}
    height, width = map(int, arrays["hw"])
    return arrays, Track(arrays["candidate"][:, :18], arrays["subset"][:, 0] >= 0), height, width


@pytest.mark.parametrize("case", CASES)
def test_joint_embeddings_are_the_reference_s(case: str) -> None:
    arrays, track, height, width = golden_case(case)
    embeddings = joint_embeddings(arrays["dift"], track, height, width)
    np.testing.assert_allclose(embeddings, arrays["ref_point_emb"][0], rtol=0, atol=EMBEDDING_TOLERANCE)
    np.testing.assert_array_equal(embeddings.any(axis=1), track.visible[0])


@pytest.mark.parametrize("case", E2E_CASES)
def test_joint_embeddings_of_the_end_to_end_cases(case: str) -> None:
    arrays = load_golden("e2e")
    track = Track(arrays[f"{case}.aligned_candidate"][:, :18], arrays[f"{case}.aligned_subset"][:, 0] >= 0)
    height, width = arrays[f"{case}.ref_crop"].shape[:2]
    embeddings = joint_embeddings(arrays[f"{case}.dift_feature"], track, height, width)
    np.testing.assert_allclose(embeddings, arrays[f"{case}.ref_point_emb"][0], rtol=0, atol=EMBEDDING_TOLERANCE)


def test_height_and_width_are_swapped_on_purpose() -> None:
    """Reading the map as it stands gives other values: the test above can see the swap."""
    arrays, track, height, width = golden_case("p192x128")
    visible = track.visible[0]
    positions = np.clip(track.joints[0, visible] * (width, height), 0, (width - 1, height - 1)).astype(int)
    straight = references.sample_points(arrays["dift"][0], positions, height, width)
    assert np.abs(straight - arrays["ref_point_emb"][0, visible]).max() > 0.1


@pytest.mark.parametrize("limit", [1, 7, 256])
@pytest.mark.parametrize("case", CASES)
def test_point_features_are_the_reference_s(case: str, limit: int, golden_layers: list[tuple[np.ndarray, ...]]) -> None:
    arrays, track, height, width = golden_case(case)
    encoder = FakePointEncoder(golden_layers, limit)
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


@pytest.mark.parametrize(
    ("place", "cell"),
    [((-1e-9, 0.5), None), ((0.5, -0.2), None), ((1.0, 1.0), (3, 3)), ((7.5, 0.3), (1, 3)), ((0.0, 0.0), (0, 0))],
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
    shapes = [((5, 6), (5,), (channels, 5), (channels,)) for channels in (2, 3, 4, 4)]
    encoder = FakePointEncoder([tuple(rng.standard_normal(s, np.float32) for s in four) for four in shapes], limit)

    grid = (frames, 4 * rows, 4 * columns)
    totals, counts = np.zeros((*grid, 6), np.float32), np.zeros(grid, int)
    for frame, joint in np.argwhere(track.visible):
        x, y = track.joints[frame, joint]
        if x >= 0 and y >= 0:
            cell = (frame, min(int(y * grid[1]), grid[1] - 1), min(int(x * grid[2]), grid[2] - 1))
            totals[cell] += embeddings[joint]
            counts[cell] += 1
    means = (totals / np.maximum(counts, 1)[..., None]).reshape(-1, 6).astype(np.float32)
    whole = FakePointEncoder(encoder.layers, limit=len(means)).run({"embeddings": means})
    index = np.where(counts, np.arange(counts.size).reshape(grid), -1)
    expected = references.scatter_point_features([whole[f"point_features_{i}"] for i in range(4)], index)

    for ours, theirs in zip(point_features(track, embeddings, encoder, height, width), expected, strict=True):
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # values reach 50
    assert max(encoder.batches) <= limit


def test_a_clip_without_visible_joints_has_zero_features_of_the_encoder_s_shape() -> None:
    rng = np.random.default_rng(0)
    layers = [tuple(rng.standard_normal(s, np.float32) for s in ((5, 6), (5,), (c, 5), (c,))) for c in (2, 3, 4, 4)]
    track = Track(np.full((3, 18, 2), np.nan), np.zeros((3, 18), bool))
    levels = point_features(track, np.zeros((18, 6), np.float32), FakePointEncoder(layers), 128, 64)
    assert [level.shape for level in levels] == [(3, 2, 8, 4), (3, 3, 4, 2), (3, 4, 2, 1), (3, 4, 2, 1)]
    assert not any(level.any() for level in levels)


def test_the_encoder_s_half_precision_passes_through() -> None:
    class HalfEncoder(FakePointEncoder):
        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            return {name: array.astype(np.float16) for name, array in super().run(inputs).items()}

    layers = [tuple(np.ones(s, np.float32) for s in ((5, 6), (5,), (c, 5), (c,))) for c in (2, 3, 4, 4)]
    levels = point_features(one_frame({0: (0.5, 0.5)}), np.ones((18, 6), np.float32), HalfEncoder(layers), 64, 64)
    assert all(level.dtype == np.float16 for level in levels)
    assert levels[0].any()


def test_joints_that_are_missing_in_the_reference_have_zero_embeddings() -> None:
    features = np.ones((1, 5, 4, 4), np.float32)
    track = one_frame({2: (0.5, 0.5), 3: (-3.0, 40.0)})
    embeddings = joint_embeddings(features, track, 64, 64)
    np.testing.assert_array_equal(embeddings.any(axis=1), np.isin(np.arange(18), [2, 3]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_visible_joints_that_are_not_finite_are_named(value: float) -> None:
    track = one_frame({2: (0.5, value)}, frames=2)
    with pytest.raises(InputError, match=r"frames \[0, 1\]"):
        joint_embeddings(np.ones((1, 5, 4, 4), np.float32), track, 64, 64)
    with pytest.raises(InputError, match=r"frames \[0, 1\]"):
        group_points(track, np.ones((18, 5), np.float32), 64, 64)


def test_features_of_another_rank_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[1, channels, rows, columns\]"):
        joint_embeddings(np.ones((5, 4, 4), np.float32), one_frame({}), 64, 64)
