"""Launches the exporter from a source tree without an installation; `dispose-rt build` is the command."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from dispose_rt_export.command import main

    sys.exit(main())
