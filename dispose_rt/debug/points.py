"""Keypoint correspondence for people to look at: the cells of the photo's joints, and what each level makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..kernels import POINT_LEVEL_FACTORS
from ..puppet import JOINT_NAMES
from ..stages.appearance import CELL_PX, shared_cells
from ..types import F64, JOINTS, U8, Bools, Pose, Track
from . import drawing

Cell = tuple[int, int]


class JointCells:
    """The cells of a photo's joints.

    Args:
        reference: uint8 [H, W, 3], sides divisible by 64.
        pose: of the photo; its first person counts.
    """

    def __init__(self, reference: U8, pose: Pose) -> None:
        self._reference = reference
        self._pose = pose
        self._height, self._width = reference.shape[:2]
        self._grid = (self._height // CELL_PX, self._width // CELL_PX)
        self._members = dict(shared_cells(Track(pose.joints[:1], pose.visible[:1]), 0, self._grid))
        self._occupied = np.zeros(self._grid, np.bool_)
        for cell in self._members:
            self._occupied[cell] = True

    def draw_names(self) -> U8:
        """All joints by name over the finest level's cells; those that share one are red."""
        view = drawing.draw_cells(self._reference, self._occupied, self._occupied)
        coincident = np.zeros(JOINTS, np.bool_)
        for joints in self._members.values():
            coincident[list(joints)] = len(joints) > 1
        return drawing.name_joints(view, self._pose, JOINT_NAMES, coincident)

    def draw_levels(self) -> Iterator[tuple[str, U8]]:
        """Captions and pictures of the levels; those with the same cells are one picture."""
        for factor in sorted(set(POINT_LEVEL_FACTORS)):
            touched, filled = reduce_cells(self._occupied, factor)
            rows, columns = touched.shape
            levels = [str(level) for level, other in enumerate(POINT_LEVEL_FACTORS, 1) if other == factor]
            name = f"level {levels[0]}" if len(levels) == 1 else f"levels {' and '.join(levels)}"
            caption = (
                f"{name}: {columns} x {rows} cells of {CELL_PX * factor} px, "
                f"{filled.sum()} of {touched.sum()} marked cells carry a feature"
            )
            yield caption, drawing.draw_cells(self._reference, touched, filled)

    def table(self) -> list[list[str]]:
        """A row of text per joint, below a heading."""
        rows = [["joint", "position (px)", "score", "row, column", "shares its cell with"]]
        places = _cells_by_joint(self._members)
        for joint, name in enumerate(JOINT_NAMES):
            score = f"{self._pose.joint_scores[0, joint]:.2f}"
            if not self._pose.visible[0, joint]:
                rows.append([name, "not seen", score, "", ""])
                continue
            x, y = self._pose.joints[0, joint] * _size(self._width, self._height)
            cell = places.get(joint)
            others = [JOINT_NAMES[other] for other in self._members[cell] if other != joint] if cell else []
            position = f"{x:.0f}, {y:.0f}"
            rows.append([name, position, score, f"{cell[0]}, {cell[1]}" if cell else "outside", ", ".join(others)])
        return rows


def _size(width: int, height: int) -> F64:
    return np.array([width, height], np.float64)


def _cells_by_joint(members: Mapping[Cell, tuple[int, ...]]) -> dict[int, Cell]:
    return {joint: cell for cell, joints in members.items() for joint in joints}


def reduce_cells(occupied: Bools, factor: int) -> tuple[Bools, Bools]:
    """Tell what of the finest level's occupied cells is left at a coarser level, as the scatter kernel makes it.

    Args:
        occupied: bool [rows, columns] of the finest level.
        factor: of the level, 1 or even, a divisor of both sides.

    Returns:
        Two arrays bool [rows / factor, columns / factor]: cells in which there is an occupied one, and cells that carry
        a feature: their first one is occupied, and so is one of the two by two around their centre.
    """
    rows, columns = (side // factor for side in occupied.shape)
    blocks = occupied.reshape(rows, factor, columns, factor).transpose(0, 2, 1, 3)
    touched = np.asarray(blocks.any(axis=(2, 3)))
    if factor == 1:
        return touched, touched
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    return touched, blocks[:, :, 0, 0] & np.asarray(blocks[:, :, middle, middle].any(axis=(2, 3)))
