"""A synthetic photo and dancer for benchmarks, of any size and length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dispose_rt.types import F64, JOINTS, U8, Pose, Track

_FACE_POINTS, _HAND_POINTS = 68, 21
_NOSE, _WRISTS = 0, (7, 4)
_STANDING = np.array(
    [
        *((0.50, 0.15), (0.50, 0.25), (0.42, 0.25), (0.38, 0.38), (0.36, 0.50), (0.58, 0.25), (0.62, 0.38)),
        *((0.64, 0.50), (0.45, 0.52), (0.44, 0.70), (0.44, 0.88), (0.55, 0.52), (0.56, 0.70), (0.56, 0.88)),
        *((0.48, 0.13), (0.52, 0.13), (0.46, 0.14), (0.54, 0.14)),
    ]
)
"""Joints of a person who fills the image, in OpenPose order."""


@dataclass(frozen=True, eq=False)
class SampleClip:
    """The results of framing, detection and alignment.

    Attributes:
        image: uint8 [height, width, 3], RGB, the fitted reference.
        poses: one person per frame; frame 0 is the reference.
    """

    image: U8
    poses: tuple[Pose, ...]

    @cached_property
    def track(self) -> Track:
        joints = np.stack([pose.joints[0] for pose in self.poses])
        return Track(joints, np.stack([pose.visible[0] for pose in self.poses]))


def sample_clip(width: int, height: int, frames: int, seed: int = 0) -> SampleClip:
    """Draw a photo of noise, and a person who moves by a few per cent per frame; one joint in twenty is missing."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    swaying = 0.05 * np.sin(np.arange(frames) / 3)[:, None, None] * rng.uniform(-1, 1, (JOINTS, 2))
    joints: F64 = _STANDING + swaying + rng.normal(0, 0.005, (frames, JOINTS, 2))
    visible = rng.random((frames, JOINTS)) > 0.05
    face = rng.normal(0, 0.02, (_FACE_POINTS, 2))
    hand = rng.normal(0, 0.03, (_HAND_POINTS, 2))
    poses = []
    for body, seen in zip(joints, visible, strict=True):
        hands = np.stack([body[wrist] + hand for wrist in _WRISTS])[:, None]
        poses.append(
            Pose(
                joints=body[None],
                joint_scores=np.where(seen, 0.9, 0.1).astype(np.float32)[None],
                visible=seen[None],
                faces=(body[_NOSE] + face)[None],
                face_scores=np.full((1, _FACE_POINTS), 0.9, np.float32),
                hands=hands,
                hand_scores=np.full((2, 1, _HAND_POINTS), 0.9, np.float32),
                boxes_px=np.array([[0.0, 0.0, width, height]]),
            )
        )
    return SampleClip(image, tuple(poses))
