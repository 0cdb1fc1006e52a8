"""Small AOTInductor packages for the tests, and ways to tamper with them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from dispose_rt_export.builds.plan import RECIPES
from dispose_rt_export.checkpoints import Checkpoint
from dispose_rt_export.command import sizes_of
from dispose_rt_export.compile import aotinductor
from dispose_rt_export.compile.aotinductor import compile_package
from dispose_rt_export.compile.precision import apply_precision
from torch import nn

from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.engines.backends.aotinductor_package import LABEL_KEY
from dispose_rt.engines.manifest import Manifest, NetworkRecord, record_file
from tests.conftest import made_once

EXPORTER = Path(aotinductor.__file__).parents[1]


def build_module(checkpoint: Path, network: str) -> nn.Module:
    """A network of the golden checkpoint in float32."""
    return RECIPES[network].build(Checkpoint(checkpoint)).eval().requires_grad_(False)


def small_sizes(checkpoint: Path) -> Sizes:
    return sizes_of(Checkpoint(checkpoint), (64, 64), 4, 3)


def compile_once(folder: Path, checkpoint: Path, network: str, compute_dtype: str, device: str) -> Path:
    """Compile a network once for all test processes; a kept package is renewed when anything of it has changed."""
    digest = hashlib.sha256(torch.__version__.encode())
    compiling = [EXPORTER / "compile" / name for name in ("aotinductor.py", "precision.py")]
    for source in sorted([*EXPORTER.glob("networks/*.py"), *compiling]):
        digest.update(source.read_bytes())
    name = f"{network}-{compute_dtype}-{device}-{digest.hexdigest()[:16]}.pt2"
    with made_once(folder / "aotinductor" / name) as path:
        if not path.exists():
            module = apply_precision(build_module(checkpoint, network), network, compute_dtype)
            sizes = small_sizes(checkpoint)
            compile_package(module, NETWORKS[network], sizes, compute_dtype, device=device, output=path)
    return path


def manifest_for(package: Path, network: str, sizes: Sizes, compute_dtype: str = "float32", **changes: Any) -> Manifest:
    """The manifest of a directory that holds nothing but one package."""
    record = NetworkRecord((record_file(package.parent, package.name),), "key", compute_dtype, {}, "aotinductor")
    values = {"targets": ("cpu",), "versions": {"torch": torch.__version__}} | changes
    constants = SchedulerConstants(0.002, 700.0)
    return Manifest(package.parent, "aotinductor", "fp32", sizes, constants, {network: record}, **values)


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    """Copy an archive member by member: `change(name, content)` is the new content."""
    with zipfile.ZipFile(source) as original, zipfile.ZipFile(target, "w", compression) as copy:
        for member in original.infolist():
            copy.writestr(zipfile.ZipInfo(member.filename), change(member.filename, original.read(member)), compression)
    return target


def relabel(source: Path, target: Path, changes: Mapping[str, Any]) -> Path:
    """Copy a package with other entries in its label."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("_metadata.json"):
            return content
        metadata = json.loads(content)
        metadata[LABEL_KEY] = json.dumps(json.loads(metadata[LABEL_KEY]) | changes)
        return json.dumps(metadata).encode()

    return rewrite(source, target, change)
