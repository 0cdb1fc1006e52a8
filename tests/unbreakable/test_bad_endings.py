"""Whatever goes wrong on the way, in any stage: a typed error, nothing left behind, and the same bits afterwards."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.device.cpu import as_numpy
from dispose_rt.errors import Cancelled, EngineError, InputError, ManifestError, OutOfMemoryError, OutputError
from dispose_rt.hooks.observer import NAMES
from dispose_rt.hooks.progress import STAGES, Progress
from dispose_rt.media import containers, writer
from tests.engines.damaged_directory import link_copy
from tests.every import each

from . import materials
from .conftest import OUTPUT_NAME, QUICK, Captured, Workshop, list_files, run_command

Watch = Callable[[], AbstractContextManager[None]]
BOTH = ("motion", "points")


class Mishap(Exception):  # noqa: N818
    """Raised by a caller's own function."""


def mishap(*arguments: Any) -> Any:
    raise Mishap


@pytest.fixture(scope="module", autouse=True)
def used_bytes(shop: Workshop) -> int:
    """Of the device, once every network has its place."""
    shop.animator.warmup()
    shop.check()
    return shop.used_bytes


@pytest.fixture(autouse=True)
def unharmed(shop: Workshop, used_bytes: int) -> Iterator[None]:
    """The good run has its bits after every test, and no memory is kept."""
    yield
    assert "idle" in repr(shop.animator)
    shop.check()
    assert shop.used_bytes <= used_bytes


@pytest.fixture
def refused(
    shop: Workshop, place: Path, nothing_left: Watch, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Runs with an output by both ways, and looks at how they end."""

    def run(error: type[BaseException], cause: str, remedy: str = "", code: int | None = 1, **settings: Any) -> None:
        with nothing_left(), pytest.raises(error) as caught:
            shop.run(output=place / OUTPUT_NAME, **settings)
        said = [str(caught.value)]
        if code is not None:
            shop.lend(monkeypatch)
            with nothing_left():
                found, text = run_command(shop.words({"output": place / OUTPUT_NAME, "settings": settings}), capsys)
            assert found == code, text
            said.append(text)
        for text in said:
            for pattern in (cause, remedy):
                assert re.search(pattern, text, re.DOTALL), f"{text!r} says nothing like {pattern!r}"

    return run


@contextmanager
def at_stage(stage: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something once, in the middle of a stage."""
    begin = Progress.begin

    def begin_and_act(self: Progress, name: str, total: int) -> None:
        begin(self, name, total)
        if name == stage:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "begin", begin_and_act)
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
def test_whoever_ends_a_run(
    shop: Workshop,
    place: Path,
    nothing_left: Watch,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """Ctrl-C, a cancel event, and a callback that fails in Python; signals and lack of memory of the command."""
    cancel = threading.Event()  # set in the last of these runs
    ways: list[tuple[type[BaseException], Callable[[], object]]] = [
        (KeyboardInterrupt, interrupt),
        (Mishap, mishap),
        (MemoryError, lambda: np.empty(1 << 60, np.uint8)),
        (Cancelled, cancel.set),
    ]
    for error, act in ways:

        def progress(name: str, done: int, total: int, act: Callable[[], object] = act) -> None:
            if name == stage and done == 0:
                act()

        with nothing_left(), pytest.raises(error):
            shop.run(output=place / OUTPUT_NAME, progress=progress, cancel=cancel)
    shop.lend(monkeypatch)
    words = shop.words({"output": place / OUTPUT_NAME})
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with nothing_left(), at_stage(stage, lambda number=number: os.kill(os.getpid(), number)):
            assert run_command(words, capsys) == (code, "\ndispose-rt: interrupted\n")
    with nothing_left(), at_stage(stage, lambda: np.empty(1 << 60, np.uint8)):
        code, said = run_command(words, capsys)
    assert code == 3
    assert "too little free memory; close other programs" in said


NETWORKS = {
    "person_detector": (),
    "pose_estimator": (),
    "cmp_image_encoder": ("motion",),
    "cmp_flow_decoder": ("motion",),
    "motion_encoder": ("motion",),
    "dift": ("points",),
    "point_encoder": ("points",),
    "image_encoder": (),
    "vae_encoder": (),
    "pose_net": (),
    "controlnet": ("points",),
    "unet": (),
    "vae_decoder": (),
}
"""And the controls that need them."""


def engine_of(shop: Workshop, name: str) -> Any:
    """An engine, none of whose runs is a part of a graph."""
    [engines] = shop.animator._engines.values()
    engines.loader.drop_graphs()
    return engines(name)


@each(name=NETWORKS)
def test_an_engine_that_fails(
    shop: Workshop, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine = engine_of(shop, name)

    class Broken:
        io_binding = engine._session.io_binding

        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("Non-zero status code")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_session", Broken())
        refused(
            EngineError,
            f"{name} failed in ONNX Runtime: Non-zero",
            "dispose-rt doctor",
            code=None if "motion" in NETWORKS[name] else 1,  # the command too, where a run is short
            controls=NETWORKS[name],
        )


@pytest.mark.filterwarnings("ignore:the device lacks the memory to decode")
@each(name=NETWORKS)
def test_an_engine_that_answers_nonsense(
    shop: Workshop, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not finite values, and the device that lacks the memory for a run of it."""
    engine = engine_of(shop, name)
    work = engine._run_binding

    def spoil(binding: Any, arrays: Any) -> None:
        work(binding, arrays)
        for tensor in engine._spec.outputs:
            as_numpy(engine.tensor(tensor.name)).fill(np.nan)

    def lack(binding: Any, arrays: Any) -> None:
        raise OutOfMemoryError("no room for 5 bytes; close other programs")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run_binding", spoil)
        refused(
            EngineError,
            "non-finite values",
            "--precision (bf16 or )?fp32|Check the checkpoint",
            code=None,
            controls=NETWORKS[name],
        )
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run_binding", lack)
        refused(OutOfMemoryError, "no room", "close other", code=3 if name == "unet" else None, controls=NETWORKS[name])


@pytest.mark.parametrize("stage", ["load", "denoise", "decode"])
def test_a_device_without_room(shop: Workshop, refused: Callable[..., None], stage: str) -> None:
    [engines] = shop.animator._engines.values()
    pool = engines.loader.device.pool

    def refuse(size_bytes: int) -> None:
        raise OutOfMemoryError(f"no room for {size_bytes} bytes; close other programs")

    with (
        pytest.MonkeyPatch.context() as patch,
        at_stage(stage, lambda: patch.setattr(pool, "take", refuse)),
        pytest.raises(OutOfMemoryError, match="close other programs"),
    ):
        shop.run()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("motion")])
def test_an_observer_that_fails(shop: Workshop, place: Path, nothing_left: Watch, name: str) -> None:
    def observe(shown: str, value: Any) -> None:
        if shown == name:
            raise Mishap(name)

    with nothing_left(), pytest.raises(Mishap, match=name):
        shop.run(observer=observe, output=place / OUTPUT_NAME)


def test_a_film_that_fails_in_the_middle(shop: Workshop, place: Path, nothing_left: Watch) -> None:
    def film() -> Iterator[Any]:
        yield from materials.draw_film(2)
        raise Mishap

    for _ in range(2):
        with nothing_left(), pytest.raises(Mishap):
            shop.run(video=film(), output=place / OUTPUT_NAME)


def test_a_film_that_is_gone_after_its_first_frame(shop: Workshop, place: Path) -> None:
    """Its second frame is read when the first one was worked on."""
    folder = materials.folder(place / "frames")
    for number, frame in enumerate(materials.draw_film(3)):
        materials.picture(folder / f"{number}.png", frame)

    def progress(stage: str, done: int, total: int) -> None:
        if done == 1:
            shutil.rmtree(folder)

    with pytest.raises(InputError, match=r"frame 1 .*1\.png does not exist"):
        shop.run(video=folder, progress=progress, output=place / OUTPUT_NAME)
    assert set(list_files(place)) == {OUTPUT_NAME}
    assert (place / OUTPUT_NAME).read_bytes() == b"older"


@pytest.mark.parametrize(
    ("noise", "error", "said"),
    [
        (lambda name, shape: np.zeros(shape[1:], np.float32), InputError, "expected .*float32"),
        (lambda name, shape: np.zeros(shape), InputError, "float64.*float32"),
        (lambda name, shape: np.full(shape, np.nan, np.float32), InputError, "finite"),
        (lambda name, shape: None, InputError, "float32"),
        (lambda name: 0, TypeError, "takes 1 positional argument"),
        (mishap, Mishap, "^$"),
    ],
)
def test_noise_of_no_use(
    shop: Workshop, place: Path, nothing_left: Watch, noise: Any, error: type[Exception], said: str
) -> None:
    with nothing_left(), pytest.raises(error, match=said):
        shop.run(noise=noise, output=place / OUTPUT_NAME)


def broken_encoder(failure: Exception) -> Callable[..., Any]:
    def encode(*arguments: Any) -> Iterator[Any]:
        raise failure
        yield

    return encode


@pytest.mark.parametrize(
    ("failure", "cause", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left.* bytes are free", "make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota exceeded.* bytes are free", "make room"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", "choose another folder"),
        (RuntimeError("the encoder broke"), "the encoder broke", "choose another folder"),
    ],
)
def test_an_encoder_that_fails(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, failure: Exception, cause: str, remedy: str
) -> None:
    monkeypatch.setattr(writer, "encode", broken_encoder(failure))
    refused(OutputError, f"cannot be written: .*{cause}", remedy)
    assert not [one for one in threading.enumerate() if one.name == "video encoder"]


def test_a_file_that_must_not_grow(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own refusal, as a quota is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        refused(OutputError, "cannot be written: .*File too large", "make room", code=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def mounted(place: Path) -> Iterator[Callable[[str], Path]]:
    """`mounted(options)`: a file system of its own."""
    point = place / "mount"
    point.mkdir()
    mounts = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        if (
            os.geteuid()
            or not shutil.which("mount")
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("may not mount file systems here")
        mounts.append(point)
        return point

    yield mount
    for one in mounts:
        subprocess.run(["umount", str(one)], check=True)
    point.rmdir()


@pytest.mark.parametrize(
    ("options", "cause"), [("size=4k", "No space left on device"), ("size=1m,ro", "Read-only file system")]
)
def test_a_full_or_closed_file_system(
    shop: Workshop,
    mounted: Callable[[str], Path],
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    cause: str,
) -> None:
    target = mounted(options)
    for _ in range(2):
        with pytest.raises(OutputError, match=f"cannot be written: .*{cause}.*choose"):
            shop.run(output=target / "new.mp4")
        assert list_files(target) == {}
    shop.lend(monkeypatch)
    code, said = run_command(shop.words({"output": target / "new.mp4"}), capsys)
    assert (code, list_files(target)) == (1, {})
    assert cause in said


def test_a_decoder_that_fails_in_the_middle(
    shop: Workshop, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A disk that fails while the film is read: what was read is used, and a warning says so."""
    packets = containers._packets

    def break_off(container: Any, stream: Any, *more: Any) -> Iterator[Any]:
        whole = container.demux

        class Failing:
            format = container.format

            def demux(self, stream: Any) -> Iterator[Any]:
                for number, packet in enumerate(whole(stream)):
                    if number:
                        raise av.error.OSError(errno.EIO, "Input/output error")
                    yield packet

        return packets(Failing(), stream, *more)

    with monkeypatch.context() as patch:
        patch.setattr(containers, "_packets", break_off)
        shop.lend(patch)
        code, said = run_command(shop.words({"output": place / OUTPUT_NAME}), capsys)
    assert code == 0
    assert re.search(r"warning: .*dance.mkv is truncated or damaged: 1 .*export it again", said)
    assert set(list_files(place)) == {OUTPUT_NAME}


@pytest.mark.parametrize("spoil", ["a file", "below a file", "damaged", "a directory in it"])
def test_a_pose_cache_that_cannot_be_used(
    shop: Workshop, place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """It costs a warning, and neither the run nor a bit of it."""
    shop.lend(monkeypatch)
    kept = place / "poses"
    words = shop.words({"output": place / "new.mp4", "pose_cache": kept / "x" if spoil == "below a file" else kept})
    if "file" in spoil:
        kept.write_bytes(b"")
    else:
        assert run_command(words, capsys) == (0, "")
        [entry] = kept.iterdir()
        data = entry.read_bytes()
        entry.unlink()
        entry.mkdir() if "directory" in spoil else entry.write_bytes(data[: len(data) // 2])
    first = (place / "new.mp4").read_bytes() if (place / "new.mp4").exists() else None
    code, said = run_command(words, capsys)
    assert code == 0
    assert re.search("warning: .*poses.*(cannot be).*detect", said), said
    assert first in (None, (place / "new.mp4").read_bytes())
    assert not [name for name in list_files(place) if "part" in name]


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (lambda at: materials.put(at, "debug", b"x"), "cannot be (used|written)"),
        (lambda at: materials.folder(at / "debug", index_html=b"mine"), "not a page of debug pictures; pass an empty"),
        (lambda at: "/proc/self/debug", "cannot be (used|written)"),
    ],
)
def test_a_debug_folder_that_cannot_be_used(
    shop: Workshop,
    place: Path,
    nothing_left: Watch,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    folder: Callable[[Path], Any],
    said: str,
) -> None:
    shop.lend(monkeypatch)
    words = shop.words({"output": place / OUTPUT_NAME, "debug_dir": folder(place)})
    with nothing_left():
        code, text = run_command(words, capsys)
    assert code == 1, text
    assert re.search(said, text), text


def test_a_debug_folder_that_vanishes(
    shop: Workshop, place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace() -> None:
        shutil.rmtree(place / "debug")
        (place / "debug").write_bytes(b"")

    shop.lend(monkeypatch)
    words = shop.words({"output": place / OUTPUT_NAME, "debug_dir": place / "debug"})
    with at_stage("decode", replace):
        code, said = run_command(words, capsys)
    assert code == 1, said
    assert re.search(r"debug.* cannot be written", said), said
    assert list_files(place).keys() == {OUTPUT_NAME, "debug"}
    assert (place / OUTPUT_NAME).read_bytes() == b"older"


@pytest.mark.parametrize("gone", ["directory", "unet.onnx"])
def test_engines_that_vanish_while_they_are_loaded(shop: Workshop, place: Path, gone: str) -> None:
    """Once they are back, the same Animator goes on."""
    engines = link_copy(shop.engines, place / "engines")
    aside = place / "aside"

    def take_away(stage: str, done: int, total: int) -> None:
        if stage == "load" and not aside.exists():
            (engines if gone == "directory" else engines / gone).rename(aside)

    options = {"ref": shop.reference, "video": shop.video, **QUICK}
    with Animator(engines) as animator:
        changed = r"(?s)has changed since it was opened:.*unet\.onnx is missing.*`dispose-rt doctor"
        with pytest.raises(ManifestError, match=changed):
            animator.run(**options, progress=take_away, output=place / OUTPUT_NAME)
        assert (place / OUTPUT_NAME).read_bytes() == b"older"
        aside.rename(engines if gone == "directory" else engines / gone)
        np.testing.assert_array_equal(animator.run(**options, progress=False).frames, shop.expected)


PROCESS = """
import signal, sys
from dispose_rt import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &, tests included
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("stage", "number"), [("load", signal.SIGINT), ("denoise", signal.SIGTERM), ("decode", signal.SIGINT)]
)
def test_a_signal_to_a_process(
    shop: Workshop, place: Path, surroundings: Path, stage: str, number: signal.Signals
) -> None:
    film = materials.film(place / "long.mkv", materials.draw_film(2) * 4)
    before = list_files(place)
    words = [*shop.words({"output": place / OUTPUT_NAME, "video": film, "settings": {"steps": 3}}), "--progress=json"]
    command = [sys.executable, "-c", PROCESS, *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if f'"stage": "{stage}"' in line:
                break
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, said
    assert '"message": "interrupted"' in said
    assert "Traceback" not in said
    assert list_files(place) == before
    assert list_files(surroundings) == {"tmp": ""}
