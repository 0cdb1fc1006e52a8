"""Whatever ends a run, and wherever: the same Animator goes on as if nothing had been."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator, Cancelled, InputError
from dispose_rt.contract import NETWORKS
from dispose_rt.hooks.observer import NAMES
from dispose_rt.hooks.progress import STAGES
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN, load_golden

FRAMES = 2
CONTROLS = {"motion", "motion_part"}
"""What is shown only where the slow networks run."""


def arguments(**changes: Any) -> dict[str, Any]:
    """A run of about half a second."""
    defaults = {"video": load_golden("e2e")["drive_frames"][:FRAMES], "controls": (), "steps": 1, "stride": 1}
    return {"ref": GOLDEN / "ref.png", **defaults, "overlap": 2, "decode_chunk": 2, "progress": False, **changes}


@pytest.fixture(scope="module")
def animator(golden_engines: Callable[..., Path]) -> Iterator[Animator]:
    with Animator(golden_engines(GoldenCase("one_tile_64"))) as one:
        yield one


@pytest.fixture(scope="module")
def expected(animator: Animator) -> np.ndarray:
    return animator.run(**arguments()).frames


@pytest.fixture
def unharmed(animator: Animator, expected: np.ndarray, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Checks that nothing was left behind by what happened so far; the test is over with one more run."""
    [engines] = animator._engines.values()
    before = engines.loader.device.pool.used_bytes

    def check() -> None:
        assert list(tmp_path.iterdir()) == []
        assert engines.loader.device.pool.used_bytes == before
        assert "idle" in repr(animator)

    yield check
    check()
    np.testing.assert_array_equal(animator.run(**arguments()).frames, expected)


class StopAt:
    """A progress callback that ends the run at some stage: at its beginning, or when it is all but over."""

    def __init__(self, stage: str, at_end: bool, end: Callable[[], None]) -> None:
        self.stage, self.at_end, self.end = stage, at_end, end

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == self.stage and (done == total) == self.at_end:
            self.end()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_every_stage(animator: Animator, unharmed: Callable[[], None], stage: str, tmp_path: Path) -> None:
    for at_end in (False, True):
        options = arguments(output=tmp_path / "out.mp4", progress=StopAt(stage, at_end, interrupt))
        with pytest.raises(KeyboardInterrupt):
            animator.run(**options)
        unharmed()


@pytest.mark.parametrize("stage", STAGES)
def test_cancelling_in_every_stage(
    animator: Animator, unharmed: Callable[[], None], stage: str, tmp_path: Path
) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled, match=f"cancelled at {stage} [1-9]"):
        animator.run(**arguments(cancel=cancel, output=tmp_path / "out.mp4", progress=StopAt(stage, False, cancel.set)))
    unharmed()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CONTROLS])
def test_an_observer_that_fails(animator: Animator, unharmed: Callable[[], None], name: str, tmp_path: Path) -> None:
    def observe(shown: str, value: Any) -> None:
        if shown == name:
            raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match=name):
        animator.run(**arguments(output=tmp_path / "out.mp4", observer=observe))
    unharmed()


@pytest.fixture(scope="module")
def warm(animator: Animator) -> Animator:
    """With all networks loaded."""
    animator.warmup()
    return animator


def test_warming_up_loads_every_network(warm: Animator) -> None:
    [engines] = warm._engines.values()
    assert set(engines._loaded) == set(NETWORKS)
    loaded = {name: id(engine) for name, engine in engines._loaded.items()}
    warm.run(**arguments())
    assert {name: id(engine) for name, engine in engines._loaded.items()} == loaded


def test_in_the_middle_of_the_motion_fields(warm: Animator, unharmed: Callable[[], None]) -> None:
    def observe(shown: str, value: Any) -> None:
        if shown == "motion_part":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm.run(**arguments(controls=("motion", "points"), observer=observe))
    unharmed()


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")
@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.35])
def test_a_real_ctrl_c_at_any_moment(animator: Animator, expected: np.ndarray, delay_s: float, tmp_path: Path) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread alone")
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))

    def run_and_wait() -> None:
        timer.start()
        animator.run(**arguments(output=tmp_path / "out.mp4"))
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        run_and_wait()
    timer.join()
    assert not list(tmp_path.glob(".*"))  # no half a file
    np.testing.assert_array_equal(animator.run(**arguments()).frames, expected)


def test_a_stream_has_the_frames_of_a_run(animator: Animator) -> None:
    video = load_golden("e2e")["drive_frames"][:5]
    ticks: list[tuple[str, int, int]] = []
    options = arguments(video=video, progress=lambda *tick: ticks.append(tick))
    frames = []
    for frame in animator.stream(**options):
        assert frame.shape == (64, 64, 3)
        frames.append(frame)
        decoded = ticks[-1][1]
        assert len(frames) <= decoded < len(frames) + 2  # two frames are decoded at once
    np.testing.assert_array_equal(np.stack(frames), animator.run(**arguments(video=video)).frames)


def test_a_stream_that_is_left_early_frees_everything(animator: Animator, unharmed: Callable[[], None]) -> None:
    for frame in animator.stream(**arguments()):
        assert frame.any()
        break
    unharmed()
    frames = animator.stream(**arguments())
    next(frames)
    frames.close()
    unharmed()


def test_stages_are_logged_with_their_seconds(
    animator: Animator, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "dispose_rt"):
        animator.run(**arguments(progress=True))
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "64x64" in text  # the directory
    assert [stage for stage in STAGES if re.search(rf"^{stage}: \d+\.\d\d s$", text, re.MULTILINE)] == list(STAGES)
    assert capsys.readouterr() == ("", "")


def test_an_observer_that_wants_nothing_that_exists(animator: Animator) -> None:
    class Wishes:
        wants = ("poses", "pictures")

        def __call__(self, name: str, value: Any) -> None: ...

    with pytest.raises(InputError, match="pictures"):
        animator.run(**arguments(observer=Wishes()))


def test_an_observer_gets_poses_and_nothing_else_is_made(animator: Animator) -> None:
    seen: dict[str, Any] = {}

    class Wishes:
        wants = frozenset({"poses", "aligned", "detected", "frames"})

        def __call__(self, name: str, value: Any) -> None:
            seen.setdefault(name, []).append(value)

    frames = animator.run(**arguments(observer=Wishes())).frames
    assert set(seen) == Wishes.wants
    [poses], [aligned], [detected] = seen["poses"], seen["aligned"], seen["detected"]
    assert poses.shape == (FRAMES + 1, 3, 64, 64)
    assert len(aligned) == FRAMES + 1
    assert aligned[0] is detected.reference
    assert len(detected.frames) == FRAMES
    np.testing.assert_array_equal(np.concatenate(seen["frames"]), frames)
