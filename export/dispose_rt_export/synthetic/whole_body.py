"""COCO-WholeBody's 133 points: which they are, and where feet, face and hands lie for a body given by 17 points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BODY = (
    "nose",
    "l-eye",
    "r-eye",
    "l-ear",
    "r-ear",
    "l-shoulder",
    "r-shoulder",
    "l-elbow",
    "r-elbow",
    "l-wrist",
    "r-wrist",
    "l-hip",
    "r-hip",
    "l-knee",
    "r-knee",
    "l-ankle",
    "r-ankle",
)
"""The first 17 points, in COCO's order."""
FEET = ("l-big-toe", "l-small-toe", "l-heel", "r-big-toe", "r-small-toe", "r-heel")
LANDMARKS = (
    *BODY,
    *FEET,
    *(f"face-{i}" for i in range(68)),
    *(f"{side}-hand-{i}" for side in "lr" for i in range(21)),
)

_PRIOR = (
    (0.50, 0.21),  # nose
    *((0.54, 0.17), (0.46, 0.17), (0.59, 0.18), (0.41, 0.18)),  # eyes, ears
    *((0.60, 0.31), (0.40, 0.31), (0.68, 0.41), (0.32, 0.41), (0.74, 0.51), (0.26, 0.51)),  # arms
    *((0.56, 0.54), (0.44, 0.54), (0.58, 0.70), (0.42, 0.70), (0.59, 0.85), (0.41, 0.85)),  # legs
)


def body_prior_unit() -> F64:
    """Where the body points of a standing person are in a pose crop: float64 [17, 2], fractions of the crop."""
    return np.array(_PRIOR)


def landmark_weights() -> tuple[F32, F32, NDArray[np.int64]]:
    """Return how the 133 points follow from the 17 body points P [17, 2].

    Every part is carried by one vector of the body (a forearm, a shin, the line between the eyes): a point is a sum of
    body points and of multiples of that vector and of its quarter turn, so
    `points = straight @ P + turned @ quarter_turn(P)` with `quarter_turn(x, y) = (-y, x)`.

    Returns:
        straight: float32 [133, 17].
        turned: float32 [133, 17].
        sources: int64 [133, 2], the body points whose lower score is the point's score.
    """
    straight, turned = np.zeros((2, len(LANDMARKS), len(BODY)), np.float32)
    sources = np.zeros((len(LANDMARKS), 2), np.int64)
    index = {name: i for i, name in enumerate(BODY)}

    def place(point: int, origin: str, start: str, stop: str, offset: tuple[float, float]) -> None:
        """Place at origin + offset[0] * vector + offset[1] * quarter turn of it, vector = stop - start."""
        straight[point, index[origin]] += 1
        for weights, amount in ((straight, offset[0]), (turned, offset[1])):
            weights[point, index[stop]] += amount
            weights[point, index[start]] -= amount
        sources[point] = index[start], index[stop]

    for i in range(len(BODY)):
        straight[i, i] = 1
        sources[i] = i
    for side, outwards, first in (("l", -1, 17), ("r", 1, 20)):
        for i, (down, out) in enumerate(((0.12, 0.18), (0.10, 0.26), (0.10, -0.08))):
            place(first + i, f"{side}-ankle", f"{side}-knee", f"{side}-ankle", (down, outwards * out))
    for i, (x, y) in enumerate(_face_shape()):
        place(23 + i, "nose", "r-eye", "l-eye", (x, y))
    for side, inwards, first in (("l", 1, 91), ("r", -1, 112)):
        for i, (along, across) in enumerate(_hand_shape()):
            place(first + i, f"{side}-wrist", f"{side}-elbow", f"{side}-wrist", (along, inwards * across))
    return straight, turned, sources


def _arc(count: int, start_deg: float, stop_deg: float, radius_x: float, radius_y: float) -> F64:
    angles = np.deg2rad(np.linspace(start_deg, stop_deg, count))
    return np.stack([radius_x * np.cos(angles), radius_y * np.sin(angles)], 1)


def _face_shape() -> F64:
    """68 points around the nose, in distances between the eyes; y points down."""
    jaw = _arc(17, 180, 0, 1.05, 1.0) + np.array([0, 0.1])
    brows = [np.stack([np.linspace(a, b, 5), np.full(5, -0.95)], 1) for a, b in ((-0.85, -0.2), (0.2, 0.85))]
    bridge = np.stack([np.zeros(4), np.linspace(-0.6, 0.0, 4)], 1)
    nostrils = np.stack([np.linspace(-0.2, 0.2, 5), np.full(5, 0.12)], 1)
    eyes = [_arc(7, 180, 540, 0.18, 0.09)[:6] + np.array([x, -0.58]) for x in (-0.5, 0.5)]
    lips = np.concatenate([_arc(13, 180, 540, 0.4, 0.16)[:12], _arc(9, 180, 540, 0.28, 0.07)[:8]]) + np.array([0, 0.55])
    return np.concatenate([jaw, *brows, bridge, nostrils, *eyes, lips])


def _hand_shape() -> F64:
    """21 points from the wrist on: the wrist, then four joints per finger, thumb first; in lengths of the forearm."""
    points = [np.zeros((1, 2))]
    for finger in range(5):
        angle = np.deg2rad(-44 + 22 * finger)
        reach = np.linspace(0.14, 0.32 if finger else 0.24, 4)[:, None]
        points.append(reach * (np.cos(angle), np.sin(angle)))
    return np.concatenate(points)
