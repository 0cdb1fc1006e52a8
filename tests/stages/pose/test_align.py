"""The fits of a clip to the reference's body, against the published one and against known truth."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.poses import FRAME_PX, PHOTO_PX, Scene, check_fit, judge_fit, list_scenes
from dispose_rt.errors import InputError, InputWarning, NoPersonError
from dispose_rt.puppet import Stance, dance, place_joints
from dispose_rt.stages.pose.align import FIT_JOINTS, Alignment, check_drawn, fit_alignment, fit_robust
from dispose_rt.stages.pose.compare import Figure
from dispose_rt.types import Pose
from tests.every import each, every_item
from tests.golden_data import load_golden

from .golden_poses import assert_same_pose, read_pose

CASES = tuple(load_golden("pose_align")["cases"])
E2E_CASES = tuple(load_golden("e2e")["cases"])
#: the solver behind numpy.polyfit may round the last bits differently; measured here: 2.3e-16
ROUNDING = 1e-13


def stored_case(case):
    """Reference, frames, frame size and reference size (both height, width) of a stored case."""
    arrays = load_golden("pose_align")
    height, width, _, _, frame_height, frame_width = arrays[f"{case}.hw_fps_stride_framehw"].tolist()
    frames = [read_pose("pose_align", f"{case}.in{row}.") for row in range(len(arrays[f"{case}.drawn"]))]
    return read_pose("pose_align", f"{case}.ref."), frames, (frame_height, frame_width), (height, width)


@pytest.mark.parametrize("case", CASES)
def test_the_fit_is_the_published_one(case):
    alignment = fit_alignment(*stored_case(case))
    found = [alignment.ax, alignment.ay, alignment.bx, alignment.by]
    expected = load_golden("pose_align")[f"{case}.fit_ax_ay_bx_by"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("case", CASES)
def test_every_person_face_and_hand_is_moved(case):
    arrays = load_golden("pose_align")
    reference, frames, *sizes = stored_case(case)
    alignment = fit_alignment(reference, frames, *sizes)
    for row, frame in enumerate(frames):
        stored = {name: arrays[f"{case}.out{row}.{name}"] for name in ("candidate", "faces", "hands")}
        expected = replace(
            frame,
            joints=stored["candidate"].reshape(frame.joints.shape),
            faces=stored["faces"],
            hands=stored["hands"].reshape(frame.hands.shape),
        )
        assert_same_pose(alignment.apply(frame), expected, atol=ROUNDING)


@pytest.mark.parametrize("case", E2E_CASES)
def test_the_end_to_end_clips_are_aligned(case):
    arrays = load_golden("e2e")
    count, _, _, height, width = arrays[f"{case}.config"][:5].tolist()
    reference, *frames = (read_pose("e2e", f"{case}.detected_", row) for row in range(count))
    alignment = fit_alignment(reference, frames, arrays["drive_frames"].shape[1:3], (height, width))
    for row, frame in enumerate(frames, start=1):
        moved = alignment.apply(frame)
        np.testing.assert_allclose(moved.joints[0], arrays[f"{case}.aligned_candidate"][row], rtol=0, atol=ROUNDING)
        np.testing.assert_array_equal(moved.visible, arrays[f"{case}.aligned_subset"][row] >= 0)
        np.testing.assert_array_equal(moved.joint_scores, arrays[f"{case}.aligned_score"][row])
    np.testing.assert_array_equal(reference.joints[0], arrays[f"{case}.aligned_candidate"][0])


def figure(seed: int, persons: int = 1) -> Pose:
    draws = np.random.default_rng(seed)
    return Pose(
        joints=draws.random((persons, 18, 2)),
        joint_scores=np.ones((persons, 18), np.float32),
        visible=np.ones((persons, 18), np.bool_),
        faces=draws.random((persons, 68, 2)),
        face_scores=np.ones((persons, 68), np.float32),
        hands=draws.random((2, persons, 21, 2)),
        hand_scores=np.ones((2, persons, 21), np.float32),
        boxes_px=np.tile([0.0, 0.0, 10.0, 10.0], (persons, 1)),
    )


def test_a_known_map_is_recovered():
    """Both frames of 4:3 against a reference of 2:1, moved by a map that keeps shapes."""
    known = Alignment(ax=0.9, ay=0.9 * (300 / 400) / 200 * 100, bx=-0.2, by=0.3)
    reference = known.apply(figure(1))
    found = fit_alignment(reference, [figure(1), figure(1)], (300, 400), (200, 100))
    np.testing.assert_allclose([found.ax, found.ay, found.bx, found.by], [0.9, 0.3375, -0.2, 0.3], rtol=0, atol=1e-12)


def test_hidden_joints_of_the_frame_count_and_hidden_joints_of_the_reference_do_not():
    reference, frame = figure(1), figure(2)
    sizes = (100, 100), (100, 100)
    everything = fit_alignment(reference, [frame], *sizes)
    hidden_in_frame = replace(frame, visible=np.zeros_like(frame.visible))
    assert fit_alignment(reference, [hidden_in_frame], *sizes) == everything
    visible = reference.visible.copy()
    visible[0, FIT_JOINTS[-1]] = False
    assert fit_alignment(replace(reference, visible=visible), [frame], *sizes) != everything


@each(joint=[3, 4, 6, 7])
def test_elbows_and_wrists_do_not_count(joint):
    reference, frame, sizes = figure(1), figure(2), ((100, 100), (100, 100))
    moved = frame.joints.copy()
    moved[0, joint] += 5
    expected = fit_alignment(reference, [frame], *sizes)
    assert fit_alignment(reference, [replace(frame, joints=moved)], *sizes) == expected


def test_frames_with_several_persons_or_nobody_are_left_out_of_the_fit():
    reference, sizes = figure(1), ((100, 100), (100, 100))
    crowd, nobody = figure(3, persons=2), figure(4, persons=0)
    expected = fit_alignment(reference, [figure(2)], *sizes)
    assert fit_alignment(reference, [crowd, figure(2), nobody], *sizes) == expected


def test_a_clip_of_crowds_is_refused():
    """The reference code dies of a ValueError here."""
    assert "ValueError" in str(load_golden("pose_align")["all_frames_two_persons.exception"])
    with pytest.raises(NoPersonError, match=r"none of the 2 driving frames shows exactly one person.*follow_person"):
        fit_alignment(figure(1), [figure(2, persons=2), figure(3, persons=2)], (100, 100), (100, 100))


@each(shown=[(), (0,), (3, 4, 6, 7), (3, 4, 6, 7, 17)])
def test_a_reference_with_too_few_joints_is_refused(shown):
    reference = figure(1)
    visible = np.zeros((1, 18), np.bool_)
    visible[0, list(shown)] = True
    with pytest.raises(NoPersonError, match=r"the reference image shows [01] of the 14 joints"):
        fit_alignment(replace(reference, visible=visible), [figure(2)], (100, 100), (100, 100))


def test_a_reference_with_nobody_is_refused():
    with pytest.raises(InputError, match="the reference image shows 0"):
        fit_alignment(figure(1, persons=0), [figure(2)], (100, 100), (100, 100))


@each(flat=["reference", "frame"])
def test_joints_at_one_height_tell_no_size(flat):
    poses = {"reference": figure(1), "frame": figure(2)}
    joints = poses[flat].joints.copy()
    joints[..., 1] = 0.5
    poses[flat] = replace(poses[flat], joints=joints)
    with pytest.raises(NoPersonError, match="tells no size"):
        fit_alignment(poses["reference"], [poses["frame"]], (100, 100), (100, 100))


#: range of the drawn size, and largest error of a joint in % of the body's height, for what one map cannot do
LIMITS = {
    "bust photo, jumping dancer": (0.95, 1.05, 2.0),
    "jumping dancer": (0.95, 1.05, 2.0),
    "child in the photo": (0.75, 1.05, 6.0),
    "dancer who comes twice as close": (0.8, 1.0, 8.0),
    "bust photo, turned by 60 degrees": (0.5, 1.1, 12.0),
}


@cache
def scenes() -> dict[str, Scene]:
    return {scene.name: scene for scene in list_scenes()}


def test_the_robust_fit_recovers_size_and_place():
    with every_item() as every:
        for scene in scenes().values():
            with every(scene.name):
                smallest, largest, limit = LIMITS.get(scene.name, (0.95, 1.05, 1.0))
                size, error = judge_fit(scene, "robust")
                assert smallest <= size <= largest
                assert error <= limit
                assert check_fit(scene, "robust") == ""


def test_the_robust_fit_counts_what_both_show_and_keeps_shapes():
    scene = scenes()["clean"]
    expected = fit_robust(*scene.people)
    (height, width), (frame_height, frame_width) = PHOTO_PX, FRAME_PX
    assert expected.ax * width / frame_width == pytest.approx(expected.ay * height / frame_height)
    wild = np.random.default_rng(0).normal(0, 50, (18, 2))

    def spoil(pose: Pose, joints: tuple[int, ...]) -> Pose:
        moved, visible = pose.joints.copy(), pose.visible.copy()
        moved[0, joints], visible[0, joints] = wild[list(joints)], False
        return replace(pose, joints=moved, visible=visible)

    legs = (9, 10, 12, 13)
    without_legs = [spoil(one, legs) for one in scene.frames]
    hidden = fit_robust(spoil(scene.photo, legs), scene.frames, FRAME_PX, PHOTO_PX)
    assert hidden == fit_robust(scene.photo, without_legs, FRAME_PX, PHOTO_PX)
    assert hidden.ay == pytest.approx(expected.ay, rel=0.03)
    # frames that do not show exactly one person are left out; a single frame is enough
    crowd = figure(3, persons=2), figure(4, persons=0)
    assert fit_robust(scene.photo, [*scene.frames, *crowd], FRAME_PX, PHOTO_PX) == expected
    alone = fit_robust(scene.photo, scene.frames[:1], FRAME_PX, PHOTO_PX)
    assert alone.ay == pytest.approx(expected.ay, rel=0.1)
    # hips and legs that a single, broken frame shows weigh next to nothing; the rest of that frame is right
    lower = (8, 9, 10, 11, 12, 13)
    without_lower = [spoil(one, lower) for one in scene.frames]
    broken = scene.frames[7].joints.copy()
    broken[0, lower] = broken[0, lower] * 2 + 0.3
    outvoted = fit_robust(scene.photo, [*without_lower, replace(scene.photo, joints=broken)], FRAME_PX, PHOTO_PX)
    without = fit_robust(scene.photo, without_lower, FRAME_PX, PHOTO_PX)
    for name in ("ax", "ay", "bx", "by"):
        assert getattr(outvoted, name) == pytest.approx(getattr(without, name), abs=0.1)
    shoulders_px = np.zeros((5, 18, 2))
    shoulders_px[:, 5, 0] = (90, 2, 10, 4, 6)
    lengths_px, pictures = Figure(shoulders_px, np.ones((5, 18), np.bool_)).part_lengths_px()
    assert (lengths_px[0], pictures[0]) == (10, 5)  # neither the wrong one nor the foreshortened ones
    # a face alone: placed by the head's joints
    shown = spoil(scene.photo, tuple(range(1, 14)))
    assert fit_robust(shown, scene.frames, FRAME_PX, PHOTO_PX).ay == pytest.approx(expected.ay, rel=0.1)


ROBUST = 'alignment="robust" (--alignment robust on the command line)'


def test_a_person_of_another_size_is_warned_of_and_no_ordinary_clip():
    warned = {
        "bust photo, jumping dancer": "0.3 times the size of the photo's person: the photo shows no hips or legs",
        "no legs in the video": "2.4 times the size of the photo's person: the video shows no hips or legs",
    }
    refused = {"lying in the photo": "0.4 pixels large, and 8 is the least that can be animated: the person lies or"}
    with every_item() as every:
        for scene in scenes().values():
            with every(scene.name):
                said = check_fit(scene, "reference")
                kinds = ("warning", warned), ("error", refused)
                [(kind, words)] = [(kind, table[scene.name]) for kind, table in kinds if scene.name in table] or [
                    ("", "")
                ]
                assert said.startswith(kind)
                assert words in said
                assert (ROBUST in said) == bool(kind) == bool(said)
    arrays, clips = load_golden("e2e"), [stored_case(case) for case in CASES]
    for case in E2E_CASES:
        reference, *frames = (read_pose("e2e", f"{case}.detected_", row) for row in range(arrays[f"{case}.config"][0]))
        clips.append((reference, frames, arrays["drive_frames"].shape[1:3], tuple(arrays[f"{case}.config"][3:5])))
    demo = dance(24, 4 / 3, stance=Stance(centre_unit=0.53, top_unit=0.16, height_unit=0.68), period=24)
    standing, *dancing = (replace(figure(1), joints=one[None]) for one in (place_joints(Stance(), 2 / 3), *demo))
    clips.append((standing, dancing, (480, 640), (192, 128)))
    for clip in clips:
        with warnings.catch_warnings(action="error"):
            check_drawn(fit_alignment(*clip), *clip, "reference")


@each(
    change__way__kind__words=[
        (
            "size 0.49",
            "reference",
            InputWarning,
            "the dancer is drawn at 0.49 times the size of the photo's person. Use a",
        ),
        ("size 2.1", "reference", InputWarning, "drawn at 2.1 times"),
        ("size 0.55", "reference", None, ""),
        ("size 1.9", "reference", None, ""),
        ("size -1", "reference", InputWarning, "drawn upside down"),
        ("size 0.009", "robust", NoPersonError, "pixels large, and 8 is the least"),
        (
            "right",
            "robust",
            NoPersonError,
            "outside of the picture in every frame. Use a photo and a video that show the",
        ),
        ("right but in one frame", "robust", None, ""),
        (
            "nothing shared",
            "reference",
            InputWarning,
            "no part of the body in common.*: the photo shows no legs, the video",
        ),
    ]
)
def test_what_is_drawn_is_checked(change, way, kind, words):
    scene = scenes()["clean"]
    photo, frames = scene.photo, list(scene.frames)
    alignment = fit_robust(*scene.people)
    what, _, value = change.partition(" ")
    if what == "size":
        middle = scene.photo.joints[0].mean(axis=0)
        ratio = float(value)
        shift = middle - ratio * (middle - (alignment.bx, alignment.by))
        alignment = Alignment(ratio * alignment.ax, ratio * alignment.ay, *shift.tolist())
    elif what == "right":
        alignment = replace(alignment, bx=alignment.bx + 1.5)
        frames[3] = replace(frames[3], joints=frames[3].joints - [0.5 if value else 0.0, 0.0])
    else:
        legs = np.isin(np.arange(18), (9, 10, 12, 13))
        photo, frames = replace(photo, visible=~legs[None]), [replace(one, visible=legs[None]) for one in frames]
    with warnings.catch_warnings(record=True, action="always") as caught:
        if kind is NoPersonError:
            with pytest.raises(kind, match=words) as raised:
                check_drawn(alignment, photo, frames, FRAME_PX, PHOTO_PX, way)
            assert (ROBUST in str(raised.value)) == (way == "reference")
        else:
            check_drawn(alignment, photo, frames, FRAME_PX, PHOTO_PX, way)
    assert [one.category for one in caught] == [kind] * (kind is InputWarning)
    assert all(re.search(words, str(one.message)) for one in caught)
    if what == "nothing":
        assert ROBUST not in str(caught[0].message)
        with pytest.raises(
            NoPersonError, match=r"both show 0 of the 9 parts.*; 2 are needed.*: the photo shows no legs"
        ):
            fit_robust(photo, frames, FRAME_PX, PHOTO_PX)
