"""The command `dispose-rt`, with one module per command.

Importing this package imports nothing heavy: a command's module is loaded when the command is called, and the library
when the command runs.
"""

from __future__ import annotations

from .program import main

__all__ = ["main"]
