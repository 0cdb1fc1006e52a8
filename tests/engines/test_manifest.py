"""Engine directories are read back as they were written, checked file by file, and picked by their aspect ratio."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.integrity import check_files
from dispose_rt.engines.manifest import read_manifest, rebuild_command
from dispose_rt.errors import ManifestError
from tests.engines.small_directory import write_directory


def test_written_manifest_reads_back_equal(tmp_path: Path) -> None:
    manifest = write_directory(tmp_path / "e")
    assert read_manifest(tmp_path / "e") == manifest
    check_files(manifest)
    assert [path.name for path in (tmp_path / "e").iterdir() if path.suffix == ".part"] == []


def test_the_rebuild_command_has_every_option_that_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    assert rebuild_command(folder) == f"dispose-rt build --weights WEIGHTS --output '{folder}'"
    body = write_directory(folder).to_json() | {"precision": "int8", "targets": ["sm_89", "$(id)", 5]}
    options = "--backend onnxruntime --size 64x64 --tile-frames 7 --decode-chunk 4 --target sm_89"
    assert rebuild_command(folder, body) == f"dispose-rt build --weights WEIGHTS --output '{folder}' {options}"
    changed = rebuild_command(folder, body, target="", backend="aotinductor", precision="fp16")
    assert "--backend aotinductor --size 64x64" in changed
    assert "--precision fp16" in changed
    assert "--target" not in changed
    hostile = {"sizes": {"width": "$(id)", "height": True}, "backend": ["x"], "targets": "sm_89"}
    assert rebuild_command(folder, hostile) == rebuild_command(folder)


def test_all_damaged_files_are_listed_at_once(tmp_path: Path) -> None:
    manifest = write_directory(tmp_path / "e")
    (tmp_path / "e/unet.onnx").unlink()
    (tmp_path / "e/dift.onnx").write_bytes(b"short")
    flipped = bytearray((tmp_path / "e/controlnet.onnx").read_bytes())
    flipped[3] ^= 1
    (tmp_path / "e/controlnet.onnx").write_bytes(flipped)
    with pytest.raises(ManifestError) as caught:
        check_files(manifest)
    assert caught.value.problems == (
        "dift: dift.onnx has 5 bytes, the manifest says 400",
        "controlnet: controlnet.onnx has other contents than the manifest says",
        "unet: unet.onnx is missing",
    )
    text = str(ManifestError("the manifest is damaged:", [f"problem {number}" for number in range(10**5)]))
    assert text.endswith("  - problem 99\n  - and 99900 more")  # a file can be made to have any number


def test_parent_directory_picks_the_nearest_aspect(tmp_path: Path) -> None:
    for name, width, height in (("tall", 64, 128), ("wide", 128, 64), ("square", 64, 64), ("large", 128, 128)):
        write_directory(tmp_path / name, width, height)
    directories = EngineDirectories(tmp_path)
    picks = {(w, h): directories.pick(w, h).folder.name for w, h in ((900, 1600), (1600, 900), (800, 801))}
    assert picks == {(900, 1600): "tall", (1600, 900): "wide", (800, 801): "large"}


def test_parent_directory_without_engines(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="holds no manifest.json"):
        EngineDirectories(tmp_path)
