"""A golden run through the CUDA code path: ONNX Runtime computes in the memory of a fake GPU, whose streams do nothing
before somebody waits for them. What is queued in a wrong order, waited for too late or captured wrongly changes bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.device import open_device
from dispose_rt.engines.backends import onnxruntime
from dispose_rt.stages.denoise import loop
from tests.fakes import cuda as fake_cuda
from tests.golden_case import GoldenCase, Trace, animate

CASE = GoldenCase("one_tile_64")


@pytest.fixture
def expected(golden_trace: Callable[..., Trace]) -> Trace:
    return golden_trace("one_tile_64")


@pytest.fixture
def cuda(expected: Trace, monkeypatch: pytest.MonkeyPatch) -> fake_cuda.FakeCuda:
    """Installed after the expected run, which is the CPU's."""
    cuda = fake_cuda.install(monkeypatch, memory_bytes=1 << 32)
    monkeypatch.setattr(onnxruntime, "CpuDevice", lambda: open_device("cuda"))
    monkeypatch.setattr(onnxruntime, "submit", fake_cuda.submit)
    return cuda


def check_graphs_and_leftovers(cuda: fake_cuda.FakeCuda, graphs: int) -> None:
    """One graph for a whole step, or one for each network of its only tile."""
    assert cuda.calls.count("cudaStreamBeginCapture") == graphs
    assert cuda.calls.count("cudaGraphLaunch") == graphs * (int(CASE["config"][6]) - 1)
    for left in (cuda.blocks, cuda.host_blocks, cuda.streams, cuda.events, cuda.graphs, cuda.executables):
        assert left == {}


def test_every_stage_has_the_bits_of_the_cpu(
    cuda: fake_cuda.FakeCuda, expected: Trace, golden_engines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SHORT_TILE_S", math.inf)
    trace = animate(golden_engines(CASE), **CASE.arguments())
    for ours, theirs in zip(trace.seen["denoise_step"], expected.seen["denoise_step"], strict=True):
        np.testing.assert_array_equal(ours.latents, theirs.latents)
    [ours], [theirs] = trace.seen["conditions"], expected.seen["conditions"]
    np.testing.assert_array_equal(ours.pose_latents, theirs.pose_latents)
    np.testing.assert_array_equal(ours.motion_features, theirs.motion_features)
    np.testing.assert_array_equal(trace.animation.frames, expected.animation.frames)
    check_graphs_and_leftovers(cuda, 1)


@pytest.mark.parametrize("place", ["host", "recompute"])
def test_nobody_looking_and_conditions_streamed_from_the_host_or_computed_again(
    place: str, cuda: fake_cuda.FakeCuda, expected: Trace, golden_engines: Callable[..., Path]
) -> None:
    with Animator(golden_engines(CASE)) as animator:
        animation = animator.run(conditions_memory=place, **CASE.arguments())
    np.testing.assert_array_equal(animation.frames, expected.animation.frames)
    assert animation.peak_bytes > 0
    check_graphs_and_leftovers(cuda, 2)
