"""Short gaps of joints are bridged, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.poses import GAPS, hide_joints, judge_gaps, list_scenes
from dispose_rt.stages.pose.follow import fill_missing
from dispose_rt.stages.pose.gaps import bridge_gaps
from dispose_rt.types import Pose
from tests.every import each, every_item

WRIST, KNEE, NECK, SHOULDERS = 4, 9, 1, [2, 5]


def clip(shown: str, joint: int = WRIST) -> list[Pose]:
    """Frames with one person: "x" shows the joint, "." does not, "-" shows no one. A frame's number is in its pose."""
    poses = []
    for number, mark in enumerate(shown):
        visible = np.full((1, 18), mark != "-")
        visible[0, joint] = mark == "x"
        joints = np.full((1, 18, 2), 0.5)
        joints[0, joint] = (number / 100, number**2 / 1000) if mark == "x" else 0.9
        poses.append(
            Pose(
                joints=joints,
                joint_scores=np.where(visible, 0.4 + number / 100, 0.1).astype(np.float32),
                visible=visible,
                faces=np.full((1, 68, 2), number / 100),
                face_scores=np.zeros((1, 68), np.float32),
                hands=np.full((2, 1, 21, 2), number / 100),
                hand_scores=np.zeros((2, 1, 21), np.float32),
                boxes_px=np.zeros((1, 4)),
            )
        )
    return poses


@each(
    shown__limit__after=[
        ("xx.xx", 1, "xxXxx"),
        ("x..x.x", 1, "x..xXx"),
        ("x..x.x", 2, "xXXxXx"),
        ("x...x", 2, "x...x"),
        (".x.x..", 9, ".xXx.."),
        ("......", 9, "......"),
        ("x.-.x.x", 9, "x.-.xXx"),
        ("x-.x", 9, "x-.x"),
        ("x.-x", 9, "x.-x"),
        ("x.x", 100, "xXx"),
        ("x.x", 0, "x.x"),
    ]
)
def test_gaps_of_at_most_so_many_frames_are_bridged(shown, limit, after):
    frames, missing = fill_missing(clip(shown))
    before = [(pose.joints.copy(), pose.visible.copy()) for pose in frames]
    bridged = bridge_gaps(frames, missing, limit)
    places = np.array([pose.joints[0, WRIST] for pose in bridged])
    for number, mark in enumerate(after):
        if mark == "-":
            continue
        assert bridged[number].visible[0, WRIST] == (mark in "xX")
        assert bridged[number].visible[0, KNEE]
        if mark == "X":
            start, end = shown.rindex("x", 0, number), shown.index("x", number)
            share = (number - start) / (end - start)
            np.testing.assert_allclose(places[number], places[start] * (1 - share) + places[end] * share, atol=1e-12)
            assert bridged[number].joint_scores[0, WRIST] == pytest.approx(0.4 + number / 100)
            assert bridged[number].faces is frames[number].faces
            assert bridged[number].hands is frames[number].hands
            assert np.delete(bridged[number].joints - frames[number].joints, WRIST, axis=1).max() == 0
        else:
            assert bridged[number] is frames[number]
    for pose, (joints, visible) in zip(frames, before, strict=True):  # inputs stay
        np.testing.assert_array_equal(pose.joints, joints)
        np.testing.assert_array_equal(pose.visible, visible)


def test_stand_ins_and_the_neck_follow_what_is_bridged():
    frames, missing = fill_missing(clip("xx.x.x---x"))
    assert missing == [6, 7, 8]
    bridged = bridge_gaps(frames, missing, 1)
    assert bridged[6] is bridged[7] is bridged[5]
    frames, missing = fill_missing(clip("xx.-.xx"))  # the stand-in of a frame that hides the joint hides it, too
    assert bridge_gaps(frames, missing, 5)[3] is frames[2]
    frames = clip("xxxxxx")
    for number, shoulder in ((2, 2), (3, 5)):  # two gaps of one frame are a gap of two frames for the neck
        frames[number].visible[0, [shoulder, NECK]] = False
        frames[number].joints[0, [shoulder, NECK]] = 7.0
    frames[1].joints[0, 5] = (0.3, 0.1)
    bridged = bridge_gaps(frames, (), 1)
    for pose in bridged:
        assert pose.visible.all()
        assert pose.joints.max() < 1
    for number in (2, 3):
        np.testing.assert_allclose(bridged[number].joints[0, NECK], bridged[number].joints[0, SHOULDERS].mean(axis=0))
        assert bridged[number].joint_scores[0, NECK] == 1
    clean = list_scenes()[0]
    with every_item() as every:
        for name, (shortest, longest) in GAPS.items():
            with every(name):
                hidden = hide_joints(clean.frames, shortest, longest)
                _, unbridged_px, far = judge_gaps(clean, hidden, 0)
                assert min(unbridged_px / 500, far / 50) > 1
                unseen, bridged_px, error = judge_gaps(clean, hidden, longest)
                assert unseen == 0
                assert bridged_px < 80
                assert error < 4
