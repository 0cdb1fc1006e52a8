"""Keypoint correspondence: what the reference looks like at its joints, carried to where the joints are in each frame.

DIFT features (arXiv:2306.03881) of the reference are read at its joints; joints that share a cell of the 1/16 grid
form a group; the mean of each distinct group goes through the point encoder once, and is placed at its cells of every
frame. The features stay on the device: what comes to the host is 18 embeddings, and where the groups are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from .. import kernels
from ..contract import POSE_LEVELS
from ..device import Stream
from ..engines.backends import Engine
from ..errors import InputError
from ..types import F32, I32, JOINTS, Features, PointTables, Track

CELL_PX = 16
"""Side of a cell of the finest level; the other levels are POINT_LEVEL_FACTORS times coarser."""
_SIZE_STEP_PX = 64


@dataclass(frozen=True, eq=False)
class PointGroups:
    """The distinct sets of joints that share a cell somewhere in the clip.

    Attributes:
        embeddings: float32 [groups, channels], the mean over the group's joints.
        cells: int32 [frames, height/16, width/16], the group that sits in a cell, or -1.
    """

    embeddings: F32
    cells: I32


def joint_embeddings(dift: Engine, track: Track, height: int, width: int) -> F32:
    """Read the reference's DIFT features at its joints.

    Height and width are swapped, as in the reference code that the point encoder was trained with: the map counts as
    enlarged to `width` rows and `height` columns, and is read at row int(y * width), column int(x * height), clamped.

    Args:
        dift: the "dift" engine, whose run on the reference was queued on its stream.
        track: frame 0 is the reference.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        float32 [18, channels]; zero for a joint that is missing in the reference.

    Raises:
        InputError: a visible joint is not finite.
        EngineError: the engine returned values that are not finite.
    """
    track.check_finite()
    visible = track.visible[0]
    positions = np.clip(track.joints[0, visible] * (height, width), 0, (height - 1, width - 1)).astype(np.int32)
    _, channels, rows, columns = dift.shape("features")
    features = dift.tensor("features").reshape(channels, rows, columns)
    embeddings = np.zeros((JOINTS, channels), np.float32)
    with ExitStack() as arrays:
        positions_px = dift.device.array(positions, dift.stream)
        arrays.callback(positions_px.free)
        samples = dift.device.empty((len(positions), channels), "float32")
        arrays.callback(samples.free)
        kernels.sample_points(features, positions_px, width, height, samples, dift.stream)
        embeddings[visible] = samples.download(dift.stream)
    if not np.isfinite(embeddings).all():
        dift.check_finite()
    return embeddings


def group_points(track: Track, embeddings: F32, height: int, width: int) -> PointGroups:
    """Find the cell of every visible joint, and the distinct sets of joints that share one.

    A joint left of or above the image is skipped, one right of or below it is clamped to the last cell. A joint that is
    visible in a frame but missing in the reference takes part with its zero embedding: it marks its cell, and counts in
    the mean.

    Args:
        track: the followed person; frame 0 is the reference.
        embeddings: float32 [18, channels], of `joint_embeddings`.
        height: image height in pixels, a multiple of 16.
        width: image width in pixels, a multiple of 16.

    Raises:
        InputError: a visible joint is not finite.
    """
    track.check_finite()
    frames, grid = len(track.joints), (height // CELL_PX, width // CELL_PX)
    cells = np.full((frames, *grid), -1, np.int32)
    groups: dict[tuple[int, ...], int] = {}
    for frame in range(frames):
        for (row, column), joints in shared_cells(track, frame, grid):
            cells[frame, row, column] = groups.setdefault(joints, len(groups))
    means = [embeddings[list(joints)].sum(axis=0) / np.float32(len(joints)) for joints in groups]
    return PointGroups(np.array(means, np.float32).reshape(len(groups), embeddings.shape[1]), cells)


def shared_cells(track: Track, frame: int, grid: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
    """Occupied cells (row, column) of a frame, each with its joints in rising order."""
    rows, columns = grid
    members: dict[tuple[int, int], list[int]] = {}
    for joint in np.flatnonzero(track.visible[frame]):
        x, y = track.joints[frame, joint]
        if x >= 0 and y >= 0:
            cell = (min(int(y * rows), rows - 1), min(int(x * columns), columns - 1))
            members.setdefault(cell, []).append(int(joint))
    for cell, joints in members.items():
        yield cell, tuple(joints)


def encode_points(track: Track, embeddings: F32, point_encoder: Engine, height: int, width: int) -> PointTables:
    """Encode every distinct group once.

    Args:
        track: the followed person; frame 0 is the reference.
        embeddings: float32 [18, channels], of `joint_embeddings`.
        point_encoder: the "point_encoder" engine; gets as many groups at a time as it takes.
        height: image height in pixels, a multiple of 64.
        width: image width in pixels, a multiple of 64.

    Returns:
        The groups' features on the encoder's device; a table of a clip without visible joints has one row. To be
        closed by the caller.

    Raises:
        InputError: a visible joint is not finite, or the size is no multiple of 64.
        EngineError: the encoder failed, or returned values that are not finite.
        OutOfMemoryError: the device has no room.
    """
    if height % _SIZE_STEP_PX or width % _SIZE_STEP_PX:
        raise InputError(f"the image has {width} x {height} pixels; both sides must be divisible by {_SIZE_STEP_PX}")
    groups = group_points(track, embeddings, height, width)
    # A table without rows has no address to read from; nothing names the row that stands in.
    rows = groups.embeddings if len(groups.embeddings) else np.zeros((1, embeddings.shape[1]), np.float32)
    limit, stream = point_encoder.max_batch("points"), point_encoder.stream
    outputs = [point_encoder.tensor(f"point_features_{level}") for level in range(POSE_LEVELS)]
    with ExitStack() as undo:
        tables = []
        for output in outputs:
            tables.append(point_encoder.device.empty((len(rows), *output.shape[1:]), output.dtype))
            undo.callback(tables[-1].free)
        for start in range(0, len(rows), limit):
            stop = min(start + limit, len(rows))
            point_encoder.set_batch(points=stop - start)
            point_encoder.tensor("embeddings").upload(rows[start:stop], stream)
            point_encoder.enqueue(stream)
            for table, output in zip(tables, outputs, strict=True):
                table.rows(start, stop).copy_from(output.rows(0, stop - start), stream)
            point_encoder.check_finite()
        points = PointTables(groups.cells, tuple(tables))
        undo.pop_all()
    return points


def scatter(
    points: PointTables, start: int, stop: int, stream: Stream
) -> tuple[Features, Features, Features, Features]:
    """Place the groups' features of some frames in the pyramid that the ControlNet reads, for observers.

    Args:
        points: point tables of the clip.
        start: first frame.
        stop: behind the last frame.
        stream: stream of the encoder's work; it is waited for.

    Returns:
        Four arrays [stop - start, channels of the level, ...] at 1/16, 1/32, 1/64 and 1/64 of the image, in the
        encoder's compute dtype; float32 for bfloat16.
    """
    cells = points.cells[start:stop]
    frames, rows, columns = cells.shape
    with ExitStack() as arrays:
        placed = stream.device.array(cells, stream)
        arrays.callback(placed.free)
        levels = []
        for table, factor in zip(points.tables, kernels.POINT_LEVEL_FACTORS, strict=True):
            shape = (frames, table.shape[1], rows // factor, columns // factor)
            levels.append(stream.device.empty(shape, table.dtype))
            arrays.callback(levels[-1].free)
        kernels.scatter_point_features(placed, points.tables, levels, stream)
        finest, half, quarter, last = (level.download(stream) for level in levels)
    return finest, half, quarter, last
