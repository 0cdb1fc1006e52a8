"""One file per engine kind behind the small `Engine` protocol."""

from .protocol import Engine, Opener

__all__ = ["Engine", "Opener"]
