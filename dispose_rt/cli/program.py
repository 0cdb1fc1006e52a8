"""`main` runs a command and turns its end, whatever it is, into a message and an exit status."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import Cancelled, DeviceLostError, DisposeError
from ..system.memory import is_out_of_memory
from ..system.terminal import open_closed_streams
from .console import Console, ReaderLeftError
from .exit_codes import ExitCode, format_table
from .parser import CommandParser, UsageError, find_nearest
from .stop_signals import StopSignals

_COMMANDS = {
    "animate": "make a video",
    "build": "turn published checkpoints into an engine directory",
    "download": "fetch the published checkpoints",
    "bench": "measure how fast the engines are on this machine",
    "inspect": "print what an engine directory holds",
    "doctor": "try out this machine and an engine directory",
    "page": "serve a web page that makes videos",
    "trust": "say whose engines may run native code",
}
"""Commands and their summaries. Each has a module of its name in this package with `DESCRIPTION`, `EPILOG`,
`add_arguments(parser)` and `run(options, console, stop) -> int`."""

_DESCRIPTION = "Animate the person of a photo with the movement of the person of a video."
_EPILOG = f"""\
examples:
  dispose-rt doctor
  dispose-rt download --output weights
  dispose-rt build --weights weights --output engines/576x1024 --size 576x1024
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output out.mp4
  dispose-rt COMMAND --help

exit codes of every command:
{format_table()}

environment:
  DISPOSE_RT_ENGINES  engine directory, or a folder of several, where none is given
  DISPOSE_RT_TRUST    keys whose engines may run native code, separated by commas, or "all"
  XDG_CACHE_HOME      where caches lie, in its folder dispose-rt (default: ~/.cache)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit status, see `exit_codes`.
    """
    open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    console, stop = Console(arguments), StopSignals()
    try:
        with console.attached(), stop:
            code = _dispatch(arguments, console, stop)
            console.flush()
    except SystemExit as end:  # how argparse ends after --help
        return end.code if isinstance(end.code, int) else ExitCode.DONE
    except ReaderLeftError:
        _discard_output()
        return ExitCode.DONE
    except BaseException as error:
        return _fail(console, stop, error)
    # a command may handle a signal itself, as a build does
    return code if code == ExitCode.DONE or stop.number is None else 128 + stop.number


def _dispatch(arguments: list[str], console: Console, stop: StopSignals) -> int:
    name = arguments[0] if arguments else ""
    if name not in _COMMANDS:
        return _run_without_command(arguments)
    command = importlib.import_module(f".{name}", __package__)
    parser = CommandParser(
        prog=f"dispose-rt {name}",
        description=command.DESCRIPTION,
        epilog=f"{command.EPILOG.rstrip()}\n\nexit codes: see `dispose-rt --help`",
    )
    if name == "build":  # the exporter has a parser of its own
        return int(command.run_exporter(arguments[1:], parser, console))
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(arguments[1:]), console, stop))


def _run_without_command(arguments: list[str]) -> int:
    parser = CommandParser(prog="dispose-rt", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"dispose-rt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not arguments:
        parser.print_help()
        return ExitCode.MISUSED
    if not arguments[0].startswith("-"):
        nearest = find_nearest(arguments[0], _COMMANDS)
        known = "" if nearest else f"; choose from {', '.join(_COMMANDS)}"
        parser.error(f"unknown command {arguments[0]!r}{nearest}{known}")
    parser.parse_args(arguments)
    return parser.error(f"name the command first: dispose-rt COMMAND {' '.join(arguments)}")


def _fail(console: Console, stop: StopSignals, error: BaseException) -> int:
    """Print why a command failed, and choose its exit status, which is the same where standard error is closed."""
    is_stopped = isinstance(error, KeyboardInterrupt) or (isinstance(error, Cancelled) and stop.number is not None)
    try:
        if is_stopped:
            console.fail("Interrupted", "interrupted", text="\ndispose-rt: interrupted")
        else:
            _explain(console, error)
        console.flush()
    except (ReaderLeftError, OSError):
        _discard_output()
    if is_stopped:
        return ExitCode.INTERRUPTED if stop.number is None else 128 + stop.number
    return _choose_code(error)


def _choose_code(error: BaseException) -> ExitCode:
    if isinstance(error, UsageError):
        return ExitCode.MISUSED
    if isinstance(error, DeviceLostError) or is_out_of_memory(error):
        return ExitCode.EXHAUSTED
    return ExitCode.FAILED if isinstance(error, DisposeError | OSError) else ExitCode.BUG


def _explain(console: Console, error: BaseException) -> None:
    name = type(error).__name__
    if isinstance(error, UsageError):
        console.fail(name, str(error), text=f"{error.program}: error: {error}", usage=error.usage)
        return
    console.show_traceback()
    if isinstance(error, DisposeError):
        message = str(error)
    elif is_out_of_memory(error):
        message = (
            "this machine has too little free memory; close other programs, raise the limit if there is one (`ulimit "
            "-v`, a container's), or use a smaller size"
        )
    elif isinstance(error, OSError):
        message = f"a file could not be read or written: {error}"
    else:
        reason = " ".join(f"{name}: {error}".split())
        advice = "the traceback is above" if console.is_debug else "add --debug to see where"
        message = f"{reason} (a bug of dispose-rt; {advice}, and report it where you got dispose-rt from)"
    console.fail(name, message)


def _discard_output() -> None:
    """Discard the rest of standard output, which Python would otherwise fail to flush at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
