"""Random puppets in random clothes, dancing: the pictures, the poses that the product would draw, and the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .project import (
    BODY,
    JOINT_NAMES,
    Costume,
    InputError,
    Pose,
    Stance,
    draw_pose,
    draw_puppet,
    fit_reference,
    landmark_weights,
    place_joints,
)

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Color = tuple[int, int, int]

WIDTH_PX, HEIGHT_PX = 128, 192
FRAMES = 16
"""Driven frames of a clip, beside its reference."""

TRAINING_SEEDS = range(1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 1_100_000)
"""Puppets that no training sees: quality is measured on these."""

COLOR_SPREAD = 24
"""Largest difference between the channels of anything that is not a joint, in levels of 255."""

_STREAM = 0x9E3779B9
"""Keeps the draws of a puppet apart from those of other generators with the same seed."""

TRAINED_ANGLES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "lean": (-0.14, 0.14),
        "nod": (-0.22, 0.22),
        "r_arm": (-0.04, 2.0),
        "l_arm": (-0.04, 2.0),
        "r_forearm": (-0.06, 2.6),
        "l_forearm": (-0.06, 2.6),
        "r_thigh": (0.0, 0.42),
        "l_thigh": (0.0, 0.42),
        "r_shin": (-0.26, 0.3),
        "l_shin": (-0.26, 0.3),
    }
)
"""Range of every angle of `Stance` in training, in radians: a little wider than what is promised."""

PROMISED_ANGLES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "lean": (-0.1, 0.1),
        "nod": (-0.15, 0.15),
        "r_arm": (0.0, 1.8),
        "l_arm": (0.0, 1.8),
        "r_forearm": (0.0, 2.4),
        "l_forearm": (0.0, 2.4),
        "r_thigh": (0.05, 0.35),
        "l_thigh": (0.05, 0.35),
        "r_shin": (-0.15, 0.2),
        "l_shin": (-0.15, 0.2),
    }
)
"""Range of every angle on which the checkpoint is judged, in radians."""

_HEIGHT_UNIT, _CENTRE_UNIT = (0.6, 0.8), (0.42, 0.58)
_FREE_ABOVE_UNIT, _FREE_BELOW_UNIT = 0.05, 0.045
"""Margins above the head and below the ankles, for the hair line and the discs."""
_BORDER_UNIT = 0.03
"""Least distance of every joint from the border of the frame: about the radius of a disc."""
_KEY_STANCES = 4
_FULL_SCORE = 0.98
"""Score of a joint that is seen in full, by the stand-in for the pose network."""


@dataclass(frozen=True, eq=False)
class PuppetClip:
    """One puppet in its own clothes and place; row 0 is the reference, the others are driven frames.

    Attributes:
        images: uint8 [1 + frames, height, width, 3], RGB.
        poses: uint8 [1 + frames, 3, height, width], RGB, as the product draws them.
        joints: float32 [1 + frames, 18, 2], OpenPose order, fractions of the frame: what `images` show.
    """

    images: U8
    poses: U8
    joints: F32


def held_out_seed(number: int) -> int:
    """Seed of a puppet that no training sees."""
    return HELD_OUT_SEEDS[number]


def draw_clip(seed: int, frames: int = FRAMES, width: int = WIDTH_PX, height: int = HEIGHT_PX) -> PuppetClip:
    """Draw the clip of a seed.

    Args:
        seed: one of TRAINING_SEEDS, which takes angles from TRAINED_ANGLES and detection errors into the drawn poses,
            or one of HELD_OUT_SEEDS, with PROMISED_ANGLES.
        frames: driven frames, at least 1.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.

    Raises:
        InputError: the seed is of neither range, or there are no frames.
    """
    if seed not in TRAINING_SEEDS and seed not in HELD_OUT_SEEDS:
        raise InputError(f"seed {seed} is neither in {TRAINING_SEEDS} (training) nor in {HELD_OUT_SEEDS} (held out)")
    if frames < 1:
        raise InputError(f"a clip of {frames} frames cannot be drawn; it needs at least 1")
    random = np.random.default_rng([seed, _STREAM])
    training = seed in TRAINING_SEEDS
    joints = _draw_joints(random, frames, width / height, TRAINED_ANGLES if training else PROMISED_ANGLES)
    costume, backdrop = draw_costume(random), draw_scene(random, height, width)
    images = np.stack([draw_puppet(one, height, width, background=backdrop, costume=costume) for one in joints])
    if random.random() < 0.3:  # photos are larger than the result and are fitted to it
        place = backdrop.repeat(2, axis=0).repeat(2, axis=1)
        photo = draw_puppet(joints[0], 2 * height, 2 * width, background=place, costume=costume)
        images[0] = fit_reference(photo, width, height)
    error_px = random.uniform(0.0, 0.45) if training else 0.0
    seen = joints + random.normal(0.0, error_px, joints.shape) / (width, height)
    poses = np.stack([draw_pose(puppet_pose(one, random), height, width) for one in seen])
    return PuppetClip(images, poses, joints.astype(np.float32))


def draw_default_puppet(joints: F32, width: int = WIDTH_PX, height: int = HEIGHT_PX) -> U8:
    """Draw the puppet of these joints in the default costume and place: uint8 [height, width, 3], RGB."""
    return draw_puppet(joints.astype(np.float64), height, width)


def draw_costume(random: np.random.Generator) -> Costume:
    """Draw unsaturated clothes of any brightness."""
    return Costume(
        skin=draw_grey(random, 60, 240), shirt=draw_grey(random, 25, 230), trousers=draw_grey(random, 20, 215)
    )


def draw_grey(random: np.random.Generator, darkest: int, lightest: int) -> Color:
    """Draw a colour whose channels differ by COLOR_SPREAD at most, about as bright as asked."""
    level = random.uniform(darkest, lightest)
    red, green, blue = np.clip(level + random.uniform(-COLOR_SPREAD / 2, COLOR_SPREAD / 2, 3), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def draw_scene(random: np.random.Generator, height: int, width: int) -> U8:
    """Draw an unsaturated wall, plain or shaded, over a floor: uint8 [height, width, 3], RGB."""
    wall = np.array(draw_grey(random, 40, 240), float)
    fade = random.uniform(0.6, 1.0) if random.random() < 0.4 else 1.0
    floor_unit, shade = random.uniform(0.82, 0.95), random.uniform(0.5, 0.9)
    if random.random() < 0.3:
        floor_unit, shade = 0.9, 0.75  # as the product's own drawings have it
    ramp = np.linspace(1.0, fade, height)[:, None]
    rows = wall * ramp
    rows[round(height * floor_unit) :] = wall * shade
    picture: U8 = np.broadcast_to(rows[:, None], (height, width, 3)).astype(np.uint8)
    return picture


def _draw_joints(
    random: np.random.Generator, frames: int, width_to_height: float, ranges: Mapping[str, tuple[float, float]]
) -> F64:
    """Joints of the reference and of a path through random stances that stay in the frame: [1 + frames, 18, 2]."""
    while True:
        joints = _draw_path(random, frames, width_to_height, ranges)
        if joints.min() >= _BORDER_UNIT and joints.max() <= 1.0 - _BORDER_UNIT:
            return joints


def _draw_path(
    random: np.random.Generator, frames: int, width_to_height: float, ranges: Mapping[str, tuple[float, float]]
) -> F64:
    size = random.uniform(*_HEIGHT_UNIT)
    top = random.uniform(_FREE_ABOVE_UNIT, 1.0 - _FREE_BELOW_UNIT - size)
    base = Stance(centre_unit=random.uniform(*_CENTRE_UNIT), top_unit=top, height_unit=size)
    photo = base if random.random() < 0.4 else _pose_angles(base, _draw_angles(random, ranges))
    # a driver that was scaled and moved onto the reference fits it nearly, not exactly
    fitted = size * random.uniform(0.96, 1.04)
    path = [
        _pose_angles(
            replace(
                base,
                height_unit=fitted,
                centre_unit=base.centre_unit + random.uniform(-0.05, 0.05),
                top_unit=float(np.clip(top + random.uniform(-0.02, 0.02), 0.035, 1.0 - 0.035 - fitted)),
            ),
            _draw_angles(random, ranges),
        )
        for _ in range(_KEY_STANCES)
    ]
    speed = np.exp(random.uniform(np.log(0.05), np.log(0.35)))  # keys per frame
    start = random.uniform(0.0, _KEY_STANCES)
    stances = [_between(path, start + speed * frame) for frame in range(frames)]
    return np.stack([place_joints(stance, width_to_height) for stance in (photo, *stances)])


def _draw_angles(random: np.random.Generator, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: random.uniform(*limits) for name, limits in ranges.items()}


def _pose_angles(stance: Stance, angles: Mapping[str, float]) -> Stance:
    return replace(stance, **angles)


def _between(keys: list[Stance], position: float) -> Stance:
    """A stance on the closed path through the keys, slowest at the keys."""
    index = int(position)
    share = 0.5 - 0.5 * np.cos(np.pi * (position - index))
    start, stop = keys[index % len(keys)], keys[(index + 1) % len(keys)]
    values = {
        one.name: (1.0 - share) * getattr(start, one.name) + share * getattr(stop, one.name) for one in fields(Stance)
    }
    return Stance(**values)


_STRAIGHT, _TURNED, _SOURCES = landmark_weights()
_BODY_JOINTS = [JOINT_NAMES.index(name) for name in BODY]
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


def puppet_pose(joints_unit: F64, random: np.random.Generator, width_to_height: float = WIDTH_PX / HEIGHT_PX) -> Pose:
    """What the pose networks see of a puppet: face and hands follow from the body, nearly everything is certain.

    Args:
        joints_unit: float64 [18, 2], OpenPose order, fractions of the frame.
        random: draws the scores.
        width_to_height: the frame's width over its height.
    """
    scale = np.array([width_to_height, 1.0])
    body = joints_unit[_BODY_JOINTS] * scale
    quarter_turned = np.stack([-body[:, 1], body[:, 0]], axis=1)
    points = (_STRAIGHT @ body + _TURNED @ quarter_turned) / scale
    certain = np.where(random.random(len(BODY)) < 0.2, random.uniform(0.6, _FULL_SCORE, len(BODY)), _FULL_SCORE)
    scores = certain[_SOURCES].min(axis=1).astype(np.float32)
    joint_scores = np.ones(len(JOINT_NAMES), np.float32)
    joint_scores[_BODY_JOINTS] = certain
    return Pose(
        joints=joints_unit[None],
        joint_scores=joint_scores[None],
        visible=np.ones((1, len(JOINT_NAMES)), bool),
        faces=points[None, _FACE],
        face_scores=scores[None, _FACE],
        hands=np.stack([points[None, _LEFT_HAND], points[None, _RIGHT_HAND]]),
        hand_scores=np.stack([scores[None, _LEFT_HAND], scores[None, _RIGHT_HAND]]),
        boxes_px=np.zeros((1, 4)),
    )
