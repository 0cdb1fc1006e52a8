"""Decides which files a request may name. Everything in a request that names a file passes through `Uploads.find`."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePath
from typing import Any

from ..errors import InputError

REFUSED = "This is not a file that was uploaded to this page. Choose the file again."
"""The one answer to every other path, whether it exists or not."""


class Uploads:
    """The files that visitors have uploaded, and the results that Gradio serves from the same folder.

    Gradio keeps each in a subfolder that is named by a hash of the content; nothing lies deeper.

    Args:
        folder: the folder; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve(strict=True)

    def find(self, path: object) -> Path:
        """Return an upload that a request names.

        The text alone decides first, so that no other part of the file system is touched: neither words nor time tell
        whether a path exists.

        Args:
            path: what the request says; anything at all.

        Raises:
            InputError: it is no regular file in a subfolder of the folder.
        """
        if not isinstance(path, str) or "\0" in path or str(PurePath(path)) != path:
            raise InputError(REFUSED)
        found = Path(path)
        if found.parent.parent != self.folder or ".." in found.parts:
            raise InputError(REFUSED)
        try:
            parent, file = os.lstat(found.parent), os.lstat(found)
        except (OSError, ValueError):
            raise InputError(REFUSED) from None
        if not stat.S_ISDIR(parent.st_mode) or not stat.S_ISREG(file.st_mode) or file.st_nlink != 1:
            raise InputError(REFUSED)
        return found

    def check(self, document: Any) -> None:
        """Check all files that a JSON document names, at any depth.

        Gradio takes an object with the key "path" for a file.

        Args:
            document: what `json.loads` has returned.

        Raises:
            InputError: one of them is no upload.
        """
        left = [document]
        while left:
            part = left.pop()
            if isinstance(part, dict):
                if "path" in part:
                    self.find(part["path"])
                left.extend(part.values())
            elif isinstance(part, list):
                left.extend(part)
