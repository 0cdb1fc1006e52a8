"""Opens the networks of an engine directory whose build is not finished, as benchmarks of single networks need them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dispose_rt_export.builds.records import FOLDER

from dispose_rt.contract import POSE_LEVELS, SchedulerConstants, Sizes
from dispose_rt.engines.backends.aotinductor_package import PackageLabel, read_label
from dispose_rt.engines.manifest import (
    COMPUTE_DTYPES,
    FILE_NAME,
    Manifest,
    NetworkRecord,
    parse_network_record,
    read_manifest,
)
from dispose_rt.errors import InputError

DENOISERS = ("controlnet", "unet")
_PRECISIONS = {dtype: precision for precision, dtype in COMPUTE_DTYPES.items()}


def read_directory(folder: Path) -> Manifest:
    """Read the manifest of an engine directory, or compose one of controlnet and unet where it is missing.

    Args:
        folder: written by `dispose-rt build`, also with `--backend aotinductor --only controlnet,unet`.

    Raises:
        ManifestError: the manifest is damaged.
        EngineError: a package is damaged.
        InputError: the directory is unfinished, and the two networks are not there as AOTInductor packages.
    """
    if (folder / FILE_NAME).exists():
        return read_manifest(folder)
    records = {name: _read_record(folder, name) for name in DENOISERS}
    labels = {name: read_label(folder / record.files[0].path) for name, record in records.items()}
    return Manifest(
        folder=folder,
        backend="aotinductor",
        precision=_PRECISIONS[records["unet"].compute_dtype],
        sizes=_sizes_of(labels),
        scheduler=SchedulerConstants(),
        networks=records,
        versions={"torch": labels["unet"].torch},
        targets=(labels["unet"].target,),
    )


def _read_record(folder: Path, network: str) -> NetworkRecord:
    path = folder / FOLDER / f"{network}.json"
    command = f"dispose-rt build --backend aotinductor --only {','.join(DENOISERS)} --output {folder} ..."
    try:
        record = parse_network_record(json.loads(path.read_text(encoding="utf-8"))["record"], network)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} has neither a manifest nor a finished {network}; build it: {command}") from error
    if record.backend != "aotinductor":
        raise InputError(f"{folder} is unfinished, and its {network} is for {record.backend}: finish it, or {command}")
    return record


def _sizes_of(labels: Mapping[str, PackageLabel]) -> Sizes:
    """Return the sizes of the packages' tensors; sizes that these networks lack stay as published."""
    controlnet = labels["controlnet"].signature
    tile, _, height, width = _static(controlnet["latents"][1])
    channels = [_static(controlnet[f"point_features_{level}"][1])[1] for level in range(POSE_LEVELS)]
    c0, c1, c2, c3 = channels
    embed = _static(controlnet["image_embeds"][1])[-1]
    return Sizes(8 * width, 8 * height, tile=tile, channels=(c0, c1, c2, c3), embed=embed)


def _static(shape: tuple[int | str, ...]) -> list[int]:
    return [int(dim) for dim in shape]
