"""Finds the engine directory that fits a reference image."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ..errors import ManifestError
from .integrity import with_stamps
from .manifest import Manifest, find_directories, read_manifest
from .preflight import Host, check_directory


class EngineDirectories:
    """One engine directory, or a folder of several, each checked and fit for use.

    Args:
        root: an engine directory, or a parent of engine directories.
        device: "auto", "cpu", "cuda" or "cuda:N".
        host: facts about the machine; None looks them up.
        trust: the caller vouches for native code in the directories.

    Raises:
        ManifestError: there is none, or one of them is damaged, was built for another version, or does not run here.
        InputError: the device is unknown.
    """

    def __init__(self, root: Path, device: str = "auto", host: Host | None = None, *, trust: bool = False) -> None:
        self._manifests: list[Manifest] = []
        failures: list[ManifestError] = []
        folders = find_directories(root)
        for folder in folders:
            try:
                # stamped before the check: what changes during it is noticed
                manifest = with_stamps(replace(read_manifest(folder), trusted=trust))
                check_directory(manifest, device, host)
                self._manifests.append(manifest)
            except ManifestError as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            headline = f"{len(failures)} of the {len(folders)} engine directories in {root} cannot be used:"
            raise ManifestError(headline, [str(failure) for failure in failures])

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """The manifests of all directories."""
        return tuple(self._manifests)

    def pick(self, width: int, height: int) -> Manifest:
        """Return the directory whose aspect ratio is nearest to an image's; of two equally near, the larger one."""
        if not width or not height:
            raise ManifestError("an image without pixels has no aspect ratio")
        aspect = math.log(width / height)

        def distance(manifest: Manifest) -> tuple[float, int]:
            sizes = manifest.sizes
            return round(abs(math.log(sizes.width / sizes.height) - aspect), 6), -sizes.width * sizes.height

        return min(self._manifests, key=distance)
