"""The person of the driving video: detected frame by frame, or remembered from an earlier run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction

from ...engines.backends import Engine
from ...errors import InputError, InputWarning
from ...hooks.observer import Observer, is_wanted
from ...hooks.progress import Progress
from ...media import Video
from ...settings import LARGEST, PersonChoice
from ...types import U8, Detected, Pose
from .. import pose
from .cache import CachedVideo, FilmedPoses

_LOG = logging.getLogger("dispose_rt")


class PersonFinder:
    """Finds everyone in a picture, and the person to follow in a video.

    Args:
        person_detector: the engine.
        pose_estimator: the engine.
        progress: gets a tick per driving frame.
        observer: gets the driving frames.
    """

    def __init__(self, person_detector: Engine, pose_estimator: Engine, progress: Progress, observer: Observer) -> None:
        self._detector = pose.PersonDetector(person_detector)
        self._estimator = pose.PoseEstimator(pose_estimator)
        self._progress = progress
        self._observer = observer

    def estimate(self, image: U8) -> Pose:
        """Find everyone in a picture."""
        return pose.find_poses(image, self._detector, self._estimator)

    def find(
        self, followed: Pose, video: Video, step: int, cached: CachedVideo | None = None, person: PersonChoice = LARGEST
    ) -> Detected:
        """Find the person in every `step`-th frame of the video.

        Args:
            followed: the person of the photo.
            video: is read frame by frame, unless its poses are remembered and the frames are not observed.
            step: distance between the frames that are used.
            cached: where the poses of such a video are remembered.
            person: who is followed where several are seen.

        Raises:
            NoPersonError: no one is visible in the whole video.
            InputError: the video has no frames, or cannot be read to its end; or it never shows the chosen person.
            EngineError: a network failed.
            Cancelled: the caller asked to stop.
        """
        filmed = self._find_filmed(video, step, cached)
        poses, missing = pose.fill_missing(pose.follow_person(filmed.poses, person))
        if missing:
            _warn_missing([video.first_frame + number * step for number in missing], person)
        boxes_px = tuple(one.boxes_px for one in filmed.poses)
        size_px = (video.height, video.width)
        return Detected(followed, poses, size_px, tuple(missing), boxes_px, filmed.time_stamps)

    def _find_filmed(self, video: Video, step: int, cached: CachedVideo | None) -> FilmedPoses:
        known = None if cached is None else cached.load()
        if known is not None and (known.time_stamps is not None) == video.is_variable:
            _LOG.info("poses of %d frames of %s are remembered", len(known.poses), video.name)
            if not is_wanted(self._observer, "driving"):
                return known
        filmed = self._read(video, step, known)
        if cached is not None and known is None and _is_whole(video, step, len(filmed.poses)):
            cached.store(filmed)
        return filmed

    def _read(self, video: Video, step: int, known: FilmedPoses | None) -> FilmedPoses:
        """Read the video, and estimate the poses that are not known."""
        poses: list[Pose] = []
        times: list[Fraction] = []
        remembered = known.poses if known is not None else ()
        expected = expected_frames(video, step)
        for frame, time_s in _timed(video, step):  # one at a time: a long video does not fit into memory
            poses.append(remembered[len(poses)] if len(poses) < len(remembered) else self.estimate(frame))
            if time_s is not None:
                times.append(time_s)
            self._observer.driving(frame)
            total = None if expected is None or len(poses) > expected else expected
            self._progress.step("pose", len(poses), total)
        if not poses:
            raise InputError("the video has no frames; pass one that plays")
        return FilmedPoses(poses, tuple(times) or None)


def expected_frames(video: Video, step: int) -> int | None:
    """Number of used frames of a video; None where it does not state its length."""
    return None if video.frame_count is None else -(-video.frame_count // step)


def _is_whole(video: Video, step: int, frames: int) -> bool:
    """Truncated videos are not cached, so that the warning repeats."""
    return expected_frames(video, step) in (None, frames)


def _timed(video: Video, step: int) -> Iterator[tuple[U8, Fraction | None]]:
    """Frames with their time stamps; None for frames that are evenly spaced."""
    if video.is_variable:
        yield from video.timed_frames(step)
    else:
        for frame in video.frames(step):
            yield frame, None


def _warn_missing(missing: Sequence[int], person: PersonChoice) -> None:
    frames = ", ".join(str(number) for number in missing[:20])
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    who = "nobody was found in the video's frames"
    if person != LARGEST:
        who = "the chosen person was not found in the video's frames"
    warnings.warn(f"{who} {frames}{more}; the pose of the nearest frame stands in there", InputWarning, stacklevel=2)
