"""Motion fields of a clip: the trajectory flow of the joints, and the dense flow that CMP propagates from them.

CMP is conditional motion propagation (arXiv:1903.11412); the DisPose paper calls the two the sparse and the dense
motion field. Coordinates are those of the fitted reference image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .backends import Engine
from .contract import CMP_SIZE_PX
from .errors import InputError
from .types import F32, F64, I32, U8, Motion, Track

_NOWHERE = -1
"""A pixel coordinate outside every image: the kernels ignore what sits there."""


@dataclass(frozen=True, eq=False)
class SparseHints:
    """Where the joints of the reference move to, on CMP's 384 x 384 image.

    Attributes:
        positions_px: int32 [18, 2], x and y of the reference's joints.
        flow_px: float32 [frames - 1, 18, 2], displacement of each joint from frame 0 to frame i + 1.
    """

    positions_px: I32
    flow_px: F32

    def rasterize(self, start: int, stop: int) -> tuple[F32, F32]:
        """Rows start..stop as maps: flow and mask, each float32 [stop - start, 2, 384, 384]."""
        return kernels.rasterize_sparse_flow(self.positions_px, self.flow_px[start:stop], CMP_SIZE_PX, CMP_SIZE_PX)


def build_motion(image: U8, track: Track, cmp_image_encoder: Engine, cmp_flow_decoder: Engine) -> Motion:
    """Compute both motion fields of a clip.

    Args:
        image: uint8 [height, width, 3], RGB, the fitted reference.
        track: the followed person; frame 0 is the reference.
        cmp_image_encoder: the "cmp_image_encoder" engine; runs once.
        cmp_flow_decoder: the "cmp_flow_decoder" engine; runs over the frames in batches.

    Raises:
        InputError: the image is not such an array, or a visible joint is not finite.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"the image is {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3]")
    height, width = image.shape[:2]
    trajectory = trajectory_flow(track, height, width)
    features = cmp_image_encoder.run({"image": cmp_image(image)})
    dense = dense_flow(features, sparse_hints(track, height, width), cmp_flow_decoder, height, width)
    return Motion(trajectory, dense)


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


def trajectory_flow(track: Track, height: int, width: int) -> F32:
    """Displacement of the joints from each frame to the next, smoothed by a Gaussian of sigma 20 px.

    A joint writes at its truncated position in the earlier frame, if it is visible there; at one pixel the joint of
    the highest index wins. A joint that is missing in the later frame only points to (0, 0): the reference code's
    behaviour, which the motion encoder was trained with.

    Returns:
        float32 [frames - 1, 2, height, width], in pixels.
    """
    joints_px = joint_tracks_px(track, height, width)
    positions = np.where(track.visible[:-1, :, None], joints_px[:-1], _NOWHERE)
    return kernels.splat_gaussian_flow(
        positions.astype(np.int32), np.diff(joints_px, axis=0).astype(np.float32), height, width
    )


def sparse_hints(track: Track, height: int, width: int) -> SparseHints:
    """Displacement of the joints from the reference to each frame, on CMP's 384 x 384 image.

    Missing joints are not left out: as in the reference code they lie at (0, 0), in the reference and in the frames.
    """
    joints_px = joint_tracks_px(track, height, width) / (width, height) * (CMP_SIZE_PX, CMP_SIZE_PX)
    return SparseHints(joints_px[0].astype(np.int32), (joints_px[1:] - joints_px[0]).astype(np.float32))


def cmp_image(image: U8) -> F32:
    """Resize the reference to CMP's size by taking the nearest pixel, and map 0..255 to -1..1.

    Args:
        image: uint8 [height, width, 3], RGB.

    Returns:
        float32 [1, 3, 384, 384].
    """
    rows, columns = (_nearest(length, CMP_SIZE_PX) for length in image.shape[:2])
    pixels = image[rows[:, None], columns].astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((pixels * 2 - 1).transpose(2, 0, 1)[None])


def dense_flow(
    features: Mapping[str, NDArray[np.generic]], hints: SparseHints, cmp_flow_decoder: Engine, height: int, width: int
) -> F32:
    """Propagate the hints to every pixel, and bring the flow to the size and the units of the image.

    Args:
        features: the outputs of the CMP image encoder.
        hints: of the whole clip.
        cmp_flow_decoder: the "cmp_flow_decoder" engine; gets as many frames at a time as it takes.
        height: rows of the result.
        width: columns of the result.

    Returns:
        float32 [frames - 1, 2, height, width], in pixels.
    """
    frames, limit = len(hints.flow_px), cmp_flow_decoder.max_batch("frames")
    rows, columns = _nearest(CMP_SIZE_PX, height), _nearest(CMP_SIZE_PX, width)
    scale = np.array([width / CMP_SIZE_PX, height / CMP_SIZE_PX], np.float32)[:, None, None]
    flow = np.empty((frames, 2, height, width), np.float32)
    for start in range(0, frames, limit):
        stop = min(start + limit, frames)
        sparse_flow, mask = hints.rasterize(start, stop)
        answer = cmp_flow_decoder.run({**features, "sparse_flow": sparse_flow, "mask": mask})["flow"]
        np.multiply(answer[:, :, rows[:, None], columns], scale, out=flow[start:stop])
    return flow


def _nearest(length: int, target: int) -> NDArray[np.int64]:
    """Source index of every pixel when `length` pixels are resized to `target` by the nearest one, rounding down.

    Computed in single precision as torch's interpolate does it, which at some sizes (448 to 384, say) falls short of a
    whole number and takes the pixel before.
    """
    positions = np.arange(target, dtype=np.float32) * np.float32(length / target)
    return np.minimum(positions.astype(np.int64), length - 1)
