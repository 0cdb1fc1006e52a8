"""Fetches the published checkpoints from the Hugging Face hub."""

from __future__ import annotations

from .fetch import Plan, download, make_plan
from .inspection import inspect_folder

__all__ = ["Plan", "download", "inspect_folder", "make_plan"]
