"""One Animator, many threads: whose turn it is, who waits, who is refused, and what closing it does."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator, BusyError, Cancelled, media
from dispose_rt import animator as animator_module
from dispose_rt.errors import EngineError, InputError
from tests.fakes.run import FakeRun
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN

REF = GOLDEN / "ref.png"
VIDEO = [np.zeros((8, 8, 3), np.uint8)]
OPTIONS: dict[str, Any] = {"progress": False, "overlap": 2}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeRun]]:
    """What the Animator's runs are instead."""

    class Kind(FakeRun):
        _lock = threading.Lock()

    monkeypatch.setattr(animator_module, "Run", Kind)
    yield Kind
    assert Kind.overlaps == 0


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    return golden_engines(GoldenCase("one_tile_64"))


@pytest.fixture
def animator(engines: Path, runs: type[FakeRun]) -> Iterator[Animator]:
    with Animator(engines) as one:
        yield one


def run(animator: Animator, seed: int = 0, **changes: Any) -> Any:
    return animator.run(REF, VIDEO, seed=seed, **{**OPTIONS, **changes})


def stream(animator: Animator, **changes: Any) -> Any:
    return animator.stream(REF, VIDEO, **{**OPTIONS, **changes})


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Results, or the exceptions, of so many threads that begin together."""
    results: list[Any] = [None] * count
    together = threading.Barrier(count)

    def body(number: int) -> None:
        together.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=body, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


class Held:
    """A run in a thread of its own that goes on until it is let go."""

    def __init__(self, animator: Animator, runs: type[FakeRun]) -> None:
        self._inside, self._free = threading.Event(), threading.Event()

        def hook(stage: str) -> None:
            self._inside.set()
            assert self._free.wait(30)

        runs.hook = staticmethod(hook)
        self.result: Any = None
        self._thread = threading.Thread(target=self._work, args=(animator,), daemon=True)

    def _work(self, animator: Animator) -> None:
        try:
            self.result = run(animator)
        except Exception as error:
            self.result = error

    def __enter__(self) -> Held:
        self._thread.start()
        assert self._inside.wait(30)
        return self

    def let_go(self) -> None:
        self._free.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def __exit__(self, *error: object) -> None:
        self.let_go()


def test_eight_threads_take_turns(animator: Animator, runs: type[FakeRun]) -> None:
    runs.hook = staticmethod(lambda stage: time.sleep(0.001))
    results = in_threads(lambda number: run(animator, number).frames[:, 0, 0, 0].tolist(), 8)
    assert results == [[number, number + 1, number + 2, number + 3] for number in range(8)]
    assert runs.finished == 8


def test_whoever_came_first_is_next(animator: Animator, runs: type[FakeRun]) -> None:
    order: list[int] = []
    threads = []
    with Held(animator, runs) as held:
        for number in range(4):
            threads.append(
                threading.Thread(target=lambda n=number: order.append(int(run(animator, n).frames[0, 0, 0, 0])))
            )
            threads[-1].start()
            while len(animator._queue._waiting) <= number:
                time.sleep(0.001)
        held.let_go()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_seven_of_eight_threads_are_refused(engines: Path, runs: type[FakeRun]) -> None:
    with Animator(engines, when_busy="raise") as animator:
        with Held(animator, runs):
            results = in_threads(lambda number: run(animator, number), 7)
            assert {type(one) for one in results} == {BusyError}
            assert "try again when that has ended" in str(results[0])
        runs.hook = staticmethod(lambda stage: None)
        assert run(animator).frame_count == 4
    assert runs.finished == 2


def test_neither_wait_nor_raise(engines: Path) -> None:
    with pytest.raises(InputError, match=r"when_busy is 'queue'; choose from \['wait', 'raise'\]"):
        Animator(engines, when_busy="queue")


def test_a_waiting_run_is_cancelled_and_tells_no_progress_before(animator: Animator, runs: type[FakeRun]) -> None:
    cancel, ticks = threading.Event(), []
    with Held(animator, runs) as held:
        threading.Timer(0.2, cancel.set).start()
        with pytest.raises(Cancelled, match="while waiting for another run"):
            run(animator, cancel=cancel, progress=lambda *tick: ticks.append(tick))
        assert ticks == []
        held.let_go()
        assert held.result.frame_count == 4
    runs.hook = staticmethod(lambda stage: None)
    assert run(animator).frame_count == 4


def test_own_open_stream_is_no_deadlock(animator: Animator) -> None:
    frames = stream(animator)
    next(frames)
    for again in (run, lambda one: next(stream(one)), Animator.warmup):
        with pytest.raises(BusyError, match=r"close\(\) the generator"):
            again(animator)
    assert len(list(frames)) == 3  # the stream itself goes on
    assert run(animator).frame_count == 4


def test_a_run_inside_of_a_run_is_refused_and_the_outer_one_ends_well(animator: Animator) -> None:
    refused = []

    def nest(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", 1):
            with pytest.raises(BusyError) as caught:
                run(animator)
            refused.append(caught)
            with pytest.raises(BusyError, match="set `cancel`"):
                animator.close()

    assert run(animator, progress=nest).frame_count == 4
    assert len(refused) == 1


def drop(frames: Any) -> None:
    del frames


def close_twice(frames: Any) -> None:
    frames.close()
    frames.close()


def let_the_garbage_collection_find_it(frames: Any) -> None:
    circle: list[Any] = [frames]
    circle.append(circle)
    del circle, frames
    gc.collect()


def read_to_the_end(frames: Any) -> None:
    list(frames)


def fail_on_the_way(frames: Any) -> None:
    def read() -> None:
        for _ in frames:
            raise KeyError("the reader's own")

    with pytest.raises(KeyError):
        read()


@pytest.mark.parametrize(
    "leave", [drop, close_twice, let_the_garbage_collection_find_it, read_to_the_end, fail_on_the_way]
)
def test_a_stream_that_was_left_holds_nobody_up(animator: Animator, runs: type[FakeRun], leave: Any) -> None:
    def begin_and_leave() -> None:
        frames = stream(animator)
        next(frames)
        assert "busy" in repr(animator)
        leave(frames)

    begin_and_leave()
    assert "idle" in repr(animator)
    assert run(animator).frame_count == 4


def test_a_stream_that_nobody_read_holds_nothing(animator: Animator) -> None:
    kept = stream(animator)
    assert run(animator).frame_count == 4
    assert len(list(kept)) == 4


def test_another_thread_reads_on(animator: Animator) -> None:
    frames = stream(animator)
    next(frames)
    [rest] = in_threads(lambda number: [int(frame[0, 0, 0]) for frame in frames], 1)
    assert rest == [1, 2, 3]


def test_others_wait_for_a_stream(animator: Animator) -> None:
    frames = stream(animator)
    next(frames)
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(run(animator, 5)))
    waiting.start()
    time.sleep(0.1)
    assert results == []
    frames.close()
    waiting.join(10)
    assert results[0].frames[0, 0, 0, 0] == 5


def test_settings_and_media_are_refused_by_the_call(animator: Animator, tmp_path: Path) -> None:
    for changes, message in (
        ({"steps": 0}, "steps is 0"),
        ({"overlap": 99}, "overlap is 99"),
        ({"decode_chunk": 99}, "decode_chunk is 99"),
    ):
        with pytest.raises(InputError, match=message):
            stream(animator, **changes)
    with pytest.raises(InputError, match="does not exist"):
        animator.stream(REF, tmp_path / "nowhere.mp4", **OPTIONS)
    with pytest.raises(InputError, match="keep_frames=False and no output"):
        run(animator, keep_frames=False)


class TestClosing:
    """What `close` does to those who are in the middle of something."""

    def test_it_waits_for_a_run_and_turns_away_who_waits(self, engines: Path, runs: type[FakeRun]) -> None:
        animator = Animator(engines)
        assert not animator.closed
        with Held(animator, runs) as held:
            results: list[Any] = []

            def wait_in_vain() -> None:
                with pytest.raises(EngineError, match="closed"):
                    run(animator)
                results.append("refused")

            waiting = threading.Thread(target=wait_in_vain)
            waiting.start()
            while not animator._queue._waiting:
                time.sleep(0.001)
            closing = threading.Thread(target=animator.close)
            closing.start()
            waiting.join(10)
            assert results == ["refused"]
            assert closing.is_alive()
            assert animator.closed
            held.let_go()
            closing.join(10)
            assert held.result.frame_count == 4
        assert "closed" in repr(animator)
        for again in (run, stream, Animator.warmup):
            with pytest.raises(EngineError, match="closed"):
                again(animator)

    def test_it_ends_streams_whose_reader_is_busy(self, engines: Path, runs: type[FakeRun]) -> None:
        with Animator(engines) as animator:
            frames = stream(animator)
            next(frames)
        with pytest.raises(EngineError, match="closed"):  # no frame is missing without a word
            list(frames)

    def test_another_threads_stream_is_ended_too(self, engines: Path, runs: type[FakeRun]) -> None:
        animator = Animator(engines)
        frames = stream(animator)
        next(frames)
        in_threads(lambda number: animator.close(), 1)
        with pytest.raises(EngineError, match="closed"):
            next(frames)
        animator.close()


def test_memory_stays_flat_without_frames_and_in_streams(
    animator: Animator, runs: type[FakeRun], tmp_path: Path
) -> None:
    runs.frames, runs.height, runs.width = 200, 256, 256  # 39 MB in all
    for use in (
        lambda: run(animator, output=tmp_path / "out.mp4", keep_frames=False),
        lambda: [None for _ in stream(animator)],
    ):
        use()
        tracemalloc.start()
        result = use()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6, use
    animation = run(animator, output=tmp_path / "out.mp4", keep_frames=False)
    assert animation.frames.shape == (0, 256, 256, 3)
    assert animation.frame_count == 200
    assert animation.times_s.shape == (200,)
    with pytest.raises(InputError, match="keep_frames=True"):
        animation.save(tmp_path / "again.mp4")
    assert isinstance(result, list)


def test_a_file_is_opened_for_the_first_frames_and_its_end_is_part_of_decoding(
    animator: Animator, runs: type[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies beside the output during the long stages, and the encoder's last frames count as decoding."""
    files: dict[str, int] = {}
    runs.hook = staticmethod(lambda stage: files.setdefault(stage, len(list(tmp_path.iterdir()))))
    finish = media.VideoWriter.__exit__

    def finish_slowly(writer: media.VideoWriter, *error: Any) -> None:
        time.sleep(0.2)
        finish(writer, *error)

    monkeypatch.setattr(media.VideoWriter, "__exit__", finish_slowly)
    animation = run(animator, output=tmp_path / "out.mp4")
    assert set(files.values()) == {0}
    assert animation.timings["decode"] >= 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError, MemoryError])
def test_a_run_that_ends_while_decoding_leaves_no_file(
    animator: Animator, runs: type[FakeRun], tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "out.mp4").write_text("before")
    decoded: list[str] = []

    def hook(stage: str) -> None:
        decoded.extend([stage] if stage == "decode" else [])
        if len(decoded) == 2:
            raise error

    runs.hook = staticmethod(hook)
    with pytest.raises(error):
        run(animator, output=tmp_path / "out.mp4")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    runs.hook = staticmethod(lambda stage: None)
    assert run(animator).frame_count == 4
