"""One person out of several, through a clip."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.errors import InputError, NoPersonError
from dispose_rt.settings import PersonChoice
from dispose_rt.stages.pose.follow import PATIENCE_FRAMES, fill_missing, follow_person
from dispose_rt.types import Pose
from tests.every import every_item
from tests.golden_data import load_golden

from .golden_poses import read_pose

#: a standing body about its middle, in fractions of the frame; 0.1 wide and 0.5 tall
BODY = np.random.default_rng(7).uniform([-0.05, -0.25], [0.05, 0.25], (18, 2))
BODY -= BODY.mean(axis=0)
FRAME_PX = 1000


def standing(x: float, y: float = 0.5, size: float = 1.0, score: float = 0.9) -> np.ndarray:
    """[18, 3] x, y, score of a person."""
    return np.concatenate([BODY * size + [x, y], np.full((18, 1), score)], axis=1)


def frame(*people: np.ndarray) -> Pose:
    """A frame with the given people, first = best detection. Hand and face coordinates are that of the nose."""
    count = len(people)
    points = np.stack(people) if people else np.zeros((0, 18, 3))
    joints, scores = points[..., :2], points[..., 2].astype(np.float32)
    nose = joints[:, :1]
    return Pose(
        joints=joints,
        joint_scores=scores,
        visible=scores > 0.3,
        faces=np.repeat(nose, 68, axis=1),
        face_scores=np.ones((count, 68), np.float32),
        hands=np.stack([np.repeat(nose, 21, axis=1)] * 2),
        hand_scores=np.ones((2, count, 21), np.float32),
        boxes_px=np.concatenate([joints.min(axis=1), joints.max(axis=1)], axis=1) * FRAME_PX
        if count
        else np.zeros((0, 4)),
    )


def middles(poses: list[Pose]) -> list[float | None]:
    """Where the followed person stands; None where there is nobody."""
    assert all(pose.persons <= 1 for pose in poses)
    return [round(float((pose.joints[0] - BODY)[:, 0].mean()), 3) if pose.persons else None for pose in poses]


def test_clips_of_one_person_come_back_as_they_are():
    arrays = load_golden("e2e")
    for case in arrays["cases"]:
        poses = [read_pose("e2e", f"{case}.detected_", row) for row in range(len(arrays[f"{case}.detected_score"]))]
        followed = follow_person(poses)
        filled, missing = fill_missing(followed)
        assert missing == []
        assert all(after is before for after, before in zip(filled, poses, strict=True))


def test_a_single_person_may_jump():
    poses = [frame(standing(0.1)), frame(standing(0.9)), frame(standing(0.1, size=0.2))]
    assert all(after is before for after, before in zip(follow_person(poses), poses, strict=True))


def test_the_largest_confident_person_is_chosen():
    small, large, ghost = standing(0.2, size=0.5), standing(0.5), standing(0.8, size=1.2, score=0.31)
    [followed] = follow_person([frame(small, ghost, large)])
    assert middles([followed]) == [0.5]
    assert followed.hands.shape == (2, 1, 21, 2)
    np.testing.assert_array_equal(followed.faces[0, 0], large[0, :2])
    np.testing.assert_array_equal(followed.hands[:, 0, 0], [large[0, :2]] * 2)


def test_people_without_a_visible_joint_are_overlooked():
    hidden = standing(0.2, size=3, score=0.2)
    assert middles(follow_person([frame(hidden, standing(0.6))])) == [0.6]


def test_the_choice_waits_for_the_first_frame_with_somebody():
    empty = frame()
    poses = follow_person([empty, frame(standing(0.2, size=0.5), standing(0.7)), frame(standing(0.7), standing(0.2))])
    assert middles(poses) == [None, 0.7, 0.7]


def test_the_order_of_detections_does_not_matter():
    draws = np.random.default_rng(1)
    poses = []
    for number in range(20):
        people = [standing(0.2 + 0.01 * number, size=0.9), standing(0.6 + 0.01 * number), standing(0.45, size=0.6)]
        poses.append(frame(*(people[index] for index in draws.permutation(3))))
    assert middles(follow_person(poses)) == [round(0.6 + 0.01 * number, 3) for number in range(20)]


def test_a_larger_person_who_enters_later_is_not_followed():
    poses = [frame(standing(0.2)), *[frame(standing(0.7, size=1.5), standing(0.2))] * 3]
    assert middles(follow_person(poses)) == [0.2] * 4


def crossing(count: int = 21, hidden: tuple[int, ...] = ()) -> list[Pose]:
    """The chosen, slightly larger person walks right, another one left; they meet in the middle frame."""
    draws = np.random.default_rng(2)
    poses = []
    for number in range(count):
        along = number / (count - 1)
        people = [standing(0.2 + 0.6 * along, size=1.1), standing(0.8 - 0.6 * along)]
        if number in hidden:
            people = people[1:]
        poses.append(frame(*(people[index] for index in draws.permutation(len(people)))))
    return poses


def test_crossing_people_keep_their_directions():
    count = 21
    found = middles(follow_person(crossing(count)))
    np.testing.assert_allclose(found, 0.2 + 0.6 * np.arange(count) / (count - 1), rtol=0, atol=0.01)


def test_somebody_who_passes_in_front_is_not_taken_for_the_hidden_person():
    hidden = (9, 10, 11)
    found = middles(follow_person(crossing(21, hidden)))
    expected = [None if number in hidden else 0.2 + 0.6 * number / 20 for number in range(21)]
    assert [number for number, x in enumerate(found) if x is None] == list(hidden)
    for x, there in zip(found, expected, strict=True):
        assert x is None or abs(x - there) < 0.01


def test_a_hidden_person_is_expected_where_the_walk_leads():
    other = standing(0.9, size=0.6)
    seen = [frame(other, standing(x)) for x in (0.1, 0.2, 0.3)]
    found = middles(follow_person([*seen, *[frame(other)] * 3, frame(other, standing(0.7))]))
    assert found == [0.1, 0.2, 0.3, None, None, None, 0.7]


def test_a_long_hidden_person_is_expected_to_have_stopped():
    other = standing(0.95, size=0.6)
    seen = [frame(other, standing(x)) for x in (0.1, 0.2, 0.3)]
    found = middles(follow_person([*seen, *[frame(other)] * 7, frame(other, standing(0.5))]))
    assert found == [0.1, 0.2, 0.3, *[None] * 7, 0.5]


def test_a_stranger_far_away_does_not_replace_the_person_who_left():
    other, stranger = standing(0.5, size=0.6), standing(0.9)
    assert middles(follow_person([frame(standing(0.1), other), frame(other, stranger)])) == [0.1, None]


def test_a_companion_who_steps_up_and_away_is_not_followed():
    chosen, other = standing(0.3), standing(0.8, size=0.6)
    poses = [frame(chosen, other), *(frame(chosen, other, standing(x, size=0.9)) for x in (0.4, 0.4, 0.5, 0.6, 0.7))]
    assert middles(follow_person(poses)) == [0.3] * 6


def test_a_person_out_of_sight_is_waited_for_while_somebody_else_stands_by():
    away = PATIENCE_FRAMES - 1
    both, other = frame(standing(0.2), standing(0.8, size=0.8)), frame(standing(0.8, size=0.8))
    found = middles(follow_person([both, both, *[other] * away, both]))
    assert found == [0.2, 0.2, *[None] * away, 0.2]


def test_after_the_patience_the_most_prominent_person_takes_over():
    both, other = frame(standing(0.2), standing(0.8, size=0.8)), frame(standing(0.8, size=0.8))
    found = middles(follow_person([both, *[other] * (PATIENCE_FRAMES + 3)]))
    assert found == [0.2, *[None] * PATIENCE_FRAMES, 0.8, 0.8, 0.8]


def test_the_caller_chooses_who_is_followed() -> None:
    """By number from the left or by a point. Such a person is followed in earlier frames too, and never replaced."""
    left, middle, right = standing(0.2, size=0.6), standing(0.5), standing(0.8, size=0.8)
    away = PATIENCE_FRAMES + 5
    crowd = [frame(middle, right, left)] * 2 + [frame(right)] * away
    crowd += [frame(right, standing(0.95)), frame(left, right)]
    longer, gone = [frame(middle), frame(right, middle), *crowd], [None] * (away + 1)
    cases: list[tuple[list[Pose], PersonChoice, list[float | None]]] = [
        (crowd, "largest", [0.5, 0.5, *[None] * PATIENCE_FRAMES, *[0.8] * 7]),
        (crowd, 0, [0.2, 0.2, *gone, 0.2]),
        (crowd, 1, [0.5, 0.5, *gone, None]),
        (crowd, 2, [0.8] * (away + 4)),
        (crowd, (0.0, 1.0), [0.2, 0.2, *gone, 0.2]),
        (crowd, (0.54, 0.3), [0.5, 0.5, *gone, None]),
        (crowd, (1.0, 0.5), [0.8] * (away + 4)),
        (longer, 0, [0.5] * 4 + [*gone, None]),
        (longer, 1, [None] + [0.8] * (away + 5)),
        (longer, (0.0, 0.5), [0.5] * 4 + [*gone, None]),
        ([frame(), frame(left), frame(right)], 0, [None, 0.2, 0.8]),
        ([frame(), frame()], 4, [None, None]),  # that no one is there is said elsewhere
    ]
    with every_item() as every:
        for clip, choice, places in cases:
            with every(len(clip), choice):
                assert middles(follow_person(clip, choice)) == places
        for clip, words in (
            (crowd, "the film shows at most 3 people at once"),
            ([frame(left)], "at most 1 person at once"),
        ):
            with every(words), pytest.raises(InputError, match=words):
                follow_person(clip, 3, "the film")


def test_half_a_body_is_still_the_same_person():
    upper = standing(0.3)
    upper[9:, 2] = 0.1
    poses = [frame(standing(0.3), standing(0.7, size=0.8)), frame(standing(0.7, size=0.8), upper)]
    poses += [frame(standing(0.7, size=0.8), standing(0.3))]
    assert middles(follow_person(poses)) == [0.3] * 3


def test_figures_that_share_too_few_joints_are_compared_by_their_centres():
    upper, lower = standing(0.3), standing(0.3)
    upper[9:, 2] = lower[:9, 2] = 0.1
    other = standing(0.8, size=0.8)
    assert middles(follow_person([frame(standing(0.3), other), frame(other, upper), frame(other, lower)])) == [0.3] * 3


def test_nothing_in_nothing_out():
    assert follow_person([]) == []
    assert [pose.persons for pose in follow_person([frame(), frame()])] == [0, 0]


def test_gaps_take_the_nearest_pose_and_the_earlier_one_of_two():
    first, second = frame(standing(0.1)), frame(standing(0.9))
    hidden = frame(standing(0.5, score=0.2))
    poses = [frame(), hidden, first, hidden, frame(), hidden, second, frame()]
    filled, missing = fill_missing(poses)
    assert missing == [0, 1, 3, 4, 5, 7]
    assert [pose is first for pose in filled] == [True] * 5 + [False] * 3
    assert [pose is second for pose in filled] == [False] * 5 + [True] * 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_clip_with_nobody_is_refused(count):
    with pytest.raises(NoPersonError, match=f"nobody was found in any of the {count} driving frames"):
        fill_missing([frame(standing(0.5, score=0.2))] * count)
