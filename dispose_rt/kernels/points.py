"""Kernels of keypoint correspondence: features at joints, sampled and scattered."""

from __future__ import annotations

from collections.abc import Sequence

from ..device import Array, Stream
from ..errors import InputError
from .call import check_array, check_map, launch

POINT_LEVEL_FACTORS = (1, 2, 4, 4)
"""By how much each level of the point features is coarser than the finest one (1/16 of the image)."""

_SCATTER_KERNELS = {
    "float32": "scatter_point_features_f32",
    "float16": "scatter_point_features_f16",
    "bfloat16": "scatter_point_features_bf16",
}


def sample_points(
    features: Array, positions_px: Array, height: int, width: int, samples: Array, stream: Stream
) -> None:
    """Read pixels of a bilinearly enlarged feature map (half-pixel centres) without enlarging it.

    Args:
        features: float32 [channels, source height, source width].
        positions_px: int32 [points, 2], x and y in the enlarged map; a position outside counts as its border.
        height: rows of the enlarged map, at least 1.
        width: columns of the enlarged map, at least 1.
        samples: float32 [points, channels]; receives the result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or a map is empty.
    """
    check_array("features", features, "float32", ("channels", "source height", "source width"), stream)
    channels, source_height, source_width = features.shape
    check_array("positions_px", positions_px, "int32", ("points", 2), stream)
    points = positions_px.shape[0]
    check_array("samples", samples, "float32", (points, channels), stream)
    check_map(source_height, source_width)
    check_map(height, width)
    sizes = (points, channels, source_height, source_width, height, width)
    launch("sample_points", stream, features, positions_px, samples, *sizes)


def scatter_point_features(cells: Array, features: Sequence[Array], levels: Sequence[Array], stream: Stream) -> None:
    """Place one feature vector per group of joints into the four-level pyramid that the ControlNet reads.

    Level 0 has the grid of `cells`. The others are reduced by 2, 4 and 4: bilinear without antialias, then masked by
    the occupancy of each block's first cell, as in the reference.

    Args:
        cells: int32 [frames, rows, columns], the group that sits in a cell or -1; rows and columns divisible by 4. The
            caller checks on the host that all are below the number of groups.
        features: per level [groups, channels of the level], all of one dtype: float32, float16 or bfloat16. Arithmetic
            is float32.
        levels: per level [frames, channels, rows / factor, columns / factor], of the features' dtype; receive the
            result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("cells", cells, "int32", ("frames", "rows", "columns"), stream)
    frames, rows, columns = cells.shape
    check_map(rows, columns)
    for what, arrays in (("features", features), ("levels", levels)):
        if len(arrays) != len(POINT_LEVEL_FACTORS):
            raise InputError(f"{len(arrays)} {what} of point features; expected {len(POINT_LEVEL_FACTORS)}")
    if rows % max(POINT_LEVEL_FACTORS) or columns % max(POINT_LEVEL_FACTORS):
        raise InputError(f"cells has the grid {cells.shape[1:]}; both sides must be divisible by 4")
    check_array("features of level 0", features[0], tuple(_SCATTER_KERNELS), ("groups", "channels"), stream)
    dtype, groups = features[0].dtype, features[0].shape[0]
    for i, (table, level, factor) in enumerate(zip(features, levels, POINT_LEVEL_FACTORS, strict=True)):
        check_array(f"features of level {i}", table, dtype, (groups, "channels"), stream)
        shape = (frames, table.shape[1], rows // factor, columns // factor)
        check_array(f"level {i}", level, dtype, shape, stream)
    channels = [table.shape[1] for table in features]
    launch(_SCATTER_KERNELS[dtype], stream, cells, *features, *levels, frames, rows, columns, *channels)
