"""Times whole animations with the engines of a directory: what a user waits for, stage by stage.

    python benchmarks/latency.py ENGINES [--networks] [--baseline] [--json FILE] [--plot FILE.png]
    python benchmarks/latency.py ENGINES --ref photo.png --video dance.mp4

Without --ref and --video, a drawn puppet is animated, which the pose networks of random weights find. One run to warm
up, in which engines load and tune, then --runs more; every run writes an mp4. --networks times every network by itself.
--baseline runs the published method in eager PyTorch in the same process (see benchmarks/baseline.py) and prints how
many times as long it takes.

The JSON file:
    command, date (UTC), machine {platform, cpu, memory_bytes, gpus}, versions {python, dispose-rt, ...}
    engines   {folder, backend, precision, targets, sizes}
    device    {asked, opened, name}: opened is "cpu" or "cuda:N", name the GPU's or the processor's
    settings  {clip, frames, tiles, overlap, steps, guidance_scale}: frames are the new ones, without the reference
    load_s    opening the directory, and loading all engines but the two that find people
    warm_up   a run, as below
    runs      [{frames, total_s, s_per_frame, first_frame_s, peak_bytes, stages_s {stage: s}, launches_per_step,
              graph_problem}]: first_frame_s is from the call until the first decoded frames were handed on
    summary   {total_s, s_per_frame, first_frame_s, peak_bytes: {median, spread}, stages_s {stage: {median, spread}}}
    graph     {captured, launches_per_step, problem}: with 1 launch, a whole step is one graph
    tile_step_s  median seconds of the denoise stage by steps and tiles
    networks  [{network, backend, device, batch, seconds, spread_s, rounds}]; empty without --networks
    baseline  what benchmarks/baseline.py writes, and ours {tile_step_s, s_per_frame}, ratio {tile_step, s_per_frame};
              null without --baseline
A spread is the largest value minus the smallest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its folder's kernels.py would pass for an optional package of transformers
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.latency_baseline import Comparison, Ours, measure_beside, scale_of
from benchmarks.latency_networks import time_networks
from benchmarks.latency_plot import save_plot
from benchmarks.latency_runs import Clip, Runner, RunTimes, draw_clip, summarise
from dispose_rt import Animator
from dispose_rt.backends import Engines
from dispose_rt.contract import Sizes
from dispose_rt.device import CudaDevice
from dispose_rt.errors import DisposeError, InputError
from dispose_rt.machine import examine_machine
from dispose_rt.manifest import Manifest, read_manifest
from dispose_rt.tiles import plan_tiles

GUIDANCE = 2.0
FULL_FRAMES, OTHER_FRAMES = 75, 12
"""Driving frames of the drawn clip: a whole number of the published tiles, 16 that overlap by 6, and a short one."""
FULL_OVERLAP, OTHER_OVERLAP = 6, 2
USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status: 1 if a run failed, 2 if it could not begin."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(words)
    try:
        manifest = read_manifest(arguments.engines)
        _complete(arguments, manifest)
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    try:
        record = {"command": shlex.join(["python", "benchmarks/latency.py", *words]), **measure(arguments, manifest)}
        _store(arguments, record)  # now: the baseline takes long, and may lack the memory
        if arguments.baseline:
            record["baseline"] = compare(arguments, manifest, record)
            _store(arguments, record)
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.plot:
        print(f"{arguments.plot}: the stages, and the networks where they were timed")
    return 0


def _store(arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    if arguments.json:
        part = arguments.json.with_name(f"{arguments.json.name}.part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(arguments.json)
    if arguments.plot:
        save_plot(arguments.plot, record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("engines", type=Path, metavar="ENGINES", help="an engine directory")
    add("--ref", metavar="IMAGE", help="photo; needs --video")
    add("--video", metavar="VIDEO", help="driving video; needs --ref")
    add("--frames", type=int, metavar="N", help="driving frames of the drawn clip (default: 75 at full width, else 12)")
    add("--stride", type=int, default=2, help="of the video's frames (default: 2); the drawn clip's are all used")
    add("--device", default="auto", help='"auto", "cpu" or "cuda[:N]" (default: what the engines were built for)')
    add("--steps", type=int, default=25, help="Euler steps (default: 25)")
    add("--overlap", type=int, help="frames that tiles share (default: 6 at full width, else 2)")
    add("--runs", type=int, default=3, help="measured runs, after one to warm up (default: 3)")
    add("--networks", action="store_true", help="time every network by itself, too")
    add("--baseline", action="store_true", help="time the published method in the same process, too")
    add("--baseline-seconds", type=float, default=600, metavar="S", help="let it measure no more than needed after S")
    add("--scale", choices=("full", "toy"), help="refuse engines of another width (default: any)")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--plot", type=Path, metavar="FILE.png", help="draw the stages and networks there")
    return parser.parse_args(argv)


def _complete(arguments: argparse.Namespace, manifest: Manifest) -> None:
    """Check the arguments and fill in what depends on the engines."""
    scale = scale_of(manifest.sizes)
    problems = []
    if arguments.scale not in (None, scale):
        problems.append(f"--scale is {arguments.scale}; these engines are of {scale or 'another'} scale")
    if (arguments.ref is None) != (arguments.video is None):
        problems.append("--ref and --video go together")
    if arguments.video is not None and arguments.frames is not None:
        problems.append("--frames is the length of the drawn clip; a video has its own")
    if arguments.frames is not None and arguments.frames < 1:
        problems.append(f"--frames is {arguments.frames}; it must be at least 1")
    if arguments.runs < 1:
        problems.append(f"--runs is {arguments.runs}; it must be at least 1")
    if problems:
        raise InputError("; ".join(problems))
    full = scale == "full"
    arguments.frames = arguments.frames or (FULL_FRAMES if full else OTHER_FRAMES)
    if arguments.overlap is None:
        arguments.overlap = FULL_OVERLAP if full else OTHER_OVERLAP
    if arguments.baseline and (problems := list(_baseline_problems(arguments, manifest.sizes))):
        raise InputError("--baseline: " + "; ".join(problems))


def _baseline_problems(arguments: argparse.Namespace, sizes: Sizes) -> Iterator[str]:
    """What keeps the baseline from running, as far as it is known before the runs."""
    if scale_of(sizes) is None:
        yield "the engines' width is neither the published nor the toys': build some with --random-weights"
    if arguments.steps < 2:
        yield "it needs at least 2 steps"
    if not 1 <= arguments.overlap <= sizes.tile - 2:
        yield f"it needs an overlap of 1..{sizes.tile - 2}"
    if arguments.video is None and arguments.frames + 1 < sizes.tile:
        yield f"it needs a tile, at least {sizes.tile - 1} frames beside the reference"
    if missing := [name for name in ("torch", "diffusers", "transformers") if not find_spec(name)]:
        yield f"not installed: {', '.join(missing)}; pip install '.[export]'"


def measure(arguments: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    """Measure and print. Returns what goes into the JSON file.

    Raises:
        DisposeError: the engines cannot be used, or a run failed.
    """
    clip = _clip(arguments, manifest)
    device, name = _find_device(manifest, arguments.device)
    sizes = manifest.sizes
    print(f"{manifest.folder}: {manifest.backend} {manifest.precision}, {sizes.width}x{sizes.height}, on {name}")
    print(f"{clip.description}, {arguments.steps} steps", flush=True)
    load_s, warm_up, runs = _run_all(arguments, clip)
    tiles = len(plan_tiles(runs[0].frames + 1, sizes.tile, arguments.overlap))
    tile_step_s = statistics.median(run.stages_s["denoise"] for run in runs) / (arguments.steps * tiles)
    summary = summarise(runs)
    problem = runs[-1].graph_problem or ("a run of one step has none" if arguments.steps == 1 else None)
    launches = runs[-1].launches_per_step
    graph = {"captured": problem is None, "launches_per_step": launches, "problem": problem}
    _print_summary(summary, load_s, warm_up, graph, tile_step_s, tiles)
    networks = time_networks(manifest, arguments.device) if arguments.networks else []
    if networks:
        print("networks, each by itself at its largest batch:")
        for network in networks:
            print(network)
    machine = examine_machine(manifest.folder)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": machine.platform,
            "cpu": machine.cpu,
            "memory_bytes": machine.memory_bytes,
            "gpus": [asdict(gpu) for gpu in machine.gpus],
        },
        "versions": machine.versions,
        "engines": {
            "folder": str(manifest.folder),
            "backend": manifest.backend,
            "precision": manifest.precision,
            "targets": list(manifest.targets),
            "sizes": asdict(sizes),
        },
        "device": {"asked": arguments.device, "opened": device, "name": name},
        "settings": {
            "clip": clip.description,
            "frames": runs[0].frames,
            "tiles": tiles,
            "overlap": arguments.overlap,
            "steps": arguments.steps,
            "guidance_scale": GUIDANCE,
        },
        "load_s": load_s,
        "warm_up": warm_up.record(),
        "runs": [run.record() for run in runs],
        "summary": summary,
        "graph": graph,
        "tile_step_s": tile_step_s,
        "networks": [asdict(network) for network in networks],
        "baseline": None,
    }


def compare(arguments: argparse.Namespace, manifest: Manifest, record: dict[str, Any]) -> dict[str, Any]:
    """Run the published method beside what was measured, and print both. Returns what goes into the JSON file.

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
        arguments.baseline_seconds,
    )
    comparison = Comparison(baseline, Ours(record["tile_step_s"], record["summary"]["s_per_frame"]["median"]))
    print(comparison, flush=True)
    return comparison.record()


def _clip(arguments: argparse.Namespace, manifest: Manifest) -> Clip:
    if arguments.ref is None:
        return draw_clip(manifest.sizes.width, manifest.sizes.height, arguments.frames)
    return Clip(arguments.ref, arguments.video, arguments.stride, f"{arguments.ref} and {arguments.video}")


def _find_device(manifest: Manifest, asked: str) -> tuple[str, str]:
    """The device that "auto" means, as "cpu" or "cuda:N", and what it is called."""
    engines = Engines(manifest, asked)
    try:
        device = engines.opener.device
        return device.name, device.gpu.name if isinstance(device, CudaDevice) else examine_machine().cpu
    finally:
        engines.close()


def _run_all(arguments: argparse.Namespace, clip: Clip) -> tuple[float, RunTimes, list[RunTimes]]:
    """Seconds to load, the warm-up, and the measured runs."""
    start = time.perf_counter()
    with Animator(arguments.engines, arguments.device) as animator:
        opened_s = time.perf_counter() - start
        settings = {"steps": arguments.steps, "overlap": arguments.overlap, "guidance_scale": GUIDANCE}
        runner = Runner(animator, clip, settings)
        warm_up = runner.run()
        runs = [runner.run() for _ in range(arguments.runs)]
    return opened_s + warm_up.stages_s["load"], warm_up, runs


def _print_summary(
    summary: dict[str, Any], load_s: float, warm_up: RunTimes, graph: dict[str, Any], tile_step_s: float, tiles: int
) -> None:
    total_s = summary["total_s"]["median"]
    print(f"loading {load_s:.2f} s; first run {warm_up.total_s:.2f} s; then, median (and spread):")
    for stage, numbers in summary["stages_s"].items():
        share = 100 * numbers["median"] / total_s
        print(f"  {stage:<16}{numbers['median']:10.4f} s   (+-{numbers['spread']:.4f})   {share:5.1f} %")
    for name, label in (("total_s", "total"), ("s_per_frame", "per frame"), ("first_frame_s", "first frame after")):
        print(f"  {label:<16}{summary[name]['median']:10.4f} s   (+-{summary[name]['spread']:.4f})")
    print(f"  {'most memory':<16}{summary['peak_bytes']['median'] / 1e6:10.1f} MB")
    print(f"  {'tile-step':<16}{tile_step_s * 1e3:10.3f} ms  the denoise stage / steps / tiles, {tiles} of them")
    if graph["captured"]:
        what = "a whole step is one graph" if graph["launches_per_step"] == 1 or tiles == 1 else "a tile is one graph"
        print(f"  graph           captured: {what}; launches per step: {graph['launches_per_step']}", flush=True)
    else:
        print(f"  graph           NOT captured: {graph['problem']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
