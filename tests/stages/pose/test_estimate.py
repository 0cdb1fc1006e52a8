"""Keypoints, against the published pose network's."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from dispose_rt.device import Array
from dispose_rt.errors import EngineError
from dispose_rt.stages.pose import PersonDetector, PoseEstimator, find_poses
from dispose_rt.stages.pose.estimate import crop_window, decode_simcc, to_pose
from tests.golden_data import load_golden

from .golden_poses import RecordedEngine, assert_same_pose, estimator_input, read_pose

CASES = tuple(load_golden("dwpose")["cases"])
E2E_CASES = tuple(load_golden("e2e")["cases"])


def case_boxes(case):
    """The stored boxes, or the whole image where the detector found none."""
    arrays = load_golden("dwpose")
    height, width = arrays[f"{case}.image"].shape[:2]
    boxes = arrays[f"{case}.boxes"].reshape(-1, 4)
    return boxes if len(boxes) else np.array([[0.0, 0, width, height]])


@pytest.mark.parametrize("case", CASES)
def test_crops_are_the_published_ones(case):
    arrays = load_golden("dwpose")
    for person, box in enumerate(case_boxes(case)):
        pixels = estimator_input(arrays[f"{case}.image"], box)
        np.testing.assert_array_equal(pixels[0], arrays[f"{case}.pose_input"][person])
        centre_px, size_px = crop_window(box)
        np.testing.assert_array_equal([*centre_px, *size_px], arrays[f"{case}.crop_center_scale"][person])


@pytest.mark.parametrize(
    ("box_px", "crc"),
    [
        ([100.3, 40.7, 233.9, 251.2], 2808885682),
        ([-20.5, -7.25, 119.125, 180.5], 1136411729),
        ([300.1, 100.9, 600.2, 400.3], 1709617977),
        ([0, 0, 480, 270], 513465268),
    ],
)
def test_crops_keep_to_the_fixed_point_rule_of_opencv_410(box_px, crc):
    """The crc32 of cv2.warpAffine of OpenCV 4.10.0 on this image, normalised; OpenCV 5 is up to 4 levels away."""
    y, x, channel = np.mgrid[:270, :480, :3]
    image = ((x * 7 + y * 13 + channel * 50) ^ (x * y // 5)).astype(np.uint8)
    pixels = estimator_input(image, np.array(box_px, dtype=np.float64))
    assert zlib.crc32(pixels.tobytes()) == crc


@pytest.mark.parametrize("case", CASES)
def test_stored_answers_decode_to_the_published_keypoints(case):
    arrays = load_golden("dwpose")
    for person, box in enumerate(case_boxes(case)):
        centre_px, size_px = crop_window(box)
        simcc = arrays[f"{case}.simcc_x"][person], arrays[f"{case}.simcc_y"][person]
        keypoints, scores = decode_simcc(*simcc, centre_px, size_px)
        np.testing.assert_array_equal(keypoints, arrays[f"{case}.keypoints133"][person])
        np.testing.assert_array_equal(scores, arrays[f"{case}.scores133"][person])


@pytest.mark.parametrize("case", CASES)
def test_keypoints_become_the_published_pose(case):
    arrays = load_golden("dwpose")
    height, width = arrays[f"{case}.image"].shape[:2]
    keypoints, scores = arrays[f"{case}.keypoints133"], arrays[f"{case}.scores133"]
    pose = to_pose(keypoints, scores, case_boxes(case), height, width)
    assert_same_pose(pose, read_pose("dwpose", f"{case}."))
    np.testing.assert_array_equal(pose.boxes_px, case_boxes(case))


@pytest.mark.parametrize("case", CASES)
def test_the_estimator_runs_once_per_person(case):
    arrays = load_golden("dwpose")
    simcc = zip(arrays[f"{case}.simcc_x"], arrays[f"{case}.simcc_y"], strict=True)
    engine = RecordedEngine("pose_estimator", [{"simcc_x": x[None], "simcc_y": y[None]} for x, y in simcc])
    pose = PoseEstimator(engine).estimate(arrays[f"{case}.image"], arrays[f"{case}.boxes"].reshape(-1, 4))
    assert_same_pose(pose, read_pose("dwpose", f"{case}."))
    assert not engine.answers
    engine.close()
    assert engine.device.pool.used_bytes == 0


def recorded_engines(case, shared):
    """Detector and estimator with the case's answers, on one device or on two."""
    arrays = load_golden("dwpose")
    detector = RecordedEngine("person_detector", [{"output": arrays[f"{case}.raw_det"]}])
    simcc = zip(arrays[f"{case}.simcc_x"], arrays[f"{case}.simcc_y"], strict=True)
    answers = [{"simcc_x": x[None], "simcc_y": y[None]} for x, y in simcc]
    return detector, RecordedEngine("pose_estimator", answers, detector.stream if shared else None)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_everybody_in_an_image_is_found(case, shared, monkeypatch):
    uploads = []
    upload = Array.upload
    monkeypatch.setattr(
        Array, "upload", lambda array, values, stream: (uploads.append(array.dtype), upload(array, values, stream))
    )
    detector, estimator = recorded_engines(case, shared)
    image = load_golden("dwpose")[f"{case}.image"]
    pose = find_poses(image, PersonDetector(detector), PoseEstimator(estimator))
    assert_same_pose(pose, read_pose("dwpose", f"{case}."))
    np.testing.assert_array_equal(pose.boxes_px, case_boxes(case))
    assert uploads.count("uint8") == (1 if shared else 2)
    detector.close()
    estimator.close()
    assert detector.device.pool.used_bytes == estimator.device.pool.used_bytes == 0


def test_an_estimator_that_answers_nan_is_named():
    engine = RecordedEngine("pose_estimator", [{"simcc_x": 0, "simcc_y": np.nan}])
    with pytest.raises(EngineError, match="pose_estimator returned non-finite values in float32: simcc_y"):
        PoseEstimator(engine).estimate(np.zeros((5, 5, 3), np.uint8), np.zeros((0, 4)))


@pytest.mark.parametrize("case", E2E_CASES)
def test_the_golden_networks_give_the_published_poses(case, detector, estimator):
    arrays = load_golden("e2e")
    count, step = int(arrays[f"{case}.config"][0]), int(arrays[f"{case}.config"][5])
    stored = dict(zip(arrays["drive_frame_index"].tolist(), arrays["drive_frames"], strict=True))
    images = [arrays[f"{case}.ref_crop"], *(stored[number * step] for number in range(count - 1))]
    for row, image in enumerate(images):
        expected = read_pose("e2e", f"{case}.detected_", row)
        check_network_pose(estimator.estimate(image, detector.detect(image)), expected)


def check_network_pose(pose, expected):
    """Measured: no difference. Another CPU may move boxes by 1e-3 pixel, which is 1e-5 of these small frames."""
    assert pose.persons == expected.persons
    np.testing.assert_array_equal(pose.visible, expected.visible)
    for name in ("joints", "faces", "hands", "joint_scores", "face_scores", "hand_scores"):
        np.testing.assert_allclose(getattr(pose, name), getattr(expected, name), rtol=0, atol=1e-5, err_msg=name)


def peaks(*points):
    """SimCC answers with single peaks (bin x, bin y, height x, height y)."""
    x, y = np.full((len(points), 576), -1, np.float32), np.full((len(points), 768), -1, np.float32)
    for point, (at_x, at_y, height_x, height_y) in enumerate(points):
        x[point, at_x], y[point, at_y] = height_x, height_y
    return x, y


def test_bins_are_half_pixels_and_the_lower_maximum_counts():
    keypoints, scores = decode_simcc(
        *peaks((100, 200, 0.9, 0.4), (5, 7, 0.2, 0.6)), np.array([144.0, 192.0]), np.array([288.0, 384.0])
    )
    np.testing.assert_allclose(keypoints, [[50, 100], [2.5, 3.5]], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(scores, np.array([0.4, 0.2], np.float32))


def test_a_point_without_a_positive_score_lies_outside_the_crop():
    keypoints, scores = decode_simcc(
        *peaks((100, 200, 0.9, 0.0), (100, 200, -0.5, 0.5)), np.array([144.0, 192.0]), np.array([288.0, 384.0])
    )
    np.testing.assert_allclose(keypoints, [[-0.5, -0.5]] * 2, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(scores, np.array([0, -0.5], np.float32))


def test_the_first_of_equal_maxima_wins():
    x, y = peaks((40, 60, 0.5, 0.5))
    x[0, 90] = y[0, 90] = 0.5
    keypoints, _ = decode_simcc(x, y, np.array([144.0, 192.0]), np.array([288.0, 384.0]))
    np.testing.assert_allclose(keypoints, [[20, 30]], rtol=0, atol=1e-12)


def whole_body(scores):
    """133 points at (index, 2 * index) pixels of a 100 x 200 frame with the given scores."""
    index = np.arange(133.0)
    keypoints = np.stack([index, 2 * index], axis=1)[None]
    return to_pose(keypoints, np.asarray(scores, np.float32)[None], np.zeros((1, 4)), 200, 100)


def test_joints_are_in_openpose_order_with_the_neck_between_the_shoulders():
    pose = whole_body(np.ones(133))
    order = [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    np.testing.assert_allclose(pose.joints[0], np.array(order)[:, None] / [100, 100], rtol=0, atol=1e-15)
    np.testing.assert_allclose(pose.faces[0, [0, -1], 0], [0.23, 0.90], rtol=0, atol=1e-15)
    np.testing.assert_allclose(pose.hands[:, 0, [0, -1], 0], [[0.91, 1.11], [1.12, 1.32]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("left", "right", "neck"), [(0.31, 0.31, 1), (0.31, 0.29, 0), (0.29, 0.31, 0), (0.1, 0.2, 0)])
def test_the_neck_needs_both_shoulders(left, right, neck):
    scores = np.full(133, 0.2)
    scores[5], scores[6] = left, right
    pose = whole_body(scores)
    assert pose.joint_scores[0, 1] == neck
    assert pose.visible[0, 1] == bool(neck)
    assert pose.joint_scores[0, 0] == np.float32(0.2)


def test_visible_means_above_03_in_double_precision_and_hidden_joints_keep_their_place():
    nearest = np.float32(0.3)  # a little above 0.3
    shown, hidden = whole_body(np.full(133, nearest)), whole_body(np.full(133, np.nextafter(nearest, np.float32(0))))
    assert shown.visible.all()
    assert not hidden.visible.any()
    np.testing.assert_array_equal(shown.joints, hidden.joints)
