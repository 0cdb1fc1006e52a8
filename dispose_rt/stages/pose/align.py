"""Moves and scales the driving poses onto the body of the reference image, and checks what comes of it.

There are two fits. `fit_alignment` is the published one: a least-squares line through the heights of all joints that
the reference shows, hidden or not in the frames, so it assumes that both people show the same joints in about the same
posture. `fit_robust` compares the lengths of body parts that both show, and depends on no posture.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import InputWarning, NoPersonError
from ...types import F64, Pose
from .compare import BODY_PARTS, Figure, compare_sizes, explain_difference

FIT_JOINTS = (0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
"""All body joints but elbows and wrists, which move too much to show the size of a body."""

MIN_FIT_JOINTS = 2

TORSO = (2, 5, 8, 11)
"""Shoulders and hips, which show where a body is; the neck is only the middle of the shoulders."""

MIN_SHARED_PARTS = 2
"""Parts that the reference and the frames must both show before their sizes are compared."""

SIZE_RANGE = (0.5, 2.0)
"""Size of the drawn person, relative to the reference's, outside of which a warning is due."""

MIN_DRAWN_PX = 8.0
"""Smallest person that is worth drawing: one cell of the latents."""

_SAME_VIEW = "Use a photo and a video that show the same parts of a person, in about the same posture"
_ROBUST = 'alignment="robust" (--alignment robust on the command line), which compares only what both show'


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


def fit_robust(
    reference: Pose, frames: Sequence[Pose], frame_size_px: tuple[int, int], reference_size_px: tuple[int, int]
) -> Alignment:
    """Fit one alignment for a whole clip by the body parts that both the reference and the frames show.

    The scale is the weighted median of the ratios of the parts' lengths, the reference's over an upper quantile of the
    frames', so that a wrong joint, a foreshortened limb or a broken frame is outvoted. A part weighs as much as it is
    long, times the number of frames that show it. Shoulders and hips that both show then have, in the median over the
    frames, the same centre; where both show none of them, the other joints of `FIT_JOINTS` take their place. Hidden
    joints never count.

    Args:
        reference: pose of the reference image.
        frames: poses of the driving frames; those that do not show exactly one person are left out.
        frame_size_px: height and width of the driving frames.
        reference_size_px: height and width of the reference image.

    Returns:
        The alignment, which keeps shapes: in pixels, both axes have the same scale.

    Raises:
        NoPersonError: fewer than `MIN_SHARED_PARTS` parts, or no joint to place the body by, are visible in both.
    """
    still, moving = Figure.of([reference], reference_size_px), Figure.of(frames, frame_size_px)
    shared, scale = compare_sizes(still, moving)
    joints = _shared_joints(still, moving)
    if len(shared) < MIN_SHARED_PARTS or not joints:
        seen = f" ({', '.join(shared)})" if shared else ""
        raise NoPersonError(
            f"the photo and the video both show {len(shared)} of the {len(BODY_PARTS)} parts of the body that tell its "
            f"size{seen}; {MIN_SHARED_PARTS} are needed to scale the driving poses"
            f"{explain_difference(still, moving)}. {_SAME_VIEW}."
        )
    shifts, weights = [], []
    for joint in joints:
        places_px = moving.joints_px[moving.visible[:, joint], joint]
        shifts.append(np.median(still.joints_px[0, joint] - scale * places_px, axis=0))
        weights.append(len(places_px))
    height, width = reference_size_px
    frame_height, frame_width = frame_size_px
    bx, by = np.average(shifts, axis=0, weights=weights) / (width, height)
    return Alignment(float(scale * frame_width / width), float(scale * frame_height / height), float(bx), float(by))


def check_drawn(
    alignment: Alignment,
    reference: Pose,
    frames: Sequence[Pose],
    frame_size_px: tuple[int, int],
    reference_size_px: tuple[int, int],
    way: str,
) -> None:
    """Compare the person that will be drawn with the reference's, and warn if they differ much in size.

    Args:
        alignment: a fit of either kind.
        reference: pose of the reference image.
        frames: poses of the driving frames, before the alignment.
        frame_size_px: height and width of the driving frames.
        reference_size_px: height and width of the reference image.
        way: "reference" or "robust", how it was fitted; messages depend on it.

    Raises:
        NoPersonError: the drawn person is smaller than `MIN_DRAWN_PX`, or outside of the picture in every frame.
    """
    still, moving = Figure.of([reference], reference_size_px), Figure.of(frames, frame_size_px)
    drawn = Figure.of([alignment.apply(one) for one in frames], reference_size_px)
    shared, scale = compare_sizes(still, moving)
    why, cure = explain_difference(still, moving), _SAME_VIEW
    if way != "robust" and len(shared) >= MIN_SHARED_PARTS:
        cure += f", or {_ROBUST}"
    if (size_px := drawn.extent_px()) < MIN_DRAWN_PX:
        raise NoPersonError(
            f"the dancer would be drawn {size_px:.1f} pixels large, and {MIN_DRAWN_PX:g} is the least that can be "
            f"animated{why}. {cure}."
        )
    if not drawn.is_inside(reference_size_px):
        raise NoPersonError(f"the dancer would be drawn outside of the picture in every frame{why}. {cure}.")
    ratio = alignment.ay * reference_size_px[0] / frame_size_px[0] / scale
    if not shared:
        problem = "the photo and the video have no part of the body in common by which to scale the dancer"
    elif ratio < 0:
        problem = "the dancer is drawn upside down"
    elif len(shared) >= MIN_SHARED_PARTS and not SIZE_RANGE[0] <= ratio <= SIZE_RANGE[1]:
        problem = f"the dancer is drawn at {ratio:.2g} times the size of the photo's person"
    else:
        return
    warnings.warn(f"{problem}{why}. {cure}", InputWarning, stacklevel=2)


def _shared_joints(still: Figure, moving: Figure) -> list[int]:
    """Joints by which the body is placed."""
    shared = np.flatnonzero(still.visible.any(axis=0) & moving.visible.any(axis=0)).tolist()
    return [joint for joint in TORSO if joint in shared] or [joint for joint in FIT_JOINTS if joint in shared]


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
