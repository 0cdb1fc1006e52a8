"""The command `dispose-rt`, with one module per command.

Importing this imports nothing heavy: a command's module is loaded when it is asked for, what it runs when it runs.
"""

from __future__ import annotations

from .program import main

__all__ = ["main"]
