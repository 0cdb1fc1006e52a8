"""Weight files are verified as they are read, and all headers are compared before anything is hashed or loaded."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dispose_rt_export import weight_files
from dispose_rt_export.builds import network
from dispose_rt_export.builds.plan import RECIPES
from dispose_rt_export.builds.weight_check import check_weights
from dispose_rt_export.checkpoints import CONFIG_FILES, FILES, Checkpoint
from dispose_rt_export.weight_files import read_headers, read_tensors
from torch import Tensor

from dispose_rt.cli import main
from dispose_rt.errors import CheckpointError, OutOfMemoryError
from tests.every import each, every_item

TENSORS = {"a": torch.arange(60000.0).view(200, 300), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.arange(5)}
TENSORS["view"] = TENSORS["a"][3:5]


def packed(path: Path, method: int = zipfile.ZIP_STORED, edit: Callable[[str, bytes], bytes] | None = None) -> Path:
    """A checkpoint that was unpacked and packed again, as archivers do."""
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as before:
        entries = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", method) as after:
        for name, content in entries.items():
            after.writestr(name, edit(name, content) if edit else content)
    return path


@each(method=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_packed_checkpoints_hold_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int) -> None:
    """Stored entries are mapped; compressed ones are loaded, and refused where memory is short."""
    path = packed(tmp_path / "x.pth", method)
    read, headers = read_tensors(path), read_headers(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert {name: (one.shape, one.dtype) for name, one in headers.items()} == {
        name: (one.shape, one.dtype) for name, one in TENSORS.items()
    }
    assert {one.device.type for one in headers.values()} == {"meta"}
    with monkeypatch.context() as short:
        short.setattr(weight_files, "free_host_bytes", lambda: 1000)
        if method == zipfile.ZIP_STORED:
            assert read_tensors(path).keys() == TENSORS.keys()
            return
        with pytest.raises(OutOfMemoryError, match=r"240\.\d KB of memory, of which 1\.0 KB are free"):
            read_tensors(path)


def flipped(path: Path) -> None:
    torch.save(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[content.index(TENSORS["a"].numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(content)


def shortened(path: Path) -> None:
    packed(path, edit=lambda name, content: content[:-8] if name.endswith("data/0") else content)


def twice(path: Path) -> None:
    packed(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{path.stem}/data/0", b"other")


def behind_something(path: Path) -> None:
    packed(path)
    path.write_bytes(path.read_bytes()[:30] + bytes(100) + path.read_bytes())


def safetensors(header: dict[str, Any], size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))

    return write


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": ("x.pth", flipped),
    "an entry that is shorter than its storage": ("x.pth", shortened),
    "two entries of one name": ("x.pth", twice),
    "something before the archive": ("x.pth", behind_something),
    "a length beyond the file": ("x.safetensors", lambda path: path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")),
    "a gap": ("x.safetensors", safetensors({"a": entry(0, 8), "b": entry(12, 20)}, 20)),
    "an overlap": ("x.safetensors", safetensors({"a": entry(0, 8), "b": entry(4, 12)}, 12)),
    "offsets beyond the file": ("x.safetensors", safetensors({"a": entry(0, 8), "b": entry(8, 16)}, 12)),
    "a rest without a tensor": ("x.safetensors", safetensors({"a": entry(0, 8)}, 12)),
    "another size than the shape's": ("x.safetensors", safetensors({"a": entry(0, 8, shape=(3,))}, 8)),
    "an unknown dtype": ("x.safetensors", safetensors({"a": entry(0, 8, dtype="F33")}, 8)),
    "a Git LFS pointer": ("x.pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")),
    "a web page": ("x.safetensors", lambda path: path.write_text("\n<!DOCTYPE html>\n<html>")),
    "an empty file": ("x.pth", lambda path: path.touch()),
}


def test_whatever_does_not_fit_is_refused(tmp_path: Path) -> None:
    with every_item() as every:
        for what, (name, write) in DAMAGED.items():
            with every(what):
                write(tmp_path / name)
                with pytest.raises(CheckpointError, match=rf"{name} is damaged") as caught:
                    read_tensors(tmp_path / name)
                if what in ("a Git LFS pointer", "a web page", "an empty file"):
                    assert what in str(caught.value)
                assert "weights_only" not in str(caught.value)
                (tmp_path / name).unlink()


def test_values_that_change_between_two_readings_fail_the_build(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's outputs are of the values that were read second."""
    traced = network.checksum_values(RECIPES["point_encoder"].build(Checkpoint(golden_checkpoint)))
    monkeypatch.setattr(network, "trace_network", lambda *_: traced ^ 1)
    command = ["build", "--weights", str(golden_checkpoint), "--size", "64x64", "--only", "point_encoder"]
    assert main([*command, "--output", str(tmp_path / "e")]) == 1
    assert f"the second time (checksums {traced ^ 1:08x} and {traced:08x})" in capsys.readouterr().err


def test_everything_that_is_wrong_is_in_one_message(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is hashed before, no file takes more than ten lines, and a prefix too many takes one."""
    folder = tmp_path / "weights"
    shutil.copytree(golden_checkpoint, folder, copy_function=os.link)

    def put(path: str, content: bytes) -> None:
        (folder / path).unlink()
        (folder / path).write_bytes(content)

    def change(path: str, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        tensors = edit(torch.load(folder / path, weights_only=True))
        (folder / path).unlink()
        torch.save(tensors, folder / path)

    change("DisPose.pth", lambda tensors: {f"module.{name}": one for name, one in tensors.items()})
    change("MimicMotion_1-1.pth", lambda tensors: dict(list(tensors.items())[30:]))
    put(FILES["svd_vae"].paths[0], b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    put(FILES["image_encoder"].paths[0], b"")
    put(FILES["person_detector"].paths[0], b"<!DOCTYPE html><html>")
    put(CONFIG_FILES["sd15_scheduler"].paths[0], b"{bad")
    put(CONFIG_FILES["svd_scheduler"].paths[0], b'{"sigma_min": "x"}')
    put(CONFIG_FILES["sd15_text_encoder"].paths[0], b'{"hidden_size": "x"}')
    put(CONFIG_FILES["sd15_unet"].paths[0], b"{}")
    monkeypatch.setattr(Checkpoint, "fingerprint", lambda *_: pytest.fail("hashed before all headers were seen"))
    command = ["build", "--weights", str(folder), "--output", str(tmp_path / "e"), "--size", "64x64"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"9 files in {folder} cannot be used" in said
    parts = {path.partition(":\n")[0]: path.splitlines()[1:] for path in said.split(f"  - {folder}{os.sep}")[1:]}
    expected = {
        "DisPose.pth": r"all 705 names of tensors begin with 'module.', and no published name does",
        "MimicMotion_1-1.pth": "missing: unet.conv_in.weight [32, 8, 3, 3]",
        FILES["svd_vae"].paths[0]: "Git LFS pointer",
        FILES["image_encoder"].paths[0]: "an empty file",
        FILES["person_detector"].paths[0]: "a web page",
        CONFIG_FILES["sd15_scheduler"].paths[0]: "cannot be read as JSON",
        CONFIG_FILES["svd_scheduler"].paths[0]: "values cannot be used",
        CONFIG_FILES["sd15_text_encoder"].paths[0]: "hidden_size",
        CONFIG_FILES["sd15_unet"].paths[0]: "'block_out_channels' is missing",
    }
    assert parts.keys() == expected.keys()
    for path, words in expected.items():
        assert any(words in line for line in parts[path]), path
    assert parts["MimicMotion_1-1.pth"][-1].strip() == "... and 16 more"
    assert max(map(len, parts.values())) == 11
    assert not (tmp_path / "e").exists()
    check_weights(Checkpoint(golden_checkpoint))
    put(CONFIG_FILES["svd_unet"].paths[0], json.dumps({"layers_per_block": [0] * 5000}).encode())
    with pytest.raises(CheckpointError, match="layers_per_block is") as caught:
        check_weights(Checkpoint(folder))
    assert max(map(len, str(caught.value).splitlines())) < 400
