"""`dispose-rt bench`, and beside it what needs the source tree: the published method in eager PyTorch.

    python benchmarks/speed/latency.py ENGINES [--networks] [--baseline] [--json FILE] [--plot FILE.png]

--baseline runs the published method in the same process (see benchmarks/reference/baseline.py) and prints the ratio of
the times. All other options are those of `dispose-rt bench`, and so is the JSON file (see dispose_rt/bench), but for

    baseline  the record of benchmarks/reference/baseline.py, with ours {tile_step_s, s_per_frame} and
              ratio {tile_step, s_per_frame}; null without --baseline
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from benchmarks.speed.latency_baseline import Comparison, Ours, measure_beside, scale_of
from dispose_rt.bench.command import STANDARD_OUTPUT, add_arguments, bench, read_engines, read_plan, store
from dispose_rt.bench.measurement import Plan
from dispose_rt.contract import Sizes
from dispose_rt.engines.manifest import Manifest
from dispose_rt.errors import DisposeError, InputError

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status: 1 if a run failed, 2 if it could not begin."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parse(words)
    try:
        manifest = replace(read_engines(options.engines), trusted=options.trust)
        plan = read_plan(options, manifest)
        if problems := list(_problems(options, plan, manifest.sizes)):
            raise InputError("; ".join(problems))
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    try:
        command = shlex.join(["python", "benchmarks/speed/latency.py", *words])
        record = bench(options, plan, manifest, command)  # stores it: the baseline takes long, and may lack the memory
        if options.baseline:
            record["baseline"] = compare(options, manifest, record)
            store(options, record)
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add = parser.add_argument
    add("--baseline", action="store_true", help="time the published method in the same process, too")
    add("--baseline-seconds", type=float, default=600, metavar="S", help="let it measure no more than needed after S")
    add("--scale", choices=("full", "toy"), help="refuse engines of another width (default: any)")
    return parser.parse_args(argv)


def _problems(options: argparse.Namespace, plan: Plan, sizes: Sizes) -> Iterator[str]:
    """Options that `dispose-rt bench` does not have."""
    scale = scale_of(sizes)
    if options.scale not in (None, scale):
        yield f"--scale is {options.scale}; these engines are of {scale or 'another'} scale"
    if options.baseline and (problems := list(_baseline_problems(plan, sizes))):
        yield "--baseline: " + "; ".join(problems)
    if options.baseline and options.json == STANDARD_OUTPUT:
        yield "--baseline prints beside the record; pass --json FILE"


def _baseline_problems(plan: Plan, sizes: Sizes) -> Iterator[str]:
    """Return the reasons, known before the runs, why the baseline cannot run."""
    if scale_of(sizes) is None:
        yield "the engines' width is neither the published nor the toys': build some with --random-weights"
    if plan.steps < 2:
        yield "it needs at least 2 steps"
    if not 1 <= (plan.overlap or 0) <= sizes.tile - 2:
        yield f"it needs an overlap of 1..{sizes.tile - 2}"
    if plan.frames is not None and plan.frames + 1 < sizes.tile:
        yield f"it needs a tile, at least {sizes.tile - 1} frames beside the reference"
    if missing := [name for name in ("torch", "diffusers", "transformers") if not find_spec(name)]:
        yield f"not installed: {', '.join(missing)}; pip install '.[export]'"


def compare(options: argparse.Namespace, manifest: Manifest, record: dict[str, Any]) -> dict[str, Any]:
    """Run the published method beside the measured runs, and print both. Returns the JSON record.

    Raises:
        InputError: the published method cannot run such a clip.
    """
    settings = record["settings"]
    baseline = measure_beside(
        manifest,
        record["device"]["opened"],
        settings["frames"] + 1,
        settings["overlap"],
        settings["steps"],
        settings["guidance_scale"],
        options.baseline_seconds,
    )
    comparison = Comparison(baseline, Ours(record["tile_step_s"], record["summary"]["s_per_frame"]["median"]))
    print(comparison, flush=True)
    return comparison.record()


if __name__ == "__main__":
    sys.exit(main())
