"""The whole way on one CPU, with nothing to download: `make demo`, or `python examples/demo.py --output out`.

Builds engines with toy weights, draws a reference picture and a driving video of a puppet, animates the one with the
other, and lays out everything on a contact sheet. The networks are toys, so the result shows that the machinery works
(the reference, blurred, and over it the traces of the dance), not what DisPose looks like.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dispose_rt
from dispose_rt import media, pictures
from dispose_rt.puppet import Costume, Stance, dance, draw_backdrop, draw_puppet, place_joints

U8 = NDArray[np.uint8]

WIDTH, HEIGHT, TILE_FRAMES = 128, 192, 6
DRIVE_WIDTH, DRIVE_HEIGHT, DRIVE_FPS = 240, 320, 24
REFERENCE_COSTUME = Costume(shirt=(122, 96, 88), trousers=(70, 74, 88))
SHEET_COLUMNS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Build toy engines and animate a puppet with them.")
    parser.add_argument(
        "--output", type=Path, default=Path("out"), metavar="DIR", help="folder to write (default: out)"
    )
    parser.add_argument("--frames", type=int, default=24, help="frames of the driving video (default: 24)")
    parser.add_argument("--steps", type=int, default=8, help="Euler steps (default: 8)")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    try:
        with _timed("toy engines"):
            engines = build_engines(output)
        with _timed("reference picture and driving video"):
            reference, drive = draw_media(output, arguments.frames)
        with _timed("animation"):
            animation, seen = animate(engines, reference, drive, arguments.steps)
    except subprocess.CalledProcessError as error:
        return int(error.returncode)  # the command has said why
    except dispose_rt.DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    video = animation.save(output / "demo.mp4")
    sheet = pictures.save_png(output / "demo.png", lay_out_sheet(seen, animation.frames))
    print(f"{video}: {len(animation.frames)} frames; {sheet}: reference, driving frames, poses, motion, output")
    command = f"{Path(sys.executable).with_name('dispose-rt')} animate --engines {engines}"
    print(f"the same by hand: {command} --reference {reference} --video {drive} --output {output / 'again.mp4'}")
    return 0


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"== {what}", flush=True)
    start = time.perf_counter()
    yield
    print(f"== {what}: {time.perf_counter() - start:.1f} s", flush=True)


def build_engines(output: Path) -> Path:
    """Build toy engines in a process of its own: this one stays free of torch."""
    engines = output / "engines"
    size = ["--size", f"{WIDTH}x{HEIGHT}", "--tile-frames", str(TILE_FRAMES)]
    command = ["dispose_rt", "build", "--random-weights", "toy", "--output", str(engines), *size]
    subprocess.run([sys.executable, "-m", *command], check=True)
    return engines


def draw_media(output: Path, frames: int) -> tuple[Path, Path]:
    """Draw the reference and the driving video: another puppet, of another size, in another place."""
    standing = place_joints(Stance(), WIDTH / HEIGHT)
    picture = draw_puppet(standing, 2 * HEIGHT, 2 * WIDTH, costume=REFERENCE_COSTUME)
    reference = pictures.save_png(output / "reference.png", picture)
    stance = Stance(centre_unit=0.53, top_unit=0.16, height_unit=0.68)
    wall = draw_backdrop(DRIVE_HEIGHT, DRIVE_WIDTH, (150, 152, 160))
    dancing = dance(frames, DRIVE_WIDTH / DRIVE_HEIGHT, stance=stance, period=DRIVE_FPS)
    film = np.stack([draw_puppet(joints, DRIVE_HEIGHT, DRIVE_WIDTH, background=wall) for joints in dancing])
    return reference, media.write_video(output / "drive.mp4", film, DRIVE_FPS)


def animate(engines: Path, reference: Path, drive: Path, steps: int) -> tuple[dispose_rt.Animation, dict[str, Any]]:
    """Animate, keeping the intermediate results that the contact sheet shows."""
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        if name == "driving":
            seen.setdefault(name, []).append(value)
        elif name in ("reference", "poses", "motion"):
            seen[name] = value

    with dispose_rt.Animator(engines) as animator:
        animation = animator.run(reference, drive, steps=steps, overlap=2, observer=keep)
    for stage, seconds in animation.timings.items():
        print(f"   {stage:12} {seconds:6.1f} s")
    return animation, seen


def lay_out_sheet(seen: Mapping[str, Any], frames: U8) -> U8:
    """Lay out the reference and, below it, column by column, what each driving frame became."""
    shown = [round(i) for i in np.linspace(0, len(frames) - 1, min(SHEET_COLUMNS, len(frames)))]
    poses = seen["poses"][1:].transpose(0, 2, 3, 1)  # the first is the reference's own
    motion = seen["motion"]
    rows = {
        "reference": [seen["reference"]],
        "driving frames": [seen["driving"][i] for i in shown],
        "drawn poses": [poses[i] for i in shown],
        "trajectory flow": _draw_flows(motion.trajectory_flow, shown),
        "dense flow": _draw_flows(motion.dense_flow, shown),
        "output": [frames[i] for i in shown],
    }
    return pictures.contact_sheet(rows)


def _draw_flows(flows: NDArray[np.float32], shown: Sequence[int]) -> list[U8]:
    """One scale for the whole row, so that lengths can be compared."""
    longest = float(np.hypot(flows[:, 0], flows[:, 1]).max()) or 1.0
    return [pictures.flow_to_color(flows[i], longest) for i in shown]


if __name__ == "__main__":
    sys.exit(main())
