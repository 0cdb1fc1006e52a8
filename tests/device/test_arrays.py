"""Arrays on every kind of device: there and back, views, rounding, pinned memory, and what is refused."""

from __future__ import annotations

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

from dispose_rt.device import DTYPE_BYTES, CpuDevice, Device, Stream
from dispose_rt.errors import DeviceError, OutOfMemoryError
from tests.every import every_item


def counting(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def test_arrays_go_there_and_back(device: Device, stream: Stream) -> None:
    with every_item() as every:
        for dtype in ("float32", "float16", "int32", "uint8"):
            values = counting(3, 4, dtype=dtype).T  # not contiguous
            with every(dtype):
                array = device.array(values, stream)
                assert (array.shape, array.dtype, array.nbytes) == ((4, 3), dtype, 12 * DTYPE_BYTES[dtype])
                assert array.address % 256 == 0
                actual = array.download(stream)
                assert actual.dtype == dtype
                np.testing.assert_array_equal(actual, values)


def test_any_shape_will_do(device: Device, stream: Stream) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (3, 0), (1,), (2, 1, 3)]
    with every_item() as every:
        for shape in shapes:
            values = counting(*shape)
            with every(shape):
                np.testing.assert_array_equal(device.array(values, stream).download(stream), values)
                assert not device.zeros(shape, "float32", stream).download(stream).any()


def test_fewer_rows_use_the_front(device: Device, stream: Stream) -> None:
    array = device.array(counting(4, 3), stream)
    array.upload(np.full((2, 3), 70, np.float32), stream)
    np.testing.assert_array_equal(array.download(stream), np.concatenate([np.full((2, 3), 70), counting(4, 3)[2:]]))
    assert (array.download(stream, 2) == 70).all()
    assert array.download(stream, 2).shape == (2, 3)


def test_views_share_the_memory(device: Device, stream: Stream) -> None:
    array = device.array(counting(4, 6), stream)
    part = array.rows(1, 3).reshape(3, 4).rows(1, 2)
    assert part.address == array.address + 4 * (6 + 4)
    np.testing.assert_array_equal(part.download(stream), counting(4, 6)[1:3].reshape(3, 4)[1:2])
    part.clear(stream)
    expected = counting(24)
    expected[10:14] = 0
    np.testing.assert_array_equal(array.reshape(24).download(stream), expected)
    assert array.rows(4, 4).nbytes == 0


def test_views_end_with_their_array(device: Device, stream: Stream) -> None:
    array = device.array(counting(4, 6), stream)
    view = array.rows(1, 2)
    view.free()
    np.testing.assert_array_equal(view.download(stream), counting(4, 6)[1:2])
    array.free()
    array.free()
    for one in (array, view):
        with pytest.raises(DeviceError, match="was freed"):
            one.download(stream)


def test_rows_that_are_not_there(device: Device) -> None:
    with every_item() as every:
        for start, stop in ((-1, 2), (3, 2), (0, 5)):
            for make in (device.empty, device.pinned):
                with (
                    every(start, stop, make.__name__),
                    pytest.raises(DeviceError, match=rf"no rows {start}..{stop} in \[4, 3\]"),
                ):
                    make((4, 3), "float32").rows(start, stop)


def test_other_shapes_have_as_many_elements(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"\[4, 3\] cannot be seen as \[5, 2\]"):
        device.empty((4, 3), "float32").reshape(5, 2)


def test_what_does_not_fit_is_refused(device: Device, stream: Stream) -> None:
    array, message = device.empty((4, 3), "float32"), r"does not fit float32 \[4, 3\] on " + device.name
    with every_item() as every:
        for values in (counting(5, 3), counting(4, 3, dtype="float64"), counting(3), counting(4, 2)):
            with every(values.shape, values.dtype), pytest.raises(DeviceError, match=message):
                array.upload(values, stream)


def test_what_no_device_has_is_refused(device: Device) -> None:
    with every_item() as every:
        for shape, dtype in (((2,), "float64"), ((-1,), "float32"), ((2, -3), "uint8")):
            for allocate in (device.empty, device.pinned):
                with (
                    every(shape, dtype, allocate.__name__),
                    pytest.raises(DeviceError, match="float64 are not known|is no shape"),
                ):
                    allocate(shape, dtype)
    assert device.pool.used_bytes == 0


def test_arrays_are_copied_on_the_device(device: Device, stream: Stream) -> None:
    source, target = device.array(counting(2, 6), stream), device.empty((3, 4), "float32")
    target.copy_from(source, stream)
    np.testing.assert_array_equal(target.download(stream), counting(3, 4))
    with pytest.raises(DeviceError, match=r"float32 \[2, 6\] cannot be copied into float32 \[2, 4\]"):
        target.rows(0, 2).copy_from(source, stream)
    with pytest.raises(DeviceError, match=r"cannot be copied into int32 \[3, 4\]"):
        device.empty((3, 4), "int32").copy_from(source, stream)


def test_the_source_of_a_copy_lives_until_the_stream_was_waited_for(device: Device, stream: Stream) -> None:
    array = device.empty((1000,), "float32")
    values = np.full(1000, 3, np.float32)
    alive = weakref.ref(values)
    array.upload(values, stream)
    del values
    gc.collect()
    assert alive() is not None
    stream.synchronize()
    gc.collect()
    assert alive() is None


def test_closing_a_stream_lets_go_of_sources(device: Device, stream: Stream) -> None:
    values = np.full(1000, 3, np.float32)
    alive = weakref.ref(values)
    device.array(values, stream)
    del values
    stream.close()
    gc.collect()
    assert alive() is None


def test_what_is_held_while_somebody_waits_is_held_on(
    device: Device, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may queue a copy just after the stream was found to be done."""
    queued = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
    alive = [weakref.ref(values) for values in queued]
    finish = stream._synchronize

    def wait_while_another_thread_queues() -> None:
        finish()
        stream.hold(queued.pop())

    stream.hold(queued.pop(0))
    monkeypatch.setattr(stream, "_synchronize", wait_while_another_thread_queues)
    stream.synchronize()
    gc.collect()
    assert alive[0]() is None
    assert alive[1]() is not None


def test_the_target_of_a_copy_lives_on_if_waiting_fails(
    device: Device, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = device.array(counting(3), stream)
    stream.synchronize()
    held: list[object] = []

    def fail() -> None:
        held.extend(stream._held)
        raise DeviceError("the copy may still be under way")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "_synchronize", fail)
        with pytest.raises(DeviceError, match="under way"):
            array.download(stream)
    [target] = held
    stream.synchronize()
    np.testing.assert_array_equal(target, counting(3))


def every_kind_of_float() -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32, endpoint=False)
    ties = (bits[:1000] & 0xFFFF0000) | 0x8000
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, 1e-45], np.float32).view(np.uint32)
    return np.concatenate([bits, ties, special]).view(np.float32)


def test_bfloat16_is_rounded_to_nearest_even(device: Device, stream: Stream) -> None:
    values = every_kind_of_float()
    array = device.array(values, stream, "bfloat16")
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    actual = array.download(stream)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)  # NaN equals NaN here


# Pinned memory


def test_pinned_memory_goes_there_and_back(device: Device, stream: Stream) -> None:
    with every_item() as every:
        for dtype in DTYPE_BYTES:
            pinned, back = device.pinned((4, 3), dtype), device.pinned((4, 3), dtype)
            pinned.bits[:] = counting(4, 3, dtype="uint8")
            array = device.empty((4, 3), dtype)
            with every(dtype):
                array.copy_from(pinned, stream)
                back.rows(1, 3).copy_from(array.rows(0, 2), stream)
                back.rows(0, 1).copy_from(array.rows(3, 4), stream)
                stream.synchronize()
                np.testing.assert_array_equal(back.bits[:3], pinned.bits[[3, 0, 1]])
                assert (back.shape, back.nbytes) == ((4, 3), 12 * DTYPE_BYTES[dtype])
                assert back.rows(1, 3).address == back.address + back.nbytes // 4


def test_pinned_memory_of_no_size(device: Device, stream: Stream) -> None:
    pinned = device.pinned((0, 3), "float32")
    device.empty((0, 3), "float32").copy_from(pinned, stream)
    assert pinned.bits.shape == (0, 3)
    pinned.free()


def test_freed_pinned_memory_is_refused(device: Device, stream: Stream) -> None:
    pinned = device.pinned((4, 3), "float32")
    view, array = pinned.rows(0, 2), device.empty((4, 3), "float32")
    view.free()  # which owns nothing
    pinned.bits[:] = 0
    pinned.free()
    pinned.free()
    with pytest.raises(DeviceError, match="pinned float32 array was freed"):
        array.copy_from(pinned, stream)
    with pytest.raises(DeviceError, match="was freed"):
        view.copy_from(array.rows(0, 2), stream)


def test_pinned_memory_that_does_not_fit_is_refused(device: Device, stream: Stream) -> None:
    pinned, array = device.pinned((4, 3), "float16"), device.empty((4, 3), "float32")
    with pytest.raises(DeviceError, match=r"float16 \[4, 3\] cannot be copied into float32 \[4, 3\]"):
        array.copy_from(pinned, stream)
    with pytest.raises(DeviceError, match=r"float32 \[4, 3\] cannot be copied into float16 \[4, 3\]"):
        pinned.copy_from(array, stream)


# The device's memory


def test_memory_is_counted(device: Device, stream: Stream) -> None:
    device.pool.reset_peak()
    before = device.pool.used_bytes
    arrays = [device.empty((1 << 20,), "uint8") for _ in range(3)]
    for array in arrays:
        array.free()
    assert device.pool.used_bytes == before
    assert device.peak_bytes == before + (3 << 20)


def test_what_the_pool_keeps_counts_as_free(device: Device) -> None:
    device.empty((64 << 20,), "uint8").free()
    free, total = device.memory_bytes()
    device.pool.trim()
    assert 0 < free <= total
    if device.name != "cpu":  # of the host, others take and give meanwhile
        assert abs(device.memory_bytes()[0] - free) < 32 << 20
        assert device.memory_bytes()[1] == total


def test_too_much_is_out_of_memory(device: Device, stream: Stream) -> None:
    with pytest.raises(OutOfMemoryError, match="MB"):
        device.empty((1 << 60,), "uint8")
    np.testing.assert_array_equal(device.array(counting(3), stream).download(stream), counting(3))


def test_arrays_of_another_device_are_not_copied(device: Device, stream: Stream) -> None:
    if device.name == "cpu":
        pytest.skip("needs two kinds of devices")
    cpu = CpuDevice()
    foreign = cpu.array(counting(3), cpu.stream())
    with pytest.raises(DeviceError, match="array of cpu cannot be copied into one of cuda:0"):
        device.empty((3,), "float32").copy_from(foreign, stream)


def test_a_closed_device_has_nothing(device: Device, stream: Stream) -> None:
    array, pinned = device.array(counting(3), stream), device.pinned((3,), "float32")
    event = device.event()
    device.close()
    device.close()
    for use in (
        lambda: array.address,
        lambda: device.empty((3,), "float32"),
        lambda: device.pinned((3,), "float32"),
        device.stream,
        device.event,
        stream.synchronize,
        lambda: stream.handle,
        lambda: stream.capture(lambda: None),
        lambda: array.upload(counting(3), stream),
        lambda: event.record(stream),
    ):
        with pytest.raises(DeviceError, match=f"the device {device.name} was closed"):
            use()
    for one in (stream, event):
        one.close()
    array.free()
    pinned.free()
