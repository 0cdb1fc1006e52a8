"""Files of caches: kept with a digest, replaced as a whole, and worth nothing when damaged.

A cache only saves time, so neither reading nor writing one may fail a run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .files import atomic_write

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
    """Write a payload with its digest in one step; return False where the folder cannot be written."""
    try:
        with atomic_write(path) as file:
            file.write(hashlib.sha256(payload).digest() + payload)
    except OSError:
        return False
    return True
