"""An Animator that only pretends, and an engine directory of a few kilobytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dispose_rt
from dispose_rt import media
from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.engines.manifest import Manifest, NetworkRecord, record_file, write_manifest
from dispose_rt.errors import InputWarning

GOLDEN = Path(__file__).parents[1] / "golden"
REFERENCE, DRIVE = str(GOLDEN / "ref.png"), str(GOLDEN / "drive.mkv")

Captured = pytest.CaptureFixture[str]


class FakeAnimator:
    """Stands in for the runtime: records its arguments, writes three frames, fails where it is told to."""

    calls: list[dict[str, Any]]
    failure: BaseException | None
    closed: int

    def __init__(
        self, engine_dir: Any, device: str = "auto", *, pose_cache: Path | None = None, trust: bool = False
    ) -> None:
        self.opened = {"engine_dir": engine_dir, "device": device, "pose_cache": pose_cache, "trust": trust}

    def __enter__(self) -> FakeAnimator:
        return self

    def __exit__(self, *error: Any) -> None:
        type(self).closed += 1

    def run(self, ref: Any, video: Any, *, output: Any, progress: Any, **settings: Any) -> Any:
        self.calls.append(
            {**self.opened, "ref": ref, "video": video, "output": output, "progress": progress} | settings
        )
        if settings["observer"] is not None:
            settings["observer"]("reference", ref)
        with media.open_writer(output, 12, 96, 64) as write:
            for level in (0, 100, 200):
                write(np.full((64, 96, 3), level, np.uint8))
                if callable(progress):
                    progress("decode", level // 100 + 1, 3)
                if self.failure is not None:
                    raise self.failure
            warnings.warn("nobody was found in the video's frames 4, 6", InputWarning, stacklevel=1)
        return SimpleNamespace(
            frames=np.zeros((0, 64, 96, 3), np.uint8),
            frame_count=3,
            fps=12.0,
            timings={"pose": 1.0, "denoise": 2.5},
            peak_bytes=12_345,
        )


@pytest.fixture
def animator(monkeypatch: pytest.MonkeyPatch) -> type[FakeAnimator]:
    class Fake(FakeAnimator):
        calls: list[dict[str, Any]] = []  # noqa: RUF012
        failure = None
        closed = 0

    monkeypatch.setattr(dispose_rt, "Animator", Fake, raising=False)
    return Fake


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody's real caches, and no engines in the environment."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("DISPOSE_RT_ENGINES", raising=False)
    return folder


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A complete call of `animate`."""
    output = str(tmp_path / "out.mp4")
    return ["animate", "--engines", "engines", "--reference", REFERENCE, "--video", DRIVE, "--output", output]


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
