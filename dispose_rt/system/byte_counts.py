"""Numbers of bytes for people."""

from __future__ import annotations


def format_bytes(count: int) -> str:
    """For example "3.1 GB" or "512 bytes"."""
    size, units = float(count), iter(("bytes", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
