"""`manifest.json`: what an engine directory holds, so that it is used as it was built or refused with every reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import contract
from ..contract import NETWORKS, SchedulerConstants, Sizes
from ..errors import ManifestError
from ..system.files import atomic_write
from ..system.json_reader import (
    Reader,
    an_object,
    checksum_of,
    choice,
    entries,
    integer,
    items,
    number,
    read_all,
    read_fields,
    read_json,
    record,
    text,
    text_or,
)
from .signature import Signature as Signature  # noqa: PLC0414 - the exporter takes it from here
from .signature import signature_differences

FILE_NAME = "manifest.json"
CHECKED_FILE_NAME = ".checked.json"
"""Remembers that the files were found intact, see `integrity`."""
FORMAT = "dispose_rt engine directory"
REVISION = 2
BACKENDS = ("onnxruntime", "tensorrt_rtx", "tensorrt", "aotinductor")
PRECISIONS = ("fp32", "fp16", "bf16")
COMPUTE_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
TARGET = r"cpu|sm_[1-9][0-9]{1,2}"
"""Pattern of what an engine runs on."""


Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class FileRecord:
    """One file of an engine directory."""

    path: str  # relative to the directory
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class NetworkRecord:
    """One network: its files and how they were made.

    Attributes:
        files: the engine file, which the backend opens, then the files that it refers to.
        build_key: hash of everything that went into the build; the network is rebuilt when it changes.
        compute_dtype: dtype of the tensors that the contract marks "compute".
        verification: measured relative error against PyTorch, by output.
        backend: what opens the file, one of BACKENDS; a directory may leave published networks to ONNX Runtime.
        signature: dtype and shape of every input and output as the compiler saw them; dynamic dimensions are names.
            Empty where the backend reads them from the file itself.
        scratch_bytes: memory of the device that a run at the largest sizes takes beside weights and tensors, as the
            compiler computed it (TensorRT) or the build measured it (AOTInductor on a GPU); None where it is unknown.
    """

    files: tuple[FileRecord, ...]
    build_key: str
    compute_dtype: str = "float32"
    verification: Mapping[str, float] = field(default_factory=dict)
    backend: str = "onnxruntime"
    signature: Mapping[str, Signature] = field(default_factory=dict)
    scratch_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that files hold; what is unknown is left out, as directories of older versions do."""
        body = asdict(self)
        if self.scratch_bytes is None:
            del body["scratch_bytes"]
        return body


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        folder: the directory it was read from or will be written to; not stored.
        backend: the backend that the directory was built for, one of BACKENDS.
        precision: one of PRECISIONS; single networks may keep float32 (see their record).
        sizes: values of the contract's symbols.
        scheduler: constants of the published scheduler.
        networks: records by network name.
        weights: provenance: published file -> {"size_bytes", "sha256"}.
        versions: versions of the software that built the directory, by package.
        targets: devices that it runs on: compute capabilities such as "sm_89", or "cpu"; empty where any device that
            the backend supports will do.
        trusted: the caller vouches for native code in it; not stored.
        stamps: sizes, times and inodes of the files when they were last checked, by path; not stored.
    """

    folder: Path
    backend: str
    precision: str
    sizes: Sizes
    scheduler: SchedulerConstants
    networks: Mapping[str, NetworkRecord]
    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    trusted: bool = field(default=False, compare=False)
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False)

    def engine_path(self, network: str) -> Path:
        """Path of the file that a network's backend opens."""
        return self.folder / self.networks[network].files[0].path

    def to_json(self) -> dict[str, Any]:
        """The object that the file holds, its checksum included."""
        body = asdict(self)
        del body["folder"], body["stamps"], body["trusted"]
        body["networks"] = {name: one.to_json() for name, one in self.networks.items()}
        body = {"format": FORMAT, "revision": REVISION, "contract_revision": contract.REVISION, **body}
        return {**body, "checksum": checksum_of(body)}

    def describe(self) -> dict[str, Any]:
        """What the directory is, under the names that documents for programs use."""
        sizes = self.sizes
        return {
            "width": sizes.width,
            "height": sizes.height,
            "tile_frames": sizes.tile,
            "decode_chunk": sizes.chunk,
            "backend": self.backend,
            "precision": self.precision,
        }

    def rebuild_command(self, **changes: str) -> str:
        """Return the command that builds this directory again, see `rebuild_command`."""
        return rebuild_command(self.folder, self.to_json(), **changes)


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the part of a file's status that changes when it is written to, touched, linked or replaced."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def record_file(folder: Path, name: str) -> FileRecord:
    """Measure and hash a file of an engine directory."""
    path = folder / name
    return FileRecord(name, path.stat().st_size, sha256_of(path))


def rebuild_command(folder: Path, body: Any = None, **changes: str) -> str:
    """Return the command that builds an engine directory again.

    Args:
        folder: the directory.
        body: contents of its manifest, as far as they can be read; options that it does not give are left out.
        changes: options with other values, e.g. backend="onnxruntime", or to leave out, e.g. target="".
    """
    body = body if isinstance(body, dict) else {}
    sizes = body["sizes"] if isinstance(body.get("sizes"), dict) else {}
    numbers = {key: value for key, value in sizes.items() if type(value) is int and value > 0}
    options = {"output": str(folder)}
    options |= {key: body[key] for key, known in _CHOICES.items() if body.get(key) in known}
    if {"width", "height"} <= numbers.keys():
        options["size"] = f"{numbers['width']}x{numbers['height']}"
    options |= {key: str(numbers[name]) for key, name in _COUNTS.items() if name in numbers}
    if targets := _readable_targets(body):
        options["target"] = ",".join(targets)
    options |= changes
    words = [word for key, value in options.items() if value for word in (f"--{key}", value)]
    return shlex.join(["dispose-rt", "build", "--weights", "WEIGHTS", *words])


_CHOICES: Mapping[str, tuple[str, ...]] = {"backend": BACKENDS, "precision": PRECISIONS}
_COUNTS = {"tile-frames": "tile", "decode-chunk": "chunk"}


def _readable_targets(body: Mapping[str, Any]) -> list[str]:
    targets = body.get("targets")
    if not isinstance(targets, list | tuple):
        return []
    return [target for target in targets if isinstance(target, str) and re.fullmatch(TARGET, target)]


def write_manifest(manifest: Manifest) -> Path:
    """Write `manifest.json` in one step.

    Raises:
        ManifestError: the disk is full, or nothing may be written there.
    """
    path = manifest.folder / FILE_NAME
    try:
        with atomic_write(path) as file:
            file.write(f"{json.dumps(manifest.to_json(), indent=1)}\n".encode())
    except OSError as error:
        remedy = "Free space, or check the folder's permissions, and run the same command again."
        raise ManifestError(f"{path} cannot be written: {error}", remedy=remedy) from error
    return path


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check `manifest.json`; `preflight` checks the engine files.

    Raises:
        ManifestError: the directory or the file is missing, unreadable, of another revision, or was changed since it
            was written.
    """
    root = Path(folder)
    path = root / FILE_NAME
    if not root.is_dir():
        remedy = f"Pass a directory that `dispose-rt build` wrote, or build it: {rebuild_command(root)}"
        raise ManifestError(f"{root} is not a directory", remedy=remedy)
    again = f"Build the directory again: {rebuild_command(root)}"
    try:
        body = read_json(path)
    except FileNotFoundError:
        raise ManifestError(
            f"{root} holds no {FILE_NAME}, so it is not an engine directory, or its build did not finish",
            remedy=f"Build it, or let an interrupted build go on: {rebuild_command(root)}",
        ) from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}", remedy=again) from error
    if problems := _header_problems(body):
        again = f"Build the directory again: {rebuild_command(root, body)}"
        raise ManifestError(f"{path} cannot be used:", problems, again)
    values, problems = _parse(body)
    if problems:
        again = f"Build the directory again; finished networks are kept: {rebuild_command(root, body)}"
        raise ManifestError(f"{path} is damaged:", problems, again)
    return Manifest(folder=root, **values)


def find_directories(root: Path) -> list[Path]:
    """Return an engine directory itself, or every engine directory in a folder; `root` where there is none.

    Raises:
        ManifestError: the folder cannot be read.
    """
    try:
        if not root.is_dir() or (root / FILE_NAME).exists():
            return [root]
        return sorted(path.parent for path in root.glob(f"*/{FILE_NAME}")) or [root]
    except OSError as error:
        remedy = "Check the folder's name and permissions."
        raise ManifestError(f"{root} cannot be read: {error}", remedy=remedy) from error


def read_manifests(root: Path) -> list[Manifest]:
    """Read the manifest of an engine directory, or of every engine directory in a folder.

    Raises:
        ManifestError: there is none, or one of them cannot be used.
    """
    return [read_manifest(folder) for folder in find_directories(root)]


def _header_problems(body: Any) -> list[str]:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        return ["it is not a dispose_rt manifest"]
    problems = []
    for key, ours in (("revision", REVISION), ("contract_revision", contract.REVISION)):
        theirs = body.get(key)
        if theirs != ours:
            who = "an older" if isinstance(theirs, int) and theirs < ours else "another"
            problems.append(f"{key} is {theirs!a:.60}, this version of dispose_rt reads {ours}: built by {who} version")
    for key, known in _CHOICES.items():
        if body.get(key) not in known:
            problems.append(f"{key} is {body.get(key)!a:.60}; this version knows {', '.join(known)}")
    return problems


_COUNT = integer(1, 1 << 16)
_HASH = text("[0-9a-f]{64}", "64 hexadecimal digits")
_WORD = text("[A-Za-z0-9_.-]{1,128}", "a word of letters, digits and _.-")
_PACKAGE_VERSION = text("[A-Za-z0-9][A-Za-z0-9_.+!-]{0,127}", "a version such as 2.13.0+cpu")
_WEIGHTS_PATH = text("[A-Za-z0-9_./+-]{1,512}", "the path of a published file")
_TENSOR_NAME = text("[A-Za-z0-9_./:-]{1,128}", "the name of a tensor")
_DTYPE = choice(*COMPUTE_DTYPES.values())
_FILE = record(
    FileRecord,
    path=text(rf"(?!{re.escape(FILE_NAME)}$)[A-Za-z0-9][A-Za-z0-9_.-]{{0,254}}", "a name inside the engine directory"),
    size_bytes=integer(1, 1 << 50),
    sha256=_HASH,
)
_DIMENSION = text_or(integer(1, 1 << 31), text("[A-Za-z0-9_?]{1,32}", "the name of a dimension"))


def _read_signature(value: Any, what: str) -> Signature:
    dtype, shape = items(lambda part, _: part, 2, 2)(value, what)
    return _DTYPE(dtype, f"{what}[0]"), items(_DIMENSION)(shape, f"{what}[1]")


_RECORD_TABLE: Mapping[str, Reader] = {
    "files": items(_FILE, 1),
    "build_key": _WORD,
    "compute_dtype": _DTYPE,
    "verification": entries(_TENSOR_NAME, number(0, 1e9)),
    "backend": choice(*BACKENDS),
    "signature": entries(_TENSOR_NAME, _read_signature),
}


def _read_network(value: Any, what: str) -> NetworkRecord:
    """Read a network's record; those of older directories do not say how much scratch memory it takes."""
    optional = {"scratch_bytes": integer(0, 1 << 50)} if "scratch_bytes" in an_object(value, what) else {}
    network: NetworkRecord = record(NetworkRecord, **_RECORD_TABLE, **optional)(value, what)
    return network


_TABLE: Mapping[str, Reader] = {
    "format": choice(FORMAT),
    "revision": integer(REVISION, REVISION),
    "contract_revision": integer(contract.REVISION, contract.REVISION),
    "backend": choice(*BACKENDS),
    "precision": choice(*PRECISIONS),
    "sizes": record(
        Sizes,
        **dict.fromkeys(("width", "height", "tile", "chunk", "embed", "dift", "points"), _COUNT),
        channels=items(_COUNT, 4, 4),
    ),
    "scheduler": record(SchedulerConstants, sigma_min=number(0, 1e6), sigma_max=number(0, 1e6), prediction_type=_WORD),
    "networks": an_object,  # see _read_networks
    "weights": entries(_WEIGHTS_PATH, entries(_WORD, text_or(integer(0, 1 << 63), _WORD))),
    "versions": entries(_WORD, _PACKAGE_VERSION),
    "targets": items(text(TARGET, "cpu, or a compute capability such as sm_89")),
    "checksum": _HASH,
}
"""What each entry has to be. Text gets into messages and commands, so it is never more than plain words."""


def _parse(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read every value.

    Returns:
        The fields of a Manifest, as far as they can be read; and everything that is wrong.
    """
    values, problems = read_fields(body, "", _TABLE)
    if body.get("checksum") != checksum_of({key: value for key, value in body.items() if key != "checksum"}):
        problems.append("its checksum does not fit its contents: a value was changed after it was written")
    if body["backend"].startswith("tensorrt") and "cpu" in values.get("targets", ()):
        problems.append("targets name the CPU, on which TensorRT does not run")
    if "networks" in values:
        values["networks"], found = _read_networks(values["networks"], body, values.get("sizes"))
        problems += found
    return {key: value for key, value in values.items() if key in Manifest.__dataclass_fields__}, problems


def _read_networks(
    records: dict[str, Any], body: dict[str, Any], sizes: Sizes | None
) -> tuple[dict[str, NetworkRecord], list[str]]:
    """Read all records, and compare them with the directory's backend, precision and sizes."""
    networks, problems = read_fields(records, "networks", dict.fromkeys(NETWORKS, _read_network))
    read_backend = choice(*dict.fromkeys([body["backend"], "onnxruntime"]))
    read_dtype = choice(*dict.fromkeys(["float32", COMPUTE_DTYPES[body["precision"]]]))
    for name, network in networks.items():
        fits = {
            "backend": partial(read_backend, network.backend, f"{name}: backend"),
            "dtype": partial(read_dtype, network.compute_dtype, f"{name}: compute_dtype"),
        }
        problems += read_all(fits)[1]
        if sizes and network.signature:
            problems += signature_differences(name, sizes, network.compute_dtype, network.signature)
    return networks, problems


def parse_network_record(value: Any, name: str = "the network") -> NetworkRecord:
    """Read what `NetworkRecord.to_json` returned, back from JSON.

    Args:
        value: an object as JSON has it.
        name: of the network, for messages.

    Raises:
        ValueError: an entry is missing, unknown, or of another type or range.
    """
    return _read_network(value, name)
