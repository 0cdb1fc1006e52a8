"""Streams, events and graphs on every kind of device."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from dispose_rt.device import Array, Device, Stream
from dispose_rt.errors import DeviceError
from tests.every import every_item


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def gather(source: Array, frames: Array, target: Array, stream: Stream) -> None:
    """A kernel of ours: target[i] = source[frames[i]]."""
    sizes = (source.shape[0], target.shape[0], source.nbytes // source.shape[0])
    stream.device.launch("gather_frames", (source, frames, target, *sizes), stream)


def test_a_kernel_runs_in_the_order_of_its_stream(device: Device, stream: Stream) -> None:
    source, target = device.zeros((3, 2), "float32", stream), device.zeros((2, 2), "float32", stream)
    frames = device.array(np.array([2, 0], np.int32), stream)
    source.upload(row(1, 2, 3, 4, 5, 6).reshape(3, 2), stream)
    gather(source, frames, target, stream)
    source.clear(stream)
    np.testing.assert_array_equal(target.download(stream), [[5, 6], [1, 2]])
    assert not source.download(stream).any()


def test_a_stream_waits_for_an_event_of_another(device: Device, stream: Stream) -> None:
    other, ready = device.stream(), device.event()
    array, copied = device.zeros((3,), "float32", stream), device.zeros((3,), "float32", other)
    array.upload(row(1, 2, 3), stream)
    ready.record(stream)
    other.wait(ready)
    copied.copy_from(array, other)
    np.testing.assert_array_equal(copied.download(other), [1, 2, 3])
    stream.synchronize()
    other.wait(device.event())  # never recorded: nothing to wait for


def test_two_streams_hand_a_buffer_to_and_fro(device: Device, stream: Stream) -> None:
    """Filled on one stream and read on the other, round after round, without the host waiting."""
    copies = device.stream()
    ready, taken = device.event(), device.event()
    pinned = device.pinned((8, 4), "float32")
    pinned.bits[:] = np.arange(32, dtype=np.float32).reshape(8, 4)
    buffer, results = device.empty((1, 4), "float32"), device.zeros((8, 4), "float32", stream)
    for number in range(8):
        copies.wait(taken)
        buffer.copy_from(pinned.rows(number, number + 1), copies)
        ready.record(copies)
        stream.wait(ready)
        results.rows(number, number + 1).copy_from(buffer, stream)
        taken.record(stream)
    np.testing.assert_array_equal(results.download(stream), pinned.bits)
    copies.synchronize()


def test_events_say_when(device: Device, stream: Stream) -> None:
    begin, end = device.event(), device.event()
    begin.record(stream)
    device.zeros((1 << 16,), "float32", stream)
    end.record(stream)
    end.synchronize()
    assert 0 <= end.seconds_since(begin) < 60
    later = device.event()
    time.sleep(0.05)
    later.record(stream)
    later.synchronize()
    assert 0.05 <= later.seconds_since(begin) < 30
    for pair in ((device.event(), begin), (begin, device.event())):
        with pytest.raises(DeviceError, match="was not recorded"):
            pair[0].seconds_since(pair[1])


def test_an_event_that_was_waited_for_has_what_precedes_it(device: Device, stream: Stream) -> None:
    pinned, done = device.pinned((3,), "float32"), device.event()
    pinned.copy_from(device.array(row(1, 2, 3), stream), stream)
    done.record(stream)
    done.synchronize()
    np.testing.assert_array_equal(pinned.bits, [1, 2, 3])
    stream.synchronize()


# Graphs


def test_what_is_captured_is_done_when_it_is_launched(device: Device, stream: Stream) -> None:
    source, target = device.array(row(1, 2, 3), stream), device.zeros((3,), "float32", stream)
    states = []

    def body() -> None:
        states.append((stream.capturing, device.capturing))
        target.copy_from(source, stream)
        source.clear(stream)

    graph = stream.capture(body)
    assert states == [(True, True)]
    assert (stream.capturing, device.capturing) == (False, False)
    assert not target.download(stream).any()
    graph.launch(stream)
    np.testing.assert_array_equal(target.download(stream), [1, 2, 3])
    source.upload(row(4, 5, 6), stream)
    graph.launch(stream)
    graph.launch(stream)
    assert not target.download(stream).any()
    graph.close()
    graph.close()
    with pytest.raises(DeviceError, match="the graph was closed"):
        graph.launch(stream)


def test_a_graph_keeps_the_arguments_of_its_capture(device: Device, stream: Stream) -> None:
    clip = device.array(row(1, 2, 3, 4).reshape(4, 1), stream)
    shown = device.array(np.array([3], np.int32), stream)
    target, elsewhere = device.zeros((1, 1), "float32", stream), device.zeros((1, 1), "float32", stream)
    places = [target]
    gather(clip, shown, elsewhere, stream)  # a kernel's code is loaded by its first launch
    elsewhere.clear(stream)
    graph = stream.capture(lambda: gather(clip, shown, places[0], stream))
    places[0] = elsewhere
    shown.upload(np.array([1], np.int32), stream)  # what lies at the addresses may change
    graph.launch(stream)
    assert target.download(stream) == 2
    assert elsewhere.download(stream) == 0


def test_a_graph_runs_on_any_stream(device: Device, stream: Stream) -> None:
    array = device.array(row(1, 2, 3), stream)
    stream.synchronize()
    graph = stream.capture(lambda: array.clear(stream))
    other = device.stream()
    graph.launch(other)
    assert not array.download(other).any()


def test_an_empty_graph_does_nothing(device: Device, stream: Stream) -> None:
    stream.capture(lambda: None).launch(stream)
    stream.synchronize()


def test_a_graph_records_events_when_it_runs(device: Device, stream: Stream) -> None:
    begin, end = device.event(), device.event()
    array = device.zeros((3,), "float32", stream)
    begin.record(stream)

    def body() -> None:
        array.clear(stream)
        end.record(stream)

    graph = stream.capture(body)
    for _ in range(2):
        begin.record(stream)
        graph.launch(stream)
        stream.synchronize()
        assert 0 <= end.seconds_since(begin) < 60


def test_a_graph_waits_for_events_of_other_streams(device: Device, stream: Stream) -> None:
    other, ready = device.stream(), device.event()
    pinned = device.pinned((3,), "float32")
    source, target = device.zeros((3,), "float32", other), device.zeros((3,), "float32", stream)
    ready.record(other)

    def body() -> None:
        stream.wait(ready)
        target.copy_from(source, stream)

    graph = stream.capture(body)
    for value in (1, 2):
        pinned.bits[:] = value
        source.copy_from(pinned, other)
        ready.record(other)
        graph.launch(stream)
        assert (target.download(stream) == value).all()


def refusals(device: Device, stream: Stream) -> dict[str, Callable[[], object]]:
    """What nothing may do while a graph is captured."""
    array, pinned = device.array(row(1, 2, 3), stream), device.pinned((3,), "float32")
    array.download(stream)
    graph, event, other = stream.capture(lambda: array.clear(stream)), device.event(), device.stream()
    event.record(stream)
    return {
        "an allocation": lambda: device.empty((3,), "float32"),
        "an allocation of pinned memory": lambda: device.pinned((3,), "float32"),
        "zeros": lambda: device.zeros((3,), "float32", stream),
        "an upload": lambda: array.upload(row(4, 5, 6), stream),
        "a download": lambda: array.download(stream),
        "a copy from pinned memory": lambda: array.copy_from(pinned, stream),
        "a copy to pinned memory": lambda: pinned.copy_from(array, stream),
        "waiting for the stream": stream.synchronize,
        "waiting for an event": event.synchronize,
        "a capture": lambda: stream.capture(lambda: None),
        "a capture on another stream": lambda: other.capture(lambda: None),
        "a launch of a graph": lambda: graph.launch(stream),
        "closing the stream": stream.close,
        "closing the device": device.close,
    }


def test_what_no_graph_can_hold_is_refused(device: Device, stream: Stream) -> None:
    """And leaves the device, the stream and its work as they were."""
    with every_item() as every:
        for what, use in refusals(device, stream).items():
            array = device.array(row(1, 2, 3), stream)

            def body(array: Array = array, use: Callable[[], object] = use) -> None:
                array.clear(stream)
                use()

            with every(what):
                with pytest.raises(DeviceError, match="cannot be part of a graph"):
                    stream.capture(body)
                assert (stream.capturing, device.capturing) == (False, False)
                np.testing.assert_array_equal(array.download(stream), [1, 2, 3])
                stream.capture(partial(array.clear, stream)).launch(stream)
                assert not array.download(stream).any()
    assert every.checked == 14


def test_a_refusal_that_is_caught_leaves_the_capture_as_it_is(device: Device, stream: Stream) -> None:
    """Nothing was asked of CUDA, so nothing is broken."""
    array = device.array(row(1, 2, 3), stream)

    def body() -> None:
        with pytest.raises(DeviceError):
            stream.synchronize()
        array.clear(stream)

    stream.capture(body).launch(stream)
    assert not array.download(stream).any()


def test_an_error_in_the_body_ends_the_capture(device: Device, stream: Stream) -> None:
    array = device.array(row(1, 2, 3), stream)

    def body() -> None:
        array.clear(stream)
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        stream.capture(body)
    np.testing.assert_array_equal(array.download(stream), [1, 2, 3])


# Threads


def in_thread(body: Callable[[], object]) -> object:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(body()))
    thread.start()
    thread.join()
    assert answers, "the thread failed"
    return answers[0]


def test_any_thread_may_use_a_device(device: Device, stream: Stream) -> None:
    array = device.array(row(1, 2, 3), stream)
    done = device.event()
    done.record(stream)

    def work() -> np.ndarray:
        done.synchronize()
        other = device.stream()
        doubled = device.empty((2, 3), "float32")
        frames = device.array(np.zeros(2, np.int32), other)
        gather(array.reshape(1, 3), frames, doubled, other)
        values = doubled.download(other)
        other.close()
        doubled.free()
        return values

    np.testing.assert_array_equal(in_thread(work), [[1, 2, 3], [1, 2, 3]])


def test_other_threads_may_allocate_while_one_captures(device: Device, stream: Stream) -> None:
    array = device.array(row(1, 2, 3), stream)
    stream.synchronize()

    def body() -> None:
        array.clear(stream)
        in_thread(lambda: device.pinned((5,), "float32"))
        in_thread(lambda: device.array(row(7), device.stream()).download(device.stream()))

    stream.capture(body).launch(stream)
    assert not array.download(stream).any()


def test_a_closed_stream_is_refused(device: Device, stream: Stream) -> None:
    array, graph = device.array(row(1, 2, 3), stream), stream.capture(lambda: None)
    stream.close()
    stream.close()
    for use in (
        stream.synchronize,
        lambda: stream.handle,
        lambda: stream.wait(device.event()),
        lambda: array.clear(stream),
        lambda: device.launch("gather_frames", (array, array, array, 0, 0, 0), stream),
        lambda: graph.launch(stream),
        lambda: stream.capture(lambda: None),
        lambda: device.event().record(stream),
    ):
        with pytest.raises(DeviceError, match="the stream was closed"):
            use()
    np.testing.assert_array_equal(array.download(device.stream()), [1, 2, 3])  # closing had waited


def test_dropped_streams_are_closed_with_the_device(device: Device) -> None:
    array = device.array(row(1, 2, 3), device.stream())
    gc.collect()
    array.clear(device.stream())
    device.close()
