"""Draws poses as coloured skeletons, pixel for pixel as the published model was trained on them."""

from __future__ import annotations

import colorsys
import math
import threading
from itertools import pairwise

import cv2
import numpy as np

from ...types import F64, I32, U8, Pose

CANVAS_SHORT_SIDE_PX = 2160
LIMB_SCORE = 0.3
LIMB_HALF_WIDTH_PX = 4
LIMB_BRIGHTNESS = 0.6
JOINT_RADIUS_PX = 4
FACE_RADIUS_PX = 3

#: joint pairs in drawing order: shoulders and arms, torso and legs, head
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
#: wrist (point 0) to finger tip, thumb first
BONES = tuple(bone for base in range(1, 21, 4) for bone in pairwise((0, *range(base, base + 4))))
_FIXED_POINT_BITS = 16
_FIXED_POINT_ONE = 1 << _FIXED_POINT_BITS
_FIXED_POINT_END_PX = 1 << (30 - _FIXED_POINT_BITS)
_FAR_PX = 1e6
_STROKE_PX = 16
"""More than any point, line or limb is thick."""
_TURN = math.radians(2)
"""More than a limb's ellipse is turned by whole degrees, on each side of it."""
_kept = threading.local()


def _wheel(count: int) -> list[tuple[float, float, float]]:
    """Fully saturated colours, 0..1, evenly spaced in hue from red on."""
    return [colorsys.hsv_to_rgb(index / count, 1.0, 1.0) for index in range(count)]


BODY_COLORS = tuple(tuple(round(255 * part) for part in color) for color in _wheel(18))
_BONE_COLORS = tuple(_wheel(len(BONES)))


def draw_pose(pose: Pose, height: int, width: int) -> U8:
    """Draw all persons of a frame: bodies, then hands, then faces.

    Args:
        pose: coordinates in fractions of the image; what lies outside 0..1 is cut off at the border.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        uint8 [3, height, width], RGB, on black.
    """
    zoom = CANVAS_SHORT_SIDE_PX / min(height, width)
    canvas = _black_canvas(int(height * zoom), int(width * zoom))
    try:
        _draw_persons(canvas, pose)
        # Without area averaging: thin lines come out dotted on a small image, and the networks learnt from such
        # drawings.
        blue, green, red = cv2.split(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR))
    finally:
        _clear(canvas, pose)
    return np.stack([red, green, blue])


def _black_canvas(height: int, width: int) -> U8:
    """The canvas of this thread, which `_clear` has left black: a new one of 25 MB would take longer than a drawing."""
    canvas: U8 | None = getattr(_kept, "canvas", None)
    if canvas is None or canvas.shape[:2] != (height, width):
        canvas = _kept.canvas = np.zeros((height, width, 3), np.uint8)
    return canvas


def _clear(canvas: U8, pose: Pose) -> None:
    """Blacken everything that was drawn of a pose: around its points, as far as lines and turned ellipses reach."""
    parts = (pose.joints, pose.hands, pose.faces)
    points = np.concatenate([_place(part, canvas).reshape(-1, 2) for part in parts])
    if not points.size:
        return
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _STROKE_PX + _TURN * float(np.hypot(*(high - low)))
    left, top = np.maximum(low - margin, 0).astype(np.int64)
    right, bottom = np.maximum(high + margin + 1, 0).astype(np.int64)
    canvas[top:bottom, left:right] = 0


def _draw_persons(canvas: U8, pose: Pose) -> None:
    _draw_bodies(canvas, pose, _place(pose.joints, canvas))
    hands_px = _place(pose.hands, canvas).astype(np.int64)
    for points_px, scores in zip(hands_px.reshape(-1, 21, 2), pose.hand_scores.reshape(-1, 21), strict=True):
        _draw_hand(canvas, points_px.tolist(), scores.astype(np.float64))
    faces_px = _place(pose.faces, canvas).astype(np.int64)
    for points_px, scores in zip(faces_px, pose.face_scores, strict=True):
        for point, score in zip(points_px.tolist(), scores.astype(np.float64), strict=True):
            _draw_dot(canvas, point, FACE_RADIUS_PX, [int(score * 255)] * 3)


def _place(points: F64, canvas: U8) -> F64:
    """Turn fractions into pixels of the canvas, kept within the integers that OpenCV takes."""
    height, width = canvas.shape[:2]
    return np.clip(points * [float(width), float(height)], -_FAR_PX, _FAR_PX)


def _draw_bodies(canvas: U8, pose: Pose, joints_px: F64) -> None:
    """Limb after limb over all persons, then joint after joint, so that no limb covers a joint."""
    scores = pose.joint_scores.astype(np.float64)
    for (start, end), color in zip(LIMBS, BODY_COLORS, strict=False):
        for points, certainty in zip(joints_px, scores, strict=True):
            if min(certainty[start], certainty[end]) >= LIMB_SCORE:
                shade = [int(level * LIMB_BRIGHTNESS) for level in _dim(color, certainty[start] * certainty[end])]
                _draw_limb(canvas, points[start], points[end], shade)
    for joint, color in enumerate(BODY_COLORS):
        for points, certainty, visible in zip(joints_px, scores, pose.visible, strict=True):
            if visible[joint]:
                centre = points[joint].astype(np.int64).tolist()
                cv2.circle(canvas, centre, JOINT_RADIUS_PX, _dim(color, certainty[joint]), thickness=-1)


def _draw_limb(canvas: U8, start: F64, end: F64, color: list[int]) -> None:
    """A filled ellipse with both joints on its ends."""
    middle = ((start + end) / 2).astype(np.int64).tolist()
    across, down = (start - end).tolist()
    axes = (int(math.sqrt(down * down + across * across) / 2), LIMB_HALF_WIDTH_PX)
    angle = int(math.degrees(math.atan2(down, across)))
    cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1), color)


def _draw_hand(canvas: U8, points: list[list[int]], scores: F64) -> None:
    """Bones in the colours of the rainbow, then the points."""
    for (start, end), color in zip(BONES, _BONE_COLORS, strict=True):
        if min(*points[start], *points[end]) > 0:
            level = int(scores[start] * scores[end] * 255)
            _draw_line(canvas, points[start], points[end], [part * level for part in color])
    for point, score in zip(points, scores, strict=True):
        _draw_dot(canvas, point, JOINT_RADIUS_PX, [0, 0, int(score * 255)])


def _draw_dot(canvas: U8, point: list[int], radius: int, color: list[int]) -> None:
    """A filled disc. Points on the first row or column and beyond it are left out, as in the reference code."""
    if min(point) > 0:
        cv2.circle(canvas, point, radius, color, thickness=-1)


def _draw_line(canvas: U8, start: list[int], end: list[int], color: list[float]) -> None:
    """A line two pixels wide with round ends: `cv2.line(..., thickness=2)` of OpenCV 4.10.

    Later releases first clip the line to the image, which turns it slightly where it leaves the image.
    """
    if max(*start, *end) >= _FIXED_POINT_END_PX:
        return  # a finger that is several images long
    ends = np.array([start, end], dtype=np.int64) * _FIXED_POINT_ONE
    across, down = start[0] - end[0], end[1] - start[1]
    if length := math.sqrt(across * across + down * down):
        side = np.rint(np.array([down, across]) * (_FIXED_POINT_ONE / length)).astype(np.int64)
        corners: I32 = np.stack([ends[0] + side, ends[0] - side, ends[1] - side, ends[1] + side]).astype(np.int32)
        cv2.fillConvexPoly(canvas, corners, color, shift=_FIXED_POINT_BITS)
    for point in (start, end):
        cv2.circle(canvas, point, 1, color, thickness=-1)


def _dim(color: tuple[int, ...], factor: float) -> list[int]:
    return [min(255, int(level * factor)) for level in color]
