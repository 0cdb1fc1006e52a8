"""Engine directories are used as they were built, or refused with every reason and a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.integrity import check_files
from dispose_rt.engines.manifest import FILE_NAME, Manifest, NetworkRecord, read_manifest, record_file, write_manifest
from dispose_rt.errors import ManifestError


def write_directory(folder: Path, width: int = 64, height: int = 64) -> Manifest:
    folder.mkdir(parents=True)
    records = {}
    for name in NETWORKS:
        (folder / f"{name}.onnx").write_bytes(name.encode() * 10)
        records[name] = NetworkRecord((record_file(folder, f"{name}.onnx"),), "key", "float32", {"out": 1e-6})
    sizes = Sizes(width, height, 5, 2, (32, 64, 128, 128), 48, 96)
    manifest = Manifest(
        folder, "onnxruntime", "fp32", sizes, SchedulerConstants(), records, {"w": {"sha256": "0"}}, {"torch": "2"}
    )
    write_manifest(manifest)
    return manifest


def test_written_manifest_reads_back_equal(tmp_path):
    manifest = write_directory(tmp_path / "e")
    assert read_manifest(tmp_path / "e") == manifest
    check_files(manifest)
    assert [path.name for path in (tmp_path / "e").iterdir() if path.suffix == ".part"] == []


def edit(folder: Path, change) -> None:
    body = json.loads((folder / FILE_NAME).read_text())
    change(body)
    (folder / FILE_NAME).write_text(json.dumps(body))


def drop(*keys):
    def change(body):
        for key in keys[:-1]:
            body = body[key]
        del body[keys[-1]]

    return change


def put(value, *keys):
    def change(body):
        for key in keys[:-1]:
            body = body[key]
        body[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("something", "format"), "not a dispose_rt manifest"),
        (put(0, "revision"), "revision is 0.*built by an older version"),
        (put(99, "contract_revision"), "contract_revision is 99.*built by another version"),
        (put("tensorflow", "backend"), "backend is 'tensorflow'"),
        (put("int8", "precision"), "precision is 'int8'"),
        (drop("sizes"), "damaged"),
        (put(100, "sizes", "width"), "width is 100"),
        (put("wide", "sizes", "width"), "damaged"),
        (put(5, "sizes", "channels"), "damaged"),
        (put(1, "sizes", "surprise"), "damaged"),
        (drop("networks", "unet"), r"networks missing: \['unet'\]"),
        (put({}, "networks", "surprise"), "damaged"),
        (put([], "networks", "unet", "files"), "lists no file"),
        (put("../unet.onnx", "networks", "unet", "files", 0, "path"), "outside the engine directory"),
        (put("/etc/passwd", "networks", "unet", "files", 0, "path"), "outside the engine directory"),
        (put("int4", "networks", "unet", "compute_dtype"), "int4"),
        (put("epsilon", "scheduler", "prediction_type"), "epsilon"),
    ],
)
def test_bad_manifests_are_refused_with_a_remedy(tmp_path, change, words):
    write_directory(tmp_path / "e")
    edit(tmp_path / "e", change)
    with pytest.raises(ManifestError, match=f"(?s){words}.*dispose-rt build"):
        read_manifest(tmp_path / "e")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'"text"', b"7"])
def test_manifests_that_are_no_manifest_are_refused(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match="dispose-rt build"):
        read_manifest(tmp_path)


def test_missing_directory_and_missing_manifest(tmp_path):
    with pytest.raises(ManifestError, match="not a directory"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match="holds no manifest.json"):
        read_manifest(tmp_path)


def test_all_damaged_files_are_listed_at_once(tmp_path):
    manifest = write_directory(tmp_path / "e")
    (tmp_path / "e/unet.onnx").unlink()
    (tmp_path / "e/dift.onnx").write_bytes(b"short")
    flipped = bytearray((tmp_path / "e/controlnet.onnx").read_bytes())
    flipped[3] ^= 1
    (tmp_path / "e/controlnet.onnx").write_bytes(flipped)
    with pytest.raises(ManifestError) as caught:
        check_files(manifest)
    assert len(caught.value.problems) == 3
    text = str(caught.value)
    assert "unet.onnx is missing" in text
    assert "dift.onnx has 5 bytes" in text
    assert "controlnet.onnx has other contents" in text


def test_parent_directory_picks_the_nearest_aspect(tmp_path):
    for name, width, height in (("tall", 64, 128), ("wide", 128, 64), ("square", 64, 64), ("large", 128, 128)):
        write_directory(tmp_path / name, width, height)
    directories = EngineDirectories(tmp_path)
    picks = {(w, h): directories.pick(w, h).folder.name for w, h in ((900, 1600), (1600, 900), (800, 801))}
    assert picks == {(900, 1600): "tall", (1600, 900): "wide", (800, 801): "large"}


def test_parent_directory_without_engines(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="holds no manifest.json"):
        EngineDirectories(tmp_path)
