"""Judges the fits of `alignment` and the setting `bridge_gaps` on puppets whose joints are known.

    python -m benchmarks.poses

Prints two Markdown tables. No network takes part: poses are the puppet's joints with some noise, and joints outside of
the picture are hidden. The truth is the photo's puppet, with its own proportions and in its own place, making the
movement of the video's puppet. docs/QUALITY.md has the tables and what they mean.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dispose_rt.errors import InputWarning, NoPersonError
from dispose_rt.puppet import JOINT_NAMES, Stance, dance, place_joints
from dispose_rt.stages.motion import trajectory_impulses
from dispose_rt.stages.pose import bridge_gaps, check_drawn, fit_alignment, fit_robust
from dispose_rt.types import F64, JOINTS, Bools, Pose, Track

PHOTO_PX, FRAME_PX = (1024, 576), (720, 1280)
"""Height and width."""
FRAMES = 48
JITTER = 0.003
"""Standard deviation of the noise of all joints, in body heights."""
SEEN_SCORE, HIDDEN_SCORE = 0.9, 0.1
FITS = {"reference": fit_alignment, "robust": fit_robust}
GAPS = {"1 frame": (1, 1), "1 to 3 frames": (1, 3), "1 to 8 frames": (1, 8)}
"""Shortest and longest gap."""
GAP_SHARE = 0.03
"""Chance that a gap of a joint begins in a frame."""

_HEIGHT = Stance().height_unit
_AT = {name: joint for joint, name in enumerate(JOINT_NAMES)}
_TORSO = [_AT[f"{side}-{part}"] for side in "rl" for part in ("shoulder", "hip")]
_BONES: Mapping[str, tuple[str, ...]] = {
    "neck": ("r-shoulder", "l-shoulder", "nose"),
    "nose": ("r-eye", "l-eye", "r-ear", "l-ear"),
    **{f"{side}-{a}": (f"{side}-{b}",) for side in "rl" for a, b in (("shoulder", "elbow"), ("elbow", "wrist"))},
    **{f"{side}-{a}": (f"{side}-{b}",) for side in "rl" for a, b in (("hip", "knee"), ("knee", "ankle"))},
}
_CHILD = {"nose": 1.5, "eye": 1.5, "ear": 1.5, "shoulder": 0.9, "knee": 0.75, "ankle": 0.75, "elbow": 0.8, "wrist": 0.8}
"""Lengths of a small child's bones relative to an adult's of the same torso, by the joint at their end."""


@dataclass(frozen=True)
class Scene:
    """A photo, a clip, and what should be drawn.

    Attributes:
        name: what is special about it.
        photo: pose of the photo, of `PHOTO_PX`.
        frames: poses of the clip, of `FRAME_PX`.
        truth_px: float64 [frames, 18, 2], the joints that should be drawn, in pixels of the photo.
        body_px: height of the photo's person, from head to ankles when standing.
    """

    name: str
    photo: Pose
    frames: list[Pose]
    truth_px: F64
    body_px: float

    @property
    def people(self) -> tuple[Pose, list[Pose], tuple[int, int], tuple[int, int]]:
        """What the fits take."""
        return self.photo, self.frames, FRAME_PX, PHOTO_PX


@dataclass(frozen=True)
class Place:
    """Where a body's base stance is in a picture: its middle, the top of its head and its height, in pixels."""

    x: float
    top: float
    height: float

    @classmethod
    def of(cls, size_px: tuple[int, int], x: float = 0.5, top: float = 0.11, height: float = _HEIGHT) -> Place:
        """A place in fractions of a picture."""
        return cls(x * size_px[1], top * size_px[0], height * size_px[0])

    def put(self, body: F64) -> F64:
        """Joints in pixels, from joints in body heights."""
        return body * self.height + (self.x, self.top)


def list_scenes() -> list[Scene]:
    """Every scene of the first table."""
    moving, standing = _dancing(), _standing()
    seated = _change_bones(standing, {"knee": 0.25})
    bust = Place.of(PHOTO_PX, top=0.25, height=2.4)
    airborne = np.maximum(0, np.sin(np.arange(FRAMES) * math.pi / 6))[:, None, None] * (0.0, -0.3)
    quarter = _turn(standing, math.pi / 2)
    spun = moving.copy()
    spun[..., 0] *= np.cos(np.arange(FRAMES) * math.pi / 12)[:, None]
    child, childs = _change_bones(standing, _CHILD), _change_bones(moving, _CHILD)
    lying_place = Place(PHOTO_PX[1] * 0.5, PHOTO_PX[0] * 0.5, 480)
    broken = _scene("one broken frame", standing, moving)
    broken.frames[20] = _pose(np.random.default_rng(5).uniform(0, 40, (JOINTS, 2)), FRAME_PX)
    return [
        _scene("clean", standing, moving),
        _scene("bust photo", standing, moving, bust),
        _scene("bust photo, jumping dancer", standing, moving + airborne, bust),
        _scene("lying in the photo", quarter, moving, lying_place),
        _scene("sitting in the photo", seated, moving),
        _scene("child in the photo", child, moving, truth=childs),
        _scene("far away in the photo", standing, moving, Place.of(PHOTO_PX, top=0.6, height=0.12)),
        _scene("far away in the video", standing, moving, film=Place.of(FRAME_PX, top=0.6, height=0.12)),
        _scene("no legs in the video", standing, moving, film=Place.of(FRAME_PX, top=0.1, height=2.4)),
        _scene("jumping dancer", standing, moving + airborne),
        _scene("turning dancer", standing, spun),
        _scene(
            "dancer who comes twice as close", standing, moving * np.linspace(1, 2, FRAMES)[:, None, None], truth=moving
        ),
        _scene("bust photo, turned by 60 degrees", standing * (0.5, 1), moving, bust),
        _scene("camera tilted by 20 degrees", standing, _turn(moving, math.radians(20))),
        broken,
    ]


def _standing() -> F64:
    """[18, 2] joints in body heights, from the top of the head's middle on."""
    return place_joints(Stance(centre_unit=0, top_unit=0, height_unit=1), 1.0)


def _dancing() -> F64:
    """[frames, 18, 2] likewise."""
    return dance(FRAMES, 1.0, stance=Stance(centre_unit=0, top_unit=0, height_unit=1), period=24)


def _turn(body: F64, angle: float) -> F64:
    """Turn in the plane of the picture, about the middle of the standing torso."""
    cosine, sine = math.cos(angle), math.sin(angle)
    middle = _standing()[_TORSO].mean(axis=0)
    turned: F64 = (body - middle) @ np.array([[cosine, sine], [-sine, cosine]]) + middle
    return turned


def _change_bones(body: F64, factors: Mapping[str, float]) -> F64:
    """Change the lengths of bones by the joint at their end. Hips and the neck stay where they are."""
    changed = body.copy()
    for start, ends in _BONES.items():
        for end in ends:
            factor = factors.get(end.split("-")[-1], 1.0)
            bone = body[..., _AT[end], :] - body[..., _AT[start], :]
            changed[..., _AT[end], :] = changed[..., _AT[start], :] + factor * bone
    return changed


def _scene(
    name: str,
    still: F64,
    moving: F64,
    place: Place | None = None,
    film: Place | None = None,
    truth: F64 | None = None,
) -> Scene:
    """A scene of two bodies in body heights; the truth is the clip's body in the photo's place if none is given."""
    place, film = place or Place.of(PHOTO_PX), film or Place.of(FRAME_PX)
    noise = np.random.default_rng(0)
    photo = _pose(place.put(still + noise.normal(0, JITTER, still.shape)), PHOTO_PX)
    noisy = moving + noise.normal(0, JITTER, moving.shape)
    frames = [_pose(film.put(body), FRAME_PX) for body in noisy]
    return Scene(name, photo, frames, place.put(moving if truth is None else truth), place.height)


def _pose(joints_px: F64, size_px: tuple[int, int]) -> Pose:
    """A pose whose joints outside of the picture are hidden, and lie at its border."""
    size = np.array(size_px[::-1], np.float64)
    visible = np.all((joints_px >= 0) & (joints_px < size), axis=1)
    visible[_AT["neck"]] = visible[[_AT["r-shoulder"], _AT["l-shoulder"]]].all()
    return Pose(
        joints=(np.clip(joints_px, 0, size) / size)[None],
        joint_scores=np.where(visible, SEEN_SCORE, HIDDEN_SCORE).astype(np.float32)[None],
        visible=visible[None],
        faces=np.zeros((1, 68, 2)),
        face_scores=np.zeros((1, 68), np.float32),
        hands=np.zeros((2, 1, 21, 2)),
        hand_scores=np.zeros((2, 1, 21), np.float32),
        boxes_px=np.array([[0.0, 0.0, *size]]),
    )


def judge_fit(scene: Scene, way: str) -> tuple[float, float]:
    """Measure what a fit draws, in the median over the frames.

    Args:
        scene: the scene.
        way: "reference" or "robust".

    Returns:
        Size of the drawn person relative to the truth (1 is right, below 0 is upside down), from the least-squares fit
        of its joints; and the mean error of the joints that the frame shows, in % of the body's height.
    """
    alignment = FITS[way](*scene.people)
    sizes, errors = [], []
    for frame, truth_px in zip(scene.frames, scene.truth_px, strict=True):
        shown = frame.visible[0]
        drawn_px, right_px = alignment.apply(frame).joints[0][shown] * PHOTO_PX[::-1], truth_px[shown]
        about_drawn, about_right = drawn_px - drawn_px.mean(axis=0), right_px - right_px.mean(axis=0)
        sizes.append((about_drawn * about_right).sum() / (about_right**2).sum())
        errors.append(np.hypot(*(drawn_px - right_px).T).mean() / scene.body_px * 100)
    return float(np.median(sizes)), float(np.median(errors))


def check_fit(scene: Scene, way: str) -> str:
    """What a run says about a fit: "" or the message of its warning or error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        try:
            check_drawn(FITS[way](*scene.people), *scene.people, way)
        except NoPersonError as error:
            return f"error: {error}"
    return f"warning: {caught[0].message}" if caught else ""


def hide_joints(frames: list[Pose], shortest: int, longest: int, seed: int = 0) -> list[Pose]:
    """Hide joints at random for a few frames at a time. The neck is hidden with a shoulder; the ends stay as they are.

    Args:
        frames: poses of a clip.
        shortest: frames of the shortest gap.
        longest: frames of the longest gap.
        seed: of the choice.
    """
    draws = np.random.default_rng(seed)
    visible = np.concatenate([frame.visible for frame in frames])
    for joint in range(JOINTS):
        start = 1
        while start < len(frames) - longest - 1:
            if joint != _AT["neck"] and draws.random() < GAP_SHARE:
                length = int(draws.integers(shortest, longest + 1))
                visible[start : start + length, joint] = False
                start += length  # and a frame that shows it
            start += 1
    visible[:, _AT["neck"]] &= visible[:, [_AT["r-shoulder"], _AT["l-shoulder"]]].all(axis=1)
    scores = np.where(visible, SEEN_SCORE, HIDDEN_SCORE).astype(np.float32)
    return [
        replace(frame, visible=visible[row : row + 1], joint_scores=scores[row : row + 1])
        for row, frame in enumerate(frames)
    ]


def judge_gaps(scene: Scene, hidden: list[Pose], limit: int) -> tuple[float, float, float]:
    """Measure what bridging does, with the joints as the motion fields see them: unseen ones lie in the corner.

    Args:
        scene: a scene whose joints are all seen.
        hidden: its frames with some joints hidden.
        limit: the setting `bridge_gaps`.

    Returns:
        Percentage of joints that stay unseen, over all frames; the longest flow of a joint from one frame to the next,
        in pixels; and the mean error of the joints that were hidden, in % of the body's height.
    """
    alignment = fit_alignment(*scene.people)
    aligned = [alignment.apply(pose) for pose in bridge_gaps(hidden, (), limit)]
    joints = np.concatenate([pose.joints for pose in aligned])
    visible: Bools = np.concatenate([pose.visible for pose in aligned])
    flow_px = trajectory_impulses(Track(joints, visible), *PHOTO_PX).flow_px
    shown: Bools = np.concatenate([pose.visible for pose in hidden])[1:]
    whole = np.concatenate([alignment.apply(pose).joints for pose in scene.frames])
    seen_px = np.where(visible[..., None], joints, 0) * PHOTO_PX[::-1]
    errors = np.hypot(*np.moveaxis(seen_px - whole * PHOTO_PX[::-1], -1, 0))[1:][~shown]
    # impulses are written where a joint is seen in the earlier frame
    longest_px = np.hypot(flow_px[..., 0], flow_px[..., 1])[visible[:-1]].max()
    error = float(errors.mean() / scene.body_px * 100) if errors.size else 0.0
    return float((~visible).mean() * 100), float(longest_px), error


def _fit_rows() -> Iterator[str]:
    yield "| scene | size, reference | size, robust | error, reference | error, robust | reference says |"
    yield "|---|---|---|---|---|---|"
    for scene in list_scenes():
        (size, error), (robust_size, robust_error) = (judge_fit(scene, way) for way in FITS)
        said = check_fit(scene, "reference").split(":")[0] or "nothing"
        yield f"| {scene.name} | {size:.2f} | {robust_size:.2f} | {error:.1f} % | {robust_error:.1f} % | {said} |"


def _gap_rows() -> Iterator[str]:
    yield "| gaps | `bridge_gaps` | joints that stay unseen | longest flow | error of the hidden joints |"
    yield "|---|---|---|---|---|"
    clean = _scene("clean", _standing(), _dancing())
    for name, (shortest, longest) in {"none": (0, 0), **GAPS}.items():
        hidden = hide_joints(clean.frames, shortest, longest) if longest else clean.frames
        for limit in (0, 2, 5) if longest else (0,):
            unseen, flow_px, error = judge_gaps(clean, hidden, limit)
            yield f"| {name} | {limit} | {unseen:.1f} % | {flow_px:.0f} px | {error:.1f} % |"


def main(write: Callable[[str], object] = print) -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for rows in (_fit_rows(), _gap_rows()):
        for row in rows:
            write(row)
        write("")


if __name__ == "__main__":
    main()
