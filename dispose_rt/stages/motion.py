"""Motion fields of a clip: the trajectory flow of the joints, and the dense flow that CMP propagates from them.

CMP is conditional motion propagation (arXiv:1903.11412); the DisPose paper calls the two the sparse and the dense
motion field. Coordinates are those of the fitted reference image. What is small (joints, tables) is worked out on the
host and uploaded once; pictures, features and flows stay on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..contract import CMP_SIZE_PX, NETWORKS
from ..device import Array, Stream
from ..engines.backends import Engine
from ..errors import InputError
from ..hooks.observer import Observer, is_wanted
from ..types import F32, F64, I32, U8, Motion, Track

_CPU_BATCH = 4
"""Frames of CMP's decoder at once on the CPU. Its pictures have one size, so that a frame takes 0.1 GB there, however
small the engines are."""

_NOWHERE = -1
"""A pixel coordinate outside every image: the kernels ignore what sits there."""


@dataclass(frozen=True, eq=False)
class TrajectoryImpulses:
    """What is smoothed into the trajectory flow; row i moves frame i to frame i + 1.

    Attributes:
        positions_px: int32 [frames - 1, 18, 2], x and y of each joint in frame i; -1 where it is not visible there.
        flow_px: float32 [frames - 1, 18, 2], displacement of each joint from frame i to frame i + 1.
    """

    positions_px: I32
    flow_px: F32


@dataclass(frozen=True, eq=False)
class SparseHints:
    """Where the joints of the reference move to, on CMP's 384 x 384 image.

    Attributes:
        positions_px: int32 [18, 2], x and y of the reference's joints.
        flow_px: float32 [frames - 1, 18, 2], displacement of each joint from frame 0 to frame i + 1.
    """

    positions_px: I32
    flow_px: F32


def joint_tracks_px(track: Track, height: int, width: int) -> F64:
    """Joints in pixels, clamped to the image; a missing joint lies at (0, 0), as in the reference code.

    Returns:
        float64 [frames, 18, 2], x in 0..width - 1 and y in 0..height - 1.

    Raises:
        InputError: a visible joint is not finite.
    """
    track.check_finite()
    size = np.array([width, height])
    joints = np.where(track.visible[..., None], track.joints, 0)
    clamped: F64 = np.clip(joints * size, 0, size - 1)
    return clamped


def trajectory_impulses(track: Track, height: int, width: int) -> TrajectoryImpulses:
    """Displacement of the joints from each frame to the next.

    A joint writes at its truncated position in the earlier frame, if it is visible there; at one pixel the joint of
    the highest index wins. A joint that is missing in the later frame only points to (0, 0): the reference code's
    behaviour, which the motion encoder was trained with.

    Raises:
        InputError: a visible joint is not finite.
    """
    joints_px = joint_tracks_px(track, height, width)
    positions = np.where(track.visible[:-1, :, None], joints_px[:-1], _NOWHERE)
    return TrajectoryImpulses(positions.astype(np.int32), np.diff(joints_px, axis=0).astype(np.float32))


def sparse_hints(track: Track, height: int, width: int) -> SparseHints:
    """Displacement of the joints from the reference to each frame, on CMP's 384 x 384 image.

    Missing joints are not left out: as in the reference code they lie at (0, 0), in the reference and in the frames.

    Raises:
        InputError: a visible joint is not finite.
    """
    joints_px = joint_tracks_px(track, height, width) / (width, height) * (CMP_SIZE_PX, CMP_SIZE_PX)
    return SparseHints(joints_px[0].astype(np.int32), (joints_px[1:] - joints_px[0]).astype(np.float32))


def nearest_table(length: int, target: int) -> I32:
    """Source index of every pixel when `length` pixels are resized to `target` by the nearest one, rounding down.

    Computed in single precision as torch's interpolate does it, which at some sizes (448 to 384, say) falls short of a
    whole number and takes the pixel before.

    Returns:
        int32 [target], 0..length - 1.
    """
    positions = np.arange(target, dtype=np.float32) * np.float32(length / target)
    return np.minimum(positions.astype(np.int32), length - 1).astype(np.int32)


class MotionFields:
    """Both motion fields of a clip, computed range by range where they are read.

    The CMP image encoder runs once, here. Its outputs become the decoder's inputs where they lie, so that it must stay
    open as long as the fields are used.

    Args:
        image: uint8 [height, width, 3], RGB, the fitted reference.
        track: the followed person; frame 0 is the reference.
        cmp_image_encoder: the "cmp_image_encoder" engine; runs once, on its stream.
        cmp_flow_decoder: the "cmp_flow_decoder" engine, of the same device; gets as many frames at a time as it takes.

    Attributes:
        frames: length of the clip, the reference included.

    Raises:
        InputError: the image is not such an array, a visible joint is not finite, or one engine computes in another
            precision than the other.
        OutOfMemoryError: the device has no room.
    """

    def __init__(self, image: U8, track: Track, cmp_image_encoder: Engine, cmp_flow_decoder: Engine) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"the image is {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3]")
        self._height, self._width = height, width = image.shape[:2]
        impulses, hints = trajectory_impulses(track, height, width), sparse_hints(track, height, width)
        self.frames = len(track.joints)
        self._decoder = cmp_flow_decoder
        self._stream = cmp_image_encoder.stream
        self._arrays: list[Array] = []
        try:
            self._encode_image(image, cmp_image_encoder)
            self._joints_px, self._steps_px = self._upload(impulses.positions_px), self._upload(impulses.flow_px)
            self._hints_px, self._hint_flow_px = self._upload(hints.positions_px), self._upload(hints.flow_px)
            self._rows = self._upload(nearest_table(CMP_SIZE_PX, height))
            self._columns = self._upload(nearest_table(CMP_SIZE_PX, width))
        except BaseException:
            self.close()
            raise

    def _upload(self, values: NDArray[Any]) -> Array:
        array = self._stream.device.array(values, self._stream)
        self._arrays.append(array)
        return array

    def _encode_image(self, image: U8, encoder: Engine) -> None:
        """Run the encoder on the reference, resized to CMP's size by the nearest pixel, and lend its outputs."""
        rows, columns = (self._upload(nearest_table(length, CMP_SIZE_PX)) for length in image.shape[:2])
        kernels.nearest_image(self._upload(image), rows, columns, encoder.tensor("image"), self._stream)
        encoder.enqueue(self._stream)
        self.close()  # their next user writes behind the queued work that reads them
        for output in NETWORKS["cmp_image_encoder"].outputs:
            self._decoder.bind(output.name, encoder.tensor(output.name))

    def fill(self, start: int, stop: int, trajectory: Array, dense: Array, stream: Stream) -> None:
        """Queue both fields of some frames of the clip. Waits for nothing, and copies nothing from or to the host.

        Frame 0, the reference, does not move. Frame f has the trajectory flow from frame f - 1 and the dense flow from
        frame 0 to it.

        Args:
            start: first frame.
            stop: behind the last frame.
            trajectory: float32 [stop - start, 2, height, width], pixels, channel 0 = x and 1 = y; is overwritten.
            dense: likewise.
            stream: that of the engines.

        Raises:
            InputError: there are no such frames, or an array has another shape.
            EngineError: the decoder failed.
        """
        if not 0 <= start <= stop <= self.frames:
            raise InputError(f"there are no frames {start}..{stop} in a clip of {self.frames}")
        expected = (stop - start, 2, self._height, self._width)
        for name, array in (("trajectory", trajectory), ("dense", dense)):
            if (array.shape, array.dtype) != (expected, "float32"):
                raise InputError(f"{name} is {array.dtype} {list(array.shape)}; expected float32 {list(expected)}")
        still = 1 if start == 0 and stop > 0 else 0
        if still:
            trajectory.rows(0, 1).clear(stream)
            dense.rows(0, 1).clear(stream)
        first, end = start + still - 1, stop - 1  # rows of what moves frame i to frame i + 1
        if first < end:
            self._fill_trajectory(first, end, trajectory.rows(still, stop - start), stream)
            self._fill_dense(first, end, dense.rows(still, stop - start), stream)

    def _fill_trajectory(self, first: int, end: int, flow: Array, stream: Stream) -> None:
        joints_px, steps_px = self._joints_px.rows(first, end), self._steps_px.rows(first, end)
        kernels.splat_gaussian_flow(joints_px, steps_px, flow, stream)

    def _fill_dense(self, first: int, end: int, flow: Array, stream: Stream) -> None:
        """Propagate the hints to every pixel, and bring the flow to the size and the units of the image."""
        decoder, limit = self._decoder, self._decoder.max_batch("frames")
        if stream.device.synchronous:
            limit = min(limit, _CPU_BATCH)
        scale_x, scale_y = self._width / CMP_SIZE_PX, self._height / CMP_SIZE_PX
        for start in range(first, end, limit):
            count = min(limit, end - start)
            decoder.set_batch(frames=count)
            sparse, mask, flow_px = (decoder.tensor(name).rows(0, count) for name in ("sparse_flow", "mask", "flow"))
            values_px = self._hint_flow_px.rows(start, start + count)
            kernels.rasterize_sparse_flow(self._hints_px, values_px, sparse, mask, stream)
            decoder.enqueue(stream)
            target = flow.rows(start - first, start - first + count)
            kernels.resample_flow(flow_px, self._rows, self._columns, scale_x, scale_y, target, stream)

    def __enter__(self) -> MotionFields:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free what it allocated, behind the queued work that reads it. Calling it twice is fine."""
        for array in self._arrays:
            array.free()
        self._arrays.clear()


class FrameFields(Protocol):
    """Motion fields that are computed where and when they are read."""

    def fill(self, start: int, stop: int, trajectory: Array, dense: Array, stream: Stream) -> None:
        """Queue the fields of frames start..stop - 1, each into float32 [stop - start, 2, height, width]."""

    def close(self) -> None:
        """Free what they hold, behind the queued work that reads it. Calling it twice is fine."""


class ObservedFields:
    """Motion fields that are shown to an observer when they are computed for the first time.

    Args:
        fields: fields of the clip.
        observer: gets "motion_part" and "motion".

    Attributes:
        is_wanted: whether the observer looks at them.
    """

    def __init__(self, fields: FrameFields, observer: Observer) -> None:
        self._fields = fields
        self._observer = observer
        self._next = 0
        self._kept: list[Motion] = []
        self._keeps = is_wanted(observer, "motion")
        self.is_wanted = self._keeps or is_wanted(observer, "motion_part")

    def fill(self, start: int, stop: int, trajectory: Array, dense: Array, stream: Stream) -> None:
        """See `MotionFields.fill`; waits for the fields that are shown."""
        self._fields.fill(start, stop, trajectory, dense, stream)
        first = max(start, 1)  # the reference has no motion
        if self.is_wanted and start == self._next and first < stop:
            part = Motion(trajectory.download(stream)[first - start :], dense.download(stream)[first - start :])
            self._observer.motion_part(first, part)
            if self._keeps:
                self._kept.append(part)
        self._next = max(self._next, stop)

    def finish(self) -> None:
        """Show the fields of the whole clip, once all of them were computed."""
        if self._keeps:
            trajectory, dense = zip(*((part.trajectory_flow, part.dense_flow) for part in self._kept), strict=True)
            self._observer.motion(Motion(np.concatenate(trajectory), np.concatenate(dense)))
            self._kept.clear()

    def close(self) -> None:
        """See `MotionFields.close`."""
        self._fields.close()


class MotionFeatures:
    """The motion encoder's features of the motion fields, which are computed when they are needed.

    Args:
        fields: fields of the clip; frame 0, the reference, has none. They are closed with the features.
        motion_encoder: the "motion_encoder" engine.

    Attributes:
        limit: frames at a time.
    """

    def __init__(self, fields: FrameFields, motion_encoder: Engine) -> None:
        self.limit = motion_encoder.max_batch("frames")
        self._fields = fields
        self._engine = motion_encoder

    def compute(self, start: int, stop: int) -> Array:
        """Queue computing the features of some frames, without waiting.

        Args:
            start: first frame.
            stop: behind the last frame; at most `limit` frames.

        Returns:
            [stop - start, c0, height/8, width/8] in the engine's compute dtype, valid until the next call.

        Raises:
            EngineError: an engine failed.
        """
        engine, count = self._engine, stop - start
        trajectory, dense = (engine.tensor(name).rows(0, count) for name in ("trajectory_flow", "dense_flow"))
        self._fields.fill(start, stop, trajectory, dense, engine.stream)
        engine.set_batch(frames=count)
        engine.enqueue(engine.stream)
        return engine.tensor("motion_features").rows(0, count)

    def close(self) -> None:
        """Close the fields. Calling it twice is fine."""
        self._fields.close()
