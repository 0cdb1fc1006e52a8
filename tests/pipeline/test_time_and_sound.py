"""When frames are shown and what is heard with them: as in the driving video, unless a frame rate is asked for.

And what a run's files say about how they were made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dispose_rt import Animation, Animator, Settings, __version__
from dispose_rt.errors import InputError, InputWarning, OutputError
from dispose_rt.media import open_video, read_metadata, write_video
from dispose_rt.media.sound import has_sound
from dispose_rt.noise import seeded_noise
from dispose_rt.pipeline.provenance import SOURCE_TYPE, read_record
from dispose_rt.stages.pose.cache import PoseCache
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN, load_golden

UNEVEN = tuple(Fraction(ms, 1000) for ms in (0, 50, 250, 300, 700))
EVEN = tuple(Fraction(number, 12) for number in range(5))
RATE = 48_000


@pytest.fixture(scope="module")
def animator(golden_engines: Callable[..., Path]) -> Iterator[Animator]:
    with Animator(golden_engines(GoldenCase("one_tile_64"))) as one:
        yield one


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """`make_clip(times_s, sound)`: the golden driving frames at these times, and a tone."""

    def make(times_s: tuple[Fraction, ...], sound: bool = True) -> Path:
        path = tmp_path / "drive.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=12)
            frames = load_golden("e2e")["drive_frames"]
            video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv420p"
            video.codec_context.time_base = Fraction(1, 12_000)
            tone = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
            for pixels, time_s in zip(frames, times_s, strict=False):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = round(time_s * 12_000), Fraction(1, 12_000)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if tone is not None:
                wave = np.sin(np.arange(RATE) * 0.05).astype(np.float32)[None] * np.float32(0.3)
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts = RATE, 0
                container.mux(tone.encode(samples))
                container.mux(tone.encode(None))
        return path

    return make


def run(animator: Animator, video: Any, **changes: Any) -> Animation:
    options = {"controls": (), "steps": 1, "stride": 1, "overlap": 2, "progress": False, **changes}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the crop of the photo to 64 x 64 pixels cuts off the person's legs")
        return animator.run(GOLDEN / "ref.png", video, **options)


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def test_uneven_time_stamps_and_sound_are_kept(
    animator: Animator, make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    clip = make_clip(UNEVEN)
    assert open_video(clip).is_variable
    animation = run(animator, clip, output=tmp_path / "out.mp4")
    np.testing.assert_allclose(animation.times_s, [float(time_s) for time_s in UNEVEN], atol=1e-9)
    assert animation.frame_count == len(animation.frames) == 5
    saved = animation.save(tmp_path / "saved.mkv")
    for path in (tmp_path / "out.mp4", saved):
        np.testing.assert_allclose(times_of(path), animation.times_s, atol=1.1e-3)  # mkv counts milliseconds
        assert has_sound(path)


def test_every_second_frame_keeps_its_time(
    animator: Animator, make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, as the poses of the second run are remembered; no frame is kept in memory."""
    clip, out = make_clip(UNEVEN), tmp_path / "out.mp4"
    monkeypatch.setattr(animator, "_pose_cache", PoseCache(tmp_path / "poses"))
    for _ in range(2):
        animation = run(animator, clip, stride=2, output=out, keep_frames=False)
        assert animation.frames.shape == (0, 64, 64, 3)
        assert animation.times_s.tolist() == [0.0, 0.25, 0.7]
        np.testing.assert_allclose(times_of(out), animation.times_s, atol=1e-4)
        assert has_sound(out)
        out.unlink()


def test_a_part_of_the_video_has_its_own_times_and_sound(
    animator: Animator, make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    """The result begins at the first frame that is used, with what is heard there."""
    clip, out = make_clip(UNEVEN), tmp_path / "out.mp4"
    animation = run(animator, clip, start_s=0.2, duration_s=0.3, output=out)
    np.testing.assert_allclose(animation.times_s, [0, 0.05], atol=1e-9)
    np.testing.assert_allclose(times_of(out), [0, 0.05], atol=1e-4)
    assert (animation.audio, animation.audio_start_s, animation.frame_count) == (clip, Fraction(1, 4), 2)
    assert has_sound(out)
    with pytest.raises(InputError, match=r"start_s is 9, but .*drive\.mp4 is over after"):
        run(animator, clip, start_s=9)


def test_even_time_stamps_are_counted(animator: Animator, make_clip: Callable[..., Path], tmp_path: Path) -> None:
    animation = run(animator, make_clip(EVEN), stride=2, output=tmp_path / "out.mp4")
    assert animation.time_stamps is None
    np.testing.assert_allclose(animation.times_s, [0, 2 / 12, 4 / 12])
    np.testing.assert_allclose(times_of(tmp_path / "out.mp4"), animation.times_s, atol=1e-4)
    assert has_sound(tmp_path / "out.mp4")


@pytest.mark.parametrize("times_s", [UNEVEN, EVEN], ids=["uneven", "even"])
def test_another_frame_rate_leaves_the_sound_out_and_says_so(
    animator: Animator, make_clip: Callable[..., Path], tmp_path: Path, times_s: tuple[Fraction, ...]
) -> None:
    clip, out = make_clip(times_s), tmp_path / "out.mp4"
    options = {"controls": (), "steps": 1, "stride": 2, "overlap": 2, "progress": False, "fps": 20}
    with pytest.warns(InputWarning, match=r"sound of .*drive\.mp4 is left out: at fps=20 the result has another speed"):
        animation = animator.run(GOLDEN / "ref.png", clip, output=out, **options)
    assert not has_sound(out)
    np.testing.assert_allclose(animation.times_s, [0, 0.05, 0.1])
    assert animation.audio is None


def test_no_warning_where_nothing_is_missed(animator: Animator, make_clip: Callable[..., Path], tmp_path: Path) -> None:
    clip, out = make_clip(EVEN), tmp_path / "out.mp4"
    assert run(animator, clip, stride=2, fps=6).audio == clip  # the speed as it is
    assert run(animator, clip, stride=2, fps=20, output=out, audio=False).audio is None
    assert not has_sound(out)
    run(animator, make_clip(EVEN, sound=False), stride=2, fps=20, output=out)  # there was none


def test_an_animation_tells_times_without_a_run(tmp_path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    even = Animation(frames, 4.0)
    assert even.frame_count == 3
    assert even.times_s.tolist() == [0.0, 0.25, 0.5]
    uneven = Animation(frames, 4.0, time_stamps=(Fraction(0), Fraction(1, 10), Fraction(1, 2)))
    assert uneven.times_s.dtype == np.float64
    uneven.save(tmp_path / "out.mp4")
    np.testing.assert_allclose(times_of(tmp_path / "out.mp4"), [0, 0.1, 0.5], atol=1e-4)
    with pytest.raises(OutputError, match="suffix"):
        even.save(tmp_path / "out.avi")
    with pytest.raises(InputError, match="keep_frames=True"):
        Animation(frames[:0], 4.0, frame_count=3).save(tmp_path / "out.mp4")


def test_a_clip_without_time_stamps(animator: Animator, tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.mp4", load_golden("e2e")["drive_frames"][:2], 10)
    assert run(animator, path).times_s.tolist() == [0.0, 0.1]


def test_a_run_s_files_say_how_they_were_made(animator: Animator, tmp_path: Path) -> None:
    frames = load_golden("e2e")["drive_frames"][:3]
    outputs = [tmp_path / name for name in ("out.mp4", "again.mp4", "plain.webm")]
    options = {"seed": 3, "audio": False}
    plain = run(animator, frames, output=outputs[0], **options)
    run(animator, frames, output=outputs[1], noise=seeded_noise(3), **options)
    unmarked = run(animator, frames, output=outputs[2], provenance=False, **options)
    record = read_record(read_metadata(outputs[0]))
    assert record is not None
    assert record["generated"] is True
    assert record["digital_source_type"] == SOURCE_TYPE
    assert record["settings"] == {
        **json.loads(json.dumps(asdict(Settings(controls=(), steps=1, stride=1, overlap=2, seed=3)))),
        "noise": "seed",
    }
    manifest = json.loads((animator.engine_dir / "manifest.json").read_text(encoding="utf-8"))
    assert record["engines"] == {
        **{"width": 64, "height": 64, "tile_frames": manifest["sizes"]["tile"]},
        **{"decode_chunk": manifest["sizes"]["chunk"], "backend": "onnxruntime", "precision": "fp32"},
        "manifest_checksum": manifest["checksum"],
    }
    assert record["versions"]["dispose-rt"] == __version__
    onnxruntime = ("onnxruntime", "onnxruntime-gpu")
    assert {"numpy", "av", "onnxruntime"} <= set(record["versions"]) <= {"dispose-rt", "numpy", "av", *onnxruntime}
    assert set(record) == {"format", "generated", "digital_source_type", "settings", "engines", "versions"}

    comment = read_metadata(outputs[0])["comment"]
    assert comment.startswith(f"Generated by AI (dispose_rt {__version__}). Not a recording")
    assert read_metadata(plain.save(tmp_path / "saved.gif"))["comment"] == comment
    stored = outputs[0].read_bytes()
    assert SOURCE_TYPE.encode() in stored[stored.index(b"<?xpacket") :]
    for private in (str(animator.engine_dir), str(tmp_path), "ref.png", "out.mp4"):
        assert private.encode() not in stored, private

    other = read_record(read_metadata(outputs[1]))
    assert other is not None
    assert other["settings"]["noise"] == "custom"
    np.testing.assert_array_equal(unmarked.frames, plain.frames)
    assert "comment" not in read_metadata(outputs[2])
    assert "comment" not in read_metadata(unmarked.save(tmp_path / "saved.mp4"))
    assert b"xpacket" not in (tmp_path / "saved.mp4").read_bytes()
