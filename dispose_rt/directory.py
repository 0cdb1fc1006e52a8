"""Finds the engine directory that fits a reference image."""

from __future__ import annotations

import math
from pathlib import Path

from .errors import ManifestError
from .manifest import Manifest, check_files, read_manifests


class EngineDirectories:
    """One engine directory, or a folder of several.

    Args:
        root: an engine directory, or a parent of engine directories.

    Raises:
        ManifestError: there is none, or one of them is damaged or was built for another version.
    """

    def __init__(self, root: Path) -> None:
        self._manifests = read_manifests(root)
        for manifest in self._manifests:
            check_files(manifest)

    def pick(self, width: int, height: int) -> Manifest:
        """Return the directory whose aspect ratio is nearest to an image's; the larger one of two equally near."""
        if not width or not height:
            raise ManifestError("an image without pixels has no aspect ratio")
        aspect = math.log(width / height)

        def distance(manifest: Manifest) -> tuple[float, int]:
            sizes = manifest.sizes
            return round(abs(math.log(sizes.width / sizes.height) - aspect), 6), -sizes.width * sizes.height

        return min(self._manifests, key=distance)
