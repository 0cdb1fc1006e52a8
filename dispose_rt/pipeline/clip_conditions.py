"""The conditions of one clip: loads the engines that make and read them, and fills the clip's store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np

from ..clip.plan import FreeMemory, place_conditions, plan_run
from ..clip.store import ClipStore
from ..contract import DIFT_ENSEMBLE, Sizes
from ..device import Array, Stream
from ..engines.open import Engines
from ..hooks.observer import Observer, is_wanted
from ..hooks.progress import Progress
from ..noise import NoiseSource, draw_checked
from ..settings import Settings
from ..stages import appearance, conditions, decode, framing, motion, pose
from ..stages.denoise import loop as denoise
from ..stages.denoise.step import CONDITION_SOURCES, ClipInputs
from ..types import F32, U8, Conditions, Motion, PointTables, Pose, Track


class ClipConditions:
    """Everything that is computed once per clip, from the reference and its track to the denoiser's inputs.

    Args:
        settings: of the run.
        engines: load or answer a network by name.
        sizes: of the engine directory.
        noise: source of all random draws.
        progress: gets ticks: networks for "load", frames for "motion" and "conditions", 1 for "appearance".
        observer: gets intermediate results; what it does not look at is not copied to the host, let alone kept.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        sizes: Sizes,
        noise: NoiseSource,
        progress: Progress,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._engine = engines
        self._loader = engines.loader
        self._stream = self._loader.stream
        self._sizes = sizes
        self._noise = noise
        self._progress = progress
        self._observer = observer

    def open_engines(self) -> denoise.Denoiser:
        """Load what the rest of the run needs, with its tensors: what is free afterwards is free for conditions."""
        controls = self._settings.controls
        names = ["image_encoder", "vae_encoder", "pose_net"]
        names += ["cmp_image_encoder", "cmp_flow_decoder", "motion_encoder"] if "motion" in controls else []
        names += ["dift", "point_encoder"] if "points" in controls else []
        denoising = ["controlnet", "unet"] if controls else ["unet"]
        tick = self._tick("load", len(denoising) + 1 + len(names))
        for done, name in enumerate(denoising, 1):
            self._engine(name)
            tick(done)
        denoiser = denoise.Denoiser(
            self._engine("controlnet") if controls else None, self._engine("unet"), self._loader
        )
        denoiser.allocate()
        decode.fit_decoder(self._engine("vae_decoder"), self._settings.decode_chunk, self._sizes.chunk)
        tick(len(denoising) + 1)
        for done, name in enumerate(names, len(denoising) + 2):
            self._engine(name).allocate()
            tick(done)
        return denoiser

    def place(self, frames: int, kept_bytes: int = 0) -> ClipStore:
        """Allocate a place for the clip's conditions.

        Args:
            frames: length of the clip, the reference included.
            kept_bytes: what the caller will keep of every frame on the host: the finished picture, say.

        Raises:
            OutOfMemoryError: the clip does not fit; said before the long work on it.
        """
        names = ["pose_latents", *(["motion_features"] if "motion" in self._settings.controls else [])]
        tensors = {name: self._engine(CONDITION_SOURCES[name]).tensor(name) for name in names}
        rows = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items()}
        place, device = self._settings.conditions_memory, self._loader.device
        plan = plan_run(frames, self._sizes, rows, place, FreeMemory.of(device), kept_bytes)
        return place_conditions(plan, rows, device, self._sizes.tile)

    def encode_motion(self, reference: U8, track: Track, store: ClipStore) -> None:
        """Both motion fields of every frame, encoded."""
        if "motion" not in self._settings.controls:
            return
        encoder, decoder = self._engine("cmp_image_encoder"), self._engine("cmp_flow_decoder")
        fields = motion.MotionFields(reference, track, encoder, decoder)
        shown = _ShownFields(fields, self._observer)
        source = conditions.MotionFeatures(shown, self._engine("motion_encoder"))
        store.fill("motion_features", source, self._stream, self._tick("motion", store.frames))
        if shown.wanted and not store.computes_once:
            deque(store.parts("motion_features", self._stream), maxlen=0)  # shown as they are computed
        shown.finish()

    def _tick(self, stage: str, total: int) -> Callable[[int], None]:
        return lambda done: self._progress.step(stage, done, total)

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
        points = held.enter_context(
            closing(appearance.encode_points(track, embeddings, encoder, sizes.height, sizes.width))
        )
        self._progress.step("appearance", 1, 1)
        return points

    def encode(
        self, reference: U8, aligned: Sequence[Pose], store: ClipStore, points: PointTables | None
    ) -> ClipInputs:
        """Encode everything else that no timestep changes; poses are drawn batch by batch."""
        settings, sizes = self._settings, self._sizes
        seen = framing.roundtrip_truncated(reference)
        source = conditions.PoseLatents(
            lambda frame: pose.draw_pose(aligned[frame], sizes.height, sizes.width),
            len(aligned),
            self._engine("pose_net"),
        )
        store.fill("pose_latents", source, self._stream, self._tick("conditions", store.frames))
        inputs = ClipInputs(
            self._engine("image_encoder").run({"pixel_values": conditions.clip_pixels(seen)})["image_embeds"],
            self._engine("vae_encoder").run({"image": self._noised(seen)})["latents"],
            conditions.added_time_ids(settings.motion_bucket_id, settings.noise_aug_strength),
            store,
            points,
        )
        if is_wanted(self._observer, "conditions"):
            self._observer.conditions(self._download(inputs))
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


class _ShownFields:
    """Shows the motion fields that go by for the first time to an observer."""

    def __init__(self, fields: motion.MotionFields, observer: Observer) -> None:
        self._fields = fields
        self._observer = observer
        self._next = 0
        self._kept: list[Motion] = []
        self._keep = is_wanted(observer, "motion")
        self._show_parts = is_wanted(observer, "motion_part")
        self.wanted = self._keep or self._show_parts

    def fill(self, start: int, stop: int, trajectory: Array, dense: Array, stream: Stream) -> None:
        """See `MotionFields.fill`."""
        self._fields.fill(start, stop, trajectory, dense, stream)
        first = max(start, 1)  # the reference has no motion
        if self.wanted and start == self._next and first < stop:
            part = Motion(trajectory.download(stream)[first - start :], dense.download(stream)[first - start :])
            if self._show_parts:
                self._observer.motion_part(first, part)
            if self._keep:
                self._kept.append(part)
        self._next = max(self._next, stop)

    def finish(self) -> None:
        """Show the fields of the whole clip where that is wanted."""
        if self._keep:
            trajectory, dense = zip(*((part.trajectory_flow, part.dense_flow) for part in self._kept), strict=True)
            self._observer.motion(Motion(np.concatenate(trajectory), np.concatenate(dense)))
            self._kept.clear()

    def close(self) -> None:
        """See `MotionFields.close`."""
        self._fields.close()
