"""One module per kind of engine, all of them behind the classes of `protocol`."""

from .protocol import Engine, EngineLoader

__all__ = ["Engine", "EngineLoader"]
