"""The label of an AOTInductor package, read without torch and before any of its code is loaded.

A package is a zip archive with a shared library in it. Loading it runs that library, so everything that could make it
crash is checked first: damage, another network, another version of torch, another processor.
"""

from __future__ import annotations

import json
import platform
import stat
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import EngineError
from ..manifest import Signature

LABEL_KEY = "dispose_rt"
"""Key of the label in the package's metadata."""

_METADATA_SUFFIX = "_metadata.json"
_ENCRYPTED = 0x1
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile),
    *(ValueError, KeyError, TypeError, AttributeError),
)
"""Exceptions of zipfile, of json, and of a label with other entries."""

_FEATURE_PREFIXES = (
    *("adx", "aes", "amx", "avx", "bmi", "clwb", "f16c", "fma", "gfni", "lzcnt", "abm", "movbe", "movdir", "pclmul"),
    *("pku", "popcnt", "rdrand", "rdseed", "sha", "sse", "ssse", "vaes", "vpclmul", "xsave"),
)
"""Instruction sets of x86 that a compiler may use for the processor it runs on; the other flags describe the system."""


@dataclass(frozen=True)
class PackageLabel:
    """Source and target of a package.

    Attributes:
        network: name of the network.
        target: "cpu", or the compute capability of the GPU, e.g. "sm_90".
        torch: version of torch that compiled it; its library calls that version's internals.
        machine: operating system and processor architecture, e.g. "linux x86_64".
        cpu_features: instruction sets of the processor that compiled it, which host code may use; sorted.
        limits: largest value of every dynamic dimension.
        signature: dtype and shape of every input and output; dynamic dimensions are names.
    """

    network: str
    target: str
    torch: str
    machine: str
    cpu_features: tuple[str, ...]
    limits: Mapping[str, int]
    signature: Mapping[str, Signature]

    def to_json(self) -> str:
        """Return the label as text, for the package's metadata."""
        return json.dumps(asdict(self))


def parse_label(text: str) -> PackageLabel:
    """Read the text that `PackageLabel.to_json` wrote.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    body: dict[str, Any] = json.loads(text)
    return PackageLabel(
        network=str(body["network"]),
        target=str(body["target"]),
        torch=str(body["torch"]),
        machine=str(body["machine"]),
        cpu_features=tuple(str(feature) for feature in body["cpu_features"]),
        limits={str(symbol): int(limit) for symbol, limit in body["limits"].items()},
        signature={str(name): (str(dtype), tuple(shape)) for name, (dtype, shape) in body["signature"].items()},
    )


def read_label(path: Path) -> PackageLabel:
    """Check the whole archive for damage and read its label. Takes about a second per GB.

    Raises:
        EngineError: the file is missing, damaged, no package, or none of ours.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device would not end
            raise ValueError("it is no regular file")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members)
            broken = archive.testzip()
            if broken is not None:
                raise ValueError(f"{broken} has other bytes than were written")
            metadata = sorted(member.filename for member in members if member.filename.endswith(_METADATA_SUFFIX))
            return parse_label(json.loads(archive.read(metadata[0]))[LABEL_KEY])
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(f"{path} is damaged, or no AOTInductor package of dispose_rt: {reason}") from error


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that torch's loader would compile, unpack elsewhere, or read differently from us."""
    names = [member.filename for member in members]
    if sum(name.endswith(".so") for name in names) != 1 or not any(name.endswith(_METADATA_SUFFIX) for name in names):
        raise ValueError("it does not hold one compiled library and its metadata")
    for member in members:
        if ".." in Path(member.filename).parts or member.filename.startswith("/"):
            raise ValueError(f"{member.filename!r} lies outside of it")
        stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
        if not stored or member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{member.filename!r} is not stored plainly")


def this_machine() -> str:
    """Return the operating system and processor architecture in the form of a label."""
    return f"{sys.platform} {platform.machine()}"


@cache
def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets of this processor, sorted; nothing where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return ()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return tuple(sorted(flag for flag in value.split() if flag.startswith(_FEATURE_PREFIXES)))
        if key.strip() == "Features":  # Arm lists nothing but instruction sets
            return tuple(sorted(value.split()))
    return ()
