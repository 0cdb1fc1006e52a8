"""CLIP preprocessing and the batches of the per-frame encoders."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from dispose_rt.contract import Sizes
from dispose_rt.device import CpuDevice
from dispose_rt.errors import InputError, OutOfMemoryError
from dispose_rt.stages.conditions import PoseLatents, added_time_ids, clip_pixels
from dispose_rt.stages.motion import MotionFeatures
from tests.every import each
from tests.fakes.deferred_device import DeferredDevice
from tests.fakes.engine import FakeEngine
from tests.fakes.scarce_memory import fail_at_every_allocation

SIZES = Sizes(64, 128, tile=3, channels=(3, 8, 8, 8))


@each(case=["small", "large"])
def test_clip_pixels_match_golden(golden, case):
    nets = golden("nets")
    expected = nets[f"clip.{case}.pixel_values"]
    # The reference works in float32: at 330 columns its sampling positions are rounded by up to 2e-5 of a pixel, and
    # the noisy picture changes by up to 1.5 from pixel to pixel. Ours is float64. The array's scale is 2.
    np.testing.assert_allclose(clip_pixels(nets[f"clip.{case}.image"]), expected, rtol=0, atol=5e-5)


def test_added_time_ids_match_golden(golden):
    for case in golden("e2e")["cases"]:
        np.testing.assert_array_equal(added_time_ids(127, 0.0)[0], golden("e2e")[f"{case}.added_time_ids"][1])


@pytest.fixture(params=[CpuDevice, DeferredDevice])
def stream(request):
    """Of a device that is done at once, and of one that works when it is waited for."""
    device = request.param()
    yield device.stream()
    device.close()


def pose_net(stream, compute_dtype="float32"):
    """Answers the first pixels of its pictures."""
    compute = lambda inputs: {"pose_latents": inputs["pose_images"][:, :, :16, :8]}  # noqa: E731
    return FakeEngine("pose_net", SIZES, compute, compute_dtype, stream)


class Rows:
    """Takes what is computed, in a copy that is queued as a clip's store queues it."""

    def __init__(self, frames, stream, dtype="float32"):
        self.frames, self.stream = frames, stream
        self.array = stream.device.empty((frames, 3, 16, 8), dtype)
        self.used_bytes = stream.device.pool.used_bytes

    def take(self, source):
        """All rows of a source, which is closed then."""
        with closing(source):
            for start in range(0, self.frames, source.limit):
                stop = min(start + source.limit, self.frames)
                self.array.rows(start, stop).copy_from(source.compute(start, stop), self.stream)

    def check_freed(self, *engines):
        """Nothing is left but the engines' tensors and this array."""
        for engine in engines:
            engine.close()
        assert self.stream.device.pool.used_bytes == self.used_bytes


def random_poses(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 128, 64), np.uint8)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 13])
def test_poses_are_scaled_and_batched(stream, frames):
    images, engine, rows = random_poses(frames), pose_net(stream), Rows(frames, stream)
    rows.take(PoseLatents(images.__getitem__, frames, engine))
    expected = images[:, :, :16, :8].astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(rows.array.download(stream), expected)
    assert engine.batches == [{"frames": min(3, frames - start)} for start in range(0, frames, 3)]
    rows.check_freed(engine)


def test_latents_are_handed_on_in_the_engine_s_precision(stream):
    images, engine, rows = random_poses(4), pose_net(stream, "float16"), Rows(4, stream, "float16")
    rows.take(PoseLatents(images.__getitem__, 4, engine))
    expected = images[:, :, :16, :8].astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(rows.array.download(stream), expected.astype(np.float16))


def test_any_batch_can_be_computed_again_and_only_its_poses_are_drawn(stream):
    images, engine, drawn = random_poses(8), pose_net(stream), []
    source = PoseLatents(lambda frame: drawn.append(frame) or images[frame], 8, engine)
    expected = images[:, :, :16, :8].astype(np.float32) / np.float32(127.5) - np.float32(1)
    for start, stop in ((0, 3), (6, 8), (3, 6), (3, 6), (0, 3)):
        drawn.clear()
        np.testing.assert_array_equal(source.compute(start, stop).download(stream), expected[start:stop])
        assert drawn == list(range(start, stop))
    source.close()
    source.close()


def test_the_host_prepares_pictures_while_others_are_under_way():
    """Pictures are drawn for the third batch when the device has done no more than copy the first one."""
    stream = DeferredDevice().stream()
    engine, rows, images, done = pose_net(stream), Rows(12, stream), random_poses(12), []

    def draw(frame):
        done.append(len(engine.batches))
        return images[frame]

    rows.take(PoseLatents(draw, 12, engine))
    assert done == [0] * 9 + [1] * 3
    assert stream.waits == 4  # for the first two copies, and for those of either buffer before it is freed
    assert stream.device.pinned_arrays == 0


def test_an_error_in_the_middle_frees_everything(stream):
    images, engine, rows = random_poses(5), pose_net(stream), Rows(7, stream)
    with pytest.raises(IndexError):
        rows.take(PoseLatents(images.__getitem__, 7, engine))
    stream.synchronize()
    rows.check_freed(engine)
    assert getattr(stream.device, "pinned_arrays", 0) == 0


def test_everything_is_given_back_when_memory_runs_out(stream):
    engine, rows, images = pose_net(stream), Rows(4, stream), random_poses(4)
    engine.allocate()
    work = lambda: rows.take(PoseLatents(images.__getitem__, 4, engine))  # noqa: E731
    assert fail_at_every_allocation(stream.device, work) == 1


def test_no_pinned_memory_is_left_when_it_runs_out(monkeypatch):
    stream = DeferredDevice().stream()
    engine = pose_net(stream)
    engine.allocate()
    pinned, used_bytes = stream.device.pinned, stream.device.pool.used_bytes

    def refuse_second(shape, dtype):
        if stream.device.pinned_arrays:
            raise OutOfMemoryError("no room")
        return pinned(shape, dtype)

    monkeypatch.setattr(stream.device, "pinned", refuse_second)
    with pytest.raises(OutOfMemoryError):
        PoseLatents(random_poses(4).__getitem__, 4, engine)
    assert stream.device.pinned_arrays == 0
    assert stream.device.pool.used_bytes == used_bytes


@pytest.mark.parametrize(
    "image", [np.zeros((3, 128, 64), np.float32), np.zeros((3, 64, 128), np.uint8), np.zeros((1, 64), np.uint8)]
)
def test_images_of_another_kind_are_refused(stream, image):
    images = [random_poses(1)[0], image]
    with pytest.raises(InputError, match=r"the pose of frame 1 was drawn as .*; expected uint8 \[3, 128, 64\]"):
        Rows(2, stream).take(PoseLatents(images.__getitem__, 2, pose_net(stream)))


class NumberedFields:
    """Frame f has f as its trajectory and 100 + f as its dense flow."""

    def __init__(self):
        self.asked, self.closed = [], 0

    def close(self):
        self.closed += 1

    def fill(self, start, stop, trajectory, dense, stream):
        self.asked.append((start, stop))
        for array, offset in ((trajectory, 0), (dense, 100)):
            assert array.shape == (stop - start, 2, 128, 64)
            numbers = np.arange(start, stop, dtype=np.float32) + np.float32(offset)
            array.upload(np.tile(numbers[:, None, None, None], (1, 2, 128, 64)), stream)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
def test_motion_is_encoded_in_batches(stream, frames):
    def compute(inputs):
        trajectory, dense = (inputs[name][:, :1, :1, :1] for name in ("trajectory_flow", "dense_flow"))
        return {"motion_features": trajectory * 1000 + dense}

    engine, fields, rows = (
        FakeEngine("motion_encoder", SIZES, compute, stream=stream),
        NumberedFields(),
        Rows(7, stream),
    )
    rows.frames = frames
    rows.take(MotionFeatures(fields, engine))
    assert getattr(stream, "waits", 0) == 0
    assert fields.closed == 1
    features = rows.array.download(stream)[:frames]
    np.testing.assert_array_equal(features[:, 0, 0, 0], [1000 * frame + 100 + frame for frame in range(frames)])
    assert fields.asked == [(start, min(start + 3, frames)) for start in range(0, frames, 3)]
    assert engine.batches == [{"frames": stop - start} for start, stop in fields.asked]
    rows.check_freed(engine)
