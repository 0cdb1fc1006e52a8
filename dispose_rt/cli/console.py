"""The output of a command: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ..system.terminal import escape_controls, write_error

JSON_OPTION, DEBUG_OPTION = "--json", "--debug"


class ReaderLeftError(Exception):
    """The reader of standard output has left; `head`, for example, has seen enough."""


class Console:
    """Prints for people, or JSON for machines.

    With `--json`, standard output carries one JSON document, whatever happens. With `--progress json`, every line of
    standard error is a JSON object. Control characters of files, paths and foreign errors are printed as escapes.

    Args:
        arguments: of the command. The options for output are read before the rest is parsed, since parsing may fail.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        given = list(arguments)
        if "--" in given:
            given = given[: given.index("--")]
        self.is_json = JSON_OPTION in given
        self.is_debug = DEBUG_OPTION in given
        self.is_quiet = "--quiet" in given
        self.logs_json = "--progress=json" in given or ("--progress", "json") in itertools.pairwise(given)
        self.warnings: list[str] = []
        self._printed_document = False

    def print_lines(self, lines: Iterable[str]) -> None:
        """Print a result for people."""
        for line in lines:
            self._print(line)

    def print_document(self, document: Mapping[str, Any]) -> None:
        """Print a result for machines, in one line of ASCII."""
        self._printed_document = True
        self._print(json.dumps(document, default=str))

    def flush(self) -> None:
        """Flush standard output, so that a full disk or a closed pipe shows here and not when Python ends."""
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except BrokenPipeError as error:
                raise ReaderLeftError from error

    def _print(self, line: str) -> None:
        """Print a line of a result."""
        try:
            print(escape_controls(line))
        except BrokenPipeError as error:
            raise ReaderLeftError from error

    def fail(self, kind: str, message: str, *, text: str | None = None, usage: str = "") -> None:
        """Report why a command failed: on standard error, and with `--json` on standard output too.

        Args:
            kind: name of the error's type.
            message: the reason.
            text: the line for people; None for the message after "error:".
            usage: printed before it.
        """
        if self.logs_json:
            self._print_error(json.dumps({"error": {"type": kind, "message": message}}))
        else:
            self._print_error(usage + (f"dispose-rt: error: {message}" if text is None else text))
        if self.is_json and not self._printed_document:
            self.print_document({"error": {"type": kind, "message": message}})

    def warn(self, message: str) -> None:
        """Print a warning in one line."""
        self.warnings.append(message)
        self._print_error(json.dumps({"warning": message}) if self.logs_json else f"dispose-rt: warning: {message}")

    def note(self, message: str) -> None:
        """Print a remark in one line of standard error, unless `--quiet` is given."""
        if not self.is_quiet:
            self._print_error(json.dumps({"note": message}) if self.logs_json else f"dispose-rt: {message}")

    def report_ticks(self) -> Callable[[str, int, int | None], None]:
        """Make a progress callback that prints one JSON object per tick."""
        start_s = time.perf_counter()

        def report(stage: str, done: int, total: int | None) -> None:
            tick = {"stage": stage, "done": done, "total": total, "elapsed_s": round(time.perf_counter() - start_s, 3)}
            self._print_error(json.dumps(tick))

        return report

    def show_traceback(self, error: BaseException | None = None) -> None:
        """Print the traceback of an error, or of the one that is being handled, where `--debug` asks for it."""
        if self.is_debug:
            lines = traceback.format_exc() if error is None else "".join(traceback.format_exception(error))
            self._print_error(lines.rstrip("\n"))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Print Python's warnings and the library's log messages, and characters that cannot be encoded as escapes."""
        log, handler = logging.getLogger("dispose_rt"), _LogHandler(self)
        handler.setLevel(logging.DEBUG if self.is_debug else logging.WARNING)
        log.addHandler(handler)
        level = log.level
        log.setLevel(handler.level)
        try:
            with warnings.catch_warnings(), _every_character_printable(sys.stdout):
                warnings.showwarning = self._show_warning
                yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Replace `warnings.showwarning`, leaving out the line of code that raised the warning."""
        self.warn(str(message))

    def _print_error(self, line: str) -> None:
        """Print a line to standard error; the command goes on where that fails."""
        with contextlib.suppress(OSError, ValueError), _bars_out_of_the_way():
            write_error(f"{escape_controls(line)}\n")


class _LogHandler(logging.Handler):
    """Prints the library's log messages as notes and warnings."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message in one line."""
        if record.levelno >= logging.WARNING:
            self._console.warn(record.getMessage())
        else:
            self._console.note(record.getMessage())
        if record.exc_info:
            self._console.show_traceback(record.exc_info[1])


@contextlib.contextmanager
def _bars_out_of_the_way() -> Iterator[None]:
    """Clear progress bars from the terminal while a line is printed, if there are any."""
    bars = sys.modules.get("tqdm")
    # not asked without bars: its lock stays taken for ever where a Ctrl-C fell between its taking and its release
    if bars is None or not getattr(bars.tqdm, "_instances", ()):
        yield
    else:
        with bars.tqdm.external_write_mode(file=sys.stderr):
            yield


@contextlib.contextmanager
def _every_character_printable(stream: Any) -> Iterator[None]:
    """Print escapes for bytes in file names that are no text, and for characters that the encoding lacks."""
    before = getattr(stream, "errors", None)
    if not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe cannot be flushed
            stream.reconfigure(errors=before)
