"""Files of caches: kept with a digest, replaced as a whole, and worth nothing when damaged.

A cache only saves time, so neither reading nor writing one may fail a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size


def read_sealed(path: Path) -> bytes | None:
    """Return what `write_sealed` wrote, or None where the file is missing, unreadable or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return payload if payload and hashlib.sha256(payload).digest() == digest else None


def write_sealed(path: Path, payload: bytes) -> bool:
    """Write under a temporary name, then rename. Returns False where the folder cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")  # other processes may be writing theirs
    try:
        temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True
