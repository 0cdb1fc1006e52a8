"""`python -m dispose_rt` is the command `dispose-rt`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
