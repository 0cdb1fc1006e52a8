"""Poses that are remembered: the same bits with less work, and never a reason for a run to fail."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator, Cancelled
from dispose_rt.engines.manifest import Manifest, read_manifest
from dispose_rt.errors import PerformanceWarning
from dispose_rt.media import open_video, write_video
from dispose_rt.stages import pose
from dispose_rt.stages.pose import cache as cache_module
from dispose_rt.stages.pose.cache import FilmedPoses, PoseCache, key_of
from dispose_rt.types import Pose
from tests.every import each
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN, load_golden

KEY, OTHER = "a" * 64, "b" * 64


def crowd(persons: int, seed: int) -> Pose:
    random = np.random.default_rng(seed)
    return Pose(
        joints=random.random((persons, 18, 2)),
        joint_scores=random.random((persons, 18), np.float32),
        visible=random.random((persons, 18)) > 0.5,
        faces=random.random((persons, 68, 2)),
        face_scores=random.random((persons, 68), np.float32),
        hands=random.random((2, persons, 21, 2)),
        hand_scores=random.random((2, persons, 21), np.float32),
        boxes_px=random.random((persons, 4)) * 100,
    )


def filmed(*persons: int, times: tuple[Fraction, ...] | None = None) -> FilmedPoses:
    return FilmedPoses([crowd(count, seed) for seed, count in enumerate(persons)], times)


def assert_equal(ours: FilmedPoses | None, theirs: FilmedPoses) -> None:
    assert ours is not None
    assert ours.time_stamps == theirs.time_stamps
    for one, other in zip(ours.poses, theirs.poses, strict=True):
        for name in vars(other):
            value = getattr(one, name)
            assert value.dtype == getattr(other, name).dtype
            assert value.flags.c_contiguous
            np.testing.assert_array_equal(value, getattr(other, name))


@pytest.fixture
def cache(tmp_path: Path) -> PoseCache:
    return PoseCache(tmp_path / "made" / "when needed")


def files_of(cache: PoseCache) -> list[str]:
    return sorted(path.name[:1] for path in cache.folder.iterdir())


@pytest.mark.parametrize("persons", [(1,), (1, 1, 1), (2, 0, 3, 1), (0, 0)])
def test_what_was_stored_comes_back(cache: PoseCache, persons: tuple[int, ...]) -> None:
    times = tuple(Fraction(number * number, 90_000) for number in range(len(persons)))
    for one in (filmed(*persons), filmed(*persons, times=times)):
        assert cache.load(OTHER) is None
        cache.store(KEY, one)
        assert_equal(cache.load(KEY), one)


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A file whose arrays are changed."""

    def rewrite(path: Path) -> None:
        with np.load(path) as archive:
            arrays = dict(archive)
        change(arrays)
        np.savez(path, **arrays)

    return rewrite


def broken(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pickled(path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, key=np.array([{"a": 1}], dtype=object))
    path.write_bytes(file.getvalue())


def compressed(path: Path) -> None:
    with np.load(path) as archive:
        np.savez_compressed(path, **dict(archive))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("poses?"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "one bit": broken,
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "pickled": pickled,
    "compressed": compressed,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "of another video": rewritten(lambda arrays: arrays.update(key=np.array(OTHER))),
    "an array missing": rewritten(lambda arrays: arrays.pop("faces")),
    "an array more": rewritten(lambda arrays: arrays.update(more=np.zeros(3))),
    "another dtype": rewritten(lambda arrays: arrays.update(joints=arrays["joints"].astype(np.float32))),
    "another shape": rewritten(lambda arrays: arrays.update(joints=arrays["joints"][:, :17])),
    "a person missing": rewritten(lambda arrays: arrays.update(boxes_px=arrays["boxes_px"][1:])),
    "not finite": rewritten(lambda arrays: arrays["hands"].fill(np.nan)),
    "no frames": rewritten(lambda arrays: arrays.update(persons=arrays["persons"][:0])),
    "fewer than nobody": rewritten(lambda arrays: arrays.update(persons=np.array([3, -1]))),
    "too few times": rewritten(lambda arrays: arrays.update(times=np.array([[0, 1]]))),
    "times that fall": rewritten(lambda arrays: arrays.update(times=np.array([[0, 1], [-1, 2]]))),
    "impossible times": rewritten(lambda arrays: arrays.update(times=np.array([[0, 1], [1, 0]]))),
}


@each(damage=DAMAGES)
def test_a_file_that_is_not_ours_is_ignored_with_a_warning_and_replaced(damage: str, tmp_path: Path) -> None:
    cache = PoseCache(tmp_path / damage)
    one = filmed(1, 1)
    cache.store(KEY, one)
    [path] = cache.folder.iterdir()
    DAMAGES[damage](path)
    with pytest.warns(PerformanceWarning, match="cannot be used: .*detected again"):
        assert cache.load(KEY) is None
    if damage != "folder":  # which nobody but the user removes
        cache.store(KEY, one)
        assert_equal(cache.load(KEY), one)


def test_what_was_not_used_for_longest_makes_room(cache: PoseCache) -> None:
    cache.store(KEY, filmed(1))
    [path] = cache.folder.iterdir()
    cache.limit_bytes = 3 * path.stat().st_size + 1
    for age, name in ((400, "a"), (300, "b"), (200, "c")):
        cache.store(name * 64, filmed(1))
        os.utime(cache._path(name * 64), (time.time() - age,) * 2)
    assert cache.load("a" * 64) is not None  # it is the newest now
    cache.store("d" * 64, filmed(1))
    assert files_of(cache) == ["a", "c", "d"]
    cache.limit_bytes = 1  # nothing fits
    cache.store("e" * 64, filmed(1))
    assert "e" not in files_of(cache)


def test_foreign_files_stay_and_leftovers_go(cache: PoseCache) -> None:
    cache.folder.mkdir(parents=True)
    mine = cache.folder / "notes.npz"
    mine.write_text("mine")
    old, young = (cache.folder / f".{KEY[:60]}.0123456{digit}.part" for digit in (1, 2))
    for part in (old, young):
        part.write_bytes(b"x" * 1000)
    os.utime(old, (time.time() - 7200,) * 2)
    cache.limit_bytes = 1
    cache.store(KEY, filmed(1))
    assert sorted(cache.folder.iterdir()) == sorted([mine, young])


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = PoseCache(tmp_path / "file")
    with pytest.warns(PerformanceWarning, match="cannot be remembered in .*Later runs detect them again"):
        cache.store(KEY, filmed(1))
    with pytest.warns(PerformanceWarning, match="cannot be used"):
        assert cache.load(KEY) is None


FULL_DISK = """
import resource, sys, warnings
from tests.stages.pose.test_cache import KEY, PoseCache, filmed
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
cache = PoseCache(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cache.store(KEY, filmed(*[1] * 20))
print([str(one.message)[:26] for one in caught], list(cache.folder.iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are POSIX")
def test_a_full_disk_costs_a_warning_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses to let a file grow beyond the limit."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "['poses cannot be remembered'] []\n"


def test_other_code_finds_other_poses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every module that finds poses is part of the key."""
    own = Path(cache_module.__file__).parent
    for name in ("detect.py", "estimate.py", "follow.py", "track.py", "cache.py"):
        (tmp_path / name).write_bytes((own / name).read_bytes())
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "cache.py"))
    digest = cache_module._own_code.__wrapped__
    digests = {digest()}
    for name in ("detect.py", "track.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        digests.add(digest())
    assert len(digests) == 3


def test_threads_that_share_a_folder(cache: PoseCache) -> None:
    """As processes do: nobody sees half a file."""
    one, failures = filmed(*[1] * 50), []

    def work(number: int) -> None:
        for _ in range(10):
            PoseCache(cache.folder).store(KEY, one)
            try:
                assert_equal(PoseCache(cache.folder).load(KEY), one)
            except AssertionError as error:
                failures.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(list(cache.folder.iterdir())) == 1


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    return golden_engines(GoldenCase("one_tile_64"))


def test_the_key_tells_apart_what_finds_other_poses(engines: Path) -> None:
    manifest = read_manifest(engines)

    def with_other(network: str) -> Manifest:
        file = SimpleNamespace(sha256="0" * 64)
        record: Any = SimpleNamespace(backend="onnxruntime", files=(file,))
        return Manifest(**{**vars(manifest), "networks": {**manifest.networks, network: record}})

    keys = [
        key_of("x", 2, manifest, "cpu"),
        key_of("y", 2, manifest, "cpu"),
        key_of("x", 3, manifest, "cpu"),
        key_of("x", 2, manifest, "cuda:0"),
        key_of("x", 2, manifest, "cpu", ("1/2", "")),
        key_of("x", 2, manifest, "cpu", ("", "1/2")),
        key_of("x", 2, with_other("person_detector"), "cpu"),
        key_of("x", 2, with_other("pose_estimator"), "cpu"),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of("x", 2, with_other("unet"), "cpu") == keys[0]
    assert key_of("x", 2, manifest, "cuda:1") == keys[3]


class TestRuns:
    """Whole runs with a cache."""

    @pytest.fixture
    def video(self, tmp_path: Path) -> Path:
        return write_video(tmp_path / "drive.mp4", load_golden("e2e")["drive_frames"][:3], 24)

    @pytest.fixture
    def searched(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one with every picture that is searched for people; the photo is, fitted and whole."""
        calls: list[int] = []
        find = pose.find_poses
        monkeypatch.setattr(pose, "find_poses", lambda *args: (calls.append(1), find(*args))[1])
        return calls

    @pytest.fixture
    def animator(self, engines: Path, tmp_path: Path) -> Iterator[Animator]:
        with Animator(engines, pose_cache=tmp_path / "poses") as one:
            yield one

    def run(self, animator: Animator, video: Any, **changes: Any) -> np.ndarray:
        options = {"controls": (), "steps": 1, "stride": 1, "overlap": 2, "progress": False, **changes}
        return animator.run(GOLDEN / "ref.png", video, **options).frames

    def test_a_rerun_searches_the_photo_alone_and_has_the_same_bits(
        self, animator: Animator, engines: Path, video: Path, searched: list[int], tmp_path: Path
    ) -> None:
        with Animator(engines) as without:
            expected = self.run(without, video)
        searched.clear()
        np.testing.assert_array_equal(self.run(animator, video), expected)
        assert len(searched) == 5
        searched.clear()
        ticks: list[tuple[str, int, int]] = []
        same = self.run(animator, video, progress=lambda *tick: ticks.append(tick))
        np.testing.assert_array_equal(same, expected)
        assert len(searched) == 2
        assert [tick for tick in ticks if tick[0] == "pose"] == [("pose", 0, 3), ("pose", 3, 3)]
        renamed = video.rename(tmp_path / "renamed.mp4")
        searched.clear()
        assert (self.run(animator, renamed, seed=5) != expected).any()
        assert len(searched) == 2  # what counts is what is in the file
        driving: list[Any] = []
        searched.clear()
        self.run(animator, renamed, observer=lambda name, value: driving.append(value) if name == "driving" else None)
        assert len(searched) == 2
        np.testing.assert_array_equal(np.stack(driving), np.stack([*open_video(renamed).frames(1)]))
        searched.clear()
        self.run(animator, renamed, stride=2)
        assert len(searched) == 4  # other frames
        searched.clear()
        self.run(animator, renamed, start_s=0.04, duration_s=1)
        assert len(searched) == 4  # the last two, and none of them again
        searched.clear()
        self.run(animator, renamed, start_s=0.04, duration_s=1, person=0)
        assert len(searched) == 2

    def test_damage_is_mended_by_the_next_run(
        self, animator: Animator, video: Path, searched: list[int], tmp_path: Path
    ) -> None:
        expected = self.run(animator, video)
        [kept] = (tmp_path / "poses").iterdir()
        kept.write_bytes(kept.read_bytes()[:1000])
        searched.clear()
        with pytest.warns(PerformanceWarning, match="detected again"):
            np.testing.assert_array_equal(self.run(animator, video), expected)
        assert len(searched) == 5
        searched.clear()
        np.testing.assert_array_equal(self.run(animator, video), expected)
        assert len(searched) == 2

    def test_what_is_no_file_and_what_was_cut_short_is_not_remembered(
        self, animator: Animator, video: Path, tmp_path: Path
    ) -> None:
        self.run(animator, [*open_video(video).frames(1)])
        cancel = threading.Event()

        def stop(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("pose", 2):
                cancel.set()

        with pytest.raises(Cancelled):
            self.run(animator, video, cancel=cancel, progress=stop)
        assert not (tmp_path / "poses").exists()

    def test_a_video_that_changes_while_it_is_read_is_not_remembered(
        self, animator: Animator, video: Path, tmp_path: Path
    ) -> None:
        def write_on(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("pose", 3):
                with video.open("ab") as file:
                    file.write(b"\0")

        self.run(animator, video, progress=write_on)
        assert not (tmp_path / "poses").exists()
