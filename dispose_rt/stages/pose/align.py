"""Moves and scales the driving poses onto the body of the reference image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import NoPersonError
from ...types import F64, Pose

FIT_JOINTS = (0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
"""All body joints but elbows and wrists, which move too much to show the size of a body."""

MIN_FIT_JOINTS = 2


@dataclass(frozen=True)
class Alignment:
    """x' = ax * x + bx and y' = ay * y + by, from fractions of a driving frame to fractions of the reference."""

    ax: float
    ay: float
    bx: float
    by: float

    def apply(self, pose: Pose) -> Pose:
        """Move every person, face and hand of a frame.

        Args:
            pose: a pose in fractions of its driving frame.

        Returns:
            The pose in fractions of the reference image. Scores and visibility stay; so do the boxes, which remain in
            pixels of the driving frame.
        """
        scale, shift = np.array([self.ax, self.ay]), np.array([self.bx, self.by])
        return replace(
            pose,
            joints=pose.joints * scale + shift,
            faces=pose.faces * scale + shift,
            hands=pose.hands * scale + shift,
        )


def fit_alignment(
    reference: Pose, frames: Sequence[Pose], frame_size_px: tuple[int, int], reference_size_px: tuple[int, int]
) -> Alignment:
    """Fit one alignment for a whole clip to the first person of the reference.

    The vertical map is a least-squares line over all frames that show exactly one person; it uses the joints that are
    visible in the reference, hidden or not in the frames. The horizontal scale follows from the vertical one and both
    aspect ratios, and the horizontal shift is the mean of what remains.

    Args:
        reference: pose of the reference image.
        frames: poses of the driving frames.
        frame_size_px: height and width of the driving frames.
        reference_size_px: height and width of the reference image.

    Returns:
        The alignment.

    Raises:
        NoPersonError: the reference shows no one or fewer than two usable joints; no frame shows exactly one person; or
            the joints do not span any size.
    """
    joints = _fit_joints(reference)
    single = [frame.joints[0, joints] for frame in frames if frame.persons == 1]
    if not single:
        raise NoPersonError(
            f"none of the {len(frames)} driving frames shows exactly one person, so their poses cannot be scaled to "
            "the reference. Follow one person with follow_person first, or use a video of a single person."
        )
    moving = np.concatenate(single)
    target = np.tile(reference.joints[0, joints], (len(single), 1))
    ay, by = _fit_line(moving[:, 1], target[:, 1])
    frame_height, frame_width = frame_size_px
    height, width = reference_size_px
    ax = ay / (frame_height / frame_width / height * width)
    bx = np.mean(target[:, 0] - moving[:, 0] * ax)
    return Alignment(float(ax), float(ay), float(bx), float(by))


def _fit_joints(reference: Pose) -> list[int]:
    joints = [joint for joint in FIT_JOINTS if reference.persons and reference.visible[0, joint]]
    if len(joints) < MIN_FIT_JOINTS:
        raise NoPersonError(
            f"the reference image shows {len(joints)} of the {len(FIT_JOINTS)} joints of head, torso and legs; "
            f"{MIN_FIT_JOINTS} are needed to scale the driving poses. Use an image that shows one person clearly."
        )
    return joints


def _fit_line(source: F64, target: F64) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    if np.ptp(source) > 0 and np.ptp(target) > 0:
        slope, intercept = np.polyfit(source, target, 1)
        if slope != 0:
            return slope, intercept
    raise NoPersonError(
        "the joints that the reference image shows lie at a single height, there or in all driving frames, which tells "
        "no size. Use an image and a video of an upright person, with head and torso visible."
    )
