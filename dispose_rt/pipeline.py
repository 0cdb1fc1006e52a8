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

from . import appearance, conditions, decode, denoise, framing, media, motion, pose
from .backends import Engines
from .clip_store import ClipStore
from .contract import DIFT_ENSEMBLE
from .denoising_step import CONDITION_SOURCES, ClipInputs
from .device import Array, Stream
from .errors import InputError, InputWarning, NoPersonError
from .manifest import Manifest
from .memory import MemoryWatch, place_conditions
from .noise import NoiseSource, draw_checked
from .scheduler import karras_schedule
from .settings import Settings
from .tiles import plan_tiles
from .timing import Progress, Stopwatch
from .types import F32, U8, Conditions, Motion, PointTables, Pose, Track


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
        with ExitStack() as held:
            with stage("pose"):
                detected = self._detect(reference, video, step)
                aligned = self._align(detected)
                track = _track(aligned)
                pose_images = np.stack([pose.draw_pose(one, sizes.height, sizes.width) for one in aligned])
                self._show("poses", pose_images)
            with stage("load"):
                denoiser = self._open_engines()
                store = held.enter_context(closing(self._place(len(aligned))))
            with stage("motion"):
                self._motion(reference, track, store)
            with stage("appearance"):
                points = self._points(reference, track, held)
            with stage("conditions"):
                inputs = self._conditions(reference, pose_images, store, points)
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

    def _open_engines(self) -> denoise.Denoiser:
        """Load what the rest of the run needs, with its tensors: what is free afterwards is free for conditions."""
        controls, engine = self._settings.controls, self._engine
        denoiser = denoise.Denoiser(engine("controlnet") if controls else None, engine("unet"), self._opener)
        denoiser.allocate()
        decode.fit_decoder(engine("vae_decoder"), self._settings.decode_chunk, self._sizes.chunk)
        names = ["image_encoder", "vae_encoder", "pose_net"]
        names += ["cmp_image_encoder", "cmp_flow_decoder", "motion_encoder"] if "motion" in controls else []
        names += ["dift", "point_encoder"] if "points" in controls else []
        for name in names:
            engine(name).allocate()
        return denoiser

    def _place(self, frames: int) -> ClipStore:
        """Allocate a place for the clip's conditions."""
        names = ["pose_latents", *(["motion_features"] if "motion" in self._settings.controls else [])]
        tensors = {name: self._engine(CONDITION_SOURCES[name]).tensor(name) for name in names}
        rows = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items()}
        place, device = self._settings.conditions_memory, self._opener.device
        return place_conditions(place, frames, rows, device, self._sizes.tile)

    def _motion(self, reference: U8, track: Track, store: ClipStore) -> None:
        """Both motion fields of every frame, encoded."""
        if "motion" not in self._settings.controls:
            return
        encoder, decoder = self._engine("cmp_image_encoder"), self._engine("cmp_flow_decoder")
        frames = len(track.joints)
        write = store.writer("motion_features", self._stream)
        with closing(motion.MotionFields(reference, track, encoder, decoder)) as fields:
            seen = _SeenFields(fields) if self._observe is not None else None
            conditions.encode_motion(seen or fields, frames, self._engine("motion_encoder"), write)
        if seen is not None:
            self._show("motion", seen.motion())

    def _points(self, reference: U8, track: Track, held: ExitStack) -> PointTables | None:
        """Keypoint correspondence: DIFT features at the reference's joints, carried to every frame's joints."""
        if "points" not in self._settings.controls:
            return None
        sizes, dift = self._sizes, self._engine("dift")
        noise_shape = (DIFT_ENSEMBLE, 4, sizes.height // 8, sizes.width // 8)
        dift.run(
            {
                "image": framing.to_signed_unit(reference),
                "posterior_noise": draw_checked(self._noise, "dift_posterior", noise_shape),
                "noise": draw_checked(self._noise, "dift_noise", noise_shape),
            }
        )
        embeddings = appearance.joint_embeddings(dift, track, sizes.height, sizes.width)
        encoder = self._engine("point_encoder")
        return held.enter_context(
            closing(appearance.encode_points(track, embeddings, encoder, sizes.height, sizes.width))
        )

    def _conditions(self, reference: U8, pose_images: U8, store: ClipStore, points: PointTables | None) -> ClipInputs:
        """Encode everything else that no timestep changes."""
        settings, frames = self._settings, len(pose_images)
        seen = framing.roundtrip_truncated(reference)
        conditions.encode_poses(
            pose_images, frames, self._engine("pose_net"), store.writer("pose_latents", self._stream)
        )
        inputs = ClipInputs(
            self._engine("image_encoder").run({"pixel_values": conditions.clip_pixels(seen)})["image_embeds"],
            self._engine("vae_encoder").run({"image": self._noised(seen)})["latents"],
            conditions.added_time_ids(settings.motion_bucket_id, settings.noise_aug_strength),
            store,
            points,
        )
        if self._observe is not None:
            self._observe("conditions", self._download(inputs))
        return inputs

    def _download(self, inputs: ClipInputs) -> Conditions:
        """What observers get."""
        store, points = inputs.store, inputs.points
        frames = store.frames
        return Conditions(
            image_embeds=inputs.image_embeds,
            image_latents=inputs.image_latents,
            added_time_ids=inputs.added_time_ids,
            pose_latents=store.download("pose_latents", self._stream),
            motion_features=store.download("motion_features", self._stream)
            if "motion_features" in store.names
            else None,
            point_features=appearance.scatter(points, 0, frames, self._stream) if points is not None else None,
        )

    def _noised(self, reference: U8) -> F32:
        """The reference as the VAE encoder takes it, with noise augmentation where it is asked for."""
        image = framing.to_signed_unit(reference)
        strength = self._settings.noise_aug_strength
        if strength:
            image = image + np.float32(strength) * draw_checked(self._noise, "image", image.shape)
        return image

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


class _SeenFields:
    """Keeps the motion fields that go by, for observers."""

    def __init__(self, fields: motion.MotionFields) -> None:
        self._fields = fields
        self._trajectory: list[F32] = []
        self._dense: list[F32] = []

    def fill(self, start: int, stop: int, trajectory: Array, dense: Array, stream: Stream) -> None:
        """See `MotionFields.fill`."""
        self._fields.fill(start, stop, trajectory, dense, stream)
        first = 1 if start == 0 else 0  # the reference has no motion
        self._trajectory.append(trajectory.download(stream)[first:])
        self._dense.append(dense.download(stream)[first:])

    def motion(self) -> Motion:
        """Of all frames that went by."""
        return Motion(np.concatenate(self._trajectory), np.concatenate(self._dense))


def _track(aligned: Sequence[Pose]) -> Track:
    return Track(
        joints=np.stack([one.joints[0] for one in aligned]), visible=np.stack([one.visible[0] for one in aligned])
    )


def _warn_missing(missing: Sequence[int], step: int) -> None:
    frames = ", ".join(str(number * step) for number in missing[:20])
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    message = f"nobody was found in the video's frames {frames}{more}; the pose of the nearest frame stands in there"
    warnings.warn(message, InputWarning, stacklevel=2)
