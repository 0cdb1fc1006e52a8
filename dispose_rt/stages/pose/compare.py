"""Measures how large people are in pictures, by the joints that they show, and says what makes two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...types import F64, JOINTS, Bools, Pose

BODY_PARTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "shoulders": ((2, 5),),
    "torso": ((2, 8), (5, 11)),
    "hips": ((8, 11),),
    "thighs": ((8, 9), (11, 12)),
    "shins": ((9, 10), (12, 13)),
    "upper arms": ((2, 3), (5, 6)),
    "neck": ((0, 1),),
    "eyes": ((14, 15),),
    "ears": ((16, 17),),
}
"""The joints at both ends of the parts that show the size of a body, on the right and the left side where there are
two."""

WIDTH_WEIGHTS: Mapping[str, float] = {"shoulders": 0.25, "hips": 0.25, "eyes": 0.1, "ears": 0.1}
"""Weights of widths; lengths have 1. All widths shrink when a person turns sideways, which happens more often than that
a person leans towards the camera, and heads turn most."""

FULL_LENGTH = 0.75
"""Quantile of a part's lengths over the frames that is taken for its full length. Parts look shorter, never longer, as
they turn away from the camera; the longest ones of all are errors of the pose network."""

REGIONS: Mapping[str, tuple[int, ...]] = {
    "head": (0, 14, 15, 16, 17),
    "shoulders": (1, 2, 5),
    "arms": (3, 4, 6, 7),
    "hips": (8, 11),
    "legs": (9, 10, 12, 13),
}
"""All joints, by region of the body. The neck is the middle of the shoulders, and visible where both are."""

_TELLING = ("head", "shoulders", "hips", "legs")
"""Regions that tell which view of a person a picture shows; arms come and go."""
_TILT = np.cos(np.pi / 4)


@dataclass(frozen=True)
class Figure:
    """A person in one or more pictures."""

    joints_px: F64  # [pictures, 18, 2]
    visible: Bools  # [pictures, 18]

    @classmethod
    def of(cls, poses: Sequence[Pose], size_px: tuple[int, int]) -> Figure:
        """The person of all pictures of that height and width that show exactly one."""
        single = [pose for pose in poses if pose.persons == 1]
        joints = np.array([pose.joints[0] for pose in single]).reshape(-1, JOINTS, 2)
        visible = np.array([pose.visible[0] for pose in single], np.bool_).reshape(-1, JOINTS)
        return cls(joints * np.array(size_px[::-1]), visible)

    def part_lengths_px(self) -> tuple[F64, F64]:
        """Full length of every part of `BODY_PARTS`, and the number of pictures that show it; 0 for unseen parts."""
        lengths, pictures = np.zeros(len(BODY_PARTS)), np.zeros(len(BODY_PARTS))
        for part, sides in enumerate(BODY_PARTS.values()):
            first, second = np.transpose(sides)
            seen = self.visible[:, first] & self.visible[:, second]
            if seen.any():
                ways_px = (self.joints_px[:, first] - self.joints_px[:, second])[seen]
                # of a single picture's sides, the longer one
                quantile = FULL_LENGTH if len(self.visible) > 1 else 1.0
                lengths[part] = np.quantile(np.hypot(*ways_px.T), quantile)
                pictures[part] = np.count_nonzero(seen.any(axis=1))
        return lengths, pictures

    def torso_direction(self) -> F64 | None:
        """Unit vector [2] from the shoulders to the hips, the median over all pictures; None if it is not seen."""
        first, second = np.transpose(BODY_PARTS["torso"])
        seen = self.visible[:, first] & self.visible[:, second]
        if not seen.any():
            return None
        way: F64 = np.median((self.joints_px[:, second] - self.joints_px[:, first])[seen], axis=0)
        return way / (np.hypot(*way) or 1.0)

    def shows(self, joints: tuple[int, ...]) -> bool:
        """Whether half of the pictures or more show one of the joints."""
        return bool(np.mean(self.visible[:, joints].any(axis=1)) >= 0.5) if len(self.visible) else False

    def extent_px(self) -> float:
        """Diagonal of the box around the visible joints, the median over the pictures; infinite if none shows two."""
        joints_px = np.where(self.visible[..., None], self.joints_px, np.nan)[self.visible.sum(axis=1) >= 2]
        if not len(joints_px):
            return np.inf
        spans_px = np.nanmax(joints_px, axis=1) - np.nanmin(joints_px, axis=1)
        return float(np.median(np.hypot(*spans_px.T)))

    def is_inside(self, size_px: tuple[int, int]) -> bool:
        """Whether a visible joint lies in the picture, anywhere in the clip; also if no joint is visible at all."""
        inside = ((self.joints_px >= 0) & (self.joints_px < size_px[::-1])).all(axis=2)
        return bool((inside & self.visible).any() or not self.visible.any())


def compare_sizes(still: Figure, moving: Figure) -> tuple[list[str], float]:
    """Names of the parts that both show, and pixels of the reference per pixel of the frames; nan if there is none."""
    (target, _), (source, pictures) = still.part_lengths_px(), moving.part_lengths_px()
    shared = (target > 0) & (source > 0)
    if not shared.any():
        return [], np.nan
    weights = source * pictures * [WIDTH_WEIGHTS.get(part, 1.0) for part in BODY_PARTS]
    ratio = _weighted_median((target[shared] / source[shared]), weights[shared])
    return [part for part, is_shared in zip(BODY_PARTS, shared, strict=True) if is_shared], ratio


def _weighted_median(values: F64, weights: F64) -> float:
    """The value with half of the weight on either side, interpolated between neighbours."""
    order = np.argsort(values)
    middles = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(weights.sum() / 2, middles, values[order]))


def explain_difference(still: Figure, moving: Figure) -> str:
    """What makes the two people hard to compare, as the end of a sentence; empty if nothing stands out."""
    shown = {region: (still.shows(joints), moving.shows(joints)) for region in _TELLING for joints in [REGIONS[region]]}
    reasons = []
    for one, other, pattern in (("photo", "video", (False, True)), ("video", "photo", (True, False))):
        if regions := [region for region, found in shown.items() if found == pattern]:
            reasons.append(f"the {one} shows no {' or '.join(regions)}, the {other} does")
    one_way, other_way = still.torso_direction(), moving.torso_direction()
    if one_way is not None and other_way is not None and one_way @ other_way < _TILT:
        reasons.append("the person lies or leans far over in the photo or in the video, but not in both")
    return f": {', and '.join(reasons)}" if reasons else ""
