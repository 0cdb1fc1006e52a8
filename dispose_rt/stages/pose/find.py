"""Finds everyone's pose in an image."""

from __future__ import annotations

from ...types import U8, Pose
from .detect import PersonDetector
from .estimate import PoseEstimator
from .image import place_image


def find_poses(image: U8, detector: PersonDetector, estimator: PoseEstimator) -> Pose:
    """Detect every person in an image and estimate their poses. The image is uploaded once for both networks.

    Args:
        image: uint8 [H, W, 3], RGB.
        detector: looks first.
        estimator: gets what the detector found, or else the whole image; see `PoseEstimator.estimate`.

    Raises:
        InputError: the image is not such an array.
        EngineError: a network failed, or returned values that are not finite.
    """
    with place_image(image, detector.engine) as pixels:
        boxes_px = detector.detect(pixels)
        return estimator.estimate(pixels if estimator.engine.device is pixels.device else image, boxes_px)
