"""The values that stages exchange, as they never import one another, and that observers get."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .device import Array
from .errors import InputError

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
I32: TypeAlias = NDArray[np.int32]
U8: TypeAlias = NDArray[np.uint8]
Bools: TypeAlias = NDArray[np.bool_]
#: float32 or float16, whatever precision the engine computes in
Features: TypeAlias = NDArray[np.floating]

JOINTS = 18
"""Body joints in OpenPose order: nose, neck, r-shoulder, r-elbow, r-wrist, l-shoulder, l-elbow, l-wrist, r-hip, r-knee,
r-ankle, l-hip, l-knee, l-ankle, r-eye, l-eye, r-ear, l-ear."""


@dataclass(frozen=True)
class Pose:
    """All persons of one frame, most confident detection first.

    Coordinates are fractions of the frame, x / width and y / height, float64: they meet an `int()` later, and single
    precision would move points across pixel borders.
    """

    joints: F64  # [persons, 18, 2]
    joint_scores: F32  # [persons, 18]
    visible: Bools  # [persons, 18]; a hidden joint keeps its coordinates
    faces: F64  # [persons, 68, 2]
    face_scores: F32  # [persons, 68]
    hands: F64  # [2 (left, right), persons, 21, 2]
    hand_scores: F32  # [2 (left, right), persons, 21]
    boxes_px: F64  # [persons, 4] xyxy in pixels of the frame

    @property
    def persons(self) -> int:
        return int(self.joints.shape[0])

    def person(self, index: int) -> Pose:
        """The same frame with that one person alone."""
        one = slice(index, index + 1)
        return Pose(
            self.joints[one],
            self.joint_scores[one],
            self.visible[one],
            self.faces[one],
            self.face_scores[one],
            self.hands[:, one],
            self.hand_scores[:, one],
            self.boxes_px[one],
        )


@dataclass(frozen=True)
class Detected:
    """The followed person, in the reference and in every driving frame."""

    reference: Pose  # of the fitted photo
    frames: list[Pose]  # of the driving frames
    frame_size_px: tuple[int, int]  # height, width of the driving frames
    missing: tuple[int, ...] = ()  # driving frames without the person; the nearest frame's pose stands in
    boxes_px: tuple[F64, ...] = ()  # everyone who was found, [persons, 4] xyxy per driving frame
    time_stamps: tuple[Fraction, ...] | None = None  # seconds from the first frame; None where evenly spaced


@dataclass(frozen=True)
class Track:
    """One person through a clip. Frame 0 is the reference image."""

    joints: F64  # [frames, 18, 2] fractions of the frame
    visible: Bools  # [frames, 18]

    def check_finite(self) -> None:
        """Raise an InputError that names the frames in which a visible joint is not finite."""
        broken = self.visible & ~np.isfinite(self.joints).all(axis=-1)
        if broken.any():
            raise InputError(f"visible joints are not finite in frames {np.flatnonzero(broken.any(axis=1)).tolist()}")


@dataclass(frozen=True)
class Motion:
    """Motion fields from the reference (frame 0) on, in pixels, channel 0 = x and 1 = y."""

    trajectory_flow: F32  # [frames - 1, 2, height, width]; row i moves frame i to frame i + 1, Gaussian-smoothed
    dense_flow: F32  # [frames - 1, 2, height, width]; row i moves frame 0 to frame i + 1, propagated by CMP


@dataclass(frozen=True, eq=False)
class PointTables:
    """Keypoint correspondence of a clip: a feature vector per group of joints, and where each group sits."""

    cells: I32  # [frames, height/16, width/16] on the host, the group in a cell or -1
    tables: tuple[Array, ...]  # four levels on the device, [groups, c_i]

    def __post_init__(self) -> None:
        """Raise an InputError if a cell names a group that does not exist: kernels do not look."""
        groups = self.tables[0].shape[0]
        if self.cells.size and not (self.cells.min() >= -1 and self.cells.max() < groups):
            held = f"{self.cells.min()}..{self.cells.max()}"
            raise InputError(f"cells holds {held}; expected -1 or one of {groups} groups")

    def close(self) -> None:
        """Free the tables, after the work on them. Calling it twice is fine."""
        for table in self.tables:
            table.free()


@dataclass(frozen=True)
class Conditions:
    """Everything the denoising loop reads that does not depend on the timestep."""

    image_embeds: F32  # [1, 1, embed]
    image_latents: F32  # [1, 4, height/8, width/8]
    added_time_ids: F32  # [1, 3] = fps - 1, motion bucket, noise augmentation strength
    pose_latents: Features  # [frames, c0, height/8, width/8]
    motion_features: Features | None  # [frames, c0, height/8, width/8]; None where motion fields are off
    point_features: tuple[Features, ...] | None  # four levels, [frames, c_i, ...] at 1/16, 1/32, 1/64, 1/64


@dataclass(frozen=True)
class StepTrace:
    """What one denoising step computed."""

    step: int  # from 0 on
    sums: F32  # [2, frames, 4, h, w], tile-weighted sums of the unconditional and the conditional predictions
    weights: F32  # [frames], sums of the tile weights
    latents: F32  # [frames, 4, h, w], after the step
