"""A drawn puppet whose joints carry colours, and its dance: pictures of a "person" whose pose is known exactly.

Every joint but the neck is a disc of its own hue, all equally saturated, equally spaced around the chroma circle of
BT.601. Nothing else in the picture is saturated, so a fixed graph of colour filters (the exporter's
`toy_pose_networks`) finds the joints, also behind resizing and chroma subsampling: mixing a disc with its grey
surroundings weakens its colour but keeps its hue. The demo and `dispose-rt bench` animate it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Color = tuple[int, int, int]

JOINT_NAMES = (
    "nose",
    "neck",
    "r-shoulder",
    "r-elbow",
    "r-wrist",
    "l-shoulder",
    "l-elbow",
    "l-wrist",
    "r-hip",
    "r-knee",
    "r-ankle",
    "l-hip",
    "l-knee",
    "l-ankle",
    "r-eye",
    "l-eye",
    "r-ear",
    "l-ear",
)
"""OpenPose order."""
NECK = JOINT_NAMES.index("neck")
HUES = len(JOINT_NAMES) - 1
CHROMA_RADIUS = 105.0
"""Distance of every joint colour from grey in the (Cb, Cr) plane; the largest that all hues reach inside RGB."""
_HUE_STRIDE = 7
"""Consecutive joints are this many hues apart: colours that touch are never neighbours on the circle."""
_SUPERSAMPLING = 4

#: sizes as fractions of the puppet's height
_HEAD_CENTRE, _HEAD_RADIUS = 0.105, 0.105
_NECK_Y, _SHOULDER_Y, _HIP_Y = 0.235, 0.245, 0.53
_SHOULDER_X, _HIP_X = 0.105, 0.065
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.155, 0.145, 0.21, 0.205
_JOINT_RADIUS, _FACE_RADIUS = 0.029, 0.023
_FACE = MappingProxyType(
    {
        "nose": (0.0, 0.045),
        "r-eye": (-0.052, -0.015),
        "l-eye": (0.052, -0.015),
        "r-ear": (-0.128, 0.0),
        "l-ear": (0.128, 0.0),
    }
)

SKIN: Color = (222, 204, 190)
SHIRT: Color = (92, 104, 122)
TROUSERS: Color = (58, 58, 66)
OUTLINE: Color = (36, 36, 40)
BACKDROP: Color = (196, 200, 204)


def _hue_angle(slot: int) -> float:
    return 2 * math.pi * (slot * _HUE_STRIDE % HUES) / HUES


def _color(angle: float) -> Color:
    """RGB colour of that hue at CHROMA_RADIUS, with a luma near the middle."""
    cb, cr = CHROMA_RADIUS * math.cos(angle), CHROMA_RADIUS * math.sin(angle)
    offsets = (1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb)
    luma = min(max(128.0, -min(offsets)), 255.0 - max(offsets))
    red, green, blue = (round(luma + offset) for offset in offsets)
    return red, green, blue


def _per_joint() -> dict[str, float]:
    colored = [name for name in JOINT_NAMES if name != "neck"]
    return {name: _hue_angle(slot) for slot, name in enumerate(colored)}


JOINT_HUES: Mapping[str, float] = MappingProxyType(_per_joint())
"""Hue of every joint but the neck: radians in the (Cb, Cr) plane, counted from Cb."""
JOINT_COLORS: Mapping[str, Color] = MappingProxyType({name: _color(angle) for name, angle in _per_joint().items()})
"""RGB colour of every joint but the neck."""


@dataclass(frozen=True)
class Stance:
    """How the puppet stands. Angles in radians from hanging straight down, positive = outwards.

    Attributes:
        centre_unit: x of the body's middle, fraction of the frame's width.
        top_unit: y of the top of the head when upright, fraction of the frame's height.
        height_unit: height from the top of the head to the ankles, fraction of the frame's height.
        lean: the upper body's tilt, positive = to the right of the picture.
        nod: the head's tilt against the upper body.
        r_arm, r_forearm, l_arm, l_forearm, r_thigh, r_shin, l_thigh, l_shin: limb angles.
    """

    centre_unit: float = 0.5
    top_unit: float = 0.11
    height_unit: float = 0.76
    lean: float = 0.0
    nod: float = 0.0
    r_arm: float = 0.45
    r_forearm: float = 0.35
    l_arm: float = 0.45
    l_forearm: float = 0.35
    r_thigh: float = 0.1
    r_shin: float = 0.06
    l_thigh: float = 0.1
    l_shin: float = 0.06


@dataclass(frozen=True)
class Costume:
    """Colours of everything that is not a joint: unsaturated, so that no joint is mistaken for them."""

    skin: Color = SKIN
    shirt: Color = SHIRT
    trousers: Color = TROUSERS
    outline: Color = OUTLINE


def place_joints(stance: Stance, width_to_height: float) -> F64:
    """Return the joints of a stance.

    Args:
        stance: the stance.
        width_to_height: the frame's width over its height.

    Returns:
        float64 [18, 2], OpenPose order, fractions (x / width, y / height) of the frame.
    """
    hip_centre = np.array([0.0, _HIP_Y])
    upright = {name: np.array([x, _HEAD_CENTRE + y]) for name, (x, y) in _FACE.items()}
    neck = np.array([0.0, _NECK_Y])
    places = {name: _rotate(point, neck, stance.nod) for name, point in upright.items()}
    places["neck"] = np.array([0.0, _SHOULDER_Y])  # the middle of the shoulders, which is how DWPose defines it
    places |= {"r-shoulder": np.array([-_SHOULDER_X, _SHOULDER_Y]), "l-shoulder": np.array([_SHOULDER_X, _SHOULDER_Y])}
    places = {name: _rotate(point, hip_centre, stance.lean) for name, point in places.items()}
    for side, sign in (("r", -1), ("l", 1)):
        arm, forearm, thigh, shin = (getattr(stance, f"{side}_{part}") for part in ("arm", "forearm", "thigh", "shin"))
        places[f"{side}-elbow"] = places[f"{side}-shoulder"] + _limb(_UPPER_ARM, arm, sign)
        places[f"{side}-wrist"] = places[f"{side}-elbow"] + _limb(_FOREARM, forearm, sign)
        places[f"{side}-hip"] = np.array([sign * _HIP_X, _HIP_Y])
        places[f"{side}-knee"] = places[f"{side}-hip"] + _limb(_THIGH, thigh, sign)
        places[f"{side}-ankle"] = places[f"{side}-knee"] + _limb(_SHIN, shin, sign)
    joints = np.stack([places[name] for name in JOINT_NAMES]) * stance.height_unit
    placed: F64 = joints / np.array([width_to_height, 1.0]) + np.array([stance.centre_unit, stance.top_unit])
    return placed


def _limb(length: float, angle: float, sign: int) -> F64:
    return np.array([sign * length * math.sin(angle), length * math.cos(angle)])


def _rotate(point: F64, centre: F64, angle: float) -> F64:
    """Turn clockwise on the screen, where y points down."""
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: F64 = centre + np.array([[cosine, -sine], [sine, cosine]]) @ (point - centre)
    return turned


def dance(
    frames: int, width_to_height: float, *, stance: Stance | None = None, period: float = 36.0, energy: float = 1.0
) -> F64:
    """Return the joints of a dancing puppet: smooth, periodic, the same in every run.

    Args:
        frames: number of frames, at least 1.
        width_to_height: the frame's width over its height.
        stance: where it stands and how large it is; the movement is added to its angles.
        period: frames of one bar of the dance.
        energy: 1 for the full movement, 0 for standing still.

    Returns:
        float64 [frames, 18, 2], fractions of the frame.
    """
    base = stance or Stance()
    return np.stack([place_joints(_dance_step(base, i / period, energy), width_to_height) for i in range(frames)])


def _dance_step(base: Stance, bars: float, energy: float) -> Stance:
    beat = 2 * math.pi * bars
    sway, bounce = math.sin(beat), math.sin(2 * beat)
    return replace(
        base,
        centre_unit=base.centre_unit + energy * 0.025 * sway,
        top_unit=base.top_unit + energy * 0.012 * bounce,
        lean=base.lean + energy * 0.07 * sway,
        nod=base.nod + energy * 0.12 * math.sin(beat + 0.6),
        r_arm=base.r_arm + energy * (0.32 - 0.32 * math.cos(beat)),
        r_forearm=base.r_forearm + energy * (1.2 - 1.2 * math.cos(beat + 0.15)),
        l_arm=base.l_arm + energy * (0.32 - 0.32 * math.cos(beat + 1.9)),
        l_forearm=base.l_forearm + energy * (1.2 - 1.2 * math.cos(beat + 2.05)),
        r_thigh=base.r_thigh + energy * 0.14 * (1 + sway),
        r_shin=base.r_shin - energy * 0.10 * (1 + sway),
        l_thigh=base.l_thigh + energy * 0.14 * (1 - sway),
        l_shin=base.l_shin - energy * 0.10 * (1 - sway),
    )


def draw_backdrop(height: int, width: int, color: Color = BACKDROP) -> U8:
    """Return a plain wall over a darker floor: uint8 [height, width, 3], RGB, unsaturated."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = color
    picture[round(0.9 * height) :] = [channel * 3 // 4 for channel in color]
    return picture


def draw_puppet(
    joints_unit: F64,
    height: int,
    width: int,
    *,
    background: U8 | None = None,
    hidden: Collection[str] = (),
    costume: Costume | None = None,
) -> U8:
    """Draw one puppet.

    Args:
        joints_unit: float64 [18, 2], OpenPose order, fractions of the frame.
        height: rows of the picture.
        width: columns of the picture.
        background: uint8 [height, width, 3], RGB, what to draw on (another puppet's picture, for instance); None draws
            a plain backdrop.
        hidden: names of joints whose disc is left out.
        costume: colours of the body; None takes the default costume.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    scale = _SUPERSAMPLING
    ground = draw_backdrop(height, width) if background is None else background
    large = cv2.resize(ground, (width * scale, height * scale), interpolation=cv2.INTER_NEAREST)
    # as in DWPose, x_unit * width counts from the centre of the first pixel, here the middle of `scale` pixels
    pixels = (joints_unit * (width, height) + 0.5) * scale - 0.5
    places = dict(zip(JOINT_NAMES, pixels, strict=True))
    brush = _Brush(large, places, _body_height_px(places), frozenset(hidden), costume or Costume())
    brush.draw_body()
    return np.ascontiguousarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _body_height_px(places: Mapping[str, F64]) -> float:
    """The puppet's height, from its rigid torso."""
    shoulders = (places["r-shoulder"] + places["l-shoulder"]) / 2
    hips = (places["r-hip"] + places["l-hip"]) / 2
    return float(np.linalg.norm(shoulders - hips)) / (_HIP_Y - _SHOULDER_Y)


@dataclass
class _Brush:
    """Paints one puppet, back to front, onto a supersampled picture."""

    picture: U8
    places: Mapping[str, F64]
    height_px: float
    hidden: frozenset[str]
    costume: Costume
    _subpixel_bits: int = field(default=4, init=False)

    def draw_body(self) -> None:
        dress = self.costume
        for side in "rl":
            self._draw_chain([f"{side}-hip", f"{side}-knee", f"{side}-ankle"], 0.062, dress.trousers)
        torso = ["r-shoulder", "l-shoulder", "l-hip", "r-hip"]
        self._draw_polygon([self.places[name] for name in torso], dress.shirt, 0.075)
        self._draw_discs([name for side in "rl" for name in (f"{side}-hip", f"{side}-knee", f"{side}-ankle")])
        self._draw_head()
        for side in "rl":
            self._draw_chain([f"{side}-shoulder", f"{side}-elbow", f"{side}-wrist"], 0.05, dress.skin)
            self._draw_discs([f"{side}-shoulder", f"{side}-elbow", f"{side}-wrist"])

    def _draw_head(self) -> None:
        ears = self.places["r-ear"], self.places["l-ear"]
        middle = (ears[0] + ears[1]) / 2
        self._draw_line(middle, self.places["neck"], 0.06, self.costume.skin)
        self._draw_disc(middle, _HEAD_RADIUS + 0.007, self.costume.outline)
        self._draw_disc(middle, _HEAD_RADIUS, self.costume.skin)
        self._draw_discs(["r-ear", "l-ear", "r-eye", "l-eye", "nose"], _FACE_RADIUS)

    def _draw_discs(self, names: Collection[str], radius: float = _JOINT_RADIUS) -> None:
        for name in names:
            self._draw_disc(self.places[name], radius + 0.007, self.costume.outline)
            if name not in self.hidden:
                self._draw_disc(self.places[name], radius, JOINT_COLORS[name])

    def _draw_chain(self, names: list[str], thickness: float, color: Color) -> None:
        for shade, extra in ((self.costume.outline, 0.014), (color, 0.0)):
            for start, stop in pairwise(names):
                self._draw_line(self.places[start], self.places[stop], thickness + extra, shade)

    def _draw_disc(self, centre: F64, radius: float, color: Color) -> None:
        bits = self._subpixel_bits
        size = round(radius * self.height_px * (1 << bits))
        cv2.circle(self.picture, self._fixed(centre), size, color, -1, cv2.LINE_8, bits)

    def _draw_line(self, start: F64, stop: F64, thickness: float, color: Color) -> None:
        width = max(1, round(thickness * self.height_px))
        cv2.line(self.picture, self._fixed(start), self._fixed(stop), color, width, cv2.LINE_8, self._subpixel_bits)

    def _draw_polygon(self, corners: list[F64], color: Color, thickness: float) -> None:
        points = np.array([self._fixed(corner) for corner in corners], np.int32)
        for shade, extra in ((self.costume.outline, 0.014), (color, 0.0)):
            width = max(1, round((thickness + extra) * self.height_px))
            cv2.polylines(self.picture, [points], True, shade, width, cv2.LINE_8, self._subpixel_bits)
        cv2.fillPoly(self.picture, [points], color, cv2.LINE_8, self._subpixel_bits)

    def _fixed(self, point: F64) -> tuple[int, int]:
        x, y = np.round(point * (1 << self._subpixel_bits)).astype(int)
        return int(x), int(y)
