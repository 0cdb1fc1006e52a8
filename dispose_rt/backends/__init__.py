"""One file per engine kind behind the small `Engine` protocol."""

from __future__ import annotations

from ..manifest import Manifest
from .protocol import Engine

__all__ = ["Engine", "open_engine"]


def open_engine(manifest: Manifest, network: str) -> Engine:
    """Load one network of an engine directory with the backend that built it.

    Raises:
        EngineError: the backend is not installed, or refuses the file.
    """
    from .onnxruntime import OnnxRuntimeEngine  # the manifest names no other backend

    return OnnxRuntimeEngine(manifest, network)
