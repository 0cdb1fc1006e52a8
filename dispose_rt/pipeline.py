"""One run, from media to frames: wires the stages, which do not know each other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import decode, denoise, framing, media, pose
from .backends import Engines
from .clip_conditions import ClipConditions
from .denoising_step import ClipInputs
from .device import Array
from .errors import InputError, InputWarning, NoPersonError
from .manifest import Manifest
from .memory import MemoryWatch
from .noise import NoiseSource
from .scheduler import karras_schedule
from .settings import Settings
from .tiles import plan_tiles
from .timing import Progress, Stopwatch
from .types import U8, Pose, Track


@dataclass(frozen=True)
class Animation:
    """A finished animation.

    Attributes:
        frames: uint8 [frames, height, width, 3], RGB; the reference frame is dropped.
        fps: frames per second.
        timings: seconds per stage.
        peak_bytes: the most device memory that was in use, see `memory.MemoryWatch`.
    """

    frames: U8
    fps: float
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an H.264 mp4; the file appears only when it is complete.

        Raises:
            InputError: the file cannot be written there.
        """
        return media.write_video(path, self.frames, self.fps)


@dataclass(frozen=True)
class Detected:
    """The followed person, in the reference and in every driving frame."""

    reference: Pose
    frames: list[Pose]
    frame_size_px: tuple[int, int]  # height, width of the driving frames


class Run:
    """The stages of one run.

    Args:
        settings: validated settings.
        engines: load or answer a network by name.
        manifest: of the engine directory.
        noise: source of all random draws.
        progress: gets ticks, and ends the run where the caller asked for it.
        observe: gets intermediate results by name; None where nobody looks, which spares copying them to the host.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        manifest: Manifest,
        noise: NoiseSource,
        progress: Progress,
        observe: Callable[[str, Any], None] | None,
    ) -> None:
        self._settings = settings
        self._engine = engines
        self._manifest = manifest
        self._opener = engines.opener
        self._stream = self._opener.stream
        self._sizes = manifest.sizes
        self._noise = noise
        self._progress = progress
        self._observe = observe
        self._watch = Stopwatch()
        self._memory = MemoryWatch(self._opener.device, engines.used_before_bytes)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage, until the device is done with it."""
        with self._watch.stage(name):
            yield
            self._stream.synchronize()
        self._memory.look()

    def _show(self, name: str, value: Any) -> None:
        if self._observe is not None:
            self._observe(name, value)

    def animate(self, image: U8, video: media.Video, output: str | os.PathLike[str] | None) -> Animation:
        """Run all stages in order."""
        settings, sizes, stage = self._settings, self._sizes, self._stage
        if output is not None:
            media.check_output_path(output)  # before the long run, not after it
        plan_tiles(sizes.tile, sizes.tile, settings.overlap)  # refuses an overlap that the engines' tile cannot have
        decode.check_chunk(settings.decode_chunk, sizes.chunk)
        step = media.frame_step(settings.stride, video.fps)
        fps = settings.fps or video.fps / step
        reference = framing.fit_reference(image, sizes.width, sizes.height)
        self._show("reference", reference)
        clip = ClipConditions(settings, self._engine, sizes, self._noise, self._observe)
        with ExitStack() as held:
            with stage("pose"):
                detected = self._detect(reference, video, step)
                aligned = self._align(detected)
                track = _track(aligned)
                pose_images = np.stack([pose.draw_pose(one, sizes.height, sizes.width) for one in aligned])
                self._show("poses", pose_images)
            with stage("load"):
                denoiser = clip.open_engines()
                store = held.enter_context(closing(clip.place(len(aligned))))
            with stage("motion"):
                clip.encode_motion(reference, track, store)
            with stage("appearance"):
                points = clip.encode_points(reference, track, held)
            with stage("conditions"):
                inputs = clip.encode(reference, pose_images, store, points)
            with stage("denoise"):
                latents = self._denoise(denoiser, inputs, held)
            with stage("decode"):
                frames = self._decode(latents, fps, output)
        return Animation(frames, fps, self._watch.seconds, self._memory.peak_bytes)

    def _detect(self, reference: U8, video: media.Video, step: int) -> Detected:
        """Find the person in the reference and in every driving frame."""
        detector = pose.PersonDetector(self._engine("person_detector"))
        estimator = pose.PoseEstimator(self._engine("pose_estimator"))

        def estimate(image: U8) -> Pose:
            return pose.find_poses(image, detector, estimator)

        [followed] = pose.follow_person([estimate(reference)])
        if not followed.visible.any():
            raise NoPersonError(
                "nobody was found in the reference image; pass a picture that shows one person clearly, from the knees "
                "or feet to the head, upright"
            )
        poses = []
        for frame in video.frames(step):  # one at a time: a long video does not fit into memory
            poses.append(estimate(frame))
            self._show("driving", frame)
            self._progress.step("pose", len(poses), len(poses) + 1)  # how many will come is not known
        self._progress.step("pose", len(poses), len(poses))
        if not poses:
            raise InputError("the video has no frames; pass one that plays")
        poses, missing = pose.fill_missing(pose.follow_person(poses))
        if missing:
            _warn_missing(missing, step)
        return Detected(followed, poses, (video.height, video.width))

    def _align(self, detected: Detected) -> list[Pose]:
        """Move and scale the driving poses onto the reference's body; the reference itself comes first, untouched."""
        size = (self._sizes.height, self._sizes.width)
        alignment = pose.fit_alignment(detected.reference, detected.frames, detected.frame_size_px, size)
        return [detected.reference, *(alignment.apply(one) for one in detected.frames)]

    def _denoise(self, denoiser: denoise.Denoiser, inputs: ClipInputs, held: ExitStack) -> Array:
        settings, sizes, frames = self._settings, self._sizes, inputs.store.frames
        schedule = karras_schedule(settings.steps, self._manifest.scheduler)
        tiles = plan_tiles(frames, sizes.tile, settings.overlap)
        start = denoise.initial_latents(self._noise, schedule, frames, sizes)
        guidance, progress = settings.guidance_scale, self._progress
        latents = denoiser.run(start, inputs, schedule, tiles, guidance, progress, self._observe)
        held.callback(latents.free)
        if self._observe is not None:
            self._observe("latents", latents.download(self._stream))
        return latents

    def _decode(self, latents: Array, fps: float, output: str | os.PathLike[str] | None) -> U8:
        """Decode chunk by chunk; a file is encoded in a thread of its own meanwhile."""
        chunks = []
        total = latents.shape[0] - 1
        done = 0
        decoder = self._engine("vae_decoder")
        with (
            media.open_writer(output, fps, self._sizes.width, self._sizes.height) as write,
            closing(decode.decode_frames(latents, decoder, self._settings.decode_chunk)) as parts,
        ):
            for chunk in parts:
                chunks.append(chunk)
                for frame in chunk:
                    write(frame)
                done += len(chunk)
                self._progress.step("decode", done, total)
        return np.concatenate(chunks)


def _track(aligned: Sequence[Pose]) -> Track:
    return Track(
        joints=np.stack([one.joints[0] for one in aligned]), visible=np.stack([one.visible[0] for one in aligned])
    )


def _warn_missing(missing: Sequence[int], step: int) -> None:
    frames = ", ".join(str(number * step) for number in missing[:20])
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    message = f"nobody was found in the video's frames {frames}{more}; the pose of the nearest frame stands in there"
    warnings.warn(message, InputWarning, stacklevel=2)
