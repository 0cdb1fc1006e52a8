"""Files are hashed once, and again when they may have changed; what remembers that is never trusted blindly."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.contract import NETWORKS
from dispose_rt.engines import integrity
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.integrity import check_files, check_unchanged, find_damage
from dispose_rt.engines.manifest import CHECKED_FILE_NAME, FILE_NAME, read_manifest, write_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import InputError, ManifestError
from dispose_rt.settings import Settings
from tests.engines.damaged_directory import put_file, removed, replaced, signed
from tests.engines.small_directory import write_directory

ALL = sorted(f"{name}.onnx" for name in NETWORKS)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files, as they are hashed."""
    names: list[str] = []
    digest = hashlib.file_digest

    def note(file: Any, name: Any) -> Any:
        names.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose files count as settled at once, although they were written a moment ago."""
    monkeypatch.setattr(integrity, "SETTLED_NS", -(10**9))
    return write_directory(tmp_path / "e").folder


def damages(folder: Path, rehash: bool = False) -> list[str]:
    return [damage.file.path for damage in find_damage(read_manifest(folder), rehash=rehash)]


def flip(path: Path) -> None:
    """Change a byte in place, and put the modification time back."""
    before = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_files_are_hashed_once(folder: Path, hashed: list[str]) -> None:
    assert damages(folder) == []
    assert sorted(hashed) == ALL
    hashed.clear()
    assert damages(folder) == []
    assert hashed == []
    assert damages(folder, rehash=True) == []
    assert sorted(hashed) == ALL
    assert not list(folder.glob("*.part"))


def test_whatever_was_touched_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    touches: dict[str, Callable[[], object]] = {
        "time": lambda: os.utime(folder / "unet.onnx"),
        "replaced by the same": lambda: put_file(folder / "dift.onnx", (folder / "dift.onnx").read_bytes()),
        "another manifest": lambda: signed("versions", value={"torch": "3"})(folder),
    }
    damages(folder)
    for what, touch in touches.items():
        touch()
        hashed.clear()
        assert damages(folder) == [], what
        assert sorted(hashed) == ALL, what
        hashed.clear()
        assert damages(folder) + hashed == [], what


def test_a_change_behind_an_old_modification_time_is_seen(folder: Path) -> None:
    damages(folder)
    flip(folder / "unet.onnx")
    assert damages(folder) == ["unet.onnx"]
    assert damages(folder) == ["unet.onnx"]
    flip(folder / "unet.onnx")
    assert damages(folder) == []


def test_fresh_files_are_not_remembered(tmp_path: Path, hashed: list[str]) -> None:
    """A file system's clock has steps: a second change within one of them would leave the same times."""
    write_directory(tmp_path / "e")
    hashed.clear()
    for _ in range(2):
        damages(tmp_path / "e")
    assert sorted(hashed) == sorted(ALL * 2)


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = integrity.sha256_of

    def change(path: Path) -> str:
        found = digest(path)
        if path.name == "unet.onnx":
            flip(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "sha256_of", change)
        assert damages(folder) == []
    assert damages(folder) == ["unet.onnx"]


def test_a_copied_directory_is_hashed(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    """Its memory came along, and speaks of other files."""
    damages(folder)
    hashed.clear()
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    flip(tmp_path / "copy" / "unet.onnx")
    assert damages(tmp_path / "copy") == ["unet.onnx"]
    assert sorted(hashed) == ALL


def test_a_forged_memory_fools_no_full_check(folder: Path) -> None:
    """It may save a damaged file from being hashed at a start, never from `inspect --verify` and `doctor`."""
    flip(folder / "unet.onnx")
    state = integrity._Snapshot.take(read_manifest(folder))
    assert state is not None
    (folder / CHECKED_FILE_NAME).write_text(json.dumps(state.digest))
    assert damages(folder) == []
    with pytest.raises(ManifestError, match=r"unet\.onnx has other contents"):
        check_files(read_manifest(folder))
    assert damages(folder) == ["unet.onnx"]  # the full check removed the memory


MEMORIES: dict[str, Callable[[Path], None]] = {
    "empty": lambda folder: put_file(folder / CHECKED_FILE_NAME, b""),
    "half": lambda folder: put_file(folder / CHECKED_FILE_NAME, (folder / CHECKED_FILE_NAME).read_bytes()[:30]),
    "zeros": lambda folder: put_file(folder / CHECKED_FILE_NAME, bytes(1000)),
    "of before": lambda folder: put_file(
        folder / CHECKED_FILE_NAME, b'{"manifest": "x", "files": {}, "checksum": "y"}'
    ),
    "nested": lambda folder: put_file(folder / CHECKED_FILE_NAME, b'{"a":' * 100_000),
    "another digest": lambda folder: put_file(folder / CHECKED_FILE_NAME, json.dumps("0" * 64).encode()),
    "a pipe": replaced(CHECKED_FILE_NAME, os.mkfifo),
    "a link to itself": replaced(CHECKED_FILE_NAME, lambda path: path.symlink_to(path)),
    "a directory": replaced(CHECKED_FILE_NAME, Path.mkdir),
}


def test_a_damaged_memory_hides_nothing(tmp_path: Path, folder: Path) -> None:
    for name, spoil in MEMORIES.items():
        copy = write_directory(tmp_path / name).folder
        damages(copy)
        spoil(copy)
        assert damages(copy) == [], name
        flip(copy / "unet.onnx")
        assert damages(copy) == ["unet.onnx"], name
        assert not list(copy.glob("*.part")), name


def refuse_with(code: int) -> Callable[..., None]:
    def refuse(self: Path, *rest: Any, **named: Any) -> None:
        raise OSError(code, os.strerror(code), str(self))

    return refuse


def test_where_nothing_can_be_written_files_are_hashed_every_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (errno.ENOSPC, errno.EROFS, errno.EACCES):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse_with(code))
            for _ in range(2):
                hashed.clear()
                assert damages(folder) == []
                assert sorted(hashed) == ALL
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ALL, FILE_NAME])
    flip(folder / "unet.onnx")
    assert damages(folder) == ["unet.onnx"]


def test_a_manifest_that_cannot_be_written_is_a_typed_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(folder)
    for code in (errno.ENOSPC, errno.EROFS):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse_with(code))
            with pytest.raises(
                ManifestError, match="(?s)cannot be written.*Free space, or check the folder's permissions"
            ):
                write_manifest(manifest)
        assert read_manifest(folder) == manifest
        assert not list(folder.glob("*.part"))


_NOTHING_CAN_BE_WRITTEN = """
import os, resource, sys
from pathlib import Path
from dispose_rt.engines import integrity
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.integrity import find_damage
from dispose_rt.engines.manifest import read_manifest, write_manifest
from dispose_rt.errors import ManifestError

integrity.SETTLED_NS = -10**9
read_only, full = map(Path, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
EngineDirectories(full)
try:
    write_manifest(read_manifest(full))
except ManifestError as error:
    print(error)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    (read_only / "probe").write_bytes(b"x")
except PermissionError:
    EngineDirectories(read_only)
    assert not find_damage(read_manifest(read_only))
    print("used")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits and permissions of this kind are POSIX")
def test_full_disks_and_read_only_directories_for_real(folder: Path, tmp_path: Path) -> None:
    """The kernel itself refuses to let a file grow or be written: directories are used all the same, unchanged."""
    read_only = write_directory(tmp_path / "read only").folder
    before = (folder / FILE_NAME).read_bytes()
    for path in (*read_only.parents, read_only):
        if path.owner() == read_only.owner() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)  # let another user pass
    read_only.chmod(0o555)
    try:
        command = [sys.executable, "-c", _NOTHING_CAN_BE_WRITTEN, str(read_only), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        read_only.chmod(0o755)
    assert done.stdout.endswith("used\n"), done.stderr
    assert "cannot be written" in done.stdout
    assert "Free space" in done.stdout
    for one in (folder, read_only):
        assert sorted(path.name for path in one.iterdir()) == sorted([*ALL, FILE_NAME])
    assert (folder / FILE_NAME).read_bytes() == before


def test_starts_at_the_same_time_do_not_disturb_each_other(folder: Path) -> None:
    manifest = read_manifest(folder)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(find_damage(manifest))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[]] * 8
    assert damages(folder) == []
    assert not list(folder.glob("*.part"))


def test_a_file_that_changed_after_the_check_is_refused_when_its_network_is_opened(folder: Path) -> None:
    [manifest] = EngineDirectories(folder).manifests
    os.utime(folder / "unet.onnx")  # touched, or linked to from another directory
    for name in NETWORKS:
        check_unchanged(manifest, name)
    flip(folder / "unet.onnx")
    removed("dift.onnx")(folder)
    check_unchanged(manifest, "pose_net")
    for name, words in (("unet", r"unet\.onnx has other contents"), ("dift", r"dift\.onnx is missing")):
        with pytest.raises(ManifestError, match=f"(?s)has changed since it was opened.*{words}.*dispose-rt doctor"):
            Engines(manifest)(name)


def test_an_animator_stays_with_its_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process changes its folder before the first run; and arguments of other types are refused by name."""
    monkeypatch.chdir(folder.parent)
    with Animator(folder.name, pose_cache="poses") as animator:
        monkeypatch.chdir("/")
        assert [one.folder for one in animator._directories.manifests] == [folder]
        assert animator._pose_cache is not None
        assert animator._pose_cache.folder == folder.parent / "poses"
        for call in (animator.run, animator.stream):
            with pytest.raises(InputError, match="progress is 'x'; pass True, False, or a function"):
                call("photo.png", "video.mp4", progress="x")  # type: ignore[arg-type]
    assert Settings(steps=np.int64(1), fps=Fraction(24)) == Settings(steps=1, fps=24.0)
    with pytest.raises(InputError, match="steps is True"):
        Settings(steps=True)
