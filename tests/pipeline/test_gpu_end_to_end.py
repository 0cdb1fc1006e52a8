"""The golden run through the engines of every backend that runs on the GPU at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.tensorrt_machine import require_tensorrt
from tests.golden_case import GoldenCase, Trace, animate
from tests.pipeline.test_end_to_end import guided_predictions, relative

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(1200)]

CASE = GoldenCase("one_tile_64")


@pytest.fixture(scope="module")
def run(golden_engines: Callable[..., Path]) -> Callable[[str, str], Trace]:
    """`run(backend, precision)` animates the golden case."""

    def animate_with(backend: str, precision: str) -> Trace:
        if backend == "tensorrt_rtx":
            require_tensorrt()
        elif not pytest.importorskip("torch").cuda.is_available():
            pytest.skip("no GPU here")
        return animate(golden_engines(CASE, precision, backend), **CASE.arguments())

    return animate_with


@pytest.mark.parametrize("backend", ["tensorrt_rtx", "aotinductor"])
def test_float32_run(run: Callable[[str, str], Trace], backend: str) -> None:
    trace = run(backend, "fp32")
    steps = trace.seen["denoise_step"]
    assert len(steps) == len(CASE["latents"])
    for step, prediction in zip(steps, guided_predictions(trace, CASE.guidance), strict=True):
        assert relative(prediction, CASE["noise_pred"][step.step, 0]) <= 1e-4
        assert relative(step.latents, CASE["latents"][step.step, 0]) <= 1e-4
    expected = CASE["frames_u8"].transpose(0, 2, 3, 1).astype(np.int64)
    difference = np.abs(trace.animation.frames.astype(np.int64) - expected)
    assert difference.mean() <= 0.1
    assert (difference <= 2).mean() >= 0.999


@pytest.mark.parametrize("backend", ["tensorrt_rtx", "aotinductor"])
def test_half_precision_run(run: Callable[[str, str], Trace], backend: str) -> None:
    trace = run(backend, "fp16")
    predictions = guided_predictions(trace, CASE.guidance)
    errors = [relative(ours, theirs[0]) for ours, theirs in zip(predictions, CASE["noise_pred"], strict=True)]
    expected = CASE["frames_u8"].transpose(0, 2, 3, 1).astype(np.float64)
    peak_to_noise_db = 10 * np.log10(255**2 / np.mean((trace.animation.frames - expected) ** 2))
    print(f"{backend}: noise_pred {', '.join(f'{e:.1e}' for e in errors)}, {peak_to_noise_db:.1f} dB")
    assert max(errors) <= 1e-2
    assert peak_to_noise_db >= 50
