"""Follows one person through a clip, where the published pipeline would draw everyone.

The rule: in the first frame that shows anyone, the most prominent person is chosen, by the area of the box times the
mean joint score. From there everyone in view is tracked by position, so that a person who crosses the chosen one's way
claims their own joints, and only the chosen person is passed on. Where the chosen person is out of sight the frame
stays empty; after `PATIENCE_FRAMES` of that, the most prominent person then in view takes over.

A person whom the caller chose is waited for instead, as long as the clip lasts: a figure that appears where that person
was last seen is taken for them, and no other one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, NoPersonError
from ...settings import LARGEST, PersonChoice
from ...types import F64, Bools, Pose

PATIENCE_FRAMES = 10
"""Frames without the chosen person after which another one is followed; other people's tracks end then, too."""

REACH = 0.5
"""Largest mean distance of a person's joints from where they were expected, in body sizes."""

COAST_FRAMES = 3
"""Frames over which a hidden person is expected to keep moving; after that, to stand still."""

MIN_SHARED_JOINTS = 3


def follow_person(poses: Sequence[Pose], choice: PersonChoice = LARGEST, name: str = "the video") -> list[Pose]:
    """Choose a person and keep that person alone in every frame.

    Args:
        poses: the poses of a clip's frames, in order.
        choice: "largest" chooses the most prominent person; a number counts from the left in the first frame that shows
            so many people; a point, (x, y) in fractions of the frame, means the person in or next to whose joints' box
            it lies in the first frame that shows anyone.
        name: what messages call the clip.

    Returns:
        As many poses, each with at most one person. A clip that never shows two persons at once is returned unchanged,
        however far they jump.

    Raises:
        InputError: no frame shows as many people as the number asks for.
    """
    candidates = [[index for index in range(pose.persons) if pose.visible[index].any()] for pose in poses]
    start = None if choice == LARGEST else _find_chosen(poses, candidates, choice, name)
    if all(len(visible) <= 1 for visible in candidates):
        chosen = [visible[0] if visible else None for visible in candidates]
    else:
        chosen = _Follower().choose(poses, candidates, start)
    return [_keep(pose, index) for pose, index in zip(poses, chosen, strict=True)]


def find_again(everyone: Pose, joints: F64, visible: Bools) -> Pose:
    """Keep the person of a picture whose joints lie where they are known to be.

    Args:
        everyone: poses of the picture.
        joints: float64 [18, 2], where the person's joints are, in fractions of the picture.
        visible: bool [18], which of these are known, at least one.

    Returns:
        The same picture with that person alone, or with no one if none is near enough.
    """
    known = _Walker(joints, visible, 0, np.zeros(2))
    candidates = [index for index in range(everyone.persons) if everyone.visible[index].any()]
    distances = {index: known.distance(everyone.joints[index], everyone.visible[index], 0) for index in candidates}
    nearest = min(distances, key=distances.__getitem__, default=None)
    return _keep(everyone, nearest if nearest is not None and distances[nearest] <= REACH else None)


def _find_chosen(
    poses: Sequence[Pose], candidates: Sequence[Sequence[int]], choice: PersonChoice, name: str
) -> tuple[int, int] | None:
    """Frame that decides, and index of the chosen person in it; None where no frame shows anyone."""
    most = max(map(len, candidates), default=0)
    if not most:
        return None
    if isinstance(choice, int):
        if choice >= most:
            people = "1 person" if most == 1 else f"{most} people"
            raise InputError(
                f"{name} shows at most {people} at once, so there is no person {choice}: they are counted from 0, from "
                "left to right. Pass a smaller number, a point, or 'largest'"
            )
        frame = next(number for number, visible in enumerate(candidates) if len(visible) > choice)
        middles = {index: _bounds(poses[frame], index).mean(axis=0)[0] for index in candidates[frame]}
        return frame, sorted(middles, key=middles.__getitem__)[choice]
    frame = next(number for number, visible in enumerate(candidates) if visible)
    point = np.array(choice, np.float64)

    def distance(index: int) -> tuple[float, float]:
        low, high = _bounds(poses[frame], index)
        outside = np.maximum(np.maximum(low - point, point - high), 0)
        return float(np.hypot(*outside)), float(np.hypot(*((low + high) / 2 - point)))

    return frame, min(candidates[frame], key=distance)


def _bounds(pose: Pose, index: int) -> F64:
    """[2, 2] smallest and largest x and y of a person's visible joints."""
    joints = pose.joints[index][pose.visible[index]]
    return np.stack([joints.min(axis=0), joints.max(axis=0)])


def fill_missing(poses: Sequence[Pose]) -> tuple[list[Pose], list[int]]:
    """Give frames in which no one is visible the pose of the nearest frame that shows a person.

    Args:
        poses: the poses of a clip's frames, in order.

    Returns:
        As many poses, and the numbers of the filled frames. Between two equally near frames the earlier one wins.

    Raises:
        NoPersonError: no one is visible in any frame.
    """
    seen = np.array([number for number, pose in enumerate(poses) if pose.visible.any()])
    if not seen.size:
        raise NoPersonError(
            f"nobody was found in any of the {len(poses)} driving frames; use a video that shows a person clearly, "
            "large enough and upright"
        )
    nearest = nearest_frames(seen, len(poses))
    missing = [number for number, source in enumerate(nearest) if source != number]
    return [poses[source] for source in nearest], missing


def nearest_frames(seen: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return, for each of `count` frames, the nearest of the seen ones; the earlier of two equally near ones."""
    numbers = np.arange(count)
    position = np.searchsorted(seen, numbers)
    earlier, later = seen[np.maximum(position - 1, 0)], seen[np.minimum(position, seen.size - 1)]
    return np.where(np.abs(later - numbers) < np.abs(numbers - earlier), later, earlier)


def _keep(pose: Pose, index: int | None) -> Pose:
    """The frame with one person, or with no one."""
    if index is not None:
        return pose if pose.persons == 1 else pose.person(index)
    # For an empty frame the estimator returns a lone figure without a visible joint, which shows no one already.
    return pose if pose.persons <= 1 and not pose.visible.any() else pose.person(pose.persons)


def _prominence(pose: Pose, index: int) -> float:
    left, top, right, bottom = pose.boxes_px[index]
    return float((right - left) * (bottom - top) * pose.joint_scores[index].mean())


@dataclass
class _Walker:
    """One tracked person: where the joints were last seen and how fast they moved, in fractions of the frame."""

    joints: F64  # [18, 2]
    visible: Bools  # [18]
    seen: int
    velocity: F64  # [2] per frame

    def distance(self, joints: F64, visible: Bools, frame: int) -> float:
        """Mean distance of a figure's joints from the expected ones, in body sizes."""
        expected = self.joints + self.velocity * min(frame - self.seen, COAST_FRAMES)
        body = self.joints[self.visible]
        size = float(np.hypot(*np.ptp(body, axis=0))) or 1.0
        return float(np.hypot(*_offsets(expected, self.visible, joints, visible).T).mean()) / size

    def move(self, joints: F64, visible: Bools, frame: int) -> None:
        """Take a figure for this person."""
        step = _offsets(self.joints, self.visible, joints, visible).mean(axis=0)
        self.velocity = step / (frame - self.seen)
        self.joints, self.visible, self.seen = joints, visible, frame


def _offsets(before: F64, before_visible: Bools, after: F64, after_visible: Bools) -> F64:
    """[n, 2] ways of the joints that both figures show, or of their centres if they share too few."""
    shared = before_visible & after_visible
    if np.count_nonzero(shared) >= MIN_SHARED_JOINTS:
        return after[shared] - before[shared]
    centres: F64 = np.stack([before[before_visible].mean(axis=0), after[after_visible].mean(axis=0)])
    return np.diff(centres, axis=0)


class _Follower:
    """Tracks everyone through a clip to know which figure is the chosen person."""

    def __init__(self) -> None:
        self._walkers: list[_Walker] = []
        self._chosen: _Walker | None = None
        self._awaited: _Walker | None = None  # is never given up

    def choose(
        self, poses: Sequence[Pose], candidates: Sequence[Sequence[int]], start: tuple[int, int] | None = None
    ) -> list[int | None]:
        """Index of the chosen person in every frame; None where out of sight.

        Args:
            poses: poses of all frames.
            candidates: indices of the visible people of every frame.
            start: frame and index of the person to follow, also in the frames before; None takes the most prominent
                one, and another one when that one is lost.
        """
        followed: list[tuple[dict[int, _Walker], _Walker | None]] = []
        for frame, (pose, visible) in enumerate(zip(poses, candidates, strict=True)):
            found = self._match(pose, visible, frame)
            self._forget(frame)
            if start is not None and frame == start[0]:
                self._awaited = found[start[1]]
            elif start is None and self._chosen is None and found:
                self._chosen = found[max(found, key=lambda index: _prominence(pose, index))]
            followed.append((found, self._chosen))
        return [
            next((index for index, walker in found.items() if walker is (self._awaited or chosen)), None)
            for found, chosen in followed
        ]

    def _match(self, pose: Pose, visible: Sequence[int], frame: int) -> dict[int, _Walker]:
        """Give every visible figure to the walker that it fits best, closest pairs first, or to a new walker."""
        pairs = sorted(
            (walker.distance(pose.joints[index], pose.visible[index], frame), number, index)
            for number, walker in enumerate(self._walkers)
            for index in visible
        )
        taken: set[int] = set()
        found: dict[int, _Walker] = {}
        for distance, number, index in pairs:
            if distance <= REACH and number not in taken and index not in found:
                taken.add(number)
                found[index] = self._walkers[number]
        for index in visible:
            joints, shown = pose.joints[index], pose.visible[index]
            if index in found:
                found[index].move(joints, shown, frame)
            else:
                found[index] = _Walker(joints, shown, frame, np.zeros(2))
                self._walkers.append(found[index])
        return found

    def _forget(self, frame: int) -> None:
        """End the tracks of people who have been out of sight for too long."""
        self._walkers = [
            walker for walker in self._walkers if frame - walker.seen <= PATIENCE_FRAMES or walker is self._awaited
        ]
        if not any(walker is self._chosen for walker in self._walkers):
            self._chosen = None
