"""Damaged engine directories: each is refused with a typed error that names the culprit and the command that helps.

Nothing is loaded here, so the files are a few hundred bytes each. `test_tampered_directories.py` has those whose
manifest was made to fit the damage, `test_preflight.py` those that do not fit the machine.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    renamed,
    replaced,
    sign,
    signed,
    swapped,
    truncated,
)
from tests.engines.small_directory import write_directory
from tests.engines.test_preflight import write_compiled

Cases = dict[str, tuple[Damage, str]]
REMEDY = "dispose-rt build --weights WEIGHTS --output"
OPTIONS = "--backend onnxruntime --precision fp32 --size 64x64 --tile-frames 7 --decode-chunk 4"


@pytest.fixture
def intact(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "engines").folder


def refusal(folder: Path) -> str:
    """What an Animator says when it refuses a directory; without a command that helps it is no good refusal."""
    with pytest.raises(ManifestError) as caught:
        Animator(folder)
    assert REMEDY in str(caught.value)
    return str(caught.value)


def unexpected(intact: Path, cases: Cases, options: str = "") -> list[str]:
    """Damage a copy per case, and list the cases that were not refused with their words and a command that helps."""
    failures = []
    for number, (name, (damage, words)) in enumerate(cases.items()):
        folder = link_copy(intact, intact.parent / f"{number}")
        damage(folder)
        try:
            Animator(folder).close()
        except ManifestError as error:
            text = str(error)
            if not re.search(words, text) or REMEDY not in text or f"{folder} {options}".strip() not in text:
                failures.append(f"{name}: {text}")
            if not all(line.isprintable() for line in text.splitlines()):
                failures.append(f"{name}: prints control characters: {text!a}")
        else:
            failures.append(f"{name}: was accepted")
    return failures


def test_the_undamaged_directory_is_accepted(intact: Path) -> None:
    Animator(intact).close()


def web_page(size: int) -> bytes:
    """What a download behind a login page looks like."""
    return (b"<!DOCTYPE html><title>Sign in</title>" * (size // 30))[:size]


KEPT: dict[str, Callable[[int], int]] = {
    "nothing": lambda size: 0,
    "1 byte": lambda size: 1,
    "half": lambda size: size // 2,
    "all but a byte": lambda size: size - 1,
}

ENGINE_CASES: Cases = {
    **{
        f"unet cut to {what}": (truncated("unet.onnx", keep), r"unet: unet\.onnx has \d+ b")
        for what, keep in KEPT.items()
    },
    "unet, the first bit": (flipped("unet.onnx", 0.0, 0), r"unet: unet\.onnx has other contents"),
    "unet, the last bit": (flipped("unet.onnx", 1.0, 7), r"unet: unet\.onnx has other contents"),
    **{
        f"{name}, bit in the middle": (flipped(f"{name}.onnx", 0.5, 3), rf"{name}: {name}\.onnx has other contents")
        for name in NETWORKS
    },
    "a byte too many": (filled("pose_net.onnx", lambda size: bytes(size + 1)), r"pose_net\.onnx has \d+ bytes"),
    "zeros": (filled("dift.onnx", bytes), r"dift\.onnx has other contents"),
    "ones": (filled("dift.onnx", lambda size: b"\xff" * size), r"dift\.onnx has other contents"),
    "a web page": (filled("unet.onnx", web_page), r"unet\.onnx has other contents"),
    "swapped": (swapped("unet.onnx", "controlnet.onnx"), r"controlnet: .* bytes(?s:.*)unet: .* bytes"),
    "missing": (removed("motion_encoder.onnx"), r"motion_encoder: motion_encoder\.onnx is missing"),
    "a directory": (
        replaced("unet.onnx", Path.mkdir),
        r"is no regular file(?s:.*)rm -r \S+/unet\.onnx && dispose-rt build",
    ),
    "a pipe": (replaced("unet.onnx", os.mkfifo), r"unet\.onnx is no regular file"),
    "a device": (replaced("unet.onnx", lambda path: path.symlink_to("/dev/zero")), r"unet\.onnx is no regular file"),
    "a link to nowhere": (
        replaced("unet.onnx", lambda path: path.symlink_to("nowhere")),
        "is a link that leads nowhere",
    ),
    "a link to itself": (replaced("unet.onnx", lambda path: path.symlink_to(path)), r"unet\.onnx cannot be read"),
}


def test_damaged_engines(intact: Path) -> None:
    assert unexpected(intact, ENGINE_CASES, OPTIONS) == []


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
    "100 bytes": (truncated(FILE_NAME, lambda size: 100), "cannot be read"),
    "half": (truncated(FILE_NAME, KEPT["half"]), "cannot be read"),
    "without its last brace": (truncated(FILE_NAME, lambda size: size - 2), "cannot be read"),
    "zeros": (filled(FILE_NAME, bytes), "cannot be read"),
    "a web page": (filled(FILE_NAME, web_page), "cannot be read"),
    "other encoding": (manifest_of(json.dumps({"format": "x"}).encode("utf-16")), "cannot be read"),
    **{f"no object: {text}": (manifest_of(text.encode()), "not a dispose_rt") for text in ("[]", "null", "7", '"x"')},
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


def test_unreadable_manifests(intact: Path) -> None:
    assert unexpected(intact, UNREADABLE) == []


def test_no_flipped_bit_of_the_manifest_goes_unseen(intact: Path, tmp_path: Path) -> None:
    """Nearly all are refused; what is not, such as 1e-6 that became 1E-6, still says the same."""
    content = (intact / FILE_NAME).read_bytes()
    meant = read_manifest(intact)
    random = np.random.default_rng(0)
    accepted = 0
    for place in random.choice(len(content), 500, replace=False):
        damaged = bytearray(content)
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
        (("surprise",), 1, "the file: unknown 'surprise'"),
        (("sizes",), None, "sizes is None"),
        (("sizes", "width"), 100, "width is 100; it must be a positive multiple of 64"),
        (("sizes", "width"), True, "sizes.width is True"),
        (("sizes", "width"), "64", "sizes.width is '64'"),
        (("sizes", "height"), 64.0, "sizes.height is 64.0"),
        (("sizes", "tile"), 0, "sizes.tile is 0"),
        (("sizes", "chunk"), 10**9, "sizes.chunk is 1000000000"),
        (("sizes", "channels"), [32, 64, 128], "sizes.channels has 3 entries, expected 4"),
        (("sizes", "channels", 0), -32, r"sizes\.channels\[0\] is -32"),
        (("scheduler", "sigma_max"), 1e30, "sigma_max is 1e"),
        (("scheduler", "sigma_min"), 900, "not a positive, rising range"),
        (("scheduler", "sigma_min"), "small", "sigma_min is 'small'"),
        (("scheduler", "prediction_type"), "epsilon", "'epsilon' is not supported"),
        (("targets",), "cpu", "targets is 'cpu', expected a list"),
        (("targets",), ["gpu"], r"targets\[0\] is 'gpu', expected cpu, or a compute"),
        (("targets",), [89], r"targets\[0\] is 89"),
        (("weights",), [], r"weights is \[\]"),
        (("versions", "torch"), 2, "versions.torch is 2"),
        (("networks",), [], r"networks is \[\]"),
        (("networks", "surprise"), {}, "networks: unknown 'surprise'"),
        (("networks", "unet"), {}, "networks.unet: missing 'files'"),
        (("networks", "unet", "files"), [], "networks.unet.files has 0 entries, expected 1 or more"),
        (("networks", "unet", "compute_dtype"), "float16", "unet: compute_dtype is 'float16', expected one of float32"),
        (("networks", "unet", "backend"), "tensorrt", "unet: backend is 'tensorrt', expected one of onnxruntime"),
        (("networks", "unet", "build_key"), 5, "build_key is 5"),
        (
            ("networks", "unet", "verification"),
            {"noise_pred": "small"},
            "networks.unet.verification.noise_pred is 'small'",
        ),
        (("networks", "unet", "signature"), {"x": ["float32"]}, "networks.unet.signature.x has 1 entries, expected 2"),
        (("networks", "unet", "signature"), {"x": ["float32", [1]]}, "unet: the engine lacks the tensor latents"),
        ((*FILE, "path"), "../unet.onnx", "expected a name inside the engine directory"),
        ((*FILE, "path"), "/etc/passwd", "expected a name inside the engine directory"),
        ((*FILE, "path"), "..", "expected a name inside the engine directory"),
        ((*FILE, "path"), "", "expected a name inside the engine directory"),
        ((*FILE, "path"), "unet.onnx\0", "expected a name inside the engine directory"),
        ((*FILE, "path"), FILE_NAME, "expected a name inside the engine directory"),
        ((*FILE, "size_bytes"), -1, r"unet\.files\[0\]\.size_bytes is -1"),
        ((*FILE, "size_bytes"), 1.5, r"unet\.files\[0\]\.size_bytes is 1\.5"),
        ((*FILE, "sha256"), "0" * 63, r"unet\.files\[0\]\.sha256 is '000"),
    )
} | {
    "a network dropped": (dropped("networks", "unet"), "networks: missing 'unet'"),
    "a size dropped": (dropped("sizes", "points"), "sizes: missing 'points'"),
    "a file's hash dropped": (dropped(*FILE, "sha256"), "missing 'sha256'"),
}


def test_manifests_with_other_values(intact: Path) -> None:
    assert unexpected(intact, EDITED | SIGNED) == []


HOSTILE_TEXT = ("", "a\nb", "\x1b[31m", "\u202e", "$(id)", "`id`", "a;b", "a|b", "a&b", "a'b", 'a"b', "a b", "x" * 9999)
"""What must never reach a terminal or a command line."""
HOSTILE_VALUES = (None, True, -1, 1 << 70, -0.5, [], {}, [None], *HOSTILE_TEXT)


def leaves(value: Any, *keys: str | int) -> Iterator[tuple[str | int, ...]]:
    """Every place in a value."""
    if keys:
        yield keys
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, *keys, key)


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A directory with something in every entry of its manifest."""
    weights = {"w.pth": {"size_bytes": 5, "sha256": "0" * 64}}
    folder = write_compiled(tmp_path / "e", weights=weights).folder
    body = read_body(folder)
    for name, network in body["networks"].items():
        network["verification"] = {"noise_pred": 1e-6}
        network["signature"] = network["signature"] if name == "unet" else {}  # less to read a few hundred times
        network["scratch_bytes"] = 7
    put_file(folder / FILE_NAME, json.dumps(body).encode())
    sign(folder)
    return folder


def places_in(folder: Path) -> list[tuple[str | int, ...]]:
    """Every place in a manifest but its checksum; of the networks and the tensors, one of each kind."""
    places = [keys for keys in leaves(read_body(folder)) if keys != ("checksum",)]
    places = [keys for keys in places if keys[0] != "networks" or keys[1:2] in ((), ("unet",))]
    return [keys for keys in places if keys[2:3] != ("signature",) or keys[3:4] in ((), ("latents",))]


def accepted_after(folder: Path, damages: dict[str, Damage], named: dict[str, str]) -> list[str]:
    """List the ways to damage a manifest that were not refused plainly, with what is named and a command."""
    content, failures = (folder / FILE_NAME).read_bytes(), []
    for what, damage in damages.items():
        put_file(folder / FILE_NAME, content)
        damage(folder)
        try:
            read_manifest(folder)
        except ManifestError as error:
            text = str(error)
            if not (named[what] in text and REMEDY in text and all(line.isprintable() for line in text.splitlines())):
                failures.append(f"{what}: {text!a}")
        else:
            failures.append(f"{what} was accepted")
    return failures


#: places and values that are as good as what was there
HARMLESS = [(("targets",), [])] + [
    (keys, {})
    for keys in (
        ("weights",),
        ("weights", "w.pth"),
        ("versions",),
        *(("networks", "unet", name) for name in ("signature", "verification")),
    )
]


def test_every_hostile_value_is_refused_at_its_place(compiled: Path) -> None:
    """Whatever stands in the place of any value, with a checksum that fits, the message names the place."""
    damages, named, values = {}, {}, itertools.cycle(HOSTILE_VALUES)
    for keys in places_in(compiled)[1:]:  # all but the format, which a foreign file lacks
        for value in itertools.islice(values, 4):  # every value in several places, no place without several values
            if (keys, value) not in HARMLESS:
                damages[f"{keys} = {value!a:.40}"] = signed(*keys, value=value)
                named[f"{keys} = {value!a:.40}"] = [str(key) for key in keys if isinstance(key, str)][-1]
    assert len(damages) > 200
    assert accepted_after(compiled, damages, named) == []


def test_every_hostile_name_is_refused(compiled: Path) -> None:
    places = [keys for keys in places_in(compiled) if isinstance(keys[-1], str)]
    names = itertools.cycle(HOSTILE_TEXT)
    damages = {f"{keys} -> {name!a:.40}": renamed(*keys, name=name) for keys in places for name in [next(names)]}
    assert accepted_after(compiled, damages, dict.fromkeys(damages, "manifest.json")) == []


def test_all_that_is_wrong_is_said_at_once(intact: Path) -> None:
    copied = link_copy(intact, intact.parent / "copy")
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


def test_what_is_no_engine_directory(tmp_path: Path) -> None:
    for make in (absent, a_file, an_empty_folder, a_link_to_itself, a_folder_of_weights):
        assert re.search("is not a directory|holds no manifest.json", refusal(make(tmp_path))), make.__name__


def test_every_damaged_directory_of_a_folder_is_named(intact: Path, tmp_path: Path) -> None:
    root = tmp_path / "several"
    for name, damage in (("good", None), ("cut", truncated("unet.onnx", KEPT["half"])), ("lost", removed("dift.onnx"))):
        copy = link_copy(intact, root / name)
        if damage:
            damage(copy)
    text = refusal(root)
    assert "2 of the 3 engine directories" in text
    assert re.search(
        r"cut cannot be used(?s:.*)unet\.onnx has(?s:.*)lost cannot be used(?s:.*)dift\.onnx is missing", text
    )
    assert text.count(REMEDY) == 2
