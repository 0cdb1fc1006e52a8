"""Damages media, weights, manifests and requests at random, and says whether the package bears it.

    python scripts/fuzz.py --minutes 10 --seed 1
    python scripts/fuzz.py --minutes 2 --seed 1 --only media,requests --keep out/fuzz
    python scripts/fuzz.py --seed 1 --only media --case 1234    # one case again; its files are kept in any case

What is wrong may be refused, with one of the package's errors and a message that a person can read. A crash, an end
that does not come within 10 seconds (30 for requests), another exception, a traceback, a warning of a library, and a
gigabyte of growth are failures: their files are kept, and the exit status is 1. The same seed gives the same cases.
Needs Linux, and the extras `export` and `page`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzzing.watch import Failure, Watch, run_for
from fuzzing.worker import AREAS, serve

_DEFAULT = ("media", "weights", "manifests", "requests")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and print what became of them."""
    options = _parse(argv)
    if options.serve:
        from fuzzing import requests

        requests.serve(options.serve)
        return 0
    if options.worker:
        serve(options.only[0], options.seed, options.worker)
        return 0
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    first, count = (options.case, 1) if options.case is not None else (0, options.cases)
    scratch = Path(tempfile.mkdtemp(prefix="fuzzing-"))
    watches = {name: Watch(name, options.seed, scratch / name, keep) for name in options.only}
    try:
        for watch in watches.values():
            try:
                run_for(watch, first, count, options.minutes / len(watches))
            finally:
                watch.close()
        if options.case is not None:
            _keep_case(scratch, keep, options.only[0])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    failures = _print_table(watches)
    for failure in failures:
        _print_failure(failure, options.seed)
    print(f"{len(failures)} failures" + (f", kept in {keep}" if failures or options.case is not None else ""))
    return 1 if failures else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all areas together (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: 0)")
    parser.add_argument("--only", type=_read_areas, default=_DEFAULT, metavar="AREA,...", help=f"of {', '.join(AREAS)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for files of failures (default: a temporary folder)")
    parser.add_argument("--cases", type=int, metavar="N", help="at most N cases of each area")
    parser.add_argument("--case", type=int, metavar="N", help="only case N of one area")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case is not None and len(options.only) != 1:
        parser.error("--case needs --only with the one area that the case is of")
    return options


def _read_areas(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in AREAS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(AREAS)}")
    return names


def _keep_case(scratch: Path, keep: Path, area: str) -> None:
    shutil.copytree(scratch / area / "case", keep, symlinks=True, dirs_exist_ok=True)


def _print_table(watches: dict[str, Watch]) -> list[Failure]:
    print(f"{'area':10} {'cases':>7} {'accepted':>9} {'refused':>8} {'failures':>9}  {'slowest':18} largest growth")
    for name, watch in watches.items():
        tally = watch.tally
        slowest = f"{tally.slowest[0]:.2f} s (case {tally.slowest[1]})"
        largest = f"{tally.largest[0] / 1e6:.0f} MB (case {tally.largest[1]})"
        counts = f"{tally.cases:7} {tally.accepted:9} {tally.refused:8} {len(tally.failures):9}"
        print(f"{name:10} {counts}  {slowest:18} {largest}")
    return [failure for watch in watches.values() for failure in watch.tally.failures]


def _print_failure(failure: Failure, seed: int) -> None:
    lines = failure.problem.splitlines()
    print(f"\n{failure.area}, case {failure.number}: {failure.done}")
    print("\n".join(f"    {ascii(line)[1:-1]:.200}" for line in [lines[0], *lines[1:][-6:]]))
    print(f"    again: python scripts/fuzz.py --seed {seed} --only {failure.area} --case {failure.number}")


if __name__ == "__main__":
    sys.exit(main())
