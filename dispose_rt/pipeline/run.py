"""One run, from media to pixels: wires the stages, which do not know each other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from functools import cached_property

import numpy as np

from ..clip.plan import MemoryWatch, check_length, estimate_clip, place_conditions, plan_run
from ..clip.store import ClipStore, Rows, condition_rows
from ..contract import DIFT_ENSEMBLE
from ..device import Array
from ..engines.manifest import Manifest
from ..engines.open import Engines
from ..hooks.observer import NO_OBSERVER, Observer, is_wanted
from ..hooks.progress import Progress, StageTimer
from ..media import Video
from ..noise import NoiseSource, draw_checked
from ..settings import Settings
from ..stages import appearance, conditions, decode, framing, motion, pose
from ..stages.denoise.loop import Denoiser, initial_latents
from ..stages.denoise.scheduler import karras_schedule
from ..stages.denoise.step import ClipInputs
from ..stages.denoise.tiles import Tile, plan_tiles
from ..stages.pose.cache import PoseCache
from ..stages.pose.track import PersonFinder, expected_frames
from ..types import F32, U8, Conditions, Detected, PointTables, Pose, Track
from .loading import RunEngines
from .photo import frame_photo

_LOG = logging.getLogger("dispose_rt")


class Run:
    """The stages of one run.

    Args:
        settings: validated settings.
        engines: engines of one directory; each network is loaded when it is first asked for.
        manifest: manifest of the engine directory.
        noise: source of all random draws.
        progress: gets ticks, and ends the run where the caller asked for it.
        observer: gets intermediate results; what it does not look at is neither computed nor copied to the host.
        pose_cache: remembers the poses of driving videos; None to detect them in every run.
        make_room: frees memory of the device that idle engine directories hold; see `RunEngines`.

    Attributes:
        timer: seconds per stage so far.
        frame_count: length of the result; 0 until the poses are known.
        time_stamps: times of the result's frames, in seconds from the first one, once the poses are known; None where
            they are evenly spaced.
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
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._manifest = manifest
        self._sizes = manifest.sizes
        self._stream = engines.loader.stream
        self._noise = noise
        self._progress = progress
        self._observer = observer
        self._pose_cache = pose_cache
        self._memory = MemoryWatch(engines.loader.device, engines.used_before_bytes)
        self._loading = RunEngines(engines, settings, manifest, progress, make_room)
        self.timer = StageTimer()
        self.frame_count = 0
        self.time_stamps: tuple[Fraction, ...] | None = None

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds per stage so far."""
        return self.timer.seconds

    @property
    def peak_bytes(self) -> int:
        """The most device memory that was in use so far."""
        return self._memory.peak_bytes

    def chunks(self, image: U8, video: Video, step: int, kept: bool = False) -> Generator[U8]:
        """Run all stages in order; the last one decodes as the result is read.

        Args:
            image: uint8 [height, width, 3], RGB, the photo.
            video: the driving video.
            step: distance between the frames of the video that are used.
            kept: whether the caller keeps all chunks, which takes memory of the host.

        Yields:
            uint8 [n, height, width, 3], RGB, without the reference frame.
        """
        sizes = self._sizes
        kept_bytes = sizes.width * sizes.height * 3 if kept else 0
        expected = expected_frames(video, step)
        self._loading.decide(self._least_bytes((expected or 1) + 1))
        check_length((expected or 1) + 1, sizes, self._loading.free_memory(), kept_bytes)
        try:
            yield from self._animate(image, video, step, expected, kept_bytes)
        finally:
            self._loading.finish()

    def _animate(self, image: U8, video: Video, step: int, expected: int | None, kept_bytes: int) -> Generator[U8]:
        """The stages, with the memory planned."""
        with self._stage("pose", expected):
            reference, detected = self._detect(image, video, step)
            aligned = self._align(detected)
            self.frame_count = len(detected.frames)
            self._progress.end("pose", self.frame_count)
        if self._settings.fps is None:
            self.time_stamps = detected.time_stamps
        del detected
        yield from self._render(reference, aligned, kept_bytes)

    def warm_up(self, figure: Pose) -> None:
        """Run every network on a short clip, whose result is discarded.

        On a GPU the clip fills one tile, so that memory is taken and graphs are captured at their largest sizes. The
        CPU has nothing to capture: one frame loads every network and takes its memory.

        Args:
            figure: a person in fractions of the frame.
        """
        sizes = self._sizes
        grey: U8 = np.full((sizes.height, sizes.width, 3), 127, np.uint8)
        frames = 1 if self._stream.device.synchronous else sizes.tile
        self._loading.decide(self._least_bytes(frames))
        try:
            with self._stage("pose"):
                self._finder().estimate(grey)
            for _ in self._render(grey, [figure] * frames):
                pass
        finally:
            self._loading.finish()

    def keeps_all(self) -> bool:
        """Whether every engine fits on the device at once beside what other engine directories hold there."""
        plan = self._loading.propose(self._least_bytes(self._sizes.tile))
        return plan.fits and plan.residency == "all"

    def _least_bytes(self, frames: int) -> int:
        """The least that a clip of that many frames, the reference included, takes of the device."""
        chosen = self._settings.conditions_memory
        place = "recompute" if chosen == "auto" else chosen
        return estimate_clip(frames, self._sizes, self._rows, place).device_bytes

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        """See `condition_rows`."""
        return condition_rows(self._manifest, self._settings.controls)

    def _render(self, reference: U8, aligned: list[Pose], kept_bytes: int = 0) -> Generator[U8]:
        """Everything after the poses."""
        settings, sizes, frames = self._settings, self._sizes, len(aligned)
        track = _track(aligned)
        tiles = plan_tiles(frames, sizes.tile, settings.overlap_in(sizes.tile))
        self._loading.decide(self._least_bytes(frames))
        with ExitStack() as held:
            with ExitStack() as conditions_held:
                with self._stage("load"):
                    store = conditions_held.enter_context(closing(self._place(frames, kept_bytes)))
                with self._stage("motion", frames):
                    self._encode_motion(reference, track, store)
                with self._stage("appearance"):
                    points = self._encode_points(reference, track, conditions_held)
                with self._stage("conditions", frames):
                    inputs = self._encode(reference, aligned, store, points)
                with self._stage("denoise", settings.steps * len(tiles)):
                    latents = self._denoise(self._loading.denoiser(), inputs, tiles, held)
            with self._stage("decode", frames - 1):
                yield from self._decode(latents)

    @contextmanager
    def _stage(self, name: str, total: int | None = 1) -> Iterator[None]:
        """Time a stage until the device is done with it, with its engines; report its beginning and end."""
        with self.timer.stage(name):
            self._progress.begin(name, total)
            self._loading.begin(name)
            yield
            self._stream.synchronize()
            self._progress.end(name)
        self._memory.look()
        _LOG.info("%s: %.2f s", name, self.timer.seconds[name])

    def _tick(self, stage: str, total: int) -> Callable[[int], None]:
        return lambda done: self._progress.step(stage, done, total)

    def _finder(self) -> PersonFinder:
        detector, estimator = self._engines("person_detector"), self._engines("pose_estimator")
        return PersonFinder(detector, estimator, self._progress, self._observer)

    def _detect(self, image: U8, video: Video, step: int) -> tuple[U8, Detected]:
        """Fit the photo to the engines, and find the person in it and in every driving frame."""
        sizes, finder, cached = self._sizes, self._finder(), None
        show = self._observer.reference
        reference, person = frame_photo(image, sizes.width, sizes.height, self._settings, finder, show)
        if self._pose_cache is not None:
            cached = self._pose_cache.of(video, step, self._manifest, self._engines.loader.device.name)
        detected = finder.find(person, video, step, cached, self._settings.person)
        self._observer.detected(detected)
        return reference, detected

    def _align(self, detected: Detected) -> list[Pose]:
        """Move and scale the driving poses onto the reference's body; the reference itself comes first, untouched."""
        height, width, way = self._sizes.height, self._sizes.width, self._settings.alignment
        frames = pose.bridge_gaps(detected.frames, detected.missing, self._settings.bridge_gaps)
        people = (detected.reference, frames, detected.frame_size_px, (height, width))
        alignment = pose.fit_robust(*people) if way == "robust" else pose.fit_alignment(*people)
        aligned = [detected.reference, *(alignment.apply(one) for one in frames)]
        self._observer.aligned(aligned)
        pose.check_drawn(alignment, *people, way)
        if is_wanted(self._observer, "poses"):
            self._observer.poses(np.stack([pose.draw_pose(one, height, width) for one in aligned]))
        return aligned

    def _place(self, frames: int, kept_bytes: int) -> ClipStore:
        """Allocate a place for the clip's conditions; refuses a clip that does not fit, before the long work on it."""
        place, device, rows = self._settings.conditions_memory, self._engines.loader.device, self._rows
        plan = plan_run(frames, self._sizes, rows, place, self._loading.free_memory(), kept_bytes)
        self._loading.recomputes = plan.place == "recompute"
        return place_conditions(plan, rows, device, self._sizes.tile)

    def _encode_motion(self, reference: U8, track: Track, store: ClipStore) -> None:
        """Compute and encode both motion fields of every frame."""
        if "motion" not in self._settings.controls:
            return
        encoder, decoder = self._engines("cmp_image_encoder"), self._engines("cmp_flow_decoder")
        fields = motion.ObservedFields(motion.MotionFields(reference, track, encoder, decoder), self._observer)
        source = motion.MotionFeatures(fields, self._engines("motion_encoder"))
        store.fill("motion_features", source, self._stream, self._tick("motion", store.frames))
        if fields.is_wanted and not store.computes_once:
            deque(store.parts("motion_features", self._stream), maxlen=0)  # shown as they are computed
        fields.finish()

    def _encode_points(self, reference: U8, track: Track, held: ExitStack) -> PointTables | None:
        """Carry the DIFT features at the reference's joints to every frame's joints: keypoint correspondence."""
        if "points" not in self._settings.controls:
            return None
        height, width, dift = self._sizes.height, self._sizes.width, self._engines("dift")
        noise_shape = (DIFT_ENSEMBLE, 4, height // 8, width // 8)
        dift.run(
            {
                "image": framing.to_signed_unit(reference),
                "posterior_noise": draw_checked(self._noise, "dift_posterior", noise_shape),
                "noise": draw_checked(self._noise, "dift_noise", noise_shape),
            }
        )
        embeddings = appearance.joint_embeddings(dift, track, height, width)
        points = appearance.encode_points(track, embeddings, self._engines("point_encoder"), height, width)
        held.enter_context(closing(points))
        self._progress.step("appearance", 1, 1)
        return points

    def _encode(
        self, reference: U8, aligned: Sequence[Pose], store: ClipStore, points: PointTables | None
    ) -> ClipInputs:
        """Encode everything else that no timestep changes; poses are drawn batch by batch."""
        settings, height, width = self._settings, self._sizes.height, self._sizes.width
        seen = framing.roundtrip_truncated(reference)
        source = conditions.PoseLatents(
            lambda frame: pose.draw_pose(aligned[frame], height, width), len(aligned), self._engines("pose_net")
        )
        store.fill("pose_latents", source, self._stream, self._tick("conditions", store.frames))
        inputs = ClipInputs(
            self._engines("image_encoder").run({"pixel_values": conditions.clip_pixels(seen)})["image_embeds"],
            self._engines("vae_encoder").run({"image": self._add_noise(framing.to_signed_unit(seen))})["latents"],
            conditions.added_time_ids(settings.motion_bucket_id, settings.noise_aug_strength),
            store,
            points,
        )
        if is_wanted(self._observer, "conditions"):
            self._observer.conditions(self._download(inputs))
        return inputs

    def _add_noise(self, image: F32) -> F32:
        """Add the noise of the setting `noise_aug_strength` to the photo."""
        strength = self._settings.noise_aug_strength
        return image + np.float32(strength) * draw_checked(self._noise, "image", image.shape) if strength else image

    def _download(self, inputs: ClipInputs) -> Conditions:
        """Copy the conditions to the host, for observers."""
        store, points, stream = inputs.store, inputs.points, self._stream
        has_motion = "motion_features" in store.names
        return Conditions(
            image_embeds=inputs.image_embeds,
            image_latents=inputs.image_latents,
            added_time_ids=inputs.added_time_ids,
            pose_latents=store.download("pose_latents", stream),
            motion_features=store.download("motion_features", stream) if has_motion else None,
            point_features=appearance.scatter(points, 0, store.frames, stream) if points is not None else None,
        )

    def _denoise(self, denoiser: Denoiser, inputs: ClipInputs, tiles: Sequence[Tile], held: ExitStack) -> Array:
        """Denoise the latents of the whole clip."""
        schedule = karras_schedule(self._settings.steps, self._manifest.scheduler)
        start = initial_latents(self._noise, schedule, inputs.store.frames, self._sizes)
        guidance_scale, observer = self._settings.guidance_scale, self._observer
        latents = denoiser.run(start, inputs, schedule, tiles, guidance_scale, self._progress, observer)
        held.callback(latents.free)
        if is_wanted(observer, "latents"):
            observer.latents(latents.download(self._stream))
        return latents

    def _decode(self, latents: Array) -> Generator[U8]:
        """Decode chunk by chunk; the caller works on one while the device decodes the next."""
        done, total = 0, latents.shape[0] - 1
        decoder = self._engines("vae_decoder")
        with closing(decode.decode_frames(latents, decoder, self._settings.decode_chunk)) as chunks:
            for chunk in chunks:
                done += len(chunk)
                self._progress.step("decode", done, total)
                if len(chunk):  # the first one may hold the dropped reference alone
                    self._observer.frames(chunk)
                    yield chunk


def _track(aligned: Sequence[Pose]) -> Track:
    """The first person of every frame."""
    return Track(
        joints=np.stack([one.joints[0] for one in aligned]), visible=np.stack([one.visible[0] for one in aligned])
    )
