"""`dispose-rt animate`: what reaches the Animator, what is refused before it, and how errors end it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dispose_rt import cli, media
from dispose_rt.errors import EngineError, ManifestError, NoPersonError
from tests.every import each

from .conftest import DRIVE, REFERENCE, Captured, FakeAnimator


def test_animate_with_defaults(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, caches: Path, capsys: Captured
) -> None:
    assert cli.main(arguments) == 0
    [call] = animator.calls
    assert not call.pop("cancel").is_set()
    np.testing.assert_array_equal(call.pop("ref"), media.read_image(REFERENCE))
    assert call == {
        **{"engine_dir": Path("engines"), "device": "auto", "video": DRIVE, "output": tmp_path / "out.mp4"},
        **{"progress": True, "steps": 25, "guidance_scale": 2.0, "overlap": None, "stride": 2, "seed": 0, "fps": None},
        **{"controls": ("motion", "points"), "noise_aug_strength": 0.0, "motion_bucket_id": 127},
        **{"alignment": "reference", "bridge_gaps": 0},
        **{"decode_chunk": None, "conditions_memory": "auto", "start_s": 0.0, "duration_s": None},
        **{"person": "largest", "reference_person": "largest", "crop": "centre"},
        "trust": False,
        **{"pose_cache": caches / "dispose-rt" / "poses", "audio": True, "keep_frames": False, "observer": None},
        "provenance": True,
    }
    assert animator.closed == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out.mp4'}: 3 frames of 96x64, 12 fps, in 3.5 s (pose 1.0, denoise 2.5)\n"
    assert err == "dispose-rt: warning: nobody was found in the video's frames 4, 6\n"
    assert len(list(media.open_video(tmp_path / "out.mp4").frames())) == 3


def test_every_option_reaches_the_run(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    options = "--steps 3 --guidance-scale 1.5 --overlap 2 --stride 4 --seed 9 --fps 23.976 --controls points --quiet"
    options += " --noise-aug-strength 0.02 --motion-bucket-id 30 --device cpu"
    options += " --alignment robust --bridge-gaps 5"
    options += " --person 1 --reference-person 0.25,1 --crop person --start-s 0.05 --duration-s 7"
    options += " --decode-chunk 3 --conditions-memory host --no-audio --pose-cache kept"
    options += " --no-provenance"
    assert cli.main([*arguments, *options.split()]) == 0
    [call] = animator.calls
    expected = {"steps": 3, "guidance_scale": 1.5, "overlap": 2, "stride": 4, "seed": 9, "fps": 23.976}
    expected |= {"controls": ("points",), "noise_aug_strength": 0.02, "motion_bucket_id": 30, "device": "cpu"}
    expected |= {"alignment": "robust", "bridge_gaps": 5}
    expected |= {"decode_chunk": 3, "conditions_memory": "host", "audio": False, "pose_cache": Path("kept")}
    expected |= {"provenance": False}
    expected |= {"person": 1, "reference_person": (0.25, 1.0), "crop": "person", "start_s": 0.05, "duration_s": 7.0}
    assert {name: call[name] for name in expected} == expected
    assert call["progress"] is False
    assert capsys.readouterr().out == ""


@each(
    text__controls=[
        ("none", ()),
        ("motion", ("motion",)),
        ("points", ("points",)),
        ("motion,points", ("motion", "points")),
        ("points, motion", ("points", "motion")),
    ],
)
def test_controls(animator: type[FakeAnimator], arguments: list[str], text: str, controls: tuple[str, ...]) -> None:
    assert cli.main([*arguments, "--controls", text]) == 0
    assert animator.calls[-1]["controls"] == controls


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--steps", "2.5"], "--steps: invalid int value"),
        (
            ["--person", "left"],
            "--person: the person is 'left'; pass 'largest', the person's number from left to right",
        ),
        (["--fps", "fast"], "--fps: invalid float value: 'fast'"),
        (["--controls", "motion,hands"], "unknown control 'hands'; choose from motion, points, or none"),
        (["--controls", ""], "unknown control ''"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--seed"], "--seed: expected one argument"),
        (["stray.mp4"], "unrecognized arguments: stray.mp4"),
    ],
)
def test_malformed_arguments(
    animator: type[FakeAnimator], arguments: list[str], extra: list[str], message: str, capsys: Captured
) -> None:
    assert cli.main([*arguments, *extra]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "usage: dispose-rt animate" in err
    assert animator.calls == []


@pytest.mark.parametrize("left_out", ["--engines", "--reference", "--video", "--output"])
def test_missing_arguments(arguments: list[str], left_out: str, capsys: Captured) -> None:
    at = arguments.index(left_out)
    assert cli.main(arguments[:at] + arguments[at + 2 :]) == 2
    assert f"the following arguments are required: {left_out}" in capsys.readouterr().err


BAD_VALUES: list[tuple[list[str], str]] = [
    (["--steps", "0"], "steps is 0; it must lie in 1..1000"),
    (["--guidance-scale", "0.5"], "guidance_scale is 0.5; it must lie in"),
    (["--guidance-scale", "nan"], "guidance_scale is nan"),
    (["--overlap", "-1"], "overlap is -1; it must lie in"),
    (["--stride", "0"], "stride is 0; it must lie in"),
    (["--seed", "-1"], "seed is -1; it must lie in"),
    (["--fps", "0"], "fps is 0.0; it must lie in 0.01..1000"),
    (["--fps", "inf"], "fps is inf; it must be"),
    (["--noise-aug-strength", "2"], "noise_aug_strength is 2.0; it must lie in 0.0..1.0"),
    (["--motion-bucket-id", "5000"], "motion_bucket_id is 5000; it must lie in 0..1023"),
    (["--decode-chunk", "0"], "decode_chunk is 0; it must lie in 1..1000"),
    (["--reference", "no.png"], "image no.png does not exist"),
    (["--reference", DRIVE], "cannot be decoded"),
    (["--video", "no.mp4"], "video no.mp4 does not exist"),
    (["--video", REFERENCE], "picture or text file"),
    (["--video", "https://example.org/dance.mp4"], "web address; download it"),
    (["--output", "out.avi"], "suffix is '.avi'; name it with one of .mp4"),
    (["--output", "no/such/folder/out.mp4"], "mkdir -p no/such/folder"),
    (["--output", "."], "suffix is ''"),
]


@each(extra__message=BAD_VALUES)
def test_bad_values_are_found_before_the_engines_load(
    animator: type[FakeAnimator], arguments: list[str], extra: list[str], message: str, tmp_path: Path, capsys: Captured
) -> None:
    assert cli.main([*arguments, *extra]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("dispose-rt: error: ")
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert out == ""
    assert animator.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["reference", "video"])
def test_an_input_is_never_overwritten(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, name: str, capsys: Captured
) -> None:
    original = tmp_path / "input.mp4"
    source = Path(DRIVE if name == "video" else REFERENCE)
    original.write_bytes(source.read_bytes())
    (tmp_path / "link.mp4").symlink_to(original)
    assert cli.main([*arguments, f"--{name}", str(original), "--output", str(tmp_path / "link.mp4")]) == 1
    assert f"is the {name} itself; give it another name" in capsys.readouterr().err
    assert original.read_bytes() == source.read_bytes()
    assert animator.calls == []


@pytest.mark.parametrize(
    "error",
    [
        EngineError("unet answered nonsense; build it again"),
        NoPersonError("nobody was found"),
        ManifestError("the directory is damaged:", ["a is missing", "b is missing"], "Build it again."),
    ],
)
def test_an_error_of_the_run(
    animator: type[FakeAnimator], arguments: list[str], error: Exception, tmp_path: Path, capsys: Captured
) -> None:
    animator.failure = error
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"dispose-rt: error: {error}\n"
    assert animator.closed == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_among_the_videos_pictures_is_refused(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(3):
        (tmp_path / "frames" / f"{number:03}.png").write_bytes(Path(REFERENCE).read_bytes())
    output = ("--output", str(tmp_path / "frames" / "out.mp4"))
    assert cli.main([*arguments, "--video", str(tmp_path / "frames"), "--fps", "12", *output]) == 1
    assert "lies among the pictures of the video" in capsys.readouterr().err
    assert animator.calls == []


def test_debug_adds_the_traceback(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    animator.failure = EngineError("unet failed")
    assert cli.main([*arguments, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("dispose-rt: error: unet failed\n")


def test_engines_and_pose_cache_by_the_environment(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPOSE_RT_ENGINES", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main([arguments[0], *arguments[3:]]) == 0
    assert cli.main([*arguments, "--no-pose-cache"]) == 0
    first, second = animator.calls
    assert (first["engine_dir"], first["pose_cache"]) == (tmp_path / "mine", tmp_path / ".cache/dispose-rt/poses")
    assert (second["engine_dir"], second["pose_cache"]) == (Path("engines"), None)


def test_an_empty_variable_names_no_engines(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("DISPOSE_RT_ENGINES", "")
    assert cli.main([arguments[0], *arguments[3:]]) == 2
    assert "required: --engines" in capsys.readouterr().err


def test_without_a_home_no_poses_are_kept(
    animator: type[FakeAnimator], arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    assert cli.main(arguments) == 0
    assert animator.calls[0]["pose_cache"] is None
    assert "warning: no poses are kept for the next run: there is no home folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tänzerin/脚.mp4", "a b/c d.mp4"])
def test_paths_of_any_script(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, name: str, capsys: Captured
) -> None:
    output = tmp_path / name
    output.parent.mkdir()
    video = output.with_name(f"in {output.name}")
    video.write_bytes(Path(DRIVE).read_bytes())
    assert cli.main([*arguments, "--video", str(video), "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 3 frames")
    assert output.exists()


def test_pictures_of_every_stage(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    assert cli.main([*arguments, "--debug-dir", str(tmp_path / "seen")]) == 0
    assert f"pictures of every stage: {tmp_path / 'seen' / 'index.html'}" in capsys.readouterr().err
    assert "denoise" in (tmp_path / "seen" / "index.html").read_text(encoding="utf-8")


def test_pictures_of_a_run_that_failed(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    animator.failure = EngineError("unet answered nonsense")
    assert cli.main([*arguments, "--debug-dir", str(tmp_path / "seen")]) == 1
    assert "EngineError: unet answered nonsense" in (tmp_path / "seen" / "index.html").read_text(encoding="utf-8")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "dispose-rt: error: unet answered nonsense"


def test_pictures_cannot_go_where_something_else_lies(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").touch()
    assert cli.main([*arguments, "--debug-dir", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert animator.calls == []
