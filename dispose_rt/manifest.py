"""`manifest.json`: what an engine directory is, so that it is used as it was built or refused with all reasons."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import contract
from .contract import NETWORKS, Sizes
from .errors import InputError, ManifestError
from .scheduler import SchedulerConstants

FILE_NAME = "manifest.json"
FORMAT = "dispose_rt engine directory"
REVISION = 1
BACKENDS = ("onnxruntime",)
PRECISIONS = ("fp32", "fp16", "bf16")
COMPUTE_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_REBUILD = "Build the directory again: python export/build_engines.py --weights WEIGHTS --output {folder} --force"


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
        verification: measured relative error against PyTorch per output, and the tolerance it was held to.
    """

    files: tuple[FileRecord, ...]
    build_key: str
    compute_dtype: str = "float32"
    verification: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything that `manifest.json` says.

    Attributes:
        folder: the directory it was read from or will be written to; not stored.
        backend: which backend opens the files, one of BACKENDS.
        precision: one of PRECISIONS; single networks may keep float32 (see their record).
        sizes: what resolves the contract's symbols.
        scheduler: constants of the published scheduler.
        networks: records by network name.
        weights: provenance: published file -> {"size_bytes", "sha256"}.
        versions: software that built the directory.
    """

    folder: Path
    backend: str
    precision: str
    sizes: Sizes
    scheduler: SchedulerConstants
    networks: Mapping[str, NetworkRecord]
    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def engine_path(self, network: str) -> Path:
        return self.folder / self.networks[network].files[0].path

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        del body["folder"]
        return {"format": FORMAT, "revision": REVISION, "contract_revision": contract.REVISION, **body}


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def record_file(folder: Path, name: str) -> FileRecord:
    path = folder / name
    return FileRecord(name, path.stat().st_size, sha256_of(path))


def write_manifest(manifest: Manifest) -> Path:
    """Write `manifest.json` under a temporary name, then rename it: nobody ever reads a part of it."""
    path = manifest.folder / FILE_NAME
    temporary = path.with_suffix(".json.part")
    try:
        temporary.write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check `manifest.json`, without looking at the engine files (see `check_files`).

    Raises:
        ManifestError: the directory or the file is missing, unreadable, of another revision, or incomplete.
    """
    root = Path(folder)
    path = root / FILE_NAME
    if not root.is_dir():
        raise ManifestError(f"{root} is not a directory", remedy="Pass what export/build_engines.py wrote.")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(
            f"{root} holds no {FILE_NAME}, so it is not an engine directory, or its build did not finish",
            remedy=_REBUILD.format(folder=root).replace(" --force", ""),
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}", remedy=_REBUILD.format(folder=root)) from error
    problems = _header_problems(body)
    if problems:
        raise ManifestError(f"{path} cannot be used:", problems, _REBUILD.format(folder=root))
    try:
        return _parse(root, body)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ManifestError(f"{path} is damaged:", [reason], _REBUILD.format(folder=root)) from error


def _header_problems(body: Any) -> list[str]:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        return ["it is not a dispose_rt manifest"]
    problems = []
    for key, ours in (("revision", REVISION), ("contract_revision", contract.REVISION)):
        theirs = body.get(key)
        if theirs != ours:
            who = "an older" if isinstance(theirs, int) and theirs < ours else "another"
            problems.append(f"{key} is {theirs}, this version of dispose_rt reads {ours}: built by {who} version")
    for key, known in (("backend", BACKENDS), ("precision", PRECISIONS)):
        if body.get(key) not in known:
            problems.append(f"{key} is {body.get(key)!r}; this version knows {', '.join(known)}")
    return problems


def _parse(root: Path, body: dict[str, Any]) -> Manifest:
    sizes = dict(body["sizes"])
    sizes["channels"] = tuple(sizes["channels"])
    networks = {name: _parse_network(record) for name, record in body["networks"].items()}
    missing = [name for name in NETWORKS if name not in networks]
    unknown = [name for name in networks if name not in NETWORKS]
    if missing or unknown:
        raise ValueError(f"networks missing: {missing or 'none'}; unknown: {unknown or 'none'}")
    return Manifest(
        folder=root,
        backend=body["backend"],
        precision=body["precision"],
        sizes=Sizes(**sizes),
        scheduler=SchedulerConstants(**body["scheduler"]),
        networks=networks,
        weights=body.get("weights", {}),
        versions=body.get("versions", {}),
    )


def _parse_network(record: dict[str, Any]) -> NetworkRecord:
    files = tuple(FileRecord(str(f["path"]), int(f["size_bytes"]), str(f["sha256"])) for f in record["files"])
    if not files:
        raise ValueError("a network lists no file")
    for file in files:
        if Path(file.path).name != file.path:
            raise ValueError(f"file {file.path!r} lies outside the engine directory")
    if record["compute_dtype"] not in COMPUTE_DTYPES.values():
        raise ValueError(f"compute_dtype {record['compute_dtype']!r} is unknown")
    return NetworkRecord(files, str(record["build_key"]), str(record["compute_dtype"]), dict(record["verification"]))


def read_manifests(root: Path) -> list[Manifest]:
    """Read an engine directory, or every engine directory in a folder, without looking at the engine files.

    Raises:
        ManifestError: there is none, or one of them cannot be used.
    """
    folders = [root]
    if root.is_dir() and not (root / FILE_NAME).exists():
        folders = sorted(path.parent for path in root.glob(f"*/{FILE_NAME}")) or [root]
    return [read_manifest(folder) for folder in folders]


def check_files(manifest: Manifest) -> None:
    """Compare every file's size and hash with the manifest.

    Raises:
        ManifestError: lists every file that is missing, has another size, or other bytes.
    """
    problems = []
    for name, record in manifest.networks.items():
        for file in record.files:
            problem = _file_problem(manifest.folder / file.path, file)
            if problem:
                problems.append(f"{name}: {file.path} {problem}")
    if problems:
        headline = f"the engine directory {manifest.folder} is damaged:"
        raise ManifestError(headline, problems, _REBUILD.format(folder=manifest.folder).replace(" --force", ""))


def _file_problem(path: Path, record: FileRecord) -> str | None:
    try:
        size = path.stat().st_size
        if size != record.size_bytes:
            return f"has {size} bytes, the manifest says {record.size_bytes}"
        if sha256_of(path) != record.sha256:
            return "has other contents than the manifest says"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return None
