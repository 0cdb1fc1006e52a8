"""The conditions of one clip: loads the engines that make and read them, and fills the clip's store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from . import appearance, conditions, decode, denoise, framing, motion
from .backends import Engines
from .clip_store import ClipStore
from .contract import DIFT_ENSEMBLE, Sizes
from .denoising_step import CONDITION_SOURCES, ClipInputs
from .device import Array, Stream
from .memory import place_conditions
from .noise import NoiseSource, draw_checked
from .settings import Settings
from .types import F32, U8, Conditions, Motion, PointTables, Track


class ClipConditions:
    """Everything that is computed once per clip, from the reference and its track to the denoiser's inputs.

    Args:
        settings: of the run.
        engines: load or answer a network by name.
        sizes: of the engine directory.
        noise: source of all random draws.
        observe: gets intermediate results by name; None where nobody looks, which spares copying them to the host.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        sizes: Sizes,
        noise: NoiseSource,
        observe: Callable[[str, Any], None] | None,
    ) -> None:
        self._settings = settings
        self._engine = engines
        self._opener = engines.opener
        self._stream = self._opener.stream
        self._sizes = sizes
        self._noise = noise
        self._observe = observe

    def open_engines(self) -> denoise.Denoiser:
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

    def place(self, frames: int) -> ClipStore:
        """Allocate a place for the clip's conditions."""
        names = ["pose_latents", *(["motion_features"] if "motion" in self._settings.controls else [])]
        tensors = {name: self._engine(CONDITION_SOURCES[name]).tensor(name) for name in names}
        rows = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items()}
        place, device = self._settings.conditions_memory, self._opener.device
        return place_conditions(place, frames, rows, device, self._sizes.tile)

    def encode_motion(self, reference: U8, track: Track, store: ClipStore) -> None:
        """Both motion fields of every frame, encoded."""
        if "motion" not in self._settings.controls:
            return
        encoder, decoder = self._engine("cmp_image_encoder"), self._engine("cmp_flow_decoder")
        frames = len(track.joints)
        write = store.writer("motion_features", self._stream)
        with closing(motion.MotionFields(reference, track, encoder, decoder)) as fields:
            seen = _SeenFields(fields) if self._observe is not None else None
            conditions.encode_motion(seen or fields, frames, self._engine("motion_encoder"), write)
        if seen is not None and self._observe is not None:
            self._observe("motion", seen.motion())

    def encode_points(self, reference: U8, track: Track, held: ExitStack) -> PointTables | None:
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

    def encode(self, reference: U8, pose_images: U8, store: ClipStore, points: PointTables | None) -> ClipInputs:
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
