"""Where the user's computer keeps what dispose_rt can make again: the XDG cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def cache_folder(name: str) -> Path:
    """Say where one kind of thing is kept; the folder need not exist.

    Args:
        name: the kind, for example "poses".

    Returns:
        `$XDG_CACHE_HOME/dispose-rt/NAME`, or `~/.cache/dispose-rt/NAME` where the variable is unset, empty, or not
        absolute, which its specification tells programs to ignore.

    Raises:
        InputError: the variable does not help, and the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise InputError("there is no home folder; set XDG_CACHE_HOME to a folder for caches") from error
    return base / "dispose-rt" / name
