"""The whole run through packages of AOTInductor on the CPU, held to the tolerances of ONNX Runtime's float32 run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.manifest import read_manifest
from tests.golden_case import GoldenCase, Trace, animate
from tests.pipeline.test_end_to_end import guided_predictions, of_scale, relative

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CASE = GoldenCase("one_tile_64")


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    return golden_engines(CASE, backend="aotinductor", targets=("cpu",))


@pytest.fixture(scope="module")
def trace(engines: Path) -> Trace:
    return animate(engines, **CASE.arguments())


def test_every_network_of_ours_is_a_package(engines: Path) -> None:
    manifest = read_manifest(engines)
    assert (manifest.backend, manifest.targets) == ("aotinductor", ("cpu",))
    for name, spec in NETWORKS.items():
        record = manifest.networks[name]
        assert record.backend == ("onnxruntime" if spec.published else "aotinductor")
        assert max(record.verification.values(), default=0) <= 1e-5


def test_motion_fields(trace: Trace) -> None:
    [motion] = trace.seen["motion"]
    assert of_scale(motion.trajectory_flow, CASE["traj_flow"][0]) <= 1e-5
    assert of_scale(motion.dense_flow, CASE["controlnet_flow"][0]) <= 1e-4


def test_conditions(trace: Trace) -> None:
    [conditions] = trace.seen["conditions"]
    assert relative(conditions.image_embeds, CASE["image_embeddings"][1:]) <= 1e-4
    assert relative(conditions.image_latents, CASE["image_latents"]) <= 1e-4
    assert relative(conditions.pose_latents, CASE["pose_latents"]) <= 1e-4


def test_latents_after_every_step(trace: Trace) -> None:
    steps = trace.seen["denoise_step"]
    assert len(steps) == len(CASE["latents"])
    for step, prediction in zip(steps, guided_predictions(trace, CASE.guidance), strict=True):
        assert relative(prediction, CASE["noise_pred"][step.step, 0]) <= 1e-4
        assert relative(step.latents, CASE["latents"][step.step, 0]) <= 1e-4


def test_frames(trace: Trace) -> None:
    expected = CASE["frames_u8"].transpose(0, 2, 3, 1).astype(np.int64)
    assert trace.animation.frames.dtype == np.uint8
    difference = np.abs(trace.animation.frames.astype(np.int64) - expected)
    print(f"mean difference {difference.mean():.4f}, timings {trace.animation.timings}")
    assert difference.mean() <= 0.1
    assert (difference <= 2).mean() >= 0.999
