"""Fetches the published checkpoints from the Hugging Face hub."""

from __future__ import annotations

from .fetch import Plan, download, format_bytes, inspect_folder, make_plan

__all__ = ["Plan", "download", "format_bytes", "inspect_folder", "make_plan"]
