"""Keypoint correspondence in training, as a run computes it: embeddings of joints, their groups, and the grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .project import Dift, PointGroups, Track, group_points
from .puppets import HEIGHT_PX, WIDTH_PX

F32 = NDArray[np.float32]

_FACTORS = (1, 2, 4, 4)
"""By how much every level's grid is coarser than the finest, which has cells of 16 pixels."""


@torch.no_grad()
def embed_joints(dift: Dift, image: Tensor, joints: F32, random: np.random.Generator) -> F32:
    """Read an image's features at its joints: height and width swapped, as in the reference code.

    Args:
        dift: the network.
        image: float32 [1, 3, height, width], -1..1.
        joints: float32 [18, 2], fractions of the image.
        random: draws both noises.

    Returns:
        float32 [18, channels].
    """
    shape = (8, 4, image.shape[2] // 8, image.shape[3] // 8)
    noises = [torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(image.device) for _ in range(2)]
    features = dift(image, *noises)
    enlarged = functional.interpolate(features, size=(WIDTH_PX, HEIGHT_PX), mode="bilinear")[0]
    columns = np.clip((joints[:, 0] * HEIGHT_PX).astype(int), 0, HEIGHT_PX - 1)
    rows = np.clip((joints[:, 1] * WIDTH_PX).astype(int), 0, WIDTH_PX - 1)
    embeddings: F32 = enlarged[:, rows, columns].T.cpu().numpy()
    return embeddings


def group_joints(joints: F32, embeddings: F32) -> PointGroups:
    """Groups of joints that share a cell, for the frames of a clip: `joints` [frames, 18, 2] as fractions."""
    track = Track(joints.astype(np.float64), np.ones(joints.shape[:2], bool))
    return group_points(track, embeddings, HEIGHT_PX, WIDTH_PX)


def spread_points(encoder: nn.Module, groups: PointGroups) -> list[Tensor]:
    """Encode groups and place them in the four grids of the ControlNet: each [frames, c_i, rows, columns]."""
    device = next(encoder.parameters()).device
    tables: Sequence[Tensor] = encoder(torch.from_numpy(groups.embeddings).to(device))
    cells = torch.from_numpy(groups.cells).long().to(device)
    return [_place(table, cells, factor) for table, factor in zip(tables, _FACTORS, strict=True)]


def _place(table: Tensor, cells: Tensor, factor: int) -> Tensor:
    """The mean of the two by two cells in the middle of every block, where the block's first cell is occupied."""
    occupied = cells >= 0
    grid = (table[cells.clamp(min=0)] * occupied[..., None]).permute(0, 3, 1, 2)
    if factor == 1:
        return grid
    first = factor // 2 - 1
    corners = [grid[:, :, first + y :: factor, first + x :: factor] for y in range(2) for x in range(2)]
    mean: Tensor = sum(corners[1:], corners[0]) / 4
    return mean * occupied[:, None, ::factor, ::factor]
