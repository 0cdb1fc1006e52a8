"""Fetches the published checkpoints from the Hugging Face hub."""

from __future__ import annotations

from .fetch import Plan, download, inspect_folder, make_plan

__all__ = ["Plan", "download", "inspect_folder", "make_plan"]
