"""How much of a drawn person the crop keeps, at the centre and moved to the person: a table for docs/QUALITY.md.

    python -m benchmarks.crops

Photos of a drawn puppet whose joints are known, for engines of the published sizes. No engine is needed: the places are
computed from the known joints, as a run computes them from the found ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dispose_rt.pipeline.photo import MARGIN
from dispose_rt.puppet import Stance, place_joints
from dispose_rt.stages.framing import Window
from dispose_rt.types import F64

PORTRAIT, LANDSCAPE = (576, 1024), (1024, 576)


@dataclass(frozen=True)
class Photo:
    """A photo and the person to animate in it.

    Attributes:
        name: row of the table.
        size_px: width and height.
        stance: how the person stands; of two people, the larger one.
        engines_px: width and height of the engines.
    """

    name: str
    size_px: tuple[int, int]
    stance: Stance
    engines_px: tuple[int, int] = PORTRAIT


PHOTOS = (
    Photo("in the middle, 16:9", (1920, 1080), Stance()),
    Photo("at the left, 16:9", (1920, 1080), Stance(centre_unit=0.15)),
    Photo("at the right, 16:9", (1920, 1080), Stance(centre_unit=0.85)),
    Photo("left of the middle, 16:9", (1920, 1080), Stance(centre_unit=0.36)),
    Photo("left of the middle, 4:3", (1600, 1200), Stance(centre_unit=0.3)),
    Photo("at the left, 3:4", (1200, 1600), Stance(centre_unit=0.25)),
    Photo("far away, at the right, 16:9", (1920, 1080), Stance(centre_unit=0.9, height_unit=0.2, top_unit=0.5)),
    Photo(
        "arms spread wider than the window, 16:9",
        (1920, 1080),
        Stance(0.22, r_arm=1.57, r_forearm=1.57, l_arm=1.57, l_forearm=1.57),
    ),
    Photo("two people, the larger one at the left, 16:9", (1920, 1080), Stance(centre_unit=0.2, height_unit=0.8)),
    Photo("at the top, portrait photo", (1080, 1920), Stance(top_unit=0.03, height_unit=0.3), LANDSCAPE),
    Photo("at the bottom, portrait photo", (1080, 1920), Stance(top_unit=0.65, height_unit=0.3), LANDSCAPE),
    Photo("larger than the window, portrait photo", (1080, 1920), Stance(top_unit=0.1, height_unit=0.8), LANDSCAPE),
)


def measure(photo: Photo) -> tuple[float, float, float]:
    """Shares of the joints that the centre and the moved window keep, and how far it moved, in its own sizes."""
    width, height = photo.size_px
    joints = place_joints(photo.stance, width / height)
    centre = Window.centred(height, width, *photo.engines_px)
    moved = centre.around(joints, MARGIN)
    way = max(abs(moved.left - centre.left) / moved.width, abs(moved.top - centre.top) / moved.height)
    return _share_kept(centre, joints), _share_kept(moved, joints), way


def _share_kept(window: Window, joints: F64) -> float:
    places = window.map_points(joints)
    return float(np.mean(((places >= 0) & (places <= 1)).all(axis=1)))


def table() -> Iterator[str]:
    """Lines of the table, in Markdown."""
    yield "| the person is | engines | `centre` keeps | `person` keeps | the window moves by |"
    yield "|---|---|---|---|---|"
    for photo in PHOTOS:
        centre, person, way = measure(photo)
        size = "x".join(map(str, photo.engines_px))
        yield f"| {photo.name} | {size} | {centre:.0%} of the joints | {person:.0%} | {way:.2f} of its size |"


if __name__ == "__main__":
    print("\n".join(table()))
