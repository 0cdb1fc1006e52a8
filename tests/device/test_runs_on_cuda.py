"""Whole parts of a run through the CUDA code path, on a fake GPU, against the same on the CPU: the bits agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dispose_rt import kernels
from dispose_rt.clip.store import ResidentClip, RowSource
from dispose_rt.contract import Sizes
from dispose_rt.device import Stream, open_device
from dispose_rt.stages.conditions import PoseLatents
from dispose_rt.stages.decode import decode_frames
from dispose_rt.stages.motion import MotionFeatures, MotionFields
from dispose_rt.types import Track
from tests.fakes.cuda import FakeCuda, install
from tests.fakes.engine import FakeEngine, FakeLoader
from tests.golden_data import load_golden
from tests.kernels.targets import Target
from tests.stages.denoise.test_loop import STEPS, Clip, Setup

SIZES = Sizes(64, 64, tile=3, channels=(3, 8, 8, 8), chunk=4)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install(monkeypatch, memory_bytes=1 << 30)


def set_up(device: str) -> Setup:
    return Setup(loader=FakeLoader(open_device(device)))


@pytest.mark.parametrize("place", ["device", "host", "recompute"])
@pytest.mark.parametrize("frames", [3, 11])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_clip_is_denoised_as_on_the_cpu(roomy: FakeCuda, frames: int, place: str, dtype: str) -> None:
    clip, setup = Clip(frames), set_up("cuda")
    actual = setup.run(clip, place=place)
    np.testing.assert_array_equal(actual, set_up("cpu").run(clip, place=place))
    setup.loader.close()
    for things in (roomy.blocks, roomy.host_blocks, roomy.streams, roomy.events, roomy.graphs, roomy.executables):
        assert things == {}


def test_a_step_is_one_graph(roomy: FakeCuda) -> None:
    setup = set_up("cuda")
    setup.run(Clip(11))
    assert roomy.calls.count("cudaStreamBeginCapture") == 1
    assert roomy.calls.count("cudaGraphLaunch") == STEPS - 1
    steps = roomy.calls[roomy.calls.index("cudaGraphLaunch") : -roomy.calls[::-1].index("cudaGraphLaunch")]
    assert set(steps) <= {"cudaGraphLaunch", "cudaEventRecordWithFlags", "cudaEventSynchronize", "cudaMemcpyAsync"}


def test_a_second_run_allocates_nothing(roomy: FakeCuda) -> None:
    setup = set_up("cuda")
    setup.run(Clip(11))
    before = roomy.calls.count("cudaMalloc")
    setup.run(Clip(11))
    assert roomy.calls.count("cudaMalloc") == before


def on_both(roomy: FakeCuda, work: Callable[[Stream], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What a piece of work computes on the fake GPU and on the CPU; on the GPU, it leaves nothing behind."""
    results = []
    for name in ("cuda", "cpu"):
        device = open_device(name)
        results.append(work(device.stream()))
        device.close()
    for things in (roomy.blocks, roomy.host_blocks, roomy.streams, roomy.events):
        assert things == {}
    gpu, cpu = results
    return gpu, cpu


def test_chunks_are_decoded_as_on_the_cpu(roomy: FakeCuda) -> None:
    values = np.random.default_rng(0).standard_normal((11, 4, 8, 8), np.float32)

    def decode(stream: Stream) -> np.ndarray:
        frames = FakeEngine(
            "vae_decoder",
            SIZES,
            lambda inputs: {"frames": np.tanh(inputs["latents"][:, :3]).repeat(8, axis=2).repeat(8, axis=3)},
            stream=stream,
        )
        latents = stream.device.array(values, stream)
        return np.concatenate(list(decode_frames(latents, frames)))

    actual, expected = on_both(roomy, decode)
    assert actual.shape == (10, 64, 64, 3)
    assert actual.std() > 10
    np.testing.assert_array_equal(actual, expected)


def test_poses_are_encoded_as_on_the_cpu(roomy: FakeCuda) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 64, 64), np.uint8)

    def encode(stream: Stream) -> np.ndarray:
        engine = FakeEngine(
            "pose_net", SIZES, lambda inputs: {"pose_latents": inputs["pose_images"][:, :, :8, :8]}, stream=stream
        )
        return gathered(PoseLatents(images.__getitem__, 7, engine), engine, 7)

    actual, expected = on_both(roomy, encode)
    np.testing.assert_array_equal(expected, images[:, :, :8, :8].astype(np.float32) / np.float32(127.5) - 1)
    np.testing.assert_array_equal(actual, expected)


def gathered(source: RowSource, engine: FakeEngine, frames: int) -> np.ndarray:
    """All rows of a source, in a clip that keeps them on the device."""
    stream, output = engine.stream, engine.tensor(next(iter(engine._spec.outputs)).name)
    store = ResidentClip(frames, {"rows": (output.shape[1:], output.dtype)}, stream.device)
    store.fill("rows", source, stream, lambda done: None)
    return store.download("rows", stream)


def test_motion_is_encoded_as_on_the_cpu(roomy: FakeCuda) -> None:
    arrays = {name.removeprefix("s64_edge."): values for name, values in load_golden("trajectory").items()}
    track = Track(arrays["candidate"][:, :18], arrays["subset"][:, 0] >= 0)
    frames = len(track.visible)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def encode(stream: Stream) -> np.ndarray:
        encoder = FakeEngine(
            "cmp_image_encoder",
            SIZES,
            lambda inputs: {
                "image_features": inputs["image"].mean(),
                "skip_features_4": inputs["image"].std(),
                "skip_features_2": inputs["image"].max(),
            },
            stream=stream,
        )
        decoder = FakeEngine(
            "cmp_flow_decoder",
            replace(SIZES, tile=2),
            lambda inputs: {"flow": np.roll(inputs["sparse_flow"], 7, axis=3) + inputs["image_features"].mean()},
            stream=stream,
        )
        motion = FakeEngine(
            "motion_encoder",
            SIZES,
            lambda inputs: {
                "motion_features": (inputs["dense_flow"] + inputs["trajectory_flow"]).mean(axis=1)[:, None, ::8, ::8]
            },
            stream=stream,
        )
        return gathered(MotionFeatures(MotionFields(image, track, encoder, decoder), motion), motion, frames)

    actual, expected = on_both(roomy, encode)
    assert len(np.unique(expected)) > 100
    np.testing.assert_array_equal(actual, expected)


def test_kernels_can_be_captured(roomy: FakeCuda) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    frames = np.full(pixels.shape, np.nan, np.float32)
    target = Target(open_device("cuda"))
    target.run_captured(kernels.normalize_frames, pixels, frames)
    np.testing.assert_array_equal(frames, pixels.astype(np.float32) / np.float32(127.5) - 1)
    target.close()
