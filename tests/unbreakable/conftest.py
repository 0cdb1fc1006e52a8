"""One Animator on the smallest toy engines, and a good call of the command that every bad one differs from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dispose_rt
from dispose_rt import Animator, cli
from dispose_rt.engines.manifest import CHECKED_FILE_NAME
from dispose_rt.stages.pose.cache import PoseCache
from dispose_rt.types import U8

from . import materials

WIDTH, HEIGHT = 64, 64
DRIVING_FRAMES = 2
QUICK = {"steps": 1, "overlap": 1, "stride": 1, "controls": ()}
"""Settings of the shortest run."""

Captured = pytest.CaptureFixture[str]
OUTPUT_NAME = "out.mp4"
_TEMPORARY = tempfile.gettempdir()


@dataclass
class Workshop:
    """An Animator that all tests of a module share, and good files.

    Attributes:
        animator: must always work as on its first day.
        engines: its directory.
        folder: of the good files.
        expected: the frames of the good run.
    """

    animator: Animator
    engines: Path
    folder: Path
    expected: U8 = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def reference(self) -> Path:
        return self.folder / "photo.png"

    @property
    def video(self) -> Path:
        return self.folder / "dance.mkv"

    def run(self, **changes: Any) -> U8:
        """The good run, with changes."""
        return self.animator.run(**self.options | changes).frames

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the good run."""
        return {"ref": self.reference, "video": self.video, **QUICK, "progress": False}

    def check(self) -> None:
        """The good run has the bits that it had in the beginning."""
        np.testing.assert_array_equal(self.run(), self.expected)

    @property
    def used_bytes(self) -> int:
        """Device memory in use."""
        return sum(engines.loader.device.pool.used_bytes for engines in self.animator._engines.values())

    def words(self, given: dict[str, Any]) -> list[str]:
        """The command that asks for the good run, with changes; see `bad_use_cases.Case.make`."""
        settings = QUICK | given.get("settings", {})
        words = ["animate", "--quiet"]
        for name in ("engines", "reference", "video"):
            words += [f"--{name}", str(given.get(name, getattr(self, name)))]
        words += ["--output", str(given["output"])]
        words += [] if "pose_cache" in given else ["--no-pose-cache"]
        for name in ("device", "pose_cache", "debug_dir"):
            if name in given:
                words.append(f"--{name.replace('_', '-')}={given[name]}")
        for name, value in settings.items():
            text = (",".join(value) or "none") if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')}={text}")
        return words + [str(word) for word in given.get("words", ())]

    def lend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the command use this Animator in place of one of its own, wherever it asks for the same engines."""
        shop, make = self, Animator

        class Lent:
            """What the command gets."""

            def __init__(self, pose_cache: Path | None) -> None:
                self._pose_cache = pose_cache

            def __enter__(self) -> Animator:
                shop.animator._pose_cache = None if self._pose_cache is None else PoseCache(self._pose_cache)
                return shop.animator

            def __exit__(self, *error: object) -> None:
                shop.animator._pose_cache = None

        def open_animator(engine_dir: Any, device: str = "auto", **options: Any) -> Any:
            if Path(engine_dir) == shop.engines and device == "auto":
                return Lent(options.get("pose_cache"))
            return make(engine_dir, device, **options)

        monkeypatch.setattr(dispose_rt, "Animator", open_animator)


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[Path]:
    """A folder that everybody may read, whose parents everybody may pass: pytest's are the owner's alone."""
    with tempfile.TemporaryDirectory(dir=_TEMPORARY) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def shop(toy_engines: Callable[[int, int], Path], open_to_all: Path) -> Iterator[Workshop]:
    engines = toy_engines(WIDTH, HEIGHT)
    folder = open_to_all
    materials.picture(folder / "photo.png", materials.draw_photo(WIDTH, HEIGHT))
    materials.film(folder / "dance.mkv", materials.draw_film(DRIVING_FRAMES))
    with Animator(engines) as animator:
        one = Workshop(animator, engines, folder)
        one.expected = one.run()
        yield one
        one.check()


@contextmanager
def new_place() -> Iterator[Path]:
    """A folder that everybody may write to, with an older result in it."""
    with tempfile.TemporaryDirectory(dir=_TEMPORARY) as folder:
        Path(folder).chmod(0o777)
        (Path(folder) / OUTPUT_NAME).write_bytes(b"older")
        yield Path(folder)


@pytest.fixture
def place() -> Iterator[Path]:
    """See `new_place`."""
    with new_place() as folder:
        yield folder


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches and temporary files of this test alone."""
    folder = tmp_path_factory.mktemp("surroundings")
    (folder / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("DISPOSE_RT_ENGINES", raising=False)
    return folder


@pytest.fixture
def nothing_left(surroundings: Path, place: Path) -> Callable[[], Any]:
    """`with nothing_left():`, see `leaves_nothing`."""
    return lambda: leaves_nothing(place, surroundings)


@contextmanager
def leaves_nothing(*folders: Path) -> Iterator[None]:
    """The block leaves every file as it was, and makes none."""
    before = [list_files(folder) for folder in folders]
    yield
    assert [list_files(folder) for folder in folders] == before


def list_files(folder: Path) -> dict[str, str]:
    """Every path in a folder, with a digest of what regular files hold."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in {*folders, *files} - {CHECKED_FILE_NAME}:  # which is meant to stay
            path = Path(parent) / name
            is_file = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
    return found


def run_command(words: list[str], capsys: Captured) -> tuple[int, str]:
    """Run the command in this process. Returns its exit status and its output."""
    capsys.readouterr()
    code = cli.main(words)
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.err + said.out
