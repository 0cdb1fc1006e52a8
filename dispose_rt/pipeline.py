"""One run, from media to frames: wires the stages, which do not know each other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import appearance, conditions, decode, denoise, framing, media, motion, pose
from .backends import Engine
from .backends.validation import host_dtype
from .contract import DIFT_ENSEMBLE, NETWORKS
from .errors import InputError, InputWarning, NoPersonError
from .manifest import Manifest
from .noise import NoiseSource, draw_checked
from .scheduler import karras_schedule
from .settings import Settings
from .tiles import plan_tiles
from .timing import Progress, Stopwatch
from .types import F32, U8, Conditions, Features, Motion, Pose, Track


@dataclass(frozen=True)
class Animation:
    """A finished animation.

    Attributes:
        frames: uint8 [frames, height, width, 3], RGB; the reference frame is dropped.
        fps: frames per second.
        timings: seconds per stage.
    """

    frames: U8
    fps: float
    timings: Mapping[str, float] = field(default_factory=dict)

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
    """One call of `Animator.run`; the attributes are its arguments, validated.

    Args:
        settings: validated settings.
        engine: loads or answers a network by name.
        manifest: of the engine directory.
        noise: source of all random draws.
        progress: gets ticks, and ends the run where the caller asked for it.
        observe: gets intermediate results by name.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Callable[[str], Engine],
        manifest: Manifest,
        noise: NoiseSource,
        progress: Progress,
        observe: Callable[[str, Any], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._manifest = manifest
        self._sizes = manifest.sizes
        self._noise = noise
        self._progress = progress
        self._observe = observe
        self._watch = Stopwatch()

    def animate(self, image: U8, video: media.Video, output: str | os.PathLike[str] | None) -> Animation:
        """Run all stages in order."""
        settings, sizes, stage = self._settings, self._sizes, self._watch.stage
        if output is not None:
            media.check_output_path(output)  # before the long run, not after it
        plan_tiles(sizes.tile, sizes.tile, settings.overlap)  # refuses an overlap that the engines' tile cannot have
        step = media.frame_step(settings.stride, video.fps)
        fps = settings.fps or video.fps / step
        reference = framing.fit_reference(image, sizes.width, sizes.height)
        self._observe("reference", reference)
        with stage("pose"):
            detected = self._detect(reference, video, step)
            aligned = self._align(detected)
            track = _track(aligned)
            pose_images = np.stack([pose.draw_pose(one, sizes.height, sizes.width) for one in aligned])
            self._observe("poses", pose_images)
        with stage("motion"):
            moved = self._motion(reference, track)
        with stage("appearance"):
            points = self._points(reference, track)
        with stage("conditions"):
            conditioned = self._conditions(reference, pose_images, moved, points)
            self._observe("conditions", conditioned)
        with stage("denoise"):
            latents = self._denoise(conditioned, len(aligned))
            self._observe("latents", latents)
        with stage("decode"):
            frames = self._decode(latents, fps, output)
        return Animation(frames, fps, self._watch.seconds)

    def _detect(self, reference: U8, video: media.Video, step: int) -> Detected:
        """Find the person in the reference and in every driving frame."""
        detector = pose.PersonDetector(self._engine("person_detector"))
        estimator = pose.PoseEstimator(self._engine("pose_estimator"))

        def estimate(image: U8) -> Pose:
            return estimator.estimate(image, detector.detect(image))

        [followed] = pose.follow_person([estimate(reference)])
        if not followed.visible.any():
            raise NoPersonError(
                "nobody was found in the reference image; pass a picture that shows one person clearly, from the knees "
                "or feet to the head, upright"
            )
        poses = []
        for frame in video.frames(step):  # one at a time: a long video does not fit into memory
            poses.append(estimate(frame))
            self._observe("driving", frame)
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

    def _motion(self, reference: U8, track: Track) -> Motion | None:
        if "motion" not in self._settings.controls:
            return None
        encoder, decoder = self._engine("cmp_image_encoder"), self._engine("cmp_flow_decoder")
        moved = motion.build_motion(reference, track, encoder, decoder)
        self._observe("motion", moved)
        return moved

    def _points(self, reference: U8, track: Track) -> tuple[Features, ...] | None:
        """Keypoint correspondence: DIFT features at the reference's joints, carried to every frame's joints."""
        if "points" not in self._settings.controls:
            return None
        sizes = self._sizes
        noise_shape = (DIFT_ENSEMBLE, 4, sizes.height // 8, sizes.width // 8)
        features = self._engine("dift").run(
            {
                "image": framing.to_signed_unit(reference),
                "posterior_noise": draw_checked(self._noise, "dift_posterior", noise_shape),
                "noise": draw_checked(self._noise, "dift_noise", noise_shape),
            }
        )["features"]
        embeddings = appearance.joint_embeddings(features, track, sizes.height, sizes.width)
        return appearance.point_features(track, embeddings, self._engine("point_encoder"), sizes.height, sizes.width)

    def _conditions(
        self, reference: U8, pose_images: U8, moved: Motion | None, points: tuple[Features, ...] | None
    ) -> Conditions:
        """Encode everything that no timestep changes. A control that is off contributes zeros to the ControlNet."""
        settings, frames = self._settings, len(pose_images)
        seen = framing.roundtrip_truncated(reference)
        pixels = {"pixel_values": conditions.clip_pixels(seen)}
        if moved is None:
            motion_features = self._zeros("motion_features", frames)
        else:
            motion_features = conditions.encode_motion(moved, self._engine("motion_encoder"))
        if points is None:
            points = tuple(self._zeros(f"point_features_{level}", frames) for level in range(4))
        return Conditions(
            image_embeds=self._engine("image_encoder").run(pixels)["image_embeds"],
            image_latents=self._engine("vae_encoder").run({"image": self._noised(seen)})["latents"],
            added_time_ids=conditions.added_time_ids(settings.motion_bucket_id, settings.noise_aug_strength),
            pose_latents=conditions.encode_poses(pose_images, frames, self._engine("pose_net")),
            motion_features=motion_features,
            point_features=points,
        )

    def _noised(self, reference: U8) -> F32:
        """The reference as the VAE encoder takes it, with noise augmentation where it is asked for."""
        image = framing.to_signed_unit(reference)
        strength = self._settings.noise_aug_strength
        if strength:
            image = image + np.float32(strength) * draw_checked(self._noise, "image", image.shape)
        return image

    def _zeros(self, name: str, frames: int) -> Features:
        """What the ControlNet reads for a control that is off."""
        [spec] = [tensor for tensor in NETWORKS["controlnet"].inputs if tensor.name == name]
        shape = self._sizes.resolve(spec.shape)
        return np.zeros((frames, *(int(dim) for dim in shape[1:])), self._compute_dtype("controlnet"))

    def _compute_dtype(self, network: str) -> str:
        """In which a network's "compute" tensors travel: numpy has no bfloat16."""
        return host_dtype(self._manifest.networks[network].compute_dtype)

    def _denoise(self, conditioned: Conditions, frames: int) -> F32:
        settings, sizes = self._settings, self._sizes
        schedule = karras_schedule(settings.steps, self._manifest.scheduler)
        tiles = plan_tiles(frames, sizes.tile, settings.overlap)
        controlnet = self._engine("controlnet") if settings.controls else None
        denoiser = denoise.Denoiser(controlnet, self._engine("unet"), sizes, self._compute_dtype("unet"))
        start = denoise.initial_latents(self._noise, schedule, frames, sizes)
        return denoiser.run(start, conditioned, schedule, tiles, settings.guidance_scale, self._progress, self._observe)

    def _decode(self, latents: F32, fps: float, output: str | os.PathLike[str] | None) -> U8:
        """Decode chunk by chunk; a file is encoded in a thread of its own meanwhile."""
        chunks = []
        total = len(latents) - 1
        done = 0
        with media.open_writer(output, fps, self._sizes.width, self._sizes.height) as write:
            for chunk in decode.decode_frames(latents, self._engine("vae_decoder")):
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
