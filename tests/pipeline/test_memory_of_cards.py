"""Whole runs on cards of all sizes, scaled, where TensorRT, torch and the driver allocate beside our pool."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from dispose_rt import Animator, animator
from dispose_rt.clip.plan import estimate_clip
from dispose_rt.engines.footprint import footprints, plan_memory
from dispose_rt.errors import OutOfMemoryError, PerformanceWarning
from dispose_rt.settings import CONTROLS
from dispose_rt.stages import pose
from dispose_rt.stages.denoise import loop as denoise
from dispose_rt.stages.pose import draw
from tests.fakes import cards
from tests.fakes.cards import Card, Packages
from tests.fakes.networks import FakeNetworks, dancer, film, run_networks
from tests.stages.denoise.test_loop import SIZES

FRAMES = 6


def frames_of(networks: Any) -> np.ndarray:
    return np.concatenate(list(run_networks(networks, film(FRAMES))))


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return frames_of(FakeNetworks())


def test_runs_end_on_the_cards_that_people_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: np.ndarray
) -> None:
    """With the same bits: engines are closed before the decoder's chunk gets shorter. The plan knows the peak.

    CMP's pictures have one size, so that they count for more here than on real cards.
    """
    monkeypatch.setattr(denoise, "SHORT_TILE_S", 0)  # as at published sizes: each network has a graph
    for memory_gb, residency, runs in ((24, "all", 1), (17, "once", 2), (12, "stages", 2)):
        card = Card(tmp_path, monkeypatch, memory_gb)
        engines = card.engines()
        plan = plan_memory(footprints(card.manifest), SIZES, card.cuda.memory_bytes, controls=CONTROLS)
        assert (plan.residency, plan.chunk) == (residency, SIZES.chunk)
        for _ in range(runs):
            np.testing.assert_array_equal(frames_of(engines), expected)
        assert card.trt.engines["unet"].loads == (runs if residency == "stages" else 1)
        assert card.trt.engines["dift"].loads == (1 if residency == "all" else runs)
        assert len(engines.loader._graphs) == (0 if residency == "stages" else 2)
        clip_bytes = estimate_clip(FRAMES + 1, SIZES, {}, "device").device_bytes
        cmp_bytes = 2.6 * cards.GB  # which the plan keeps to compute conditions again, and counts lent tensors of twice
        assert plan.engine_bytes - cmp_bytes < card.cuda.highest_bytes < 1.03 * (plan.engine_bytes + clip_bytes)
        device = engines.loader.device
        assert device.pool.reserved_bytes == device.pool.used_bytes == card.cuda.used_bytes  # others find it free
        engines.close()
        assert card.cuda.foreign_bytes == card.cuda.used_bytes == 0


def test_smaller_cards_shorten_the_chunk_or_say_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: np.ndarray
) -> None:
    card = Card(tmp_path, monkeypatch, 7)
    with pytest.raises(OutOfMemoryError, match=r"GB of cuda:0 in the stage denoise.*--tile-frames 2.*doctor.*--plan"):
        frames_of(card.engines())
    assert sum(engine.loads for engine in card.trt.engines.values()) == 0
    monkeypatch.setitem(cards.SCRATCH_GB, "vae_decoder", 14)
    card = Card(tmp_path, monkeypatch, 12)
    with pytest.warns(PerformanceWarning, match="4 frames are decoded at once"):
        np.testing.assert_array_equal(frames_of(card.engines()), expected)


def test_of_two_directories_the_idle_one_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    card = Card(tmp_path / "a", monkeypatch, 24)
    manifests = [card.manifest, replace(card.manifest, folder=tmp_path / "a" / ".." / "a")]
    directories = SimpleNamespace(manifests=manifests, pick=lambda width, height: manifests[1])
    monkeypatch.setattr(animator, "EngineDirectories", lambda *arguments, **options: directories)
    caplog.set_level(logging.INFO, "dispose_rt")
    with (
        Animator(tmp_path) as both,
        patch.object(pose, "find_poses", lambda image, *rest: dancer(int(image[0, 0, 0]))),
        patch.object(draw, "CANVAS_SHORT_SIDE_PX", SIZES.width),
    ):
        both.warmup()
        assert f"{manifests[1].folder} is not warmed up" in caplog.text
        [reference] = film(1)
        animation = both.run(reference, list(film(FRAMES)), steps=2, stride=1, overlap=2, progress=False)
    np.testing.assert_array_equal(animation.frames, expected)
    assert f"closing the engines of {manifests[0].folder}" in caplog.text


def test_activations_of_aotinductor_are_left_free(monkeypatch: pytest.MonkeyPatch, expected: np.ndarray) -> None:
    packages = Packages(monkeypatch, 11.2)
    np.testing.assert_array_equal(frames_of(packages), expected)
    packages.close()
    packages.cache.empty()
    packages.loader.close()
    assert packages.cuda.foreign_bytes == packages.cuda.used_bytes == 0
