"""Finds persons in an image with DWPose's published YOLOX detector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...device import Array
from ...engines.backends import Engine
from ...kernels.pixels import LETTERBOX_PX, letterbox_ratio
from ...types import F32, F64, U8
from .image import place_image

PERSON_CLASS = 0
SCORE_THRESHOLD = 0.3
OVERLAP_THRESHOLD = 0.45
STRIDES_PX = (8, 16, 32)


class PersonDetector:
    """The person detector of DWPose (yolox_l.onnx) with its letterbox and box decoding.

    Args:
        engine: a loaded "person_detector".

    Attributes:
        engine: as given.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def detect(self, image: U8 | Array) -> F64:
        """Find every person in an image.

        Args:
            image: uint8 [H, W, 3], RGB, on the host or the engine's device. The published pipeline feeds RGB, without
                a swap to BGR.

        Returns:
            float64 [persons, 4], left, top, right, bottom in pixels of the image, best score first; may be empty.

        Raises:
            InputError: the image is not such an array.
            EngineError: the engine failed, or returned values that are not finite.
        """
        with place_image(image, self.engine) as pixels:
            kernels.letterbox(pixels, self.engine.tensor("images"), self.engine.stream)
            self.engine.enqueue(self.engine.stream)
            predictions = self.engine.read_outputs()["output"]
        return decode_boxes(predictions[0], letterbox_ratio(*image.shape[:2]))


def decode_boxes(predictions: NDArray[np.generic], ratio: float) -> F64:
    """Turn the detector's raw output into the boxes of persons.

    Only the person class counts, and one threshold serves for the reference's two (0.1 before the suppression,
    0.3 after it): suppression works per class and downwards in score, so nothing that is dropped here could have
    changed what is kept.

    Args:
        predictions: float32 [8400, 85]: centre x, y and log width, height relative to the cell, objectness, 80 classes.
        ratio: detector pixels per image pixel.

    Returns:
        float64 [persons, 4], left, top, right, bottom in pixels of the image, best score first.
    """
    rows = np.asarray(predictions, dtype=np.float32)
    scores = rows[:, 4] * rows[:, 5 + PERSON_CLASS]
    # The reference compares in double precision: the float32 nearest to 0.3 lies above it and passes.
    candidates = np.flatnonzero(scores.astype(np.float64) > SCORE_THRESHOLD)
    cells = _CELLS[candidates]
    centre: F32 = ((rows[candidates, :2] + cells[:, :2]) * cells[:, 2:]).astype(np.float32)
    half: F32 = (np.exp(rows[candidates, 2:4]) * cells[:, 2:]).astype(np.float32) / np.float32(2)
    boxes: F32 = np.concatenate([centre - half, centre + half], axis=1)
    boxes /= ratio
    return boxes[_suppress(boxes, scores[candidates])].astype(np.float64)


def _cell_table() -> F64:
    """[8400, 3] column, row and stride in pixels of the detector's cells, finest level first, row by row."""
    levels = []
    for stride in STRIDES_PX:
        side = LETTERBOX_PX // stride
        row, column = np.divmod(np.arange(side * side), side)
        levels.append(np.stack([column, row, np.full_like(row, stride)], axis=1))
    return np.concatenate(levels).astype(np.float64)


_CELLS = _cell_table()


def _suppress(boxes: F32, scores: F32) -> list[int]:
    """Greedy non-maximum suppression; indices of the boxes that stay, best first.

    Widths and heights count both border pixels (the +1), as in the reference code.
    """
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    waiting = np.argsort(scores, kind="stable")[::-1]
    kept = []
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        top_left = np.maximum(boxes[best, :2], boxes[waiting, :2])
        bottom_right = np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        shared = np.maximum(np.float32(0), bottom_right - top_left + 1).prod(axis=1)
        overlap = shared / (areas[best] + areas[waiting] - shared)
        waiting = waiting[overlap <= OVERLAP_THRESHOLD]
    return kept
