"""The guard between what files, paths and foreign errors say and what a terminal shows."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029\ufeff]"
)


def escape_controls(text: str) -> str:
    """Replace characters that a terminal obeys instead of showing them by the escapes of Python's strings.

    Line feeds and tabs stay.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
