"""A whole measurement: what is run, in which order, and the record that comes of it."""

from __future__ import annotations

import datetime
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import Animator
from ..contract import Sizes
from ..device import CudaDevice
from ..doctor.machine import examine_machine
from ..engines.manifest import Manifest
from ..engines.open import Engines
from ..errors import InputError
from ..hooks.progress import ProgressCallback
from ..settings import Settings
from ..stages.denoise.tiles import plan_tiles
from .clip import Clip, draw_clip, open_clip
from .runs import Runner, RunTimes, summarise

GUIDANCE = 2.0
FULL_FRAMES, OTHER_FRAMES = 75, 12
"""Driving frames of the drawn clip: a whole number of the published tiles, 16 that overlap by 6, and a short one."""
FULL_OVERLAP, OTHER_OVERLAP = 6, 2
LARGEST_FRAMES = 10_000


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        ref: path of a photo, and
        video: of a driving video; None for a drawn puppet.
        frames: driving frames of the drawn clip; None for what suits the engines.
        stride: of the video's frames; the drawn clip's are all used.
        device: as `Animator` takes it.
        steps: Euler steps.
        overlap: frames that tiles share; None for what suits the engines.
        runs: measured runs, after one to warm up.
        lengths: frames of further drawn clips, each measured as often.
    """

    ref: str | None = None
    video: str | None = None
    frames: int | None = None
    stride: int = 2
    device: str = "auto"
    steps: int = 25
    overlap: int | None = None
    runs: int = 3
    lengths: tuple[int, ...] = ()


def complete_plan(plan: Plan, sizes: Sizes) -> Plan:
    """Check a plan, and fill in what depends on the engines.

    Raises:
        InputError: names everything that does not fit.
    """
    if problems := list(_problems(plan)):
        raise InputError("; ".join(problems))
    full = has_full_width(sizes)
    overlap = (FULL_OVERLAP if full else OTHER_OVERLAP) if plan.overlap is None else plan.overlap
    if plan.overlap is None:
        overlap = min(overlap, sizes.tile - 2)
    plan_tiles(sizes.tile, sizes.tile, overlap)  # refuses an overlap that the engines' tile cannot have
    Settings(steps=plan.steps, stride=plan.stride, overlap=overlap)  # checks them
    drawn = None if plan.video else plan.frames or (FULL_FRAMES if full else OTHER_FRAMES)
    return replace(plan, frames=drawn, overlap=overlap)


def has_full_width(sizes: Sizes) -> bool:
    """Whether the networks are as wide as the published ones."""
    published = Sizes(64, 64)
    return (sizes.channels, sizes.embed) == (published.channels, published.embed)


def _problems(plan: Plan) -> Iterator[str]:
    if (plan.ref is None) != (plan.video is None):
        yield "--ref and --video go together"
    if plan.video is not None and plan.frames is not None:
        yield "--frames is the length of the drawn clip; a video has its own"
    if plan.runs < 1:
        yield f"--runs is {plan.runs}; it must be at least 1"
    if plan.frames is not None:
        yield from _length_problems("--frames", plan.frames)
    for length in plan.lengths:
        yield from _length_problems("--lengths", length)
    if len(set(plan.lengths)) < len(plan.lengths):
        yield "--lengths names a length twice"


def _length_problems(option: str, frames: int) -> Iterator[str]:
    if frames < 1:
        yield f"{option} is {frames}; it must be at least 1"
    if frames > LARGEST_FRAMES:  # before they are drawn
        yield f"{option} is {frames}; it must be at most {LARGEST_FRAMES}"


@dataclass(frozen=True)
class Setup:
    """A plan whose clip was opened, on a device that is known.

    Attributes:
        plan: completed.
        manifest: of the engines.
        clip: what is animated.
        device: that "auto" means, as "cpu" or "cuda:N".
        device_name: what it is called.
    """

    plan: Plan
    manifest: Manifest
    clip: Clip
    device: str
    device_name: str

    def describe_engines(self) -> dict[str, Any]:
        """The record's "engines"."""
        manifest = self.manifest
        return {
            "folder": str(manifest.folder),
            "backend": manifest.backend,
            "precision": manifest.precision,
            "targets": list(manifest.targets),
            "sizes": asdict(manifest.sizes),
        }

    def describe_settings(self, frames: int | None = None) -> dict[str, Any]:
        """The record's "settings"; without the length of a video, which nobody knows before the first run."""
        known = frames or self.plan.frames
        lengths = {} if known is None else {"frames": known, "tiles": self.count_tiles(known)}
        return {
            "clip": self.clip.description,
            "clip_sha256": self.clip.sha256,
            **lengths,
            "overlap": self.plan.overlap,
            "steps": self.plan.steps,
            "stride": self.clip.stride,
            "guidance_scale": GUIDANCE,
        }

    def count_tiles(self, frames: int) -> int:
        """Tiles of a clip of that many new frames."""
        return len(plan_tiles(frames + 1, self.manifest.sizes.tile, self.plan.overlap or 0))


def prepare(plan: Plan, manifest: Manifest) -> Setup:
    """Open the clip and ask for the device, before anything takes long.

    Args:
        plan: completed, see `complete_plan`.
        manifest: of the engine directory.

    Raises:
        InputError: the photo or the video cannot be used.
        DisposeError: the engines cannot be used on this machine.
    """
    if plan.ref is None or plan.video is None:
        clip = draw_clip(manifest.sizes.width, manifest.sizes.height, plan.frames or OTHER_FRAMES)
    else:
        clip = open_clip(plan.ref, plan.video, plan.stride)
    engines = Engines(manifest, plan.device)
    try:
        device = engines.loader.device
        name = device.gpu.name if isinstance(device, CudaDevice) else examine_machine().cpu
        return Setup(plan, manifest, clip, device.name, name)
    finally:
        engines.close()


def measure(
    setup: Setup, progress: ProgressCallback | None = None, cancel: threading.Event | None = None
) -> dict[str, Any]:
    """Animate the clip again and again. Nothing is printed.

    Args:
        setup: see `prepare`.
        progress: hears how far it is, as ("run 1 of 3: denoise", done, total).
        cancel: set it from another thread to end with `Cancelled`.

    Returns:
        The record without "command", see `dispose_rt.bench`; "networks" is empty.

    Raises:
        DisposeError: the engines cannot be used, or a run failed.
        Cancelled: `cancel` was set.
    """
    plan, manifest = setup.plan, setup.manifest
    machine = examine_machine(manifest.folder)
    start = time.perf_counter()
    with Animator(manifest.folder, plan.device, trust=manifest.trusted) as animator:
        opened_s = time.perf_counter() - start
        settings = {"steps": plan.steps, "overlap": plan.overlap, "guidance_scale": GUIDANCE}
        runner = Runner(animator, setup.clip, settings, progress, cancel)
        warm_up = runner.run("warm-up")
        runs = _repeat(runner, plan.runs)
        lengths = []
        for length in sorted(plan.lengths):
            clip = draw_clip(manifest.sizes.width, manifest.sizes.height, length)
            times = _repeat(Runner(animator, clip, settings, progress, cancel), plan.runs, f"{length} frames, ")
            lengths.append({"frames": length, "tiles": setup.count_tiles(length), **summarise(times)})
    frames = runs[0].frames
    summary, tiles = summarise(runs), setup.count_tiles(frames)
    problem = runs[-1].graph_problem or ("a run of one step has none" if plan.steps == 1 else None)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": machine.platform,
            "cpu": machine.cpu,
            "memory_bytes": machine.memory_bytes,
            "gpus": [asdict(gpu) for gpu in machine.gpus],
        },
        "versions": machine.versions,
        "engines": setup.describe_engines(),
        "device": {"asked": plan.device, "opened": setup.device, "name": setup.device_name},
        "settings": setup.describe_settings(frames),
        "load_s": opened_s + warm_up.stages_s["load"],
        "warm_up": warm_up.record(),
        "runs": [run.record() for run in runs],
        "summary": summary,
        "graph": {
            "captured": problem is None,
            "launches_per_step": runs[-1].launches_per_step,
            "problem": problem,
        },
        "tile_step_s": statistics.median(run.stages_s["denoise"] for run in runs) / (plan.steps * tiles),
        "lengths": lengths,
        "networks": [],
        "baseline": None,
    }


def _repeat(runner: Runner, runs: int, what: str = "") -> list[RunTimes]:
    return [runner.run(f"{what}run {number} of {runs}") for number in range(1, runs + 1)]
