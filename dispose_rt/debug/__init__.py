"""Pictures of every stage of a run, and a page that shows them."""

from __future__ import annotations

from .pictures import DebugPictures

__all__ = ["DebugPictures"]
