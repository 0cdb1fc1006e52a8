"""One denoising step on the device: everything lies at fixed addresses, and what depends on the number of the step is
read from device memory. So the same queued work serves every step, and can be captured into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ... import kernels
from ...clip.store import CONDITION_SOURCES, ClipStore
from ...contract import NETWORKS, POSE_LEVELS
from ...device import Array, Stream
from ...engines.backends import Engine
from ...errors import EngineError, InputError
from ...types import F32, PointTables
from .scheduler import Schedule
from .tiles import Tile

_SHARED = ("latents", "image_latents", "timestep", "image_embeds", "added_time_ids")
"""Inputs of both networks, which share one array each."""

_RESIDUALS = tuple(tensor.name for tensor in NETWORKS["controlnet"].outputs)


@dataclass(frozen=True, eq=False)
class ClipInputs:
    """The conditions of a clip, as the networks read them.

    Attributes:
        image_embeds: float32 [1, 1, embed].
        image_latents: float32 [1, 4, height/8, width/8].
        added_time_ids: float32 [1, 3].
        store: "pose_latents" and, with motion fields, "motion_features" of every frame.
        points: keypoint correspondence, or None where it is off.
    """

    image_embeds: F32
    image_latents: F32
    added_time_ids: F32
    store: ClipStore
    points: PointTables | None


class DenoisingStep:
    """The arrays of a run and the work of one step on them.

    Of every frame the device holds its latents, their scaled copy and two sums, 64 bytes per 8 x 8 pixels in all, the
    cells of its points, 4 bytes per 16 x 16 pixels, and a few bytes of tables: 600 kB at 1024 x 576.

    Args:
        controlnet: the "controlnet" engine, or None to run the UNet alone (plain MimicMotion).
        unet: the "unet" engine, of the same device; shares tensors with the ControlNet, see `share_tensors`.
        inputs: inputs of the clip.
        tiles: cover every frame; no frame sits in two weighted slots of a tile.
        schedule: sigmas and timesteps.
        guidance_scale: g of u + g (c - u).
        stream: on which all work of the run is queued.

    Raises:
        InputError: the tiles leave a frame out, or name one twice.
        OutOfMemoryError: the device has no room.
    """

    def __init__(
        self,
        controlnet: Engine | None,
        unet: Engine,
        inputs: ClipInputs,
        tiles: Sequence[Tile],
        schedule: Schedule,
        guidance_scale: float,
        stream: Stream,
    ) -> None:
        self._controlnet = controlnet
        self._unet = unet
        self._inputs = inputs
        self._stream = stream
        self._arrays: list[Array] = []
        self._frames = inputs.store.frames
        self._first_divisor = schedule.input_divisor(0)
        weights = sum_weights(tiles, self._frames)
        self.tiles = len(tiles)
        try:
            self._slot_frames = self._keep(np.stack([tile.frames for tile in tiles]))
            self._slot_weights = self._keep(np.stack([tile.weights for tile in tiles]))
            self._frame_weights = self._keep(weights)
            self._table = self._keep(kernels.step_table(schedule.sigmas, schedule.timesteps, guidance_scale))
            self._allocate()
            self._fill_constant_inputs()
        except BaseException:
            self.close()
            raise
        inputs.store.plan([tile.frames for tile in tiles], stream)

    def _keep(self, values: np.ndarray) -> Array:
        array = self._stream.device.array(values, self._stream)
        self._arrays.append(array)
        return array

    def _empty(self, shape: Sequence[int], dtype: str = "float32") -> Array:
        array = self._stream.device.empty(shape, dtype)
        self._arrays.append(array)
        return array

    def _allocate(self) -> None:
        _, channels, height, width = self._unet.tensor("latents").shape
        clip = (self._frames, channels, height, width)
        self.latents, self._scaled = self._empty(clip), self._empty(clip)
        self.sums = self._empty((2, *clip))
        self._counter, self.nonfinite = self._empty((1,), "int32"), self._empty((1,), "int32")
        self._constants = self._empty((kernels.STEP_COLUMNS,))
        if self._inputs.points is not None:
            cells = self._inputs.points.cells
            self._cells = self._keep(cells)
            self._tile_cells = self._empty((self._slot_frames.shape[1], *cells.shape[1:]), "int32")

    def _fill_constant_inputs(self) -> None:
        """Fill the inputs that no step changes, with zeros for signals that are off."""
        unet, controlnet, inputs = self._unet, self._controlnet, self._inputs
        if controlnet is None:
            for name in _RESIDUALS:  # what an absent ControlNet adds
                unet.tensor(name).clear(self._stream)
        else:
            if "motion_features" not in self._targets():
                controlnet.tensor("motion_features").clear(self._stream)
            if inputs.points is None:
                for level in self._point_levels():
                    level.clear(self._stream)
        for name, values in (
            ("image_embeds", inputs.image_embeds),
            ("image_latents", inputs.image_latents),
            ("added_time_ids", inputs.added_time_ids),
        ):
            unet.tensor(name).upload(values, self._stream)

    def _targets(self) -> dict[str, Array]:
        """The engines' inputs that the store fills."""
        targets = {"pose_latents": self._unet.tensor("pose_latents")}
        if self._controlnet is not None and "motion_features" in self._inputs.store.names:
            targets["motion_features"] = self._controlnet.tensor("motion_features")
        return targets

    def _point_levels(self) -> list[Array]:
        assert self._controlnet is not None
        return [self._controlnet.tensor(f"point_features_{level}") for level in range(POSE_LEVELS)]

    def start(self, latents: F32) -> None:
        """Set everything to the first step.

        Args:
            latents: float32 [n, 4, height/8, width/8] at the largest sigma, for every n frames of the clip anew.
        """
        self._upload_repeated(latents, self.latents)
        self._upload_repeated(latents / self._first_divisor, self._scaled)
        self._counter.clear(self._stream)
        self.nonfinite.clear(self._stream)

    def _upload_repeated(self, values: F32, target: Array) -> None:
        period = len(values)
        target.rows(0, period).upload(values, self._stream)
        for start in range(period, self._frames, period):
            stop = min(start + period, self._frames)
            target.rows(start, stop).copy_from(target.rows(0, stop - start), self._stream)

    def queue(self) -> None:
        """Queue the whole step."""
        for tile in range(self.tiles):
            self.queue_inputs(tile)
            self.predict()
            self.queue_outputs(tile)

    def queue_inputs(self, tile: int) -> None:
        """Queue what comes before the networks of a tile, and with the first one what comes before all tiles.

        Args:
            tile: its number; tiles are queued in order.
        """
        if tile == 0:
            self._begin()
        self._gather(tile)

    def queue_outputs(self, tile: int) -> None:
        """Queue what comes after the networks of a tile, and with the last one what comes after all tiles."""
        self._accumulate(tile)
        if tile == self.tiles - 1:
            self._finish()

    def _begin(self) -> None:
        timestep = self._unet.tensor("timestep")
        kernels.begin_step(self._table, self._counter, timestep, self._constants, self._stream)
        self.sums.clear(self._stream)

    def _gather(self, tile: int) -> None:
        """Queue a tile's frames into the engines' inputs."""
        slots, stream = self._row(self._slot_frames, tile), self._stream
        kernels.gather_frames(self._scaled, slots, self._unet.tensor("latents"), stream)
        self._inputs.store.load(tile, slots, self._targets(), stream)
        if self._inputs.points is not None and self._controlnet is not None:
            kernels.gather_frames(self._cells, slots, self._tile_cells, stream)
            kernels.scatter_point_features(self._tile_cells, self._inputs.points.tables, self._point_levels(), stream)

    @staticmethod
    def _row(table: Array, tile: int) -> Array:
        return table.rows(tile, tile + 1).reshape(table.shape[1])

    def predict(self) -> None:
        """Queue the networks."""
        if self._controlnet is not None:
            self._controlnet.enqueue(self._stream)
        self._unet.enqueue(self._stream)

    def _accumulate(self, tile: int) -> None:
        """Queue adding the prediction to the sums over the clip."""
        kernels.accumulate_tile(
            self._unet.tensor("noise_pred"),
            self._row(self._slot_frames, tile),
            self._row(self._slot_weights, tile),
            self.sums,
            self.nonfinite,
            self._stream,
        )

    def _finish(self) -> None:
        """Queue guidance, the Euler step, and the scaling for the next step."""
        kernels.guided_euler_step(
            self.latents, self.sums, self._frame_weights, self._constants, self.nonfinite, self._scaled, self._stream
        )

    @property
    def capturable(self) -> bool:
        """Whether all of it can be part of a graph: conditions in host memory are copied in beside it."""
        return self._inputs.store.on_device

    def download(self) -> tuple[F32, F32]:
        """Copy the sums, [2, frames, 4, h, w], and the latents, [frames, 4, h, w], to the host, waiting for them."""
        return self.sums.download(self._stream), self.latents.download(self._stream)

    def check_conditions(self) -> None:
        """Check the conditions of all frames, waiting for them.

        Raises:
            EngineError: one holds values that are not finite. Names the network that made it.
        """
        store = self._inputs.store
        for name in store.names:
            for part in store.parts(name, self._stream):
                if not np.isfinite(part).all():
                    raise EngineError(
                        f"the network {CONDITION_SOURCES[name]} returned non-finite values: its precision is too small "
                        "for these weights, or what it read was not finite. Build the engines with --precision bf16 or "
                        "fp32."
                    )

    def take_latents(self) -> Array:
        """Return the latents, which the caller frees from now on."""
        self._arrays.remove(self.latents)
        return self.latents

    def close(self) -> None:
        """Free the arrays, after the work on them. Calling it twice is fine."""
        for array in self._arrays:
            array.free()
        self._arrays.clear()


def share_tensors(controlnet: Engine, unet: Engine) -> None:
    """Let both networks read the same arrays, and the UNet what the ControlNet writes. Doing it twice is fine.

    Raises:
        OutOfMemoryError: the device has no room.
    """
    for name in (*_SHARED, *_RESIDUALS):
        unet.bind(name, controlnet.tensor(name))


def sum_weights(tiles: Sequence[Tile], frames: int) -> F32:
    """Sum the tiles' weights per frame.

    Returns:
        float32 [frames], all above 0.

    Raises:
        InputError: a tile names a frame that does not exist or two slots for one, or no tile covers a frame.
    """
    weights = np.zeros(frames, np.float32)
    for tile in tiles:
        used = tile.weights != 0
        shown = tile.frames[used]
        if ((tile.frames < 0) | (tile.frames >= frames)).any() or len(np.unique(shown)) != len(shown):
            raise InputError(f"the slots {tile.frames.tolist()} do not name distinct frames of a clip of {frames}")
        weights[shown] += tile.weights[used]
    if not (weights > 0).all():
        raise InputError(f"no tile covers frames {np.flatnonzero(~(weights > 0)).tolist()}; every frame needs a weight")
    return weights
