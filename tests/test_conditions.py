"""CLIP preprocessing and batching of the per-frame encoders."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.conditions import added_time_ids, clip_pixels, encode_motion, encode_poses
from dispose_rt.types import Motion


@pytest.mark.parametrize("case", ["small", "large"])
def test_clip_pixels_match_golden(golden, case):
    nets = golden("nets")
    expected = nets[f"clip.{case}.pixel_values"]
    # The reference works in float32: at 330 columns its sampling positions are rounded by up to 2e-5 of a pixel, and
    # the noisy picture changes by up to 1.5 from pixel to pixel. Ours is float64. The array's scale is 2.
    np.testing.assert_allclose(clip_pixels(nets[f"clip.{case}.image"]), expected, rtol=0, atol=5e-5)


def test_added_time_ids_match_golden(golden):
    for case in golden("e2e")["cases"]:
        np.testing.assert_array_equal(added_time_ids(127, 0.0)[0], golden("e2e")[f"{case}.added_time_ids"][1])


class EchoEngine:
    """Answers its first input, and remembers the batch sizes."""

    name = "echo"

    def __init__(self, source: str, output: str) -> None:
        self.source, self.output, self.batches = source, output, []

    def run(self, inputs):
        self.batches.append({name: array.shape[0] for name, array in inputs.items()})
        return {self.output: inputs[self.source].copy()}

    def max_batch(self, dimension):
        assert dimension == "frames"
        return 3

    def close(self):
        pass


def test_poses_are_scaled_and_batched():
    images = [np.full((3, 8, 8), value, np.uint8) for value in (0, 255, 51, 102, 153, 204, 0)]
    engine = EchoEngine("pose_images", "pose_latents")
    latents = encode_poses(iter(images), 7, engine)
    assert [batch["pose_images"] for batch in engine.batches] == [3, 3, 1]
    np.testing.assert_allclose(latents[:, 0, 0, 0], [-1, 1, -0.6, -0.2, 0.2, 0.6, -1], atol=1e-6)


@pytest.mark.parametrize("source", ["dense_flow", "trajectory_flow"])
def test_motion_of_the_reference_frame_is_zero_and_the_rest_shifts_by_one(source):
    rows = np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1, 1)
    flow = np.broadcast_to(rows, (6, 2, 8, 8)).copy()
    engine = EchoEngine(source, "motion_features")
    features = encode_motion(Motion(trajectory_flow=flow, dense_flow=flow), engine)
    np.testing.assert_array_equal(features[:, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6])
    assert [batch[source] for batch in engine.batches] == [3, 3, 1]


def test_one_driving_frame_fits_one_batch():
    flow = np.ones((1, 2, 8, 8), np.float32)
    features = encode_motion(Motion(flow, flow), EchoEngine("dense_flow", "motion_features"))
    np.testing.assert_array_equal(features[:, 0, 0, 0], [0, 1])
