"""How memory grows with the length of a clip: `python benchmarks/memory/long_clip.py ENGINES --frames 500 9000`.

Animates clips of a dancing puppet, whose frames are drawn when they are asked for and whose results are dropped, each
in a process of its own, and prints the most memory that the process had (resident set size), how much that is per frame
beyond the first clip, and what the plan of the longest clip states per frame. ENGINES are of a toy checkpoint (see
examples/demo.py), whose pose networks find puppets.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dispose_rt import Animator
from dispose_rt.clip.plan import estimate_clip
from dispose_rt.clip.store import Rows
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.engines.manifest import Manifest, read_manifest
from dispose_rt.puppet import dance, draw_puppet
from dispose_rt.settings import CONTROLS, PLACES

BAR_FRAMES = 36
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Measured:
    """One clip.

    Attributes:
        frames: of the driving video.
        peak_bytes: the most memory that the process had resident.
        seconds: of the whole run, engines' loading included.
    """

    frames: int
    peak_bytes: int
    seconds: float


def film(frames: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Driving frames, each drawn on demand."""
    steps = dance(BAR_FRAMES, width / height)
    for number in range(frames):
        yield draw_puppet(steps[number % BAR_FRAMES], height, width)


def measure(engine_dir: Path, frames: int, place: str, steps: int, controls: tuple[str, ...]) -> Measured:
    """Animate one clip in this process."""
    start = time.perf_counter()
    sizes = read_manifest(engine_dir).sizes
    [reference] = film(1, sizes.width, sizes.height)
    with Animator(engine_dir) as animator:
        seen = sum(
            1
            for _ in animator.stream(
                reference,
                film(frames, sizes.width, sizes.height),
                steps=steps,
                stride=1,
                overlap=1,
                controls=controls,
                conditions_memory=place,
                progress=False,
            )
        )
    if seen != frames:
        raise RuntimeError(f"{frames} frames went in and {seen} came out")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
    return Measured(frames, peak_bytes, time.perf_counter() - start)


def stated_bytes(manifest: Manifest, place: str, controls: tuple[str, ...]) -> int:
    """Return the planned bytes of every frame on device and host together."""
    names = [("pose_net", "pose_latents"), *([("motion_encoder", "motion_features")] if "motion" in controls else [])]
    rows = {name: _row(manifest, network, manifest.sizes) for network, name in names}
    plan = estimate_clip(1, manifest.sizes, rows, place)
    return plan.device_frame_bytes + plan.host_frame_bytes


def _row(manifest: Manifest, network: str, sizes: Sizes) -> Rows:
    [output] = NETWORKS[network].outputs
    shape = tuple(int(dim) for dim in sizes.resolve(output.shape, {"frames": 1}))
    return shape[1:], output.resolve_dtype(manifest.networks[network].compute_dtype)


def main() -> None:
    """Measure every length in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[500, 9000])
    parser.add_argument("--conditions-memory", choices=[one for one in PLACES if one != "auto"], default="recompute")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS))
    parser.add_argument("--here", action="store_true", help="measure the first length in this process, print JSON")
    options = parser.parse_args()
    controls, place = tuple(options.controls), options.conditions_memory
    if options.here:
        print(json.dumps(asdict(measure(options.engines, options.frames[0], place, options.steps, controls))))
        return
    stated = stated_bytes(read_manifest(options.engines), place, controls)
    print(f"conditions: {place}; controls: {', '.join(controls) or 'none'}; stated: {stated:,} bytes per frame")
    print("| frames | peak RSS | more per frame | time |\n|---|---|---|---|")
    first: Measured | None = None
    for frames in options.frames:
        command = [sys.executable, __file__, str(options.engines), "--here", "--frames", str(frames)]
        command += ["--conditions-memory", place, "--steps", str(options.steps), "--controls", *controls]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        one = Measured(**json.loads(answer))
        more = f"{(one.peak_bytes - first.peak_bytes) / (frames - first.frames):,.0f} bytes" if first else ""
        print(f"| {frames} | {one.peak_bytes / 1e6:,.1f} MB | {more} | {one.seconds:,.0f} s |", flush=True)
        first = first or one


if __name__ == "__main__":
    main()
