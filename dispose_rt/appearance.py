"""Keypoint correspondence: what the reference looks like at its joints, carried to where the joints are in each frame.

DIFT features (arXiv:2306.03881) of the reference are read at its joints; joints that share a cell of the 1/16 grid
form a group; the mean of each distinct group goes through the point encoder once, and is placed at its cells of every
frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import kernels
from .backends import Engine
from .contract import POSE_LEVELS
from .errors import InputError
from .types import F32, I32, JOINTS, Features, Track

_CELL_PX = 16


@dataclass(frozen=True, eq=False)
class PointGroups:
    """The distinct sets of joints that share a cell somewhere in the clip.

    Attributes:
        embeddings: float32 [groups, channels], the mean over the group's joints.
        cells: int32 [frames, height/16, width/16], the group that sits in a cell, or -1.
    """

    embeddings: F32
    cells: I32


def joint_embeddings(dift_features: F32, track: Track, height: int, width: int) -> F32:
    """Read the reference's DIFT features at its joints.

    Height and width are swapped, as in the reference code that the point encoder was trained with: the map counts as
    enlarged to `width` rows and `height` columns, and is read at row int(y * width), column int(x * height), clamped.

    Args:
        dift_features: float32 [1, channels, height/16, width/16].
        track: frame 0 is the reference.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        float32 [18, channels]; zero for a joint that is missing in the reference.

    Raises:
        InputError: the features have another shape or dtype, or a visible joint is not finite.
    """
    if dift_features.ndim != 4 or dift_features.shape[0] != 1:
        raise InputError(f"the DIFT features are {list(dift_features.shape)}; expected [1, channels, rows, columns]")
    track.check_finite()
    visible = track.visible[0]
    positions = np.clip(track.joints[0, visible] * (height, width), 0, (height - 1, width - 1)).astype(np.int32)
    embeddings = np.zeros((JOINTS, dift_features.shape[1]), np.float32)
    embeddings[visible] = kernels.sample_points(dift_features[0], positions, width, height)
    return embeddings


def group_points(track: Track, embeddings: F32, height: int, width: int) -> PointGroups:
    """Find the cell of every visible joint, and the distinct sets of joints that share one.

    A joint left of or above the image is skipped, one right of or below it is clamped to the last cell. A joint that is
    visible in a frame but missing in the reference takes part with its zero embedding: it marks its cell, and counts in
    the mean.

    Args:
        track: the followed person; frame 0 is the reference.
        embeddings: float32 [18, channels], of `joint_embeddings`.
        height: of the image, in pixels, a multiple of 16.
        width: of the image, in pixels, a multiple of 16.

    Raises:
        InputError: a visible joint is not finite.
    """
    track.check_finite()
    frames, grid = len(track.joints), (height // _CELL_PX, width // _CELL_PX)
    cells = np.full((frames, *grid), -1, np.int32)
    groups: dict[tuple[int, ...], int] = {}
    for frame in range(frames):
        for (row, column), joints in _shared_cells(track, frame, grid):
            cells[frame, row, column] = groups.setdefault(joints, len(groups))
    means = [embeddings[list(joints)].sum(axis=0) / np.float32(len(joints)) for joints in groups]
    return PointGroups(np.array(means, np.float32).reshape(len(groups), embeddings.shape[1]), cells)


def _shared_cells(track: Track, frame: int, grid: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
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


def point_features(
    track: Track, embeddings: F32, point_encoder: Engine, height: int, width: int
) -> tuple[Features, Features, Features, Features]:
    """Encode every distinct group once, and place the results in the pyramid that the ControlNet reads.

    Args:
        track: the followed person; frame 0 is the reference.
        embeddings: float32 [18, channels], of `joint_embeddings`.
        point_encoder: the "point_encoder" engine; gets as many groups at a time as it takes.
        height: of the image, in pixels, a multiple of 64.
        width: of the image, in pixels, a multiple of 64.

    Returns:
        Four arrays [frames, channels of the level, ...] at 1/16, 1/32, 1/64 and 1/64 of the image, in the encoder's
        compute dtype.

    Raises:
        InputError: a visible joint is not finite, or the size is no multiple of 64.
    """
    groups = group_points(track, embeddings, height, width)
    # A clip without visible joints has no group, but only the encoder knows the channels and the dtype of its zeros.
    rows = groups.embeddings if len(groups.embeddings) else np.zeros((1, embeddings.shape[1]), np.float32)
    limit = point_encoder.max_batch("points")
    answers = [point_encoder.run({"embeddings": rows[start : start + limit]}) for start in range(0, len(rows), limit)]
    levels = [np.concatenate([answer[f"point_features_{level}"] for answer in answers]) for level in range(POSE_LEVELS)]
    return kernels.scatter_point_features(levels, groups.cells)
