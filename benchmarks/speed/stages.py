"""Prints seconds per stage of the demo's run, and the speed-up of the kernels over the reference's algorithms.

    make demo && python benchmarks/speed/stages.py

Both sides of a ratio take the same inputs, run in the same process on all cores of the CPU, and their results are
compared. Times are the best of several rounds. The plain point scatter holds the enlarged feature map as the reference
code does: 3 GB, and needs torch (`pip install '.[export]'`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from dispose_rt import Animator, kernels
from dispose_rt.contract import Sizes
from dispose_rt.device import Array, CpuDevice, Stream
from dispose_rt.device.cpu import as_numpy, submit
from dispose_rt.engines.backends import Engine
from dispose_rt.errors import DisposeError
from dispose_rt.stages.appearance import encode_points, joint_embeddings
from dispose_rt.stages.motion import joint_tracks_px, trajectory_impulses
from dispose_rt.types import F32, JOINTS, Track

Result = TypeVar("Result")

WIDTH, HEIGHT, FRAMES = 576, 1024, 16
DIFT_CHANNELS, LEVEL_CHANNELS = 1280, (320, 640, 1280, 1280)
PLAIN_ROUNDS, OUR_ROUNDS = 3, 15


@dataclass(frozen=True)
class Ratio:
    """Seconds of a plain implementation and of ours, for the same result."""

    name: str
    plain_s: float
    ours_s: float
    largest_difference: float

    @property
    def speedup(self) -> float:
        return self.plain_s / self.ours_s

    def __str__(self) -> str:
        return (
            f"{self.name:<16} plain {self.plain_s:8.4f} s   ours {self.ours_s:8.4f} s   {self.speedup:6.0f}x   "
            f"largest difference {self.largest_difference:.1e}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("out"), metavar="DIR", help="what make demo wrote")
    parser.add_argument("--steps", type=int, default=8, help="Euler steps (default: 8)")
    arguments = parser.parse_args(argv)
    try:
        print_stages(arguments.demo, arguments.steps)
    except DisposeError as error:
        print(f"error: {error}\nRun make demo first, or pass its output folder as --demo.", file=sys.stderr)
        return 1
    print(f"kernels, {FRAMES} frames of {WIDTH}x{HEIGHT}, {os.cpu_count()} cores:")
    for ratio in kernel_ratios():
        print(f"  {ratio}")
    return 0


def print_stages(demo: Path, steps: int) -> None:
    """Run the demo's clip twice and print the second run's seconds per stage: the first one loads the engines."""
    with Animator(demo / "engines") as animator:
        for _ in range(2):
            animation = animator.run(demo / "reference.png", demo / "drive.mp4", steps=steps, overlap=2, progress=False)
    frames, height, width, _ = animation.frames.shape
    total = sum(animation.timings.values())
    print(f"toy networks, {frames} frames of {width}x{height}, {steps} steps, engines loaded:")
    for stage, seconds in animation.timings.items():
        print(f"  {stage:<16} {seconds:8.3f} s   {100 * seconds / total:5.1f} %")
    print(f"  {'total':<16} {total:8.3f} s   {total / frames:.3f} s per frame")


def kernel_ratios() -> list[Ratio]:
    """Measure the trajectory flow and the point scatter against their plain implementations."""
    track = dancing_track()
    features = np.random.default_rng(1).standard_normal((1, DIFT_CHANNELS, HEIGHT // 16, WIDTH // 16), dtype=np.float32)
    stream = CpuDevice().stream()
    return [
        _compare("trajectory flow", lambda: (plain_trajectory_flow(track),), OurFlow(track, stream)),
        _compare("point scatter", lambda: plain_point_features(track, features), OurPoints(track, features, stream)),
    ]


class Ours(ABC):
    """A part of the runtime, from what is on the host to arrays on the device, which are allocated once.

    Attributes:
        results: the arrays.
        stream: on which they are filled.
    """

    results: list[Array]
    stream: Stream

    @abstractmethod
    def run(self) -> None:
        """Fill the arrays, and wait for it."""

    def download(self) -> tuple[F32, ...]:
        """Copy the arrays to the host."""
        return tuple(array.download(self.stream) for array in self.results)


class OurFlow(Ours):
    """The trajectory flow of a track."""

    def __init__(self, track: Track, stream: Stream) -> None:
        self._track = track
        self.stream = stream
        self.results = [stream.device.empty((FRAMES - 1, 2, HEIGHT, WIDTH), "float32")]

    def run(self) -> None:
        """See `Ours.run`."""
        impulses = trajectory_impulses(self._track, HEIGHT, WIDTH)
        arrays = [self.stream.device.array(one, self.stream) for one in (impulses.positions_px, impulses.flow_px)]
        kernels.splat_gaussian_flow(arrays[0], arrays[1], self.results[0], self.stream)
        self.stream.synchronize()
        for array in arrays:
            array.free()


class OurPoints(Ours):
    """The point features of a track."""

    def __init__(self, track: Track, features: F32, stream: Stream) -> None:
        self._track = track
        self.stream = stream
        self._dift = StandIn("dift", stream)
        self._dift.tensor("features").upload(features, stream)
        self._encoder = SlicingEncoder("point_encoder", stream)
        self.results = [
            stream.device.empty((FRAMES, channels, HEIGHT // 16 // factor, WIDTH // 16 // factor), "float32")
            for channels, factor in zip(LEVEL_CHANNELS, kernels.POINT_LEVEL_FACTORS, strict=True)
        ]

    def run(self) -> None:
        """See `Ours.run`."""
        embeddings = joint_embeddings(self._dift, self._track, HEIGHT, WIDTH)
        points = encode_points(self._track, embeddings, self._encoder, HEIGHT, WIDTH)
        cells = self.stream.device.array(points.cells, self.stream)
        kernels.scatter_point_features(cells, points.tables, self.results, self.stream)
        self.stream.synchronize()
        cells.free()
        points.close()


def _compare(name: str, plain: Callable[[], tuple[F32, ...]], ours: Ours) -> Ratio:
    plain_s, expected = _best_of(PLAIN_ROUNDS, plain)
    ours_s, _ = _best_of(OUR_ROUNDS, ours.run)
    difference = max(float(np.abs(one - other).max()) for one, other in zip(ours.download(), expected, strict=True))
    if not difference < 1e-5:
        raise RuntimeError(f"{name}: the two implementations differ by {difference}; their times mean nothing")
    return Ratio(name, plain_s, ours_s, difference)


def _best_of(rounds: int, run: Callable[[], Result]) -> tuple[float, Result]:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def dancing_track() -> Track:
    """A person as tall as the image who moves by a few per cent per frame; one joint in twenty is missing."""
    rng = np.random.default_rng(0)
    standing = np.stack([rng.uniform(0.3, 0.7, JOINTS), rng.uniform(0.1, 0.95, JOINTS)], axis=-1)
    steps = rng.normal(0, 0.01, (FRAMES, JOINTS, 2))
    return Track(standing + np.cumsum(steps, axis=0), rng.random((FRAMES, JOINTS)) > 0.05)


class StandIn(Engine):
    """A network on the CPU whose outputs are the contents of its arrays."""

    def __init__(self, name: str, stream: Stream) -> None:
        super().__init__(name, Sizes(WIDTH, HEIGHT), "float32", stream.device, stream)

    def _place(self, name: str, array: Array) -> None:
        """Nothing to tell."""

    def _resize(self) -> None:
        """Nothing to tell."""

    def _queue(self, stream: Stream) -> None:
        """Nothing to do."""

    def _free(self) -> None:
        """Nothing to free."""


class SlicingEncoder(StandIn):
    """Stands in for the point encoder, which is no kernel: level i is the first channels of the embedding."""

    def _queue(self, stream: Stream) -> None:
        submit(stream, self._slice)

    def _slice(self) -> None:
        rows = self.shape("embeddings")[0]
        embeddings = as_numpy(self.tensor("embeddings"))
        for level, channels in enumerate(LEVEL_CHANNELS):
            as_numpy(self.tensor(f"point_features_{level}"))[:rows] = embeddings[:rows, :channels]


def plain_trajectory_flow(track: Track) -> F32:
    """Assign impulses to a map of the image's size, then run a 199 x 199 filter over it, frame by frame, in float64."""
    joints_px = joint_tracks_px(track, HEIGHT, WIDTH)
    column = cv2.getGaussianKernel(199, 20)
    kernel = column @ column.T
    flow = np.zeros((FRAMES - 1, HEIGHT, WIDTH, 2))
    for frame in range(FRAMES - 1):
        for joint in range(JOINTS):
            if track.visible[frame, joint]:
                x, y = joints_px[frame, joint].astype(int)
                flow[frame, y, x] = joints_px[frame + 1, joint] - joints_px[frame, joint]
        flow[frame] = cv2.filter2D(flow[frame], -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(flow.transpose(0, 3, 1, 2), dtype=np.float32)


def plain_point_features(track: Track, features: F32) -> tuple[F32, ...]:
    """Enlarge the whole map, read it at the joints, then average, mask and resize whole grids, frame by frame."""
    import torch  # the reference code resizes with it

    enlarged = torch.nn.functional.interpolate(torch.from_numpy(features), (WIDTH, HEIGHT), mode="bilinear")[0].numpy()
    embeddings = np.zeros((JOINTS, DIFT_CHANNELS), np.float32)
    for joint in np.flatnonzero(track.visible[0]):
        x, y = track.joints[0, joint]
        row, column = min(max(int(y * WIDTH), 0), WIDTH - 1), min(max(int(x * HEIGHT), 0), HEIGHT - 1)
        embeddings[joint] = enlarged[:, row, column]
    means, occupied = _plain_grids(track, embeddings)
    levels = []
    for channels, factor in zip(LEVEL_CHANNELS, kernels.POINT_LEVEL_FACTORS, strict=True):
        size = (HEIGHT // 16 // factor, WIDTH // 16 // factor)
        level = torch.nn.functional.interpolate(torch.from_numpy(means[:, :channels]), size, mode="bilinear")
        mask = torch.nn.functional.interpolate(torch.from_numpy(occupied), size, mode="nearest")
        levels.append((level * mask).numpy())
    return tuple(levels)


def _plain_grids(track: Track, embeddings: F32) -> tuple[F32, F32]:
    """Mean embedding and occupancy of every cell of every frame, one joint at a time."""
    rows, columns = HEIGHT // 16, WIDTH // 16
    means = np.zeros((FRAMES, DIFT_CHANNELS, rows, columns), np.float32)
    count = np.zeros((FRAMES, 1, rows, columns), np.float32)
    for frame in range(FRAMES):
        for joint in np.flatnonzero(track.visible[frame]):
            x, y = track.joints[frame, joint]
            if x >= 0 and y >= 0:
                row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
                means[frame, :, row, column] += embeddings[joint]
                count[frame, 0, row, column] += 1
    occupied = (count > 0).astype(np.float32)
    means *= occupied / np.maximum(count, 1)
    return means, occupied


if __name__ == "__main__":
    sys.exit(main())
