"""The settings and the figure of a warm-up run."""

from __future__ import annotations

import numpy as np

from ..puppet import Stance, place_joints
from ..settings import Settings
from ..types import JOINTS, Pose

_FACE, _HAND = 68, 21

WARMUP = Settings(steps=2, overlap=None)
"""Two steps: graphs are captured and launched in the second one."""


def standing_figure(width: int, height: int) -> Pose:
    """A person who stands upright in the middle of the frame, with hidden face and hands."""
    joints = place_joints(Stance(), width / height)
    return Pose(
        joints=joints[None],
        joint_scores=np.ones((1, JOINTS), np.float32),
        visible=np.ones((1, JOINTS), np.bool_),
        faces=np.zeros((1, _FACE, 2)),
        face_scores=np.zeros((1, _FACE), np.float32),
        hands=np.zeros((2, 1, _HAND, 2)),
        hand_scores=np.zeros((2, 1, _HAND), np.float32),
        boxes_px=np.array([[0.0, 0.0, width, height]]),
    )
