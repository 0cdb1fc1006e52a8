"""One run, from media to frames: wires the stages, which do not know each other."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from .. import media
from ..animation import Animation as Animation  # noqa: PLC0414 - part of the surface
from ..clip.plan import MemoryWatch, check_length
from ..device import Array
from ..engines.manifest import Manifest
from ..engines.open import Engines
from ..errors import InputWarning
from ..hooks.observer import NO_OBSERVER, Observer, is_wanted
from ..hooks.progress import Progress, Stopwatch
from ..media.sound import has_sound
from ..noise import NoiseSource
from ..settings import Settings
from ..stages import decode, framing, pose
from ..stages.denoise import loop as denoise
from ..stages.denoise.scheduler import karras_schedule
from ..stages.denoise.step import ClipInputs
from ..stages.denoise.tiles import plan_tiles
from ..stages.pose.cache import PoseCache
from ..stages.pose.track import PersonFinder, expected_frames
from ..types import U8, Detected, Pose, Track
from .clip_conditions import ClipConditions

SAME_SPEED = 1e-4
"""Rates that differ less are one: sound is a frame off after minutes only."""

_LOG = logging.getLogger("dispose_rt")


class Run:
    """The stages of one run.

    Args:
        settings: validated settings.
        engines: load or answer a network by name.
        manifest: of the engine directory.
        noise: source of all random draws.
        progress: gets ticks, and ends the run where the caller asked for it.
        observer: gets intermediate results; what it does not look at is not computed.
        pose_cache: remembers the poses of driving videos; None to detect them in every run.

    Attributes:
        frame_count: of the result; 0 until the poses are known.
        time_stamps: of the result, in seconds from the first; None where they are evenly spaced.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        manifest: Manifest,
        noise: NoiseSource,
        progress: Progress,
        observer: Observer = NO_OBSERVER,
        pose_cache: PoseCache | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engines
        self._manifest = manifest
        self._loader = engines.loader
        self._stream = self._loader.stream
        self._sizes = manifest.sizes
        self._noise = noise
        self._progress = progress
        self._observer = observer
        self._pose_cache = pose_cache
        self._watch = Stopwatch()
        self._memory = MemoryWatch(self._loader.device, engines.used_before_bytes)
        self.frame_count = 0
        self.time_stamps: tuple[Fraction, ...] | None = None

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds per stage so far."""
        return self._watch.seconds

    @property
    def peak_bytes(self) -> int:
        """The most device memory that was in use so far."""
        return self._memory.peak_bytes

    @contextmanager
    def _stage(self, name: str, total: int | None = 1) -> Iterator[None]:
        """Time a stage, until the device is done with it, and tell of its beginning and end."""
        with self._watch.stage(name):
            self._progress.begin(name, total)
            yield
            self._stream.synchronize()
            self._progress.end(name)
        self._memory.look()
        _LOG.info("%s: %.2f s", name, self._watch.seconds[name])

    def chunks(
        self,
        image: U8,
        video: media.Video,
        output: str | os.PathLike[str] | None = None,
        audio: Path | None = None,
        kept: bool = False,
    ) -> Generator[U8]:
        """Run all stages in order, decoding as the result is read.

        Args:
            image: uint8 [height, width, 3], RGB, the photo.
            video: the driving video.
            output: a file to write as well, which is complete when the last chunk was taken and more is asked for.
            audio: the file whose sound it gets.
            kept: whether the caller keeps all chunks, for which there has to be room.

        Yields:
            uint8 [n, height, width, 3], RGB.
        """
        settings, sizes = self._settings, self._sizes
        step = media.frame_step(settings.stride, video.fps)
        reference = framing.fit_reference(image, sizes.width, sizes.height)
        self._observer.reference(reference)
        frame_bytes = reference.nbytes if kept else 0
        expected = expected_frames(video, step)
        check_length((expected or 1) + 1, sizes, self._loader.device, frame_bytes)
        with self._stage("pose", expected):
            detected = self._detect(reference, video, step)
            self._observer.detected(detected)
            aligned = self._align(detected)
            self._observer.aligned(aligned)
            if is_wanted(self._observer, "poses"):
                self._observer.poses(np.stack([pose.draw_pose(one, sizes.height, sizes.width) for one in aligned]))
            self.frame_count = len(detected.frames)
            self._progress.end("pose", self.frame_count)
        if settings.fps is None:
            self.time_stamps = detected.time_stamps
        del detected
        fps = settings.fps or video.fps / step
        yield from self._render(reference, aligned, fps, output, audio, frame_bytes)

    def warm_up(self, figure: Pose) -> None:
        """Run every network on a clip of one tile, whose result is of no interest.

        Args:
            figure: a person in fractions of the frame.
        """
        sizes = self._sizes
        grey: U8 = np.full((sizes.height, sizes.width, 3), 127, np.uint8)
        with self._stage("pose"):
            self._finder().estimate(grey)
        for _ in self._render(grey, [figure] * sizes.tile, 24.0, None, None):
            pass

    def _render(
        self,
        reference: U8,
        aligned: list[Pose],
        fps: float,
        output: str | os.PathLike[str] | None,
        audio: Path | None,
        kept_bytes: int = 0,
    ) -> Generator[U8]:
        """Everything after the poses."""
        settings, sizes, stage, frames = self._settings, self._sizes, self._stage, len(aligned)
        clip = ClipConditions(settings, self._engine, sizes, self._noise, self._progress, self._observer)
        track = _track(aligned)
        tiles = plan_tiles(frames, sizes.tile, settings.overlap_in(sizes.tile))
        with ExitStack() as held:
            with stage("load"):
                denoiser = clip.open_engines()
                store = held.enter_context(closing(clip.place(frames, kept_bytes)))
            with stage("motion", frames):
                clip.encode_motion(reference, track, store)
            with stage("appearance"):
                points = clip.encode_points(reference, track, held)
            with stage("conditions", frames):
                inputs = clip.encode(reference, aligned, store, points)
            with stage("denoise", settings.steps * len(tiles)):
                latents = self._denoise(denoiser, inputs, held)
            with stage("decode", frames - 1):
                yield from self._decode(latents, fps, output, audio)

    def _finder(self) -> PersonFinder:
        return PersonFinder(
            self._engine("person_detector"), self._engine("pose_estimator"), self._progress, self._observer
        )

    def _detect(self, reference: U8, video: media.Video, step: int) -> Detected:
        """Find the person in the reference and in every driving frame."""
        finder, cached = self._finder(), None
        if self._pose_cache is not None:
            cached = self._pose_cache.of(video, step, self._manifest, self._loader.device.name)
        return finder.find(reference, video, step, cached)

    def _align(self, detected: Detected) -> list[Pose]:
        """Move and scale the driving poses onto the reference's body; the reference itself comes first, untouched."""
        size = (self._sizes.height, self._sizes.width)
        alignment = pose.fit_alignment(detected.reference, detected.frames, detected.frame_size_px, size)
        return [detected.reference, *(alignment.apply(one) for one in detected.frames)]

    def _denoise(self, denoiser: denoise.Denoiser, inputs: ClipInputs, held: ExitStack) -> Array:
        settings, sizes, frames = self._settings, self._sizes, inputs.store.frames
        schedule = karras_schedule(settings.steps, self._manifest.scheduler)
        tiles = plan_tiles(frames, sizes.tile, settings.overlap_in(sizes.tile))
        start = denoise.initial_latents(self._noise, schedule, frames, sizes)
        guidance, progress = settings.guidance_scale, self._progress
        latents = denoiser.run(start, inputs, schedule, tiles, guidance, progress, self._observer)
        held.callback(latents.free)
        if is_wanted(self._observer, "latents"):
            self._observer.latents(latents.download(self._stream))
        return latents

    def _decode(
        self, latents: Array, fps: float, output: str | os.PathLike[str] | None, audio: Path | None
    ) -> Generator[U8]:
        """Decode chunk by chunk; a file is encoded in a thread of its own meanwhile."""
        done, total = 0, latents.shape[0] - 1
        decoder, chunk_frames = self._engine("vae_decoder"), self._settings.decode_chunk
        with (
            media.open_writer(output, fps, self._sizes.width, self._sizes.height, audio=audio) as write,
            closing(decode.decode_frames(latents, decoder, chunk_frames)) as parts,
        ):
            for chunk in parts:
                for number, frame in enumerate(chunk, done):
                    write(frame, self.time_stamps[number] if self.time_stamps is not None else None)
                done += len(chunk)
                self._progress.step("decode", done, total)
                if len(chunk):  # the first one may hold the dropped reference alone
                    self._observer.frames(chunk)
                    yield chunk


def check_request(settings: Settings, manifest: Manifest, output: str | os.PathLike[str] | None) -> None:
    """Refuse before the long work on it what an engine directory cannot do, or nobody could write.

    Raises:
        InputError: the overlap or the chunk does not suit the engines, or (OutputError) the output cannot be written.
    """
    if output is not None:
        media.check_output_path(output)
    plan_tiles(manifest.sizes.tile, manifest.sizes.tile, settings.overlap_in(manifest.sizes.tile))
    decode.check_chunk(settings.decode_chunk, manifest.sizes.chunk)


def find_audio(video: media.Video, settings: Settings, warn: bool) -> Path | None:
    """Find the file whose sound belongs to the result.

    Args:
        video: the driving video.
        settings: a frame rate of their own changes the speed, so that the sound no longer fits.
        warn: raise an InputWarning where the sound is left out.
    """
    if video.path is None or settings.fps is None:
        return video.path
    fps = video.fps / media.frame_step(settings.stride, video.fps)
    if not video.is_variable and abs(settings.fps / fps - 1) < SAME_SPEED:
        return video.path
    if warn and has_sound(video.path):
        warnings.warn(
            f"the sound of {video.name} is left out: at fps={settings.fps:g} the result has another speed than the "
            f"source, of which {fps:.6g} frames per second are used. Leave fps out to keep speed and sound",
            InputWarning,
            stacklevel=3,
        )
    return None


def _track(aligned: Sequence[Pose]) -> Track:
    return Track(
        joints=np.stack([one.joints[0] for one in aligned]), visible=np.stack([one.visible[0] for one in aligned])
    )
