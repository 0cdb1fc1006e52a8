"""Launches the exporter from the source tree: `python export/build_engines.py` is `dispose-rt build`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dispose_rt_export.command import main

if __name__ == "__main__":
    sys.exit(main())
