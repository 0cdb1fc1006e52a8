"""Bridges short gaps in which a joint of the driving poses is unseen.

A joint that is unseen for one frame moves to the corner of the picture and back, as far as the motion fields are
concerned (see `stages.motion`), and its limbs flicker in the drawn poses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ...types import Bools, Pose
from .follow import nearest_frames

_NECK, _SHOULDERS = 1, (2, 5)


def bridge_gaps(frames: Sequence[Pose], missing: Collection[int], limit: int) -> list[Pose]:
    """Let joints that are unseen for a few frames move in straight lines, at even speed.

    A gap is bridged if it has at most `limit` frames, and if the frame before it and the frame after it show the joint.
    Gaps at the ends of the clip stay, and so do those that touch or hold a frame without the person: nothing is known
    about that time. Positions and scores are interpolated, and the joint counts as visible. The neck, which is the
    middle of the shoulders, also becomes visible where a bridged shoulder completes them. Faces and hands stay as they
    are: their points have no threshold below which they are unseen, and they take no part in the motion fields.

    Args:
        frames: poses of the driving frames, in order, with one person each.
        missing: numbers of the frames in which the nearest frame's pose stands in for the person, as returned by
            `fill_missing`. They get the bridged pose of that frame.
        limit: largest number of frames of a gap; 0 bridges none.

    Returns:
        As many poses. Those in which nothing is bridged are the same objects.
    """
    if not limit:
        return list(frames)
    known = np.ones(len(frames), np.bool_)
    known[list(missing)] = False
    joints, scores, visible = (
        np.concatenate([getattr(pose, name) for pose in frames]) for name in ("joints", "joint_scores", "visible")
    )
    shown = visible.copy()
    for joint in range(shown.shape[1]):
        for before, after in _gaps(shown[:, joint], known, limit):
            gap, weights = slice(before + 1, after), np.arange(1, after - before) / (after - before)
            for values in (joints, scores):
                start, end = values[before, joint].astype(np.float64), values[after, joint].astype(np.float64)
                values[gap, joint] = start + np.multiply.outer(weights, end - start)
            visible[gap, joint] = True
    bridged = visible != shown
    for frame in np.flatnonzero(bridged[:, _SHOULDERS].any(axis=1) & visible[:, _SHOULDERS].all(axis=1)):
        joints[frame, _NECK] = joints[frame, _SHOULDERS].mean(axis=0)
        scores[frame, _NECK], visible[frame, _NECK] = 1, True
    bridged |= visible != shown
    poses = [
        replace(pose, joints=joints[one], joint_scores=scores[one], visible=visible[one])
        if bridged[number].any()
        else pose
        for number, pose in enumerate(frames)
        for one in [slice(number, number + 1)]
    ]
    return [poses[source] for source in nearest_frames(np.flatnonzero(known), len(frames))]


def _gaps(shown: Bools, known: Bools, limit: int) -> Iterator[tuple[int, int]]:
    """Last frame before and first frame behind every gap of one joint that is to be bridged."""
    for before, after in pairwise(np.flatnonzero(shown & known).tolist()):
        if 1 < after - before <= limit + 1 and known[before:after].all():
            yield before, after
