"""`manifest.json`: what an engine directory is, so that it is used as it was built or refused with all reasons."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import contract
from ..contract import NETWORKS, SchedulerConstants, Sizes
from ..errors import ManifestError
from ..system.files import atomic_write
from ..system.json_reader import (
    checksum_of,
    expect_choice,
    expect_integer,
    expect_keys,
    expect_list,
    expect_number,
    expect_object,
    expect_text,
    read_json,
)
from .signature import Signature as Signature  # noqa: PLC0414 - the exporter takes it from here
from .signature import signature_differences

FILE_NAME = "manifest.json"
CHECKED_FILE_NAME = ".checked.json"
"""Remembers which files were found intact, see `integrity`."""
FORMAT = "dispose_rt engine directory"
REVISION = 2
BACKENDS = ("onnxruntime", "tensorrt_rtx", "tensorrt", "aotinductor")
PRECISIONS = ("fp32", "fp16", "bf16")
COMPUTE_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
TARGET = r"cpu|sm_[1-9][0-9]{1,2}"
"""What an engine runs on, as a pattern."""
_LARGEST_SIZE = 1 << 16
_LARGEST_SIGMA = 1e6


@dataclass(frozen=True)
class FileRecord:
    """One file of an engine directory."""

    path: str  # relative to the directory
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class NetworkRecord:
    """One network: its files (the first one is what a backend opens) and how it was made.

    Attributes:
        files: engine file first, then files that it refers to.
        build_key: hash of everything that went into the build; an unchanged key means nothing to rebuild.
        compute_dtype: dtype of the tensors that the contract marks "compute".
        verification: measured relative error against PyTorch per output.
        backend: what opens the file, one of BACKENDS; a directory may leave published networks to ONNX Runtime.
        signature: dtype and shape of every input and output as the compiler saw them; dynamic dimensions are names.
            Empty where the backend reads them off the file itself.
    """

    files: tuple[FileRecord, ...]
    build_key: str
    compute_dtype: str = "float32"
    verification: Mapping[str, float] = field(default_factory=dict)
    backend: str = "onnxruntime"
    signature: Mapping[str, Signature] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything that `manifest.json` says.

    Attributes:
        folder: the directory it was read from or will be written to; not stored.
        backend: which backend the directory was built for, one of BACKENDS.
        precision: one of PRECISIONS; single networks may keep float32 (see their record).
        sizes: what resolves the contract's symbols.
        scheduler: constants of the published scheduler.
        networks: records by network name.
        weights: provenance: published file -> {"size_bytes", "sha256"}.
        versions: software that built the directory.
        targets: what it runs on: compute capabilities such as "sm_89", or "cpu"; empty where any device that the
            backend supports will do.
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

    def engine_path(self, network: str) -> Path:
        return self.folder / self.networks[network].files[0].path

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        del body["folder"]
        body = {"format": FORMAT, "revision": REVISION, "contract_revision": contract.REVISION, **body}
        return {**body, "checksum": checksum_of(body)}

    def rebuild_command(self, **changes: str) -> str:
        """The command that builds this directory again, see `rebuild_command`."""
        return rebuild_command(self.folder, self.to_json(), **changes)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is written to, touched, linked or replaced."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def record_file(folder: Path, name: str) -> FileRecord:
    path = folder / name
    return FileRecord(name, path.stat().st_size, sha256_of(path))


def rebuild_command(folder: Path, body: Any = None, **changes: str) -> str:
    """The command that builds an engine directory again.

    Args:
        folder: the directory.
        body: what its manifest says, as far as it can be read; options that it does not give are left out.
        changes: options to set otherwise, e.g. backend="onnxruntime", or to leave out, e.g. target="".
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
    return shlex.join(["python", "export/build_engines.py", "--weights", "WEIGHTS", *words])


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
    """Read and check `manifest.json`, without looking at the engine files (see `preflight`).

    Raises:
        ManifestError: the directory or the file is missing, unreadable, of another revision, or not what was written.
    """
    root = Path(folder)
    path = root / FILE_NAME
    if not root.is_dir():
        remedy = f"Pass a directory that export/build_engines.py wrote, or build it: {rebuild_command(root)}"
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
    """An engine directory itself, or every engine directory in a folder; `root` where there is none.

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
    """Read an engine directory, or every engine directory in a folder, without looking at the engine files.

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


def _parse(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read every value. Answers the fields of a Manifest as far as they can be read, and what is wrong."""
    values: dict[str, Any] = {}
    problems: list[str] = []

    def attempt(key: str, read: Callable[..., Any], *arguments: Any) -> None:
        try:
            values[key] = read(body.get(key), key, *arguments)
        except ValueError as error:  # InputError is one
            problems.append(str(error))

    unsigned = {key: value for key, value in body.items() if key != "checksum"}
    if body.get("checksum") != checksum_of(unsigned):
        problems.append("its checksum does not fit its contents: a value was changed after it was written")
    known = {field.name for field in fields(Manifest)} - {"folder"}
    attempt("targets", _read_targets, body["backend"])
    attempt("sizes", _read_sizes)
    attempt("scheduler", _read_scheduler)
    attempt("networks", _read_networks, body, values.get("sizes"), problems)
    attempt("weights", _read_weights)
    attempt("versions", _read_versions)
    if unknown := body.keys() - known - {"format", "revision", "contract_revision", "checksum"}:
        problems.append(f"it has unknown entries: {', '.join(map(ascii, sorted(unknown)))}")
    return {"backend": body["backend"], "precision": body["precision"], **values}, problems


def _read_targets(value: Any, what: str, backend: str) -> tuple[str, ...]:
    targets = tuple(expect_text(target, what, TARGET) for target in expect_list(value, what))
    if backend.startswith("tensorrt") and "cpu" in targets:
        raise ValueError("targets name the CPU, on which TensorRT does not run")
    return targets


def _read_sizes(value: Any, what: str) -> Sizes:
    sizes = expect_keys(value, what, [field.name for field in fields(Sizes)])
    channels = expect_list(sizes["channels"], f"{what}.channels")
    if len(channels) != 4:
        raise ValueError(f"{what}.channels has {len(channels)} entries, expected 4")
    read = {
        name: expect_integer(number, f"{what}.{name}", 1, _LARGEST_SIZE)
        for name, number in sizes.items()
        if name != "channels"
    }
    levels = [expect_integer(number, f"{what}.channels", 1, _LARGEST_SIZE) for number in channels]
    return Sizes(**read, channels=(levels[0], levels[1], levels[2], levels[3]))


def _read_scheduler(value: Any, what: str) -> SchedulerConstants:
    constants = expect_keys(value, what, [field.name for field in fields(SchedulerConstants)])
    for name in ("sigma_min", "sigma_max"):
        expect_number(constants[name], f"{what}.{name}", 0, _LARGEST_SIGMA)
    expect_text(constants["prediction_type"], f"{what}.prediction_type")
    return SchedulerConstants(**constants)


def _read_weights(value: Any, what: str) -> dict[str, dict[str, Any]]:
    return {expect_text(name, what): expect_object(one, what) for name, one in expect_object(value, what).items()}


def _read_versions(value: Any, what: str) -> dict[str, str]:
    return {expect_text(name, what): expect_text(one, what) for name, one in expect_object(value, what).items()}


def _read_networks(
    value: Any, what: str, body: dict[str, Any], sizes: Sizes | None, problems: list[str]
) -> dict[str, NetworkRecord]:
    """Read all records; what is wrong with single ones goes to `problems`."""
    records = expect_object(value, what)
    missing = [name for name in NETWORKS if name not in records]
    unknown = [name for name in records if name not in NETWORKS]
    if missing or unknown:
        raise ValueError(f"networks missing: {missing or 'none'}; unknown: {ascii(unknown) if unknown else 'none'}")
    networks = {}
    for name, record in records.items():
        try:
            networks[name] = network = parse_network_record(record, name)
            expect_choice(network.backend, f"{name}: backend", {body["backend"], "onnxruntime"})
            dtypes = {"float32", COMPUTE_DTYPES[body["precision"]]}
            expect_choice(network.compute_dtype, f"{name}: compute_dtype", dtypes)
            if sizes and network.signature:
                problems += signature_differences(name, sizes, network.compute_dtype, network.signature)
        except ValueError as error:
            problems.append(str(error))
    return networks


def parse_network_record(value: Any, name: str = "the network") -> NetworkRecord:
    """Read what `asdict` made of a NetworkRecord, back from JSON.

    Args:
        value: an object as JSON has it.
        name: of the network, for messages.

    Raises:
        ValueError: an entry is missing, unknown, or of another type or range.
    """
    record = expect_keys(value, name, [field.name for field in fields(NetworkRecord)])
    files = tuple(_read_file(file, name) for file in expect_list(record["files"], f"{name}: files"))
    if not files:
        raise ValueError(f"{name} lists no file")
    verification = expect_object(record["verification"], f"{name}: verification")
    signature = expect_object(record["signature"], f"{name}: signature")
    return NetworkRecord(
        files,
        expect_text(record["build_key"], f"{name}: build_key"),
        expect_choice(record["compute_dtype"], f"{name}: compute_dtype", COMPUTE_DTYPES.values()),
        {key: expect_number(error, f"{name}: verification of {key!a}", 0, 1e9) for key, error in verification.items()},
        expect_choice(record["backend"], f"{name}: backend", BACKENDS),
        {key: _read_signature(one, f"{name}: signature of {key!a}") for key, one in signature.items()},
    )


def _read_file(value: Any, name: str) -> FileRecord:
    file = expect_keys(value, f"{name}: a file", [field.name for field in fields(FileRecord)])
    path = file["path"]
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", path) or path == FILE_NAME:
        raise ValueError(f"{name}: file {path!a:.60} lies outside the engine directory, or is no engine file's name")
    return FileRecord(
        path,
        expect_integer(file["size_bytes"], f"{name}: size of {path}", 1, 1 << 50),
        expect_text(file["sha256"], f"{name}: hash of {path}", "[0-9a-f]{64}"),
    )


def _read_signature(value: Any, what: str) -> Signature:
    parts = expect_list(value, what)
    if len(parts) != 2:
        raise ValueError(f"{what} has {len(parts)} parts, expected dtype and shape")
    dims = tuple(
        expect_text(dim, what) if isinstance(dim, str) else expect_integer(dim, what, 1, 1 << 31)
        for dim in expect_list(parts[1], what)
    )
    return expect_choice(parts[0], what, COMPUTE_DTYPES.values()), dims
