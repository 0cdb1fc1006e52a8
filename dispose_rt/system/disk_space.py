"""How much room a file system has."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_disk_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
