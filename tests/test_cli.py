"""The command line: what reaches the Animator, what is printed, and how it ends."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_preflight import write_compiled

import dispose_rt
from dispose_rt import cli, media
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import EngineError, InputWarning, ManifestError, NoPersonError
from dispose_rt.manifest import Manifest, NetworkRecord, record_file, write_manifest
from dispose_rt.scheduler import SchedulerConstants

GOLDEN = Path(__file__).parent / "golden"
REFERENCE, DRIVE = str(GOLDEN / "ref.png"), str(GOLDEN / "drive.mkv")


class FakeAnimator:
    """Stands in for the runtime: records its arguments, writes three frames, fails where it is told to."""

    calls: list[dict[str, Any]]
    failure: BaseException | None
    closed: int

    def __init__(self, engine_dir: Any, device: str = "auto") -> None:
        self.opened = {"engine_dir": engine_dir, "device": device}

    def __enter__(self) -> FakeAnimator:
        return self

    def __exit__(self, *error: Any) -> None:
        type(self).closed += 1

    def run(self, ref: Any, video: Any, *, output: Any, progress: bool, **settings: Any) -> Any:
        self.calls.append(
            {**self.opened, "ref": ref, "video": video, "output": output, "progress": progress} | settings
        )
        with media.open_writer(output, 12, 96, 64) as write:
            for level in (0, 100, 200):
                write(np.full((64, 96, 3), level, np.uint8))
                if self.failure is not None:
                    raise self.failure
            warnings.warn("nobody was found in the video's frames 4, 6", InputWarning, stacklevel=1)
        return SimpleNamespace(
            frames=np.zeros((3, 64, 96, 3), np.uint8), fps=12.0, timings={"pose": 1.0, "denoise": 2.5}
        )


@pytest.fixture
def animator(monkeypatch: pytest.MonkeyPatch) -> type[FakeAnimator]:
    class Fake(FakeAnimator):
        calls: list[dict[str, Any]] = []  # noqa: RUF012
        failure = None
        closed = 0

    monkeypatch.setattr(dispose_rt, "Animator", Fake, raising=False)
    return Fake


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A complete call of `animate`."""
    output = str(tmp_path / "out.mp4")
    return ["animate", "--engines", "engines", "--reference", REFERENCE, "--video", DRIVE, "--output", output]


Captured = pytest.CaptureFixture[str]


def test_animate_with_defaults(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    assert cli.main(arguments) == 0
    [call] = animator.calls
    np.testing.assert_array_equal(call.pop("ref"), media.read_image(REFERENCE))
    assert call == {
        **{"engine_dir": Path("engines"), "device": "auto", "video": DRIVE, "output": tmp_path / "out.mp4"},
        **{"progress": True, "steps": 25, "guidance_scale": 2.0, "overlap": 6, "stride": 2, "seed": 0, "fps": None},
        **{"controls": ("motion", "points"), "noise_aug_strength": 0.0, "motion_bucket_id": 127},
        **{"decode_chunk": None, "conditions_memory": "auto"},
    }
    assert animator.closed == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out.mp4'}: 3 frames of 96x64, 12 fps, in 3.5 s (pose 1.0, denoise 2.5)\n"
    assert err == "dispose-rt: warning: nobody was found in the video's frames 4, 6\n"
    assert len(list(media.open_video(tmp_path / "out.mp4").frames())) == 3


def test_every_option_reaches_the_run(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    options = "--steps 3 --guidance-scale 1.5 --overlap 2 --stride 4 --seed 9 --fps 23.976 --controls points --quiet"
    options += " --noise-aug-strength 0.02 --motion-bucket-id 30 --device cpu"
    options += " --decode-chunk 3 --conditions-memory host"
    assert cli.main([*arguments, *options.split()]) == 0
    [call] = animator.calls
    expected = {"steps": 3, "guidance_scale": 1.5, "overlap": 2, "stride": 4, "seed": 9, "fps": 23.976}
    expected |= {"controls": ("points",), "noise_aug_strength": 0.02, "motion_bucket_id": 30, "device": "cpu"}
    expected |= {"decode_chunk": 3, "conditions_memory": "host"}
    assert {name: call[name] for name in expected} == expected
    assert call["progress"] is False
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "controls"),
    [
        ("none", ()),
        ("motion", ("motion",)),
        ("points", ("points",)),
        ("motion,points", ("motion", "points")),
        ("points, motion", ("points", "motion")),
    ],
)
def test_controls(animator: type[FakeAnimator], arguments: list[str], text: str, controls: tuple[str, ...]) -> None:
    assert cli.main([*arguments, "--controls", text]) == 0
    assert animator.calls[0]["controls"] == controls


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--steps", "2.5"], "--steps: invalid int value"),
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


@pytest.mark.parametrize("argv", [["fly"], ["inspect"], ["animate"], ["--fast"]])
def test_unknown_commands(argv: list[str], capsys: Captured) -> None:
    assert cli.main(argv) == 2
    assert "usage: dispose-rt" in capsys.readouterr().err


def test_no_command_prints_the_help(capsys: Captured) -> None:
    assert cli.main([]) == 2
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], ["animate", "--help"], ["inspect", "--help"]])
def test_help_has_examples(argv: list[str], capsys: Captured) -> None:
    assert cli.main(argv) == 0
    assert "examples:" in capsys.readouterr().out


def test_version(capsys: Captured) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dispose-rt {dispose_rt.__version__}\n"


BAD_VALUES: list[tuple[list[str], str]] = [
    (["--steps", "0"], "steps is 0; it must lie in 1..1000"),
    (["--guidance-scale", "0.5"], "guidance_scale is 0.5; it must lie in"),
    (["--guidance-scale", "nan"], "guidance_scale is nan"),
    (["--overlap", "-1"], "overlap is -1; it must lie in"),
    (["--stride", "0"], "stride is 0; it must lie in"),
    (["--seed", "-1"], "seed is -1; it must lie in"),
    (["--fps", "0"], "fps is 0.0; it must be above 0"),
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


@pytest.mark.parametrize(("extra", "message"), BAD_VALUES, ids=[" ".join(extra)[-30:] for extra, _ in BAD_VALUES])
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


def test_debug_adds_the_traceback(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    animator.failure = EngineError("unet failed")
    assert cli.main([*arguments, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("dispose-rt: error: unet failed\n")


def test_a_mistake_of_ours_is_not_dressed_up(animator: type[FakeAnimator], arguments: list[str]) -> None:
    animator.failure = AttributeError("bug")
    with pytest.raises(AttributeError, match="bug"):
        cli.main(arguments)


def test_interruption(animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "out.mp4").write_bytes(b"older")
    animator.failure = KeyboardInterrupt()
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == "\ndispose-rt: interrupted\n"
    assert animator.closed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


_INTERRUPTED_RUN = """
import signal, sys, time
from pathlib import Path
import numpy as np
import dispose_rt
from dispose_rt import cli, media

class Animator:
    def __init__(self, engines, device): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def run(self, ref, video, *, output, **settings):
        rng = np.random.default_rng(0)
        with media.open_writer(output, 24, 320, 192) as write:
            for number in range(100_000):
                write(rng.integers(0, 256, (192, 320, 3), dtype=np.uint8))
                if number == 60:
                    print("started", flush=True)

dispose_rt.Animator = Animator
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &, tests included
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")
def test_ctrl_c_in_a_process_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED_RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    assert any(".part" in path.name for path in tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "dispose-rt: interrupted"
    assert list(tmp_path.iterdir()) == []


# --- inspect ---


@pytest.fixture
def engine_directory(tmp_path: Path) -> Path:
    """A manifest whose engines are a few bytes each."""
    folder = tmp_path / "engines" / "128x192"
    folder.mkdir(parents=True)
    networks = {}
    for number, name in enumerate(NETWORKS):
        (folder / f"{name}.onnx").write_bytes(bytes(1000 * (number + 1)))
        networks[name] = NetworkRecord(
            (record_file(folder, f"{name}.onnx"),), "key", "float16" if number > 3 else "float32"
        )
    weights = {"DisPose.pth": {"size_bytes": 5, "sha256": "0123456789abcdef" * 4}}
    versions = {"torch": "2.13.0", "dispose_rt": "0.1.0"}
    sizes = Sizes(128, 192, tile=8, chunk=4)
    manifest = Manifest(folder, "onnxruntime", "fp16", sizes, SchedulerConstants(), networks, weights, versions)
    write_manifest(manifest)
    return folder


def test_inspect(engine_directory: Path, capsys: Captured) -> None:
    assert cli.main(["inspect", str(engine_directory)]) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == str(engine_directory)
    assert "output     128x192 pixels, tiles of 8 frames, decoded by 4" in lines
    assert "engines    onnxruntime, fp16, 91.0 KB" in lines
    assert "built with dispose_rt 0.1.0, torch 2.13.0" in lines
    assert "weights    DisPose.pth sha256 0123456789abcdef" in lines
    assert "unet: 12.0 KB, float16, unet.onnx" in lines
    assert "in  sparse_flow float32 [frames<=8, 2, 384, 384]" in lines
    assert "in  pose_latents float16 [8, 320, 24, 16]" in lines
    assert "out residual_0 float16 [16, 320, 24, 16]" in lines
    assert "out frames float32 [chunk<=4, 3, 192, 128]" in lines
    for name in NETWORKS:
        assert f"  {name}: " in out


def test_inspect_compiled_engines(tmp_path: Path, capsys: Captured) -> None:
    write_compiled(tmp_path / "e", "tensorrt")
    assert cli.main(["inspect", str(tmp_path / "e")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("engines    tensorrt, fp16, ") for line in lines)
    assert "targets    sm_89, sm_120" in lines
    assert "person_detector: 754 bytes, float32, person_detector.onnx, onnxruntime" in lines
    assert "unet: 248 bytes, float16, unet.plan" in lines


def test_inspect_a_folder_of_directories(engine_directory: Path, capsys: Captured) -> None:
    assert cli.main(["inspect", str(engine_directory.parent), "--verify"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(engine_directory))
    assert out.endswith("all files have the recorded sizes and hashes\n")


def test_inspect_finds_damage(engine_directory: Path, capsys: Captured) -> None:
    (engine_directory / "unet.onnx").write_bytes(b"short")
    (engine_directory / "dift.onnx").unlink()
    assert cli.main(["inspect", str(engine_directory), "--verify"]) == 1
    err = capsys.readouterr().err
    assert "unet: unet.onnx has 5 bytes" in err
    assert "dift: dift.onnx is missing" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["empty", "missing", "file"])
def test_inspect_of_something_else(tmp_path: Path, name: str, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    assert cli.main(["inspect", str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("dispose-rt: error: ")
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error(engine_directory: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-m", "dispose_rt.cli", "inspect", str(engine_directory)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# --- build ---


def test_build_hands_its_arguments_to_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    exporter = ModuleType("build_engines")
    exporter.main = lambda argv: seen.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setattr(cli, "_import_exporter", lambda: exporter)
    assert cli.main(["build", "--random-weights", "toy", "--output", "x", "--help"]) == 7
    assert seen == [["--random-weights", "toy", "--output", "x", "--help"]]


@contextlib.contextmanager
def _without(monkeypatch: pytest.MonkeyPatch, hidden: str) -> Iterator[None]:
    """Python as it is where one package is not installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {hidden!r}", name=hidden)
        return real(name, *rest, **named)

    for name in [name for name in sys.modules if name.partition(".")[0] == "dispose_rt_export"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] == "dispose_rt_export"]:
        del sys.modules[name]  # half-imported


def test_build_without_torch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    with _without(monkeypatch, "torch"):
        code = cli.main(["build", "--random-weights", "toy", "--output", "x"])
    err = capsys.readouterr().err
    assert code == 1
    assert "'torch', which is not installed" in err
    assert "pip install 'dispose-rt[export]'" in err
    assert "Traceback" not in err


def test_build_without_the_exporter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "dispose_rt" / "cli.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["build"]) == 1
    assert "pip install 'dispose-rt[export]'" in capsys.readouterr().err


def test_the_command_line_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from dispose_rt import cli; cli.main(['inspect', 'nowhere']); cli.main(sys.argv[1:]);"
        "print(sorted({'torch', 'diffusers', 'transformers', 'onnx', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
