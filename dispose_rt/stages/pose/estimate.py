"""Locates 133 keypoints per person with DWPose's published pose network."""

from __future__ import annotations

from contextlib import ExitStack

import cv2
import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...device import Array
from ...engines.backends import Engine
from ...types import F32, F64, I32, U8, Pose
from .image import place_image

INPUT_WIDTH_PX, INPUT_HEIGHT_PX = 288, 384
BOX_MARGIN = 1.25
"""The crop is this much larger than the person's box."""

BINS_PER_PX = 2.0
VISIBLE_SCORE = 0.3

_MEAN_LEVEL = np.array([123.675, 116.28, 103.53])
_STD_LEVEL = np.array([58.395, 57.12, 57.375])
_LEFT_SHOULDER, _RIGHT_SHOULDER = 5, 6
_NECK = 1
#: COCO-WholeBody index of the 18 body joints in OpenPose order; the neck's entry is a placeholder, it is computed
_BODY = np.array([0, 0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3])
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)
#: warpAffine's resolution: positions in 1/1024 pixel are cut to 1/32 pixel, which is the unit of the weights
_POSITIONS_PER_PX, _WEIGHT_ONE = 1024, 32


class PoseEstimator:
    """The whole-body pose network of DWPose (dw-ll_ucoco_384.onnx) with its cropping and decoding.

    Args:
        engine: a loaded "pose_estimator".

    Attributes:
        engine: as given.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def estimate(self, image: U8 | Array, boxes_px: F64) -> Pose:
        """Estimate the pose of every person in an image.

        Args:
            image: uint8 [H, W, 3], RGB, on the host or the engine's device.
            boxes_px: float64 [persons, 4], left, top, right, bottom in pixels. With no box the whole image is taken for
                one person, as the reference does, so the result is never empty; whether anyone was there shows in
                `visible`.

        Returns:
            One pose per box, in the boxes' order.

        Raises:
            InputError: the image is not such an array.
            EngineError: the engine failed, or returned values that are not finite.
        """
        height, width = image.shape[:2]
        boxes = boxes_px if len(boxes_px) else np.array([[0, 0, width, height]], dtype=np.float64)
        with place_image(image, self.engine) as pixels:
            keypoints, scores = zip(*(self._estimate_person(pixels, box) for box in boxes), strict=True)
        return to_pose(np.stack(keypoints), np.stack(scores), boxes, height, width)

    def _estimate_person(self, image: Array, box_px: F64) -> tuple[F64, F32]:
        centre_px, size_px = crop_window(box_px)
        taps = crop_taps(image.shape[0], image.shape[1], centre_px, size_px[0])
        device, stream = self.engine.device, self.engine.stream
        with ExitStack() as arrays:
            tables = []
            for table in (*taps, _NORMALISED):
                tables.append(device.array(table, stream))
                arrays.callback(tables[-1].free)
            rows, columns, normalised = tables
            kernels.crop_person(image, rows, columns, normalised, self.engine.tensor("input"), stream)
            self.engine.enqueue(stream)
            outputs = self.engine.read_outputs()
        return decode_simcc(outputs["simcc_x"][0], outputs["simcc_y"][0], centre_px, size_px)


def crop_window(box_px: F64) -> tuple[F64, F64]:
    """Choose what the pose network sees of a person: the box and a margin, in the shape of the network's input.

    Args:
        box_px: float64 [4], left, top, right, bottom in pixels.

    Returns:
        The crop's centre x, y and its size width, height in pixels of the image, float64 [2] each.
    """
    centre_px = (box_px[:2] + box_px[2:]) * 0.5
    width, height = (box_px[2:] - box_px[:2]) * BOX_MARGIN
    aspect = INPUT_WIDTH_PX / INPUT_HEIGHT_PX
    return centre_px, np.array([width, width / aspect] if width > height * aspect else [height * aspect, height])


def crop_taps(height: int, width: int, centre_px: F64, width_px: float) -> tuple[I32, I32]:
    """Tables for `kernels.crop_person`: which pixels of the image make up the lines and columns of a crop.

    The crop has the pixels of `cv2.warpAffine` of OpenCV 4.10, which the reference was run with: bilinear, black
    outside the image. Later releases compute the weights in floating point and differ by up to 4 levels, so its
    fixed-point rule is written out here. Without rotation it separates into rows and columns, and in integers that is
    exact.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        centre_px: float64 [2], centre of the crop in the image.
        width_px: width of the crop in the image.

    Returns:
        int32 [384, 4] for the lines and int32 [288, 4] for the columns: two pixels within the image and their weights,
        which add up to 32, or less at the border.
    """
    inverse = cv2.invertAffineTransform(_crop_transform(centre_px, width_px)) * _POSITIONS_PER_PX
    # Scale and offset are rounded one by one along x and together along y.
    x = np.rint(inverse[0, 0] * np.arange(INPUT_WIDTH_PX)) + np.rint(inverse[0, 2])
    y = np.rint(inverse[1, 1] * np.arange(INPUT_HEIGHT_PX) + inverse[1, 2])
    return _axis_taps(y, height), _axis_taps(x, width)


def decode_simcc(
    simcc_x: NDArray[np.generic], simcc_y: NDArray[np.generic], centre_px: F64, size_px: F64
) -> tuple[F64, F32]:
    """Read keypoints off the network's two one-dimensional distributions per point.

    Args:
        simcc_x: float32 [133, 576], half-pixel bins across the crop.
        simcc_y: float32 [133, 768], half-pixel bins down the crop.
        centre_px: float64 [2], centre of the crop in the image.
        size_px: float64 [2], width and height of the crop in the image.

    Returns:
        float64 [133, 2] positions x, y in pixels of the image, and float32 [133] scores, the lower of both maxima. A
        point with no positive score lies half a crop pixel left of and above the crop.
    """
    bins = np.stack([simcc_x.argmax(axis=1), simcc_y.argmax(axis=1)], axis=1).astype(np.float64)
    scores = np.minimum(simcc_x.max(axis=1), simcc_y.max(axis=1)).astype(np.float32)
    bins[scores <= 0] = -1
    crop_px = np.array([INPUT_WIDTH_PX, INPUT_HEIGHT_PX])
    return bins / BINS_PER_PX / crop_px * size_px + centre_px - size_px / 2, scores


def to_pose(keypoints_px: F64, scores: F32, boxes_px: F64, height: int, width: int) -> Pose:
    """Order COCO-WholeBody keypoints as OpenPose joints, faces and hands, in fractions of the frame.

    The neck is the middle of the shoulders; it is certain if both are visible and hidden otherwise.

    Args:
        keypoints_px: float64 [persons, 133, 2] in pixels of the frame.
        scores: float32 [persons, 133].
        boxes_px: float64 [persons, 4] in pixels of the frame.
        height: height of the frame in pixels.
        width: width of the frame in pixels.

    Returns:
        The pose; a joint is visible if its score is above 0.3.
    """
    keypoints = keypoints_px / np.array([width, height], dtype=np.float64)
    shoulders = [_LEFT_SHOULDER, _RIGHT_SHOULDER]
    joints, joint_scores = keypoints[:, _BODY], scores[:, _BODY]
    # The mean of the pixels, not of the fractions: those may differ in the last bit.
    joints[:, _NECK] = keypoints_px[:, shoulders].mean(axis=1) / [width, height]
    joint_scores[:, _NECK] = _is_visible(scores[:, shoulders]).all(axis=1)
    return Pose(
        joints=joints,
        joint_scores=joint_scores,
        visible=_is_visible(joint_scores),
        faces=keypoints[:, _FACE],
        face_scores=scores[:, _FACE],
        hands=np.stack([keypoints[:, _LEFT_HAND], keypoints[:, _RIGHT_HAND]]),
        hand_scores=np.stack([scores[:, _LEFT_HAND], scores[:, _RIGHT_HAND]]),
        boxes_px=boxes_px,
    )


def _is_visible(scores: F32) -> NDArray[np.bool_]:
    # In double precision, as in the reference: the float32 nearest to 0.3 lies above it.
    return scores.astype(np.float64) > VISIBLE_SCORE


def _normalisation_table() -> F32:
    """[3, 256] normalised value of every level of every channel, computed in double precision like the reference's."""
    table: F64 = (np.arange(256) - _MEAN_LEVEL[:, None]) / _STD_LEVEL[:, None]
    return table.astype(np.float32)


_NORMALISED = _normalisation_table()


def _crop_transform(centre_px: F64, width_px: float) -> F64:
    """Affine map from image to crop, [2, 3], through three point pairs in float32 like the reference's."""
    half_width = INPUT_WIDTH_PX / 2
    centre = centre_px.astype(np.float32)
    above = (centre_px - [0, width_px * 0.5]).astype(np.float32)
    corner = above - [centre[1] - above[1], np.float32(0)]
    target_centre = np.array([half_width, INPUT_HEIGHT_PX / 2])
    target = [target_centre, target_centre - [0, half_width], target_centre - [half_width, half_width]]
    return np.asarray(cv2.getAffineTransform(np.array([centre, above, corner]), np.array(target, dtype=np.float32)))


def _axis_taps(positions: F64, extent: int) -> I32:
    """Two source pixels and their weights for every target pixel along one axis.

    Args:
        positions: [count] whole numbers, source position in 1/1024 pixel.
        extent: source pixels.

    Returns:
        int32 [count, 4]: indices within the source, and weights that add up to 32, or less at the border: pixels
        outside are black.
    """
    step = _POSITIONS_PER_PX // _WEIGHT_ONE
    cut = (positions.astype(np.int64) + step // 2) // step
    whole, fraction = np.divmod(cut, _WEIGHT_ONE)
    taps = np.stack([whole, whole + 1], axis=1)
    weights = np.stack([_WEIGHT_ONE - fraction, fraction], axis=1)
    inside = (taps >= 0) & (taps < extent)
    return np.concatenate([taps.clip(0, extent - 1), np.where(inside, weights, 0)], axis=1).astype(np.int32)
