"""The whole run against the reference's own numbers, stage by stage (tests/golden/e2e.npz)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.golden_case import E2E_CASES, GoldenCase, Trace

cases = pytest.mark.parametrize("name", E2E_CASES)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def of_scale(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the array's largest value."""
    assert actual.shape == expected.shape
    return float(np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max())


def guided_predictions(trace: Trace, guidance: float) -> list[np.ndarray]:
    predictions = []
    for step in trace.seen["denoise_step"]:
        without, conditional = step.sums / step.weights[:, None, None, None]
        predictions.append(without + np.float32(guidance) * (conditional - without))
    return predictions


@cases
def test_geometry_is_exact(name: str, golden_trace: Callable[..., Trace]) -> None:
    case, seen = GoldenCase(name), golden_trace(name).seen
    np.testing.assert_array_equal(seen["reference"][0], case["ref_crop"])
    np.testing.assert_array_equal(seen["poses"][0], case["pose_pixels_u8"])


@cases
def test_motion_fields(name: str, golden_trace: Callable[..., Trace]) -> None:
    case, [motion] = GoldenCase(name), golden_trace(name).seen["motion"]
    assert of_scale(motion.trajectory_flow, case["traj_flow"][0]) <= 1e-5
    assert of_scale(motion.dense_flow, case["controlnet_flow"][0]) <= 1e-4


@cases
def test_conditions(name: str, golden_trace: Callable[..., Trace]) -> None:
    case, [conditions] = GoldenCase(name), golden_trace(name).seen["conditions"]
    assert relative(conditions.image_embeds, case["image_embeddings"][1:]) <= 1e-4
    assert relative(conditions.image_latents, case["image_latents"]) <= 1e-4
    assert relative(conditions.pose_latents, case["pose_latents"]) <= 1e-4
    np.testing.assert_array_equal(conditions.added_time_ids, case["added_time_ids"][1:])


@cases
def test_latents_after_every_step(name: str, golden_trace: Callable[..., Trace]) -> None:
    case, trace = GoldenCase(name), golden_trace(name)
    steps = trace.seen["denoise_step"]
    assert len(steps) == len(case["latents"])
    for step, prediction in zip(steps, guided_predictions(trace, case.guidance), strict=True):
        assert relative(prediction, case["noise_pred"][step.step, 0]) <= 1e-4
        assert relative(step.latents, case["latents"][step.step, 0]) <= 1e-4


@cases
def test_frames(name: str, golden_trace: Callable[..., Trace]) -> None:
    expected = GoldenCase(name)["frames_u8"].transpose(0, 2, 3, 1).astype(np.int64)
    frames = golden_trace(name).animation.frames
    assert frames.dtype == np.uint8
    difference = np.abs(frames.astype(np.int64) - expected)
    assert difference.mean() <= 0.1
    assert (difference <= 2).mean() >= 0.999


@pytest.mark.parametrize("name", ["one_tile_64", pytest.param("tiles_128x192", marks=pytest.mark.slow)])
def test_half_precision_run(name: str, golden_trace: Callable[..., Trace]) -> None:
    case, trace = GoldenCase(name), golden_trace(name, "fp16")
    predictions = guided_predictions(trace, case.guidance)
    errors = [relative(ours, theirs[0]) for ours, theirs in zip(predictions, case["noise_pred"], strict=True)]
    expected = case["frames_u8"].transpose(0, 2, 3, 1).astype(np.float64)
    noise = np.mean((trace.animation.frames - expected) ** 2)
    peak_to_noise_db = 10 * np.log10(255**2 / noise)
    print(f"{name}: noise_pred {', '.join(f'{e:.1e}' for e in errors)}, {peak_to_noise_db:.1f} dB")
    assert max(errors) <= 1e-2
    assert peak_to_noise_db >= 50
