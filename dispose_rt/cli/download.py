"""`dispose-rt download`: the published checkpoints, in the folder that `dispose-rt build --weights` takes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..download.files import REPOSITORIES
from ..system.terminal import has_terminal
from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_json
from .stop_signals import StopSignals

if TYPE_CHECKING:
    from ..download import Plan
    from ..download.inspection import CheckedFile, HeaderCheck

DESCRIPTION = "Fetch the published checkpoints from the Hugging Face hub: only the files that a build reads."
EPILOG = f"""\
names for --only and --revision:
{chr(10).join(f"  {name:10} {one.repo}{'  (gated)' if one.gated else ''}" for name, one in REPOSITORIES.items())}

examples:
  dispose-rt download --output weights --dry-run
  HF_TOKEN=hf_... dispose-rt download --output weights
  dispose-rt download --output weights --only dispose,dwpose
  dispose-rt download --output weights --only dispose --revision COMMIT
  dispose-rt download --output weights --check

A gated repository requires that you accept its licence on its page, and a token that proves it. After an interruption
the same command keeps the files that are complete and fetches the rest. Files appear under their names once they are
complete and have the hub's hashes; download.json in the folder records where they came from. The variables of the
package huggingface_hub are honoured (HF_ENDPOINT, HF_HUB_OFFLINE), and proxies.

--json prints {{"folder", "repositories", "total_bytes", "fetched_bytes", "free_bytes", "files"}}, with --dry-run
"needed_bytes" in place of "fetched_bytes" and "files", and with --check {{"folder", "intact", "problems", "files",
"notes"}}: intact are files with the hashes of download.json; each of the files has {{"path", "size_bytes", "whole",
"fits", "networks", "problems"}}, where null means missing or not checked.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="DIR", help="checkpoint folder; what is complete there is kept")
    add("--only", type=_parse_names, default=(), metavar="NAMES", help="names, separated by commas (default: all)")
    add(
        "--revision",
        action="append",
        default=[],
        metavar="[NAME=]REV",
        help="commit, branch or tag of a repository; may be given for several (default: their main branches)",
    )
    add("--token", metavar="TOKEN", help="access token (default: $HF_TOKEN, or what `hf auth login` stored)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be fetched, and stop")
    what.add_argument(
        "--check",
        action="store_true",
        help="are all files there, whole, and of the shapes that a build needs? No network",
    )
    add("--quiet", action="store_true", help="print nothing but warnings and errors, and --json's result")
    add_json(parser, "what was fetched from where, or what --check found")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Plan, print the plan, fetch; or check."""
    from ..download import make_plan

    revisions = _parse_revisions(options.revision, options.only)
    with _Bar(options.quiet) as bar:
        if options.check:
            return _check(options, console, bar)
        hub = _open_hub(options.token)
        plan = make_plan(options.output, only=options.only, revisions=revisions, hub=hub, progress=bar)
    if not options.json and not options.quiet:
        console.print_lines(_describe(plan))
        sys.stdout.flush()  # to be read while files arrive
    if options.dry_run:
        if options.json:
            console.print_document(_to_json(plan) | {"needed_bytes": plan.needed_bytes})
        return ExitCode.DONE
    return _fetch(plan, hub, options, console)


def _open_hub(token: str | None) -> Any:
    from ..download.hub import Hub

    return Hub(token)


def _fetch(plan: Plan, hub: Any, options: argparse.Namespace, console: Console) -> int:
    from ..download import download

    try:
        with _Bar(options.quiet) as bar:
            record = download(plan, hub=hub, progress=bar)
    except KeyboardInterrupt:
        console.note("files that are complete are kept; the same command fetches the rest")
        raise
    if options.json:
        files = {file.local: asdict(record[file.local]) for file in plan.files}
        console.print_document(_to_json(plan) | {"fetched_bytes": plan.needed_bytes, "files": files})
    elif not options.quiet:
        missing = [name for name in REPOSITORIES if name not in {one.repository.name for one in plan.repositories}]
        build = f"dispose-rt build --weights {shlex.quote(str(plan.folder))} --output engines"
        then = f"still to fetch: {', '.join(missing)}" if missing else f"next: {build}"
        count = "1 file is" if len(plan.files) == 1 else f"{len(plan.files)} files are"
        console.print_lines([f"{plan.folder}: {count} complete; {then}"])
    return ExitCode.DONE


def _check(options: argparse.Namespace, console: Console, bar: _Bar) -> int:
    from ..download import inspect_folder
    from ..errors import DownloadError

    headers, notes = _read_headers(options.output)
    found = inspect_folder(options.output, options.only, bar, headers)
    if any(file.whole is None and file.size_bytes is not None for file in found.files):
        notes.append(
            "no record: download.json has no hash of the file. `dispose-rt download` with this folder compares it with "
            "the hub's, and fetches nothing that is complete"
        )
    if options.json:
        files = [asdict(file) for file in found.files]
        document = {"folder": str(options.output), "intact": found.intact, "problems": found.problems}
        console.print_document({**document, "files": files, "notes": notes})
        return ExitCode.FAILED if found.problems else ExitCode.DONE
    if not options.quiet:
        console.print_lines(_format_table(found.files))
        console.print_lines(notes)
    if found.problems:
        sys.stdout.flush()  # before the message on standard error
        lines = [f"  - {problem}" for problem in found.problems]
        whole = sum(not file.problems for file in found.files)
        headline = f"{options.output}: {whole} of {len(found.files)} files are as they have to be:"
        remedy = "Run `dispose-rt download` again: it fetches what is missing, and replaces what was not published."
        raise DownloadError("\n".join([headline, *lines, remedy]))
    if not options.quiet:
        intact, others = len(found.intact), sum(file.whole is None for file in found.files)
        counts = [f"{intact} files are what was downloaded"] if intact else []
        counts += [f"{others} files are there without a record of their hashes"] if others else []
        console.print_lines([f"{options.output}: {', '.join(counts)}"])
    return ExitCode.DONE


def _read_headers(folder: Path) -> tuple[Sequence[HeaderCheck], list[str]]:
    """Have the exporter read all headers; without it, return a note."""
    from ..errors import InputError
    from .build import import_exporter

    if not folder.is_dir():
        return (), []
    try:
        return import_exporter().inspect_folder(folder), []
    except InputError as error:
        return (), [f"shapes are not checked: {error}"]


def _format_table(files: Sequence[CheckedFile]) -> Iterator[str]:
    from ..system.files import format_bytes

    rows = [("file", "size", "whole", "shapes", "networks")]
    for file in files:
        size = "missing" if file.size_bytes is None else format_bytes(file.size_bytes)
        whole = {True: "yes", False: "NO", None: "-" if file.size_bytes is None else "no record"}[file.whole]
        fits = {True: "fine", False: "WRONG", None: "-" if file.size_bytes is None else "not checked"}[file.fits]
        rows.append((file.path, size, whole, fits, ", ".join(file.networks)))
    first, second, third, fourth = (max(len(row[column]) for row in rows) for column in range(4))
    for path, size, whole, fits, networks in rows:
        yield f"{path:{first}}  {size:>{second}}  {whole:{third}}  {fits:{fourth}}  {networks}".rstrip()


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in REPOSITORIES]:
        raise argparse.ArgumentTypeError(f"unknown name {unknown[0]!r}; choose from {', '.join(REPOSITORIES)}")
    return names


def _parse_revisions(given: list[str], only: tuple[str, ...]) -> dict[str, str]:
    from ..errors import InputError

    revisions = {}
    for text in given:
        name, _, revision = text.partition("=")
        if name not in REPOSITORIES and len(only) == 1:
            name, revision = only[0], text
        if name not in REPOSITORIES or not revision:
            raise InputError(
                f"--revision {text} names no repository; write NAME=REV with a NAME of {', '.join(REPOSITORIES)}, or "
                "choose one repository with --only"
            )
        revisions[name] = revision
    return revisions


def _describe(plan: Plan) -> Iterator[str]:
    from ..system.files import format_bytes

    for one in plan.repositories:
        gate = ", gated" if one.repository.gated else ""
        yield f"{one.repository.name}: {one.repository.repo} at {one.revision[:12]}, licence {one.licence}{gate}"
        yield f"  {one.page}"
        for file in one.files:
            state = {
                "complete": "is there",
                "missing": "to fetch",
                "different": "to fetch; another file of that name is replaced",
            }[file.state]
            yield f"  {format_bytes(file.size_bytes):>10}  {file.local}  ({state})"
    yield "Some of these licences limit or forbid commercial use: read them there before you use or ship results"
    needed, total = format_bytes(plan.needed_bytes), format_bytes(plan.total_bytes)
    yield f"{needed} to fetch of {total}; {plan.folder} has {format_bytes(plan.free_bytes)} of room"


def _to_json(plan: Plan) -> dict[str, Any]:
    return {
        "folder": str(plan.folder),
        "total_bytes": plan.total_bytes,
        "free_bytes": plan.free_bytes,
        "repositories": [
            {
                **{"name": one.repository.name, "repo": one.repository.repo, "revision": one.revision},
                **{"licence": one.licence, "page": one.page, "gated": one.repository.gated},
                "files": [{"path": file.local, "size_bytes": file.size_bytes, "was": file.state} for file in one.files],
            }
            for one in plan.repositories
        ],
    }


class _Bar:
    """A bar of bytes with the time left, drawn on terminals alone."""

    def __init__(self, quiet: bool) -> None:
        self._live = not quiet and has_terminal()
        self._bar: Any = None

    def __call__(self, stage: str, file: str, done_bytes: int, total_bytes: int) -> None:
        """Show how much of a stage is done, and which file it is at."""
        if not self._live:
            return
        if self._bar is None or self._bar.desc != stage or done_bytes < self._bar.n:
            from tqdm import tqdm

            self.__exit__()
            self._bar = tqdm(desc=stage, total=total_bytes, unit="B", unit_scale=True, dynamic_ncols=True, leave=False)
        self._bar.set_postfix_str(Path(file).name, refresh=False)
        self._bar.update(done_bytes - self._bar.n)

    def __enter__(self) -> _Bar:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
