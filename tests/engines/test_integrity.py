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
from pathlib import Path
from typing import Any

import pytest

from dispose_rt.contract import NETWORKS
from dispose_rt.engines import integrity
from dispose_rt.engines.integrity import FILE_NAME, check_files, find_damage
from dispose_rt.engines.manifest import FILE_NAME as MANIFEST
from dispose_rt.engines.manifest import read_manifest, write_manifest
from dispose_rt.errors import ManifestError
from tests.engines.damaged_directory import put_file, replaced, signed
from tests.engines.test_manifest import write_directory

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
    write_directory(tmp_path / "e")
    return tmp_path / "e"


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


def test_only_what_was_touched_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    damages(folder)
    hashed.clear()
    os.utime(folder / "unet.onnx")
    put_file(folder / "dift.onnx", (folder / "dift.onnx").read_bytes())
    assert damages(folder) == []
    assert sorted(hashed) == ["dift.onnx", "unet.onnx"]


def test_a_change_behind_an_old_modification_time_is_seen(folder: Path) -> None:
    damages(folder)
    flip(folder / "unet.onnx")
    assert damages(folder) == ["unet.onnx"]
    flip(folder / "unet.onnx")
    assert damages(folder) == []


def test_fresh_files_are_not_remembered(tmp_path: Path, hashed: list[str]) -> None:
    """A file system's clock has steps: a second change within one of them would leave the same times."""
    write_directory(tmp_path / "e")
    damages(tmp_path / "e")
    hashed.clear()
    damages(tmp_path / "e")
    assert sorted(hashed) == ALL


def test_another_manifest_forgets(folder: Path, hashed: list[str]) -> None:
    damages(folder)
    hashed.clear()
    signed("versions", value={"torch": "3"})(folder)
    assert damages(folder) == []
    assert sorted(hashed) == ALL


def test_a_copied_directory_is_hashed(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    """Its memory came along, and speaks of other files."""
    damages(folder)
    hashed.clear()
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    flip(tmp_path / "copy" / "unet.onnx")
    assert damages(tmp_path / "copy") == ["unet.onnx"]
    assert sorted(hashed) == ALL


def put_memory(content: bytes) -> Callable[[Path], None]:
    return lambda folder: put_file(folder / FILE_NAME, content)


def change_memory(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        body = json.loads((folder / FILE_NAME).read_text())
        change(body)
        body["checksum"] = integrity.checksum_of(body["files"])
        put_file(folder / FILE_NAME, json.dumps(body).encode())

    return apply


def test_a_forged_memory_fools_no_full_check(folder: Path) -> None:
    """It may save a damaged file from being hashed at a start, never from `inspect --verify` and `doctor`."""
    damages(folder)
    path = folder / "unet.onnx"
    flip(path)
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    change_memory(lambda body: body["files"]["unet.onnx"].__setitem__(slice(1, None), stamp))(folder)
    assert damages(folder, rehash=True) == ["unet.onnx"]
    assert damages(folder) == ["unet.onnx"]  # the full check corrected the memory
    with pytest.raises(ManifestError, match=r"unet\.onnx has other contents"):
        check_files(read_manifest(folder))


MEMORIES: dict[str, Callable[[Path], None]] = {
    "empty": put_memory(b""),
    "half": lambda folder: put_file(folder / FILE_NAME, (folder / FILE_NAME).read_bytes()[:500]),
    "zeros": put_memory(bytes(1000)),
    "a list": put_memory(b"[]"),
    "nested": put_memory(b'{"a":' * 100_000),
    "a directory": replaced(FILE_NAME, Path.mkdir),
    "a pipe": replaced(FILE_NAME, os.mkfifo),
    "a link to itself": replaced(FILE_NAME, lambda path: path.symlink_to(path)),
    "no files": change_memory(lambda body: body.update(files={})),
    "files of wrong type": change_memory(lambda body: body.update(files={"unet.onnx": 5})),
    "too few numbers": change_memory(lambda body: body["files"]["unet.onnx"].pop()),
    "text for numbers": change_memory(lambda body: body["files"].update({"unet.onnx": ["x", "y", "z", "a", "b"]})),
    "another hash": change_memory(lambda body: body["files"]["unet.onnx"].__setitem__(0, "0" * 64)),
    "another inode": change_memory(lambda body: body["files"]["unet.onnx"].__setitem__(4, 1)),
    "another manifest": change_memory(lambda body: body.update(manifest="0" * 64)),
}


@pytest.mark.parametrize("spoil", MEMORIES.values(), ids=MEMORIES)
def test_a_damaged_memory_hides_nothing(folder: Path, spoil: Callable[[Path], None]) -> None:
    damages(folder)
    spoil(folder)
    assert damages(folder) == []
    damages(folder)
    spoil(folder) if (folder / FILE_NAME).is_file() else None
    flip(folder / "unet.onnx")
    assert damages(folder) == ["unet.onnx"]
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_where_nothing_can_be_written_files_are_hashed_every_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(target: Path) -> None:
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(integrity, "atomic_write", refuse)
    for _ in range(2):
        hashed.clear()
        assert damages(folder) == []
        assert sorted(hashed) == ALL
    assert not (folder / FILE_NAME).exists()
    flip(folder / "unet.onnx")
    assert damages(folder) == ["unet.onnx"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_manifest_that_cannot_be_written_is_a_typed_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    manifest = read_manifest(folder)

    def refuse(self: Path, *rest: Any, **named: Any) -> None:
        raise OSError(code, os.strerror(code), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(ManifestError, match="(?s)cannot be written.*Free space, or check the folder's permissions"):
            write_manifest(manifest)
    assert read_manifest(folder) == manifest
    assert not list(folder.glob("*.part"))


_FULL_DISK = """
import resource, sys
from pathlib import Path
from dispose_rt.engines import integrity
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.errors import ManifestError
from dispose_rt.engines.manifest import read_manifest, write_manifest

integrity.SETTLED_NS = -10**9
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
folder = Path(sys.argv[1])
EngineDirectories(folder)
try:
    write_manifest(read_manifest(folder))
except ManifestError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are POSIX")
def test_a_full_disk_for_real(folder: Path) -> None:
    """The kernel itself refuses to let a file grow: a directory is used all the same, and stays as it was."""
    before = (folder / MANIFEST).read_bytes()
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(folder)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert "Free space" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ALL, MANIFEST])
    assert (folder / MANIFEST).read_bytes() == before


_READ_ONLY = """
import os, sys
from pathlib import Path
from dispose_rt.engines import integrity
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.integrity import find_damage
from dispose_rt.engines.manifest import read_manifest

integrity.SETTLED_NS = -10**9
folder = Path(sys.argv[1])
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    (folder / "probe").write_bytes(b"x")
except PermissionError:
    EngineDirectories(folder)
    assert not find_damage(read_manifest(folder))
    print("used")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of this kind are POSIX")
def test_a_read_only_directory_is_used(folder: Path) -> None:
    for path in (*folder.parents, folder):
        if path.owner() == folder.owner() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)  # let another user pass
    folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READ_ONLY, str(folder)], capture_output=True, text=True, check=False
        )
    finally:
        folder.chmod(0o755)
    assert done.stdout == "used\n", done.stderr
    assert not (folder / FILE_NAME).exists()


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
