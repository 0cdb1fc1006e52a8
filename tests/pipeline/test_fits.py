"""The settings `alignment` and `bridge_gaps` in whole runs, on networks that are formulas."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dispose_rt.errors import Cancelled, InputWarning, NoPersonError
from dispose_rt.hooks.progress import Progress
from dispose_rt.types import Pose
from tests.fakes import networks
from tests.fakes.networks import FakeNetworks, dancer, run_networks
from tests.stages.denoise.test_loop import SIZES


def run(monkeypatch: pytest.MonkeyPatch, people: list[Pose], **settings: Any) -> tuple[list[Pose], list[str]]:
    """Run the pose stage with a photo of the first person and a frame of each other.

    Returns the aligned poses and what was said before the long work.
    """
    monkeypatch.setattr(networks, "dancer", lambda number: people[number])
    seen: dict[str, Any] = {}

    def look(name: str, value: Any) -> None:
        seen[name] = value

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "load":
            raise Cancelled

    frames = [np.full((SIZES.height, SIZES.width, 3), number, np.uint8) for number in range(1, len(people))]
    with warnings.catch_warnings(record=True, action="always") as caught:
        try:
            list(run_networks(FakeNetworks(), frames, look, Progress(stop), **settings))
        except NoPersonError as error:
            return seen["aligned"], [f"error: {error}"]
        except Cancelled:
            assert all(one.category is InputWarning for one in caught)
            return seen["aligned"], [str(one.message) for one in caught]
    raise AssertionError("the run was not stopped")


def change(pose: Pose, scale: float, shift: tuple[float, float], hidden: tuple[int, ...] = ()) -> Pose:
    visible = pose.visible & ~np.isin(np.arange(18), hidden)
    return replace(pose, joints=pose.joints * scale + shift, visible=visible)


def test_runs_fit_check_and_bridge_as_their_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    legs = (8, 9, 10, 11, 12, 13)
    dance = [change(dancer(number), 0.5, (0.25, 0.25 - 0.25 * (number % 2))) for number in range(6)]
    bust = change(dancer(0), 2.0, (-0.5, 0.0), hidden=legs)
    fitted, [warning] = run(monkeypatch, [bust, *dance])
    assert re.search(r"drawn at 0\.\d+ times .*shows no hips or legs.*--alignment robust", warning)
    robust, said = run(monkeypatch, [bust, *dance], alignment="robust")
    assert not said
    right, *widths = (
        np.median([np.ptp(pose.joints[0, [2, 5], 0]) for pose in poses]) for poses in ([bust], fitted[1:], robust[1:])
    )
    assert widths[0] < 0.5 * right
    assert widths[1] == pytest.approx(right, rel=0.05)
    lying = replace(dancer(0), joints=dancer(0).joints[..., ::-1])
    drawn, [error] = run(monkeypatch, [lying, *dance])
    assert re.search(r"^error: the dancer would be drawn 0\.\d pixels large", error)
    assert len(drawn) == 7  # an observer has seen them

    gap = [dancer(0), *(change(dancer(number), 1, (0, 0), hidden=(4,) * (number in (2, 5))) for number in range(1, 8))]
    plain, said = run(monkeypatch, gap)
    bridged, _ = run(monkeypatch, gap, bridge_gaps=1)
    assert not said
    assert [number for number, pose in enumerate(plain) if not pose.visible.all()] == [2, 5]
    assert all(pose.visible.all() for pose in bridged)
    assert bridged[0].joints is gap[0].joints
