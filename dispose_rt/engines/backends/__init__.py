"""One file per engine kind behind the small `Engine` protocol."""

from .protocol import Engine, EngineLoader

__all__ = ["Engine", "EngineLoader"]
