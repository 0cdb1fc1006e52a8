"""The loops that no engine can express, compiled: typed, checked wrappers over arrays of a device.

The sources are in `kernels/`; the compiled modules take bare addresses, so dtypes, shapes and devices are checked here.
Values are not: they lie on the device. No value makes a kernel touch memory outside its arrays, unless its `Args` say
what the caller has to check on the host. Every kernel writes into arrays that the caller gives, is queued on the
caller's stream, and gathers: the same inputs give the same bits, every run. All but `letterbox` can be captured into a
graph.
"""

from .denoising import STEP_COLUMNS, accumulate_tile, begin_step, gather_frames, guided_euler_step, step_table
from .motion import rasterize_sparse_flow, splat_gaussian_flow
from .pixels import crop_person, frames_to_u8, letterbox, nearest_image, normalize_frames, resample_flow
from .points import POINT_LEVEL_FACTORS, sample_points, scatter_point_features

__all__ = [
    "POINT_LEVEL_FACTORS",
    "STEP_COLUMNS",
    "accumulate_tile",
    "begin_step",
    "crop_person",
    "frames_to_u8",
    "gather_frames",
    "guided_euler_step",
    "letterbox",
    "nearest_image",
    "normalize_frames",
    "rasterize_sparse_flow",
    "resample_flow",
    "sample_points",
    "scatter_point_features",
    "splat_gaussian_flow",
    "step_table",
]
