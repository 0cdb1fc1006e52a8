"""Damaged engine directories: manifests, signatures, ONNX files with data beside them, and labels of packages."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dispose_rt.cli import main
from dispose_rt.cli.exit_codes import ExitCode
from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.engines.backends.aotinductor_package import LABEL_KEY, PackageLabel, read_label
from dispose_rt.engines.backends.onnxruntime import OnnxRuntimeLoader
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.manifest import FILE_NAME, Manifest, NetworkRecord, read_manifest, record_file, write_manifest
from dispose_rt.engines.trust import SIGNATURE_FILE_NAME, find_distrust, sign_directory, trust_directory
from dispose_rt.errors import DisposeError
from dispose_rt.system.json_reader import checksum_of

from .area import Area, Problem, check_printed, check_refusal, watched_warnings
from .damage import damage_bytes, damage_json

_SIZES = Sizes(64, 64, 7, 4, (32, 64, 128, 128), 48, 96)


class Manifests(Area):
    """Small directories, read as `Animator`, `inspect` and `trust` read them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
        self._opened = next(name for name, spec in NETWORKS.items() if not spec.published)
        self._corpus = {"onnx": self._make_onnx(folder / "onnx"), "compiled": self._make_compiled(folder / "compiled")}
        self._config = _read_folder(folder / "config" / "dispose-rt")

    def draw(self, rng: random.Random, case: Path, number: int) -> str:
        kind = rng.choice(sorted(self._corpus))
        files = dict(self._corpus[kind])
        way = rng.choice(_WAYS)
        done = way(rng, files, self._opened)
        config = dict(self._config)
        if rng.random() < 0.1:
            name = rng.choice(sorted(config))
            config[name], more = damage_bytes(rng, config[name], files[FILE_NAME])
            done += f"; {name}: {more}"
        _write_folder(case / "engines", files)
        _write_folder(case / "config" / "dispose-rt", config)
        for name in config:
            (case / "config" / "dispose-rt" / name).chmod(0o600)
        if rng.random() < 0.03:
            done += f"; {_replace_file(rng, case / 'engines', sorted(files))}"
        return f"{kind}, {done}"

    def run(self, case: Path) -> bool:
        os.environ["XDG_CONFIG_HOME"] = str(case / "config")
        folder, accepted = case / "engines", []
        uses: tuple[Callable[[Path], object], ...] = (
            lambda folder: EngineDirectories(folder, "cpu").pick(64, 64),
            lambda folder: find_distrust(read_manifest(folder)),
            self._open,
            *(lambda folder, path=path: read_label(path) for path in sorted(folder.glob("*.pt2"))[:1]),
        )
        for use in uses:
            try:
                with watched_warnings():
                    use(folder)
                accepted.append(True)
            except DisposeError as error:
                check_refusal(error)
                accepted.append(False)
        for option in ("--verify", "--json"):
            _command("inspect", str(folder), option)
        return accepted[0]

    def _open(self, folder: Path) -> None:
        """Open a file in ONNX Runtime, as a stranger's directory whose manifest fits its files would have it opened."""
        manifest = read_manifest(folder)
        if manifest.backend == "onnxruntime":
            OnnxRuntimeLoader(manifest, "cpu").open(self._opened)

    def _make_onnx(self, folder: Path) -> dict[str, bytes]:
        manifest = write_small_directory(folder)
        _write_onnx(folder, self._opened)
        files = tuple(record_file(folder, f"{self._opened}{suffix}") for suffix in (".onnx", ".data"))
        networks = {**manifest.networks, self._opened: replace(manifest.networks[self._opened], files=files)}
        write_manifest(replace(manifest, networks=networks))
        return _read_folder(folder)

    def _make_compiled(self, folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        records = {}
        for name, spec in NETWORKS.items():
            suffix = ".onnx" if spec.published else ".pt2"
            path = folder / f"{name}{suffix}"
            path.write_bytes(name.encode() * 20 if spec.published else _make_package(name))
            backend = "onnxruntime" if spec.published else "aotinductor"
            records[name] = NetworkRecord((record_file(folder, path.name),), "key", "float32", backend=backend)
        manifest = Manifest(
            folder, "aotinductor", "fp32", _SIZES, SchedulerConstants(), records, _WEIGHTS, _VERSIONS, ("cpu",)
        )
        write_manifest(manifest)
        sign_directory(manifest)
        trust_directory(replace(manifest, precision="fp16"))
        return _read_folder(folder)


_WEIGHTS = {"cmp/ckpt_iter_42000.pth.tar": {"size_bytes": 5, "sha256": "0123456789abcdef" * 4}}
_VERSIONS = {"torch": "2.13.0+cpu"}

Files = dict[str, bytes]


def _damage_manifest(rng: random.Random, files: Files, opened: str) -> str:
    """Change values; the checksum fits more often than not."""
    body, done = damage_json(rng, json.loads(files[FILE_NAME]))
    if isinstance(body, dict) and rng.random() < 0.8:
        with contextlib.suppress(ValueError):
            body["checksum"] = checksum_of({key: value for key, value in body.items() if key != "checksum"})
    files[FILE_NAME] = json.dumps(body).encode()
    return f"{FILE_NAME}: {done}"


def _damage_text(rng: random.Random, files: Files, opened: str) -> str:
    name = rng.choice([name for name in (FILE_NAME, SIGNATURE_FILE_NAME) if name in files])
    if rng.random() < 0.5:
        files[name], done = damage_bytes(rng, files[name], files[FILE_NAME])
    else:
        body, done = damage_json(rng, json.loads(files[name]))
        files[name] = json.dumps(body).encode()
    return f"{name}: {done}"


def _damage_file(rng: random.Random, files: Files, opened: str) -> str:
    """Damage a file; the manifest fits it more often than not."""
    names = sorted(name for name in files if not name.endswith(".json"))
    name = rng.choice([one for one in names if one.startswith(opened)] * 5 + names)
    if name.endswith(".pt2") and rng.random() < 0.7:
        files[name], done = _damage_label(rng, files[name])
    else:
        files[name], done = damage_bytes(rng, files[name], files[rng.choice(names)])
    if rng.random() < 0.8:
        _fit_manifest(files, name)
        done += ", recorded so"
    return f"{name}: {done}"


def _fit_manifest(files: Files, name: str) -> None:
    body = json.loads(files[FILE_NAME])
    for network in body["networks"].values():
        for file in network["files"]:
            if file["path"] == name:
                file.update(size_bytes=len(files[name]), sha256=hashlib.sha256(files[name]).hexdigest())
    body["checksum"] = checksum_of({key: value for key, value in body.items() if key != "checksum"})
    files[FILE_NAME] = json.dumps(body).encode()


_WAYS = (_damage_manifest, _damage_manifest, _damage_text, _damage_file, _damage_file)


def _replace_file(rng: random.Random, folder: Path, names: list[str]) -> str:
    """Put something in a file's place that is none."""
    path = folder / rng.choice(names)
    path.unlink()
    kind = rng.choice(("pipe", "folder", "link to nothing", "link to itself", "link to zeros"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to nothing": "nothing", "link to itself": path.name, "link to zeros": "/dev/zero"}[kind])
    return f"{path.name} is a {kind}"


def write_small_directory(folder: Path) -> Manifest:
    """An engine directory that can be read, but not run."""
    folder.mkdir(parents=True)
    records = {}
    for name in NETWORKS:
        (folder / f"{name}.onnx").write_bytes(name.encode() * 100)
        records[name] = NetworkRecord((record_file(folder, f"{name}.onnx"),), "key", "float32", {"out": 1e-6})
    manifest = Manifest(folder, "onnxruntime", "fp32", _SIZES, SchedulerConstants(), records, _WEIGHTS, _VERSIONS)
    write_manifest(manifest)
    return manifest


def _command(*words: str) -> bool:
    """Run a command as in a terminal."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    check_printed(said.getvalue())
    if code not in (ExitCode.DONE, ExitCode.FAILED):
        raise Problem("untyped", f"`dispose-rt {' '.join(words)}` ended with {code}: {said.getvalue()}")
    return code == ExitCode.DONE


def _write_onnx(folder: Path, name: str) -> None:
    """A small network with its values in a file beside it, and one of every kind of attribute that leads on."""
    weight = numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(64, 64), "weight")
    inner = helper.make_graph(
        [helper.make_node("Relu", ["product"], ["inner"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner", 1, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["frames", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["frames", 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / f"{name}.onnx", save_as_external_data=True, location=f"{name}.data", size_threshold=0)


def _make_package(network: str) -> bytes:
    """What looks like a package of AOTInductor; its library is none, and nothing here loads it."""
    label = PackageLabel(network, "cpu", "2.13.0", "linux x86_64", ("avx2",), {"frames": 7}, {"x": ("float32", (1, 2))})
    metadata = json.dumps({LABEL_KEY: json.dumps(asdict(label)), "AOTI_DEVICE_KEY": "cpu"})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("a/model.so", b"\x7fELF" + bytes(200)), ("a/model_metadata.json", metadata.encode())):
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _damage_label(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = "a/model_metadata.json"
    metadata: Any = json.loads(entries[name])
    way = rng.random()
    if way < 0.6:
        label, done = damage_json(rng, json.loads(metadata[LABEL_KEY]))
        metadata[LABEL_KEY] = json.dumps(label)
    elif way < 0.8:
        metadata, done = damage_json(rng, metadata)
    else:
        metadata, done = {LABEL_KEY: "[" * 100_000}, "a deep label"
    entries[name] = json.dumps(metadata).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(zipfile.ZipInfo(entry), content)
    return file.getvalue(), f"label: {done}"


def _read_folder(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _write_folder(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
