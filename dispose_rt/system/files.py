"""Small files that appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import OutputError


def save_bytes(target: Path, data: bytes) -> Path:
    """Write a file under a temporary name and rename it; the folder is created where missing.

    Args:
        target: where to; an existing file is replaced.
        data: all of it.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}; pass a path in a writable folder") from error
    finally:
        with contextlib.suppress(OSError):  # nothing to clean up where nothing could be written
            part.unlink(missing_ok=True)
    return target
