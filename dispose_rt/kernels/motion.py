"""Kernels of the motion fields: trajectories to flow."""

from __future__ import annotations

from ..device import Array, Stream
from .call import check_array, check_map, launch


def splat_gaussian_flow(positions_px: Array, values_px: Array, flow: Array, stream: Stream) -> None:
    """Smooth a few flow impulses with a Gaussian of sigma 20 px (199 x 199 taps, sum 1, border reflect-101).

    The Gaussian is separable, so each impulse is a product of two profiles: no filter runs over the image.

    Args:
        positions_px: int32 [frames, impulses, 2], x and y. An impulse outside the image is ignored; of several at one
            pixel the last one counts.
        values_px: float32 [frames, impulses, 2], flow along x and y.
        flow: float32 [frames, 2, height, width]; receives the result, within 1e-6 of the float64 filter for values up
            to the image's size.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("positions_px", positions_px, "int32", ("frames", "impulses", 2), stream)
    frames, impulses, _ = positions_px.shape
    check_array("values_px", values_px, "float32", positions_px.shape, stream)
    check_array("flow", flow, "float32", (frames, 2, "height", "width"), stream)
    check_map(*flow.shape[2:])
    launch("splat_gaussian_flow", stream, positions_px, values_px, flow, frames, impulses, *flow.shape[2:])


def rasterize_sparse_flow(positions_px: Array, values_px: Array, flow: Array, mask: Array, stream: Stream) -> None:
    """Write motion hints into maps that are zero elsewhere.

    Args:
        positions_px: int32 [hints, 2], x and y, the same in every frame. A hint outside the map is ignored; of several
            at one pixel the last one counts.
        values_px: float32 [frames, hints, 2], flow along x and y.
        flow: float32 [frames, 2, height, width]; receives the hints.
        mask: like flow; receives 1 where a hint sits, in both channels.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("positions_px", positions_px, "int32", ("hints", 2), stream)
    hints = positions_px.shape[0]
    check_array("values_px", values_px, "float32", ("frames", hints, 2), stream)
    frames = values_px.shape[0]
    check_array("flow", flow, "float32", (frames, 2, "height", "width"), stream)
    check_map(*flow.shape[2:])
    check_array("mask", mask, "float32", flow.shape, stream)
    launch("rasterize_sparse_flow", stream, positions_px, values_px, flow, mask, frames, hints, *flow.shape[2:])
