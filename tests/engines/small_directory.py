"""An engine directory whose files are a few hundred bytes each: all that reading and checking it needs."""

from __future__ import annotations

from pathlib import Path

from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.engines.manifest import Manifest, NetworkRecord, record_file, write_manifest

SIZES = Sizes(64, 64, 7, 4, (32, 64, 128, 128), 48, 96)
WEIGHTS = {"cmp/ckpt_iter_42000.pth.tar": {"size_bytes": 5, "sha256": "0123456789abcdef" * 4}}


def write_directory(folder: Path, width: int = 64, height: int = 64) -> Manifest:
    """Write an FP32 directory for ONNX Runtime."""
    folder.mkdir(parents=True)
    records = {}
    for name in NETWORKS:
        (folder / f"{name}.onnx").write_bytes(name.encode() * 100)
        records[name] = NetworkRecord((record_file(folder, f"{name}.onnx"),), "key", "float32", {"out": 1e-6})
    sizes = Sizes(width, height, SIZES.tile, SIZES.chunk, SIZES.channels, SIZES.embed, SIZES.dift)
    manifest = Manifest(
        folder, "onnxruntime", "fp32", sizes, SchedulerConstants(), records, WEIGHTS, {"torch": "2.13.0+cpu"}
    )
    write_manifest(manifest)
    return manifest
