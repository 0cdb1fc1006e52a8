"""`dispose-rt inspect`: what an engine directory holds, or how a video was made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..contract import NETWORKS, Sizes, TensorSpec
from ..engines.integrity import check_files
from ..engines.manifest import Manifest, NetworkRecord, read_manifests
from ..errors import InputError
from ..system.files import format_bytes
from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_directory, add_json
from .stop_signals import StopSignals

DESCRIPTION = """\
Print networks, shapes, precision and sizes of an engine directory, or of each one in a folder. Of a video
written by dispose-rt, print the record of how it was made; anyone can write or change one, so it proves nothing.
"""
EPILOG = """\
examples:
  dispose-rt inspect engines/576x1024
  dispose-rt inspect engines --verify
  dispose-rt inspect engines --json
  dispose-rt inspect out.mp4

--json prints {"directories": [{"directory", "width", "height", "tile_frames", "decode_chunk", "backend", "precision",
"size_bytes", "targets", "versions", "weights", "networks": [{"name", "backend", "compute_dtype", "size_bytes", "files",
"inputs", "outputs"}]}], "verified"}; for a video, {"video", "provenance": {"format", "generated",
"digital_source_type", "settings", "engines", "versions"}}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_directory(parser, ", or a video written by dispose-rt")
    parser.add_argument("--verify", action="store_true", help="compare every file with its recorded hash")
    add_json(parser, "what is printed otherwise")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Describe one directory after the other, or a video."""
    if options.directory.suffix and not options.directory.is_dir():
        from ..media import SUFFIXES

        if options.directory.suffix.lower() in SUFFIXES:
            return _describe_video(options.directory, options, console)
    documents = []
    for manifest in read_manifests(options.directory):
        if options.verify:
            check_files(manifest)
        if options.json:
            documents.append(_to_document(manifest))
            continue
        console.print_lines(_to_lines(manifest))
        if options.verify:
            console.print_lines(["all files have the recorded sizes and hashes"])
    if options.json:
        console.print_document({"directories": documents, "verified": options.verify})
    return ExitCode.DONE


def _describe_video(path: Path, options: argparse.Namespace, console: Console) -> int:
    from ..media import read_metadata
    from ..pipeline.provenance import read_record

    if options.verify:
        raise InputError(f"--verify compares the files of engine directories, and {path} is a video; leave it out")
    record = read_record(read_metadata(path))
    if record is None:
        raise InputError(
            f"the video {path} has no record of how it was made: it is not from dispose-rt, was written with "
            "--no-provenance, or another program has written it again"
        )
    if options.json:
        console.print_document({"video": str(path), "provenance": record})
    else:
        console.print_lines([str(path), *json.dumps(record, indent=2).splitlines()])
    return ExitCode.DONE


def _to_lines(manifest: Manifest) -> Iterator[str]:
    sizes = manifest.sizes
    total = sum(_size_bytes(record) for record in manifest.networks.values())
    yield f"{manifest.folder}"
    frames = f"tiles of {sizes.tile} frames, decoded {sizes.chunk} at a time"
    yield f"  output     {sizes.width}x{sizes.height} pixels, {frames}"
    yield f"  engines    {manifest.backend}, {manifest.precision}, {format_bytes(total)}"
    if manifest.targets:
        yield f"  targets    {', '.join(manifest.targets)}"
    if manifest.versions:
        yield "  built with " + ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    for name, weight in manifest.weights.items():
        yield f"  weights    {name} sha256 {str(weight.get('sha256', 'unknown'))[:16]}"
    for name, spec in NETWORKS.items():
        record = manifest.networks[name]
        other = f", {record.backend}" if record.backend != manifest.backend else ""
        yield f"  {name}: {format_bytes(_size_bytes(record))}, {record.compute_dtype}, {record.files[0].path}{other}"
        for arrow, tensors in (("in ", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                shape = ", ".join(_shape(tensor, sizes))
                yield f"    {arrow} {tensor.name} {tensor.resolve_dtype(record.compute_dtype)} [{shape}]"


def _to_document(manifest: Manifest) -> dict[str, Any]:
    sizes = manifest.sizes
    return {
        "directory": str(manifest.folder),
        **manifest.describe(),
        "size_bytes": sum(_size_bytes(record) for record in manifest.networks.values()),
        "targets": list(manifest.targets),
        "versions": manifest.versions,
        "weights": manifest.weights,
        "networks": [_describe_network(name, manifest.networks[name], sizes) for name in NETWORKS],
    }


def _describe_network(name: str, record: NetworkRecord, sizes: Sizes) -> dict[str, Any]:
    def describe(tensor: TensorSpec) -> dict[str, Any]:
        shape = list(_shape(tensor, sizes))
        return {"name": tensor.name, "dtype": tensor.resolve_dtype(record.compute_dtype), "shape": shape}

    return {
        "name": name,
        "backend": record.backend,
        "compute_dtype": record.compute_dtype,
        "size_bytes": _size_bytes(record),
        "files": [file.path for file in record.files],
        "inputs": [describe(tensor) for tensor in NETWORKS[name].inputs],
        "outputs": [describe(tensor) for tensor in NETWORKS[name].outputs],
    }


def _shape(tensor: TensorSpec, sizes: Sizes) -> Iterator[str]:
    """For example "frames<=16", "2", "384", "384"."""
    for dim in sizes.resolve(tensor.shape):
        yield str(dim) if isinstance(dim, int) else f"{dim}<={sizes.limit(dim)}"


def _size_bytes(record: NetworkRecord) -> int:
    return sum(file.size_bytes for file in record.files)
