"""What the kernels' wrappers refuse: arrays of another kind, dtype, shape or device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dispose_rt import kernels
from dispose_rt.device import Array, CpuDevice
from dispose_rt.errors import DeviceError, InputError
from tests.every import every_item

DEVICE = CpuDevice()
STREAM = DEVICE.stream()


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return DEVICE.zeros(shape, dtype, STREAM)


def ints(*shape: int) -> Array:
    return zeros(*shape, dtype="int32")


def levels(*shape: int) -> Array:
    return zeros(*shape, dtype="uint8")


def arguments_of(kernel: str) -> dict[str, Any]:
    """Arguments that the kernel accepts, but for the stream."""
    latents, sums, slots = (6, 4, 3, 5), (2, 6, 4, 3, 5), 4
    tables = [zeros(3, 2) for _ in range(4)]
    taps = {"row_taps": ints(5, 4), "column_taps": ints(6, 4)}
    lines = {"rows": ints(5), "columns": ints(6)}
    arguments: dict[str, dict[str, Any]] = {
        "splat_gaussian_flow": {"positions_px": ints(2, 3, 2), "values_px": zeros(2, 3, 2), "flow": zeros(2, 2, 6, 7)},
        "rasterize_sparse_flow": {
            "positions_px": ints(3, 2),
            "values_px": zeros(2, 3, 2),
            "flow": zeros(2, 2, 6, 7),
            "mask": zeros(2, 2, 6, 7),
        },
        "sample_points": {
            "features": zeros(5, 3, 2),
            "positions_px": ints(3, 2),
            "height": 6,
            "width": 4,
            "samples": zeros(3, 5),
        },
        "scatter_point_features": {
            "cells": ints(2, 4, 8),
            "features": tables,
            "levels": [zeros(2, 2, 4 // factor, 8 // factor) for factor in kernels.POINT_LEVEL_FACTORS],
        },
        "gather_frames": {
            "source": zeros(7, 3, 2, dtype="float16"),
            "slot_frames": ints(slots),
            "target": zeros(slots, 3, 2, dtype="float16"),
        },
        "begin_step": {
            "table": zeros(3, kernels.STEP_COLUMNS),
            "counter": ints(1),
            "timestep": zeros(1),
            "constants": zeros(kernels.STEP_COLUMNS),
        },
        "accumulate_tile": {
            "noise_pred": zeros(2, slots, *latents[1:]),
            "slot_frames": ints(slots),
            "slot_weights": zeros(slots),
            "sums": zeros(*sums),
            "nonfinite": ints(1),
        },
        "guided_euler_step": {
            "latents": zeros(*latents),
            "sums": zeros(*sums),
            "frame_weights": zeros(6),
            "constants": zeros(kernels.STEP_COLUMNS),
            "nonfinite": ints(1),
            "next_input": zeros(*latents),
        },
        "frames_to_u8": {"frames": zeros(2, 3, 4, 5), "pixels": levels(2, 4, 5, 3), "nonfinite": ints(1)},
        "letterbox": {"image": levels(4, 5, 3), "target": zeros(1, 3, 640, 640)},
        "crop_person": {"image": levels(4, 5, 3), **taps, "normalised": zeros(3, 256), "target": zeros(1, 3, 5, 6)},
        "normalize_frames": {"pixels": levels(2, 3, 4, 5), "frames": zeros(2, 3, 4, 5)},
        "resample_flow": {
            "flow": zeros(2, 2, 4, 3),
            **lines,
            "scale_x": 1.5,
            "scale_y": 2.0,
            "target": zeros(2, 2, 5, 6),
        },
        "nearest_image": {"image": levels(4, 5, 3), **lines, "target": zeros(1, 3, 5, 6)},
    }
    return arguments[kernel]


def run(kernel: str, **arguments: Any) -> None:
    getattr(kernels, kernel)(**arguments, stream=STREAM)


KERNELS = sorted(set(kernels.__all__) - {"POINT_LEVEL_FACTORS", "STEP_COLUMNS", "step_table"})
ARRAYS = [
    (kernel, name) for kernel in KERNELS for name, value in arguments_of(kernel).items() if isinstance(value, Array)
]
BREAKERS: dict[str, Callable[[Array], Any]] = {
    "another dtype": lambda array: zeros(*array.shape, dtype="float32" if array.dtype == "int32" else "int32"),
    "another rank": lambda array: array.reshape(1, *array.shape),
    "no dimension": lambda array: array.rows(0, 0).reshape(0),
    "a numpy array": lambda array: array.download(STREAM),
    "nothing": lambda _: None,
}


def test_wrong_arrays_are_refused_by_name() -> None:
    """Every array of every kernel, broken in every way."""
    with every_item() as every:
        for kernel, name in ARRAYS:
            arguments = arguments_of(kernel)
            run(kernel, **arguments)
            for breaker, damage in BREAKERS.items():
                named = f"^{name} is a .*expected" if breaker in ("a numpy array", "nothing") else "is .*expected"
                with every(kernel, name, breaker), pytest.raises(InputError, match=named):
                    run(kernel, **arguments | {name: damage(arguments[name])})
    annotated = [
        (kernel, name)
        for kernel in KERNELS
        for name, parameter in inspect.signature(getattr(kernels, kernel)).parameters.items()
        if parameter.annotation == "Array"
    ]
    assert annotated == ARRAYS


def test_arrays_of_another_device_are_refused() -> None:
    elsewhere = CpuDevice()
    elsewhere.name = "cuda:7"
    with every_item() as every:
        for kernel, name in ARRAYS:
            arguments = arguments_of(kernel)
            array = arguments[name]
            foreign = elsewhere.zeros(array.shape, array.dtype, elsewhere.stream())
            with every(kernel, name), pytest.raises(InputError, match=f"^{name} lies on cuda:7; expected .* cpu$"):
                run(kernel, **arguments | {name: foreign})


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("splat_gaussian_flow", {"values_px": zeros(2, 4, 2)}, r"^values_px .*\[2, 3, 2\]"),
    ("splat_gaussian_flow", {"flow": zeros(3, 2, 6, 7)}, r"^flow .*\[2, 2, height, width\]"),
    ("splat_gaussian_flow", {"flow": zeros(2, 2, 0, 7)}, "0 rows"),
    ("rasterize_sparse_flow", {"mask": zeros(2, 2, 6, 8)}, "^mask"),
    ("rasterize_sparse_flow", {"values_px": zeros(2, 4, 2)}, "^values_px"),
    ("sample_points", {"features": zeros(5, 0, 2)}, "0 rows"),
    ("sample_points", {"height": 0}, "0 rows"),
    ("sample_points", {"width": -1}, "-1 columns"),
    ("sample_points", {"samples": zeros(3, 4)}, "^samples"),
    ("scatter_point_features", {"cells": ints(2, 4, 6)}, "divisible by 4"),
    ("scatter_point_features", {"cells": ints(2, 0, 8)}, "0 rows"),
    ("scatter_point_features", {"features": [zeros(3, 2)] * 3}, "^3 features"),
    ("scatter_point_features", {"levels": [zeros(2, 2, 4, 8)] * 4}, "^level 1 "),
    ("scatter_point_features", {"features": [levels(3, 2)] * 4}, "float32 or float16 or bfloat16"),
    ("scatter_point_features", {"features": [zeros(3, 2, dtype="float16")] * 4}, "^level 0 is float32"),
    ("scatter_point_features", {"features": [*[zeros(3, 2)] * 3, zeros(2, 2)]}, "^features of level 3"),
    ("gather_frames", {"target": zeros(4, 3, 3, dtype="float16")}, r"^target .*\[4, 3, 2\]"),
    ("gather_frames", {"target": zeros(5, 3, 2, dtype="float16")}, r"^target .*\[4, 3, 2\]"),
    ("gather_frames", {"target": zeros(4, 3, 2, dtype="bfloat16")}, "^target is bfloat16.*float16"),
    ("begin_step", {"table": zeros(0, kernels.STEP_COLUMNS)}, "no step"),
    ("begin_step", {"table": zeros(3, kernels.STEP_COLUMNS - 1)}, "^table"),
    ("begin_step", {"counter": ints(2)}, "^counter"),
    ("accumulate_tile", {"noise_pred": zeros(2, 5, 4, 3, 5)}, "^slot_frames"),
    ("accumulate_tile", {"noise_pred": zeros(2, 4, 4, 5, 3)}, "^noise_pred"),
    ("guided_euler_step", {"sums": zeros(2, 5, 4, 3, 5)}, "^sums"),
    ("guided_euler_step", {"frame_weights": zeros(5)}, "^frame_weights"),
    ("guided_euler_step", {"nonfinite": ints(2)}, "^nonfinite"),
    ("frames_to_u8", {"frames": zeros(2, 4, 4, 5)}, "frames, 3, height, width"),
    ("frames_to_u8", {"pixels": levels(2, 5, 4, 3)}, "^pixels"),
    ("letterbox", {"image": levels(0, 5, 3)}, "0 rows"),
    ("letterbox", {"target": zeros(1, 3, 640, 320)}, "^target"),
    ("crop_person", {"image": levels(4, 0, 3)}, "0 columns"),
    ("crop_person", {"row_taps": ints(4, 4)}, "^target"),
    ("normalize_frames", {"frames": zeros(2, 3, 5, 4)}, "^frames"),
    ("resample_flow", {"flow": zeros(2, 2, 0, 3)}, "0 rows"),
    ("resample_flow", {"rows": ints(6)}, "^target"),
    ("nearest_image", {"image": levels(4, 0, 3)}, "0 columns"),
    ("nearest_image", {"columns": ints(5)}, "^target"),
]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with every_item() as every:
        for kernel, changes, message in REFUSALS:
            with every(kernel, *changes, message), pytest.raises(InputError, match=message):
                run(kernel, **arguments_of(kernel) | changes)


def test_schedules_that_cannot_be_stepped_are_refused() -> None:
    schedules: list[tuple[list[float], list[float], str]] = [
        ([1.0], [], "1 sigmas and 0 timesteps"),
        ([1.0, 0.5], [0.1, 0.2], "2 sigmas and 2 timesteps"),
        ([2.0, 0.0, 0.0], [0.1, 0.2], "from sigma 0.0 to 0.0 in step 1"),
        ([2.0, np.nan], [0.1], "from sigma 2.0 to nan"),
        ([np.nan, 1.0], [0.1], "from sigma nan"),
        ([2.0, -1.0], [0.1], "to -1.0"),
    ]
    with every_item() as every:
        for sigmas, timesteps, message in schedules:
            with every(sigmas, timesteps), pytest.raises(InputError, match=message):
                kernels.step_table(np.array(sigmas, np.float32), np.array(timesteps, np.float32), 2.0)


def test_a_capture_refuses_the_letterbox() -> None:
    """It allocates and copies."""
    with pytest.raises(DeviceError, match="cannot be part of a graph"):
        STREAM.capture(lambda: run("letterbox", **arguments_of("letterbox")))
