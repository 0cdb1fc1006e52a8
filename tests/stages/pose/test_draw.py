"""Drawn skeletons, pixel for pixel."""

from __future__ import annotations

import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest

from dispose_rt.stages.pose import draw
from dispose_rt.stages.pose.align import fit_alignment
from dispose_rt.stages.pose.draw import _draw_line, draw_pose
from dispose_rt.types import Pose
from tests.golden_data import load_golden

from .golden_poses import read_pose

CASES = tuple(load_golden("pose_align")["cases"])
E2E_CASES = tuple(load_golden("e2e")["cases"])


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_drawn_as_published(case):
    expected = load_golden("pose_align")[f"{case}.ref_drawn"]
    drawn = draw_pose(read_pose("pose_align", f"{case}.ref."), *expected.shape[1:])
    assert drawn.dtype == np.uint8
    assert drawn.flags.c_contiguous
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("case", CASES)
def test_aligned_frames_are_drawn_as_published(case):
    arrays = load_golden("pose_align")
    height, width, _, _, *frame_size = arrays[f"{case}.hw_fps_stride_framehw"].astype(int).tolist()
    frames = [read_pose("pose_align", f"{case}.in{row}.") for row in range(len(arrays[f"{case}.drawn"]))]
    reference = read_pose("pose_align", f"{case}.ref.")
    alignment = fit_alignment(reference, frames, tuple(frame_size), (height, width))
    drawn = [draw_pose(alignment.apply(frame), height, width) for frame in frames]
    np.testing.assert_array_equal(drawn, arrays[f"{case}.drawn"])


@pytest.mark.parametrize("case", E2E_CASES)
def test_the_end_to_end_clips_are_drawn_as_published(case):
    arrays = load_golden("e2e")
    count, _, _, height, width = arrays[f"{case}.config"][:5].tolist()
    reference, *frames = (read_pose("e2e", f"{case}.detected_", row) for row in range(count))
    alignment = fit_alignment(reference, frames, arrays["drive_frames"].shape[1:3], (height, width))
    drawn = [draw_pose(pose, height, width) for pose in (reference, *map(alignment.apply, frames))]
    np.testing.assert_array_equal(drawn, arrays[f"{case}.pose_pixels_u8"])


def scatter(shape: tuple[int, ...], factor: int) -> np.ndarray:
    """Numbers all over 0..1, the same on every machine."""
    return (np.arange(np.prod(shape)) * factor % 1009 / 1009).reshape(shape)


def scattered_pose() -> Pose:
    """Two persons in pieces, within and outside the image."""
    scores = scatter((2, 18), 613).astype(np.float32)
    return Pose(
        joints=(scatter((36, 2), 377) * 1.3 - 0.15).reshape(2, 18, 2),
        joint_scores=scores,
        visible=scores > 0.3,
        faces=scatter((2, 68, 2), 271) * 1.1 - 0.05,
        face_scores=scatter((2, 68), 89).astype(np.float32),
        hands=(scatter((4, 21, 2), 433) * 1.2 - 0.1).reshape(2, 2, 21, 2),
        hand_scores=scatter((4, 21), 739).astype(np.float32).reshape(2, 2, 21),
        boxes_px=np.zeros((2, 4)),
    )


@pytest.mark.parametrize(
    ("height", "width", "crc"), [(192, 128, 2600647851), (576, 1024, 1898180957), (64, 64, 993956929)]
)
def test_persons_who_leave_the_image_are_drawn_as_opencv_410_draws_them(height, width, crc):
    """The crc32 of the published recipe drawn with OpenCV 4.10.0, on which the networks' drawings were made."""
    assert zlib.crc32(draw_pose(scattered_pose(), height, width).tobytes()) == crc


def test_a_drawing_leaves_nothing_for_the_next_one():
    rng, whole = np.random.default_rng(3), scattered_pose()
    for number in range(24):
        shift, size = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.3, 2.0)
        moved = {part: getattr(whole, part) * size + shift for part in ("joints", "hands", "faces")}
        pose = replace(whole, joint_scores=np.ones_like(whole.joint_scores), **moved)
        assert draw_pose(pose, 64, 64 + 64 * (number // 12)).any()
        assert not draw._kept.canvas.any()


@pytest.mark.parametrize(
    ("start", "end", "crc"),
    [
        ((80, 180), (544, 168), 2186144904),
        ((294, 175), (478, 584), 16077848),
        ((475, 52), (236, 682), 4270249805),
        ((20, 30), (200, 90), 3005675884),
        ((7, 7), (7, 7), 3454183259),
        ((300, 450), (300, 900), 3921901819),
    ],
)
def test_lines_are_those_of_opencv_410(start, end, crc):
    """The crc32 of cv2.line(..., thickness=2) of OpenCV 4.10.0; OpenCV 5 turns lines that leave the image."""
    canvas = np.zeros((500, 500, 3), np.uint8)
    _draw_line(canvas, list(start), list(end), [255, 120.4, 0.5])
    assert zlib.crc32(canvas.tobytes()) == crc


def test_lines_within_the_image_are_those_of_any_opencv():
    ours, theirs = np.zeros((2, 400, 400, 3), np.uint8)
    for start, end in np.random.default_rng(0).integers(5, 395, (50, 2, 2)).tolist():
        _draw_line(ours, start, end, [10, 20, 30])
        cv2.line(theirs, start, end, [10, 20, 30], thickness=2)
    np.testing.assert_array_equal(ours, theirs)


def lone_limb(start_score: float, end_score: float) -> np.ndarray:
    """Right upper arm alone on a canvas of 2160 x 2160, nothing visible."""
    joints = np.full((1, 18, 2), -1.0)
    joints[0, 2], joints[0, 3] = (0.3, 0.5), (0.5, 0.5)
    scores = np.zeros((1, 18), np.float32)
    scores[0, 2], scores[0, 3] = start_score, end_score
    pose = Pose(
        joints=joints,
        joint_scores=scores,
        visible=np.zeros((1, 18), np.bool_),
        faces=np.full((1, 68, 2), -1.0),
        face_scores=np.zeros((1, 68), np.float32),
        hands=np.full((2, 1, 21, 2), -1.0),
        hand_scores=np.zeros((2, 1, 21), np.float32),
        boxes_px=np.zeros((1, 4)),
    )
    return draw_pose(pose, 2160, 2160)


def test_a_limb_shines_with_the_product_of_its_scores_at_six_tenths():
    drawn = lone_limb(0.5, 0.75)
    assert drawn[:, 1080, 864].tolist() == [0, int(int(170 * 0.375) * 0.6), int(int(255 * 0.375) * 0.6)]
    assert lone_limb(2.0, 1.0)[2, 1080, 864] == 153  # the network's scores may exceed 1


def test_a_limb_is_an_ellipse_between_its_joints():
    rows, columns = np.nonzero(lone_limb(1, 1)[2])
    assert (rows.min(), rows.max()) == (1076, 1084)
    assert (columns.min(), columns.max()) == (648, 1080)


@pytest.mark.parametrize("scores", [(0.29, 1.0), (1.0, 0.29)])
def test_a_limb_needs_both_joints(scores):
    assert not lone_limb(*scores).any()


def test_no_single_precision_score_is_exactly_on_the_threshold():
    """The reference draws a limb from 0.3 on but hides a joint at 0.3; both mean the same for float32 scores."""
    assert float(np.float32(0.3)) > 0.3
    assert float(np.nextafter(np.float32(0.3), np.float32(0))) < 0.3


def test_hands_and_faces_ignore_scores_below_the_threshold_and_skip_the_first_row_and_column():
    nothing = read_pose("pose_align", "p128x72.ref.")
    nothing = replace(nothing, joint_scores=np.zeros_like(nothing.joint_scores), visible=nothing.visible & False)
    outside = replace(nothing, hands=nothing.hands * 0, faces=nothing.faces * [1, 0])
    assert not draw_pose(outside, 512, 512).any()
    faint = replace(nothing, hand_scores=nothing.hand_scores * 0 + np.float32(0.1), faces=nothing.faces * 0)
    assert draw_pose(faint, 512, 512)[0].max() == int(0.1 * 255)


def test_far_away_points_are_cut_off():
    pose = scattered_pose()
    far = replace(pose, joints=pose.joints * 1e7, faces=pose.faces * 1e7 + 2, hands=pose.hands * 1e7 + 2)
    assert draw_pose(far, 64, 96).shape == (3, 64, 96)
