"""Damaged engine directories: each is refused with a typed error that names the culprit and the command that helps.

Every case damages a real directory, built from the golden checkpoint. `test_tampered_directories.py` has those whose
manifest was made to fit the damage, `test_preflight.py` those that do not fit the machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.contract import NETWORKS
from dispose_rt.engines.manifest import FILE_NAME, Manifest, read_manifest
from dispose_rt.errors import ManifestError
from tests.engines.damaged_directory import (
    Damage,
    dropped,
    edited,
    filled,
    flipped,
    link_copy,
    put_file,
    read_body,
    removed,
    replaced,
    signed,
    swapped,
    truncated,
)
from tests.golden_case import GoldenCase

Cases = dict[str, tuple[Damage, str]]
REMEDY = "python export/build_engines.py --weights WEIGHTS --output"
OPTIONS = "--backend onnxruntime --precision fp32 --size 64x64 --tile-frames 7 --decode-chunk 4"


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    return golden_engines(GoldenCase("one_tile_64"))


@pytest.fixture
def copied(engines: Path, tmp_path: Path) -> Path:
    """A copy that costs no disk."""
    return link_copy(engines, tmp_path / "engines")


def refusal(folder: Path) -> str:
    """What an Animator says when it refuses a directory; without a command that helps it is no good refusal."""
    with pytest.raises(ManifestError) as caught:
        Animator(folder)
    assert REMEDY in str(caught.value)
    return str(caught.value)


def test_the_undamaged_copy_is_accepted(copied: Path) -> None:
    Animator(copied).close()


def web_page(size: int) -> bytes:
    """What a download behind a login page looks like."""
    return (b"<!DOCTYPE html><title>Sign in</title>" * (size // 30))[:size]


KEPT: dict[str, Callable[[int], int]] = {
    "nothing": lambda size: 0,
    "1 byte": lambda size: 1,
    "100 bytes": lambda size: 100,
    "a quarter": lambda size: size // 4,
    "half": lambda size: size // 2,
    "all but a block": lambda size: size - 4096,
    "all but a byte": lambda size: size - 1,
}
POSITIONS = (0.0, 1e-6, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)

ENGINE_CASES: Cases = {
    **{
        f"unet cut to {what}": (truncated("unet.onnx", keep), r"unet: unet\.onnx has \d+ b")
        for what, keep in KEPT.items()
    },
    **{
        f"{name} cut to half": (truncated(f"{name}.onnx", KEPT["half"]), rf"{name}: {name}\.onnx has \d+ bytes")
        for name in ("person_detector", "vae_encoder", "controlnet", "vae_decoder")
    },
    **{
        f"unet, bit {i % 8} at {position:g}": (
            flipped("unet.onnx", position, i % 8),
            r"unet: unet\.onnx has other contents",
        )
        for i, position in enumerate(POSITIONS)
    },
    **{
        f"{name}, bit in the middle": (flipped(f"{name}.onnx", 0.5, 3), rf"{name}: {name}\.onnx has other contents")
        for name in NETWORKS
        if name != "unet"
    },
    "a byte too many": (filled("pose_net.onnx", lambda size: bytes(size + 1)), r"pose_net\.onnx has \d+ bytes"),
    "zeros": (filled("dift.onnx", bytes), r"dift\.onnx has other contents"),
    "ones": (filled("dift.onnx", lambda size: b"\xff" * size), r"dift\.onnx has other contents"),
    "a web page": (filled("unet.onnx", web_page), r"unet\.onnx has other contents"),
    "swapped": (swapped("unet.onnx", "controlnet.onnx"), r"controlnet: .* bytes(?s:.*)unet: .* bytes"),
    "missing": (removed("motion_encoder.onnx"), r"motion_encoder: motion_encoder\.onnx is missing"),
    "a directory": (
        replaced("unet.onnx", Path.mkdir),
        r"is no regular file(?s:.*)rm -r \S+/unet\.onnx && python",
    ),
    "a pipe": (replaced("unet.onnx", os.mkfifo), r"unet\.onnx is no regular file"),
    "a device": (replaced("unet.onnx", lambda path: path.symlink_to("/dev/zero")), r"unet\.onnx is no regular file"),
    "a link to nowhere": (
        replaced("unet.onnx", lambda path: path.symlink_to("nowhere")),
        "is a link that leads nowhere",
    ),
    "a link to itself": (replaced("unet.onnx", lambda path: path.symlink_to(path)), r"unet\.onnx cannot be read"),
}


@pytest.mark.parametrize(("damage", "words"), ENGINE_CASES.values(), ids=ENGINE_CASES)
def test_damaged_engines(copied: Path, damage: Damage, words: str) -> None:
    damage(copied)
    text = refusal(copied)
    assert re.search(words, text)
    assert f"{copied} {OPTIONS}" in text


def repeated(folder: Path) -> None:
    """Give an entry of the manifest twice; readers differ in which of the two counts."""
    text = (folder / FILE_NAME).read_text()
    put_file(folder / FILE_NAME, text.replace('"precision"', '"precision": "fp16", "precision"', 1).encode())


def without_checksum(folder: Path) -> None:
    body = read_body(folder)
    del body["checksum"]
    put_file(folder / FILE_NAME, json.dumps(body).encode())


def manifest_of(content: bytes) -> Damage:
    return lambda folder: put_file(folder / FILE_NAME, content)


def inserted(text: str) -> Damage:
    """Write JSON that Python would not write in place of the height."""

    def damage(folder: Path) -> None:
        content = (folder / FILE_NAME).read_text()
        changed = re.sub(r'"height": \d+', f'"height": {text}', content)
        assert changed != content
        put_file(folder / FILE_NAME, changed.encode())

    return damage


UNREADABLE: Cases = {
    "nothing": (manifest_of(b""), "cannot be read"),
    "1 byte": (truncated(FILE_NAME, KEPT["1 byte"]), "cannot be read"),
    "100 bytes": (truncated(FILE_NAME, KEPT["100 bytes"]), "cannot be read"),
    "half": (truncated(FILE_NAME, KEPT["half"]), "cannot be read"),
    "without its last brace": (truncated(FILE_NAME, lambda size: size - 2), "cannot be read"),
    "zeros": (filled(FILE_NAME, bytes), "cannot be read"),
    "a web page": (filled(FILE_NAME, web_page), "cannot be read"),
    "other encoding": (manifest_of(json.dumps({"format": "x"}).encode("utf-16")), "cannot be read"),
    "no object": (manifest_of(b"[]"), "not a dispose_rt manifest"),
    "a browser extension's": (manifest_of(b'{"manifest_version": 3, "name": "x"}'), "not a dispose_rt manifest"),
    "nested without end": (manifest_of(b'{"a":' * 1_000_000), "nested too deeply"),
    "huge": (filled(FILE_NAME, lambda size: b" " * (1 << 25)), "33554432 bytes"),
    "a number without end": (inserted("1" * 5000), "cannot be read"),
    "an infinite number": (inserted("1e999"), "1e999 is too large"),
    "not a number": (inserted("NaN"), "NaN is no number"),
    "an entry twice": (repeated, "'precision' stands there twice"),
    "a directory": (replaced(FILE_NAME, Path.mkdir), "is not a file"),
    "a pipe": (replaced(FILE_NAME, os.mkfifo), "is not a file"),
    "missing": (removed(FILE_NAME), "holds no manifest.json"),
    "a link to nowhere": (replaced(FILE_NAME, lambda path: path.symlink_to("nowhere")), "holds no manifest.json"),
    "a link to itself": (replaced(FILE_NAME, lambda path: path.symlink_to(path)), "cannot be read"),
}


@pytest.mark.parametrize(("damage", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_manifests(copied: Path, damage: Damage, words: str) -> None:
    damage(copied)
    assert re.search(words, refusal(copied))


@pytest.mark.parametrize("position", np.linspace(0, 0.999, 12))
def test_flipped_bits_in_the_manifest(copied: Path, position: float) -> None:
    """The lowest bit of any byte: it always changes a value, or what is no longer JSON."""
    flipped(FILE_NAME, float(position), 0)(copied)
    assert str(copied / FILE_NAME) in refusal(copied)


def test_no_flipped_bit_of_the_manifest_goes_unseen(engines: Path, tmp_path: Path) -> None:
    """Nearly all are refused; what is not, such as 1e-6 that became 1E-6, still says the same."""
    intact = (engines / FILE_NAME).read_bytes()
    meant = read_manifest(engines)
    random = np.random.default_rng(0)
    accepted = 0
    for place in random.choice(len(intact), 500, replace=False):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << int(random.integers(8))
        put_file(tmp_path / FILE_NAME, bytes(damaged))
        try:
            manifest = read_manifest(tmp_path)
        except ManifestError:
            continue
        accepted += 1
        assert manifest == Manifest(**{**vars(meant), "folder": tmp_path})
    assert accepted < 5


FILE = ("networks", "unet", "files", 0)

EDITED: Cases = {
    f"{keys[-1]} by hand": (edited(*keys, value=value), "checksum does not fit")
    for keys, value in (
        (("sizes", "tile"), 8),
        (("sizes", "width"), 128),
        (("scheduler", "sigma_max"), 80.0),
        (("precision",), "fp16"),
        (("networks", "unet", "compute_dtype"), "float16"),
        (("networks", "unet", "build_key"), "0"),
        ((*FILE, "size_bytes"), 5),
        ((*FILE, "sha256"), "0" * 64),
        (("versions", "torch"), "1.0"),
        (("targets",), ["sm_89"]),
        (("checksum",), 5),
    )
} | {"no checksum": (without_checksum, "checksum does not fit")}

SIGNED: Cases = {
    f"{'.'.join(map(str, keys))} = {str(value)[:20]}": (signed(*keys, value=value), words)
    for keys, value, words in (
        (("revision",), 1, "revision is 1, .*an older version"),
        (("revision",), 99, "revision is 99, .*another version"),
        (("contract_revision",), None, "contract_revision is None"),
        (("backend",), "tensorflow", "backend is 'tensorflow'"),
        (("backend",), ["onnxruntime"], r"backend is \['onnxruntime'\]"),
        (("precision",), "int8", "precision is 'int8'"),
        (("surprise",), 1, "unknown entries: 'surprise'"),
        (("sizes",), None, "sizes is None"),
        (("sizes", "width"), 100, "width is 100; it must be a positive multiple of 64"),
        (("sizes", "width"), True, "sizes.width is True"),
        (("sizes", "width"), "64", "sizes.width is '64'"),
        (("sizes", "height"), 64.0, "sizes.height is 64.0"),
        (("sizes", "tile"), 0, "sizes.tile is 0"),
        (("sizes", "chunk"), 10**9, "sizes.chunk is 1000000000"),
        (("sizes", "channels"), [32, 64, 128], "sizes.channels has 3 entries"),
        (("sizes", "channels", 0), -32, "sizes.channels is -32"),
        (("scheduler", "sigma_max"), 1e30, "sigma_max is 1e"),
        (("scheduler", "sigma_min"), 900, "not a positive, rising range"),
        (("scheduler", "sigma_min"), "small", "sigma_min is 'small'"),
        (("scheduler", "prediction_type"), "epsilon", "'epsilon' is not supported"),
        (("targets",), "cpu", "targets is 'cpu', expected a list"),
        (("targets",), ["gpu"], "targets is 'gpu'"),
        (("targets",), [89], "targets is 89"),
        (("weights",), [], r"weights is \[\]"),
        (("versions", "torch"), 2, "versions is 2"),
        (("networks",), [], r"networks is \[\]"),
        (("networks", "surprise"), {}, "unknown:.*surprise"),
        (("networks", "unet"), {}, "unet lacks 'files'"),
        (("networks", "unet", "files"), [], "unet lists no file"),
        (("networks", "unet", "compute_dtype"), "float16", "unet: compute_dtype is 'float16', expected one of float32"),
        (("networks", "unet", "backend"), "tensorrt", "unet: backend is 'tensorrt', expected one of onnxruntime"),
        (("networks", "unet", "build_key"), 5, "build_key is 5"),
        (("networks", "unet", "verification"), {"noise_pred": "small"}, "verification of 'noise_pred' is 'small'"),
        (("networks", "unet", "signature"), {"x": ["float32"]}, "signature of 'x' has 1 parts"),
        (("networks", "unet", "signature"), {"x": ["float32", [1]]}, "unet: the engine lacks the tensor latents"),
        ((*FILE, "path"), "../unet.onnx", "outside the engine directory"),
        ((*FILE, "path"), "/etc/passwd", "outside the engine directory"),
        ((*FILE, "path"), "..", "outside the engine directory"),
        ((*FILE, "path"), "", "outside the engine directory"),
        ((*FILE, "path"), "unet.onnx\0", "outside the engine directory"),
        ((*FILE, "path"), FILE_NAME, "no engine file's name"),
        ((*FILE, "size_bytes"), -1, r"size of unet\.onnx is -1"),
        ((*FILE, "size_bytes"), 1.5, r"size of unet\.onnx is 1\.5"),
        ((*FILE, "sha256"), "0" * 63, r"hash of unet\.onnx is '000"),
    )
} | {
    "a network dropped": (dropped("networks", "unet"), r"networks missing: \['unet'\]"),
    "a size dropped": (dropped("sizes", "points"), "sizes lacks 'points'"),
    "a file's hash dropped": (dropped(*FILE, "sha256"), "lacks 'sha256'"),
}


@pytest.mark.parametrize(("damage", "words"), (EDITED | SIGNED).values(), ids=EDITED | SIGNED)
def test_manifests_with_other_values(copied: Path, damage: Damage, words: str) -> None:
    damage(copied)
    assert re.search(words, refusal(copied))


def test_all_that_is_wrong_is_said_at_once(copied: Path) -> None:
    removed("unet.onnx")(copied)
    flipped("dift.onnx", 0.5, 0)(copied)
    truncated("controlnet.onnx", KEPT["half"])(copied)
    with pytest.raises(ManifestError) as caught:
        Animator(copied)
    assert len(caught.value.problems) == 3
    signed("sizes", "tile", value=0)(copied)
    edited("scheduler", "sigma_min", value=-1)(copied)
    with pytest.raises(ManifestError) as caught:
        Animator(copied)
    assert len(caught.value.problems) == 3  # both values, and the checksum


def absent(folder: Path) -> Path:
    return folder / "nowhere"


def a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"x")
    return folder / "file"


def an_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def a_folder_of_weights(folder: Path) -> Path:
    (folder / "unet").mkdir()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    return folder


def a_link_to_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


@pytest.mark.parametrize("make", [absent, a_file, an_empty_folder, a_folder_of_weights, a_link_to_itself])
def test_what_is_no_engine_directory(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert re.search("is not a directory|holds no manifest.json", refusal(make(tmp_path)))


def test_every_damaged_directory_of_a_folder_is_named(engines: Path, tmp_path: Path) -> None:
    for name, damage in (("good", None), ("cut", truncated("unet.onnx", KEPT["half"])), ("lost", removed("dift.onnx"))):
        copy = link_copy(engines, tmp_path / name)
        if damage:
            damage(copy)
    text = refusal(tmp_path)
    assert "2 of the 3 engine directories" in text
    assert re.search(
        r"cut cannot be used(?s:.*)unet\.onnx has(?s:.*)lost cannot be used(?s:.*)dift\.onnx is missing", text
    )
    assert text.count(REMEDY) == 2
