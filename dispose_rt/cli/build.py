"""`dispose-rt build`: calls the exporter, which the runtime does not need."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from ..errors import InputError
from .console import Console
from .parser import CommandParser

DESCRIPTION = """\
Turn a folder of published checkpoints into an engine directory. Finished networks are kept when a build is interrupted,
and are not built again while their ingredients are unchanged."""
EPILOG = """\
examples:
  dispose-rt build --weights weights --output engines/576x1024 --size 576x1024
  dispose-rt build --weights weights --output engines --size 576x1024,1024x576 --backend tensorrt_rtx --precision fp16
  dispose-rt build --random-weights toy --output engines/toy --size 128x192 --tile-frames 4

--json prints {"directories": [{"directory", "complete", "built", "up_to_date", "missing", "seconds", "bytes",
"peak_bytes"}]}: the bytes of all finished networks, and the most main memory that was used. Text for people goes to
standard error.
"""
_NO_EXPORTER = """\
the exporter is not installed here. Run the command in the source tree, or install the package with its tools:
  pip install 'dispose-rt[export]'"""


def run_exporter(arguments: list[str], parser: CommandParser, console: Console) -> int:
    """Run the exporter, whose dependencies (PyTorch among them) the runtime does not need.

    Args:
        arguments: of the command.
        parser: an empty one, to which the exporter adds its arguments.
        console: unused, since the exporter prints by itself.
    """
    code: int = import_exporter().main(arguments, parser)
    return code


def import_exporter() -> ModuleType:
    """Import the exporter's command.

    Raises:
        InputError: the exporter, or a package that it needs, is not installed.
    """
    if importlib.util.find_spec("dispose_rt_export") is None:
        raise InputError(_NO_EXPORTER)
    try:
        return importlib.import_module("dispose_rt_export.command")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "dispose_rt", "dispose_rt_export"):  # a mistake of ours, not a missing dependency
            raise
        raise InputError(
            f"building engines needs the Python package {missing!r}, which is not installed; install the exporter's "
            "packages: pip install 'dispose-rt[export]'"
        ) from error
