"""TensorRT engines on a fake GPU: that they compute, how they share memory, and what graphs hold."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.backends import Engine
from dispose_rt.errors import DeviceError, DeviceLostError, EngineError, InputError, OutOfMemoryError
from tests.fakes.tensorrt import FakeRun
from tests.fakes.tensorrt_machine import (
    DECODER,
    MOTION,
    POINTS,
    SIZES,
    Machine,
    add_flows,
    embeddings,
    enlarge,
    repeat_channels,
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def check_points(engine: Engine, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    for level, channels in enumerate(SIZES.channels):
        expected = (2 * inputs["embeddings"][:, :channels]).astype(np.float16)
        np.testing.assert_array_equal(outputs[f"point_features_{level}"], expected)


def read_points(engine: Engine) -> dict[str, np.ndarray]:
    return {tensor.name: engine.read(tensor.name) for tensor in NETWORKS[POINTS].outputs}


def test_an_engine_computes_from_its_inputs_to_its_outputs(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    assert isinstance(engine, Engine)
    for rows in (6, 2, 1, 6):
        inputs = embeddings(rows)
        check_points(engine, inputs, engine.run(inputs))
    assert engine.max_batch("points") == 6


def test_tensors_are_placed_once_and_shapes_set_when_they_change(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    for rows in (6, 3, 3, 5):
        engine.run(embeddings(rows))
    calls = built.contexts[0].calls
    assert sum(call.startswith("set_tensor_address") for call in calls) == 5
    shapes = [call for call in calls if call.startswith("set_input_shape")]
    assert shapes == [f"set_input_shape embeddings ({rows}, 32)" for rows in (6, 3, 5)]


def test_nothing_is_allocated_before_it_is_needed(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    assert machine.cuda.used_bytes == 0
    engine.allocate()
    used = machine.cuda.used_bytes
    assert used > 1000
    engine.run(embeddings(3))
    assert machine.cuda.used_bytes == used


def test_a_queued_run_neither_copies_nor_allocates_nor_waits(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    engine.run(embeddings(4))
    machine.cuda.calls.clear()
    built.contexts[0].calls.clear()
    engine.enqueue(engine.stream)
    assert machine.cuda.calls == []
    assert built.contexts[0].calls == ["execute_async_v3"]
    assert engine.capture_problem(engine.stream) is None


def test_a_run_uses_the_shapes_and_places_that_it_was_queued_with(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    stream, values = engine.stream, embeddings(6)["embeddings"]
    elsewhere = engine.device.zeros((6, 32), "float32", stream)
    engine.tensor("embeddings").upload(values, stream)
    engine.enqueue(stream)
    engine.set_batch(points=1)
    engine.enqueue(stream)
    outputs = engine.tensor("point_features_0")
    np.testing.assert_array_equal(outputs.download(stream), (2 * values[:, :8]).astype(np.float16))
    engine.bind("embeddings", elsewhere)
    engine.enqueue(stream)
    expected = (2 * values[:, :8]).astype(np.float16)
    expected[0] = 0
    np.testing.assert_array_equal(outputs.download(stream), expected)


def test_bfloat16_tensors_are_float32_on_the_host(machine: Machine) -> None:
    def pass_residuals(run: FakeRun) -> None:
        run.tensor("noise_pred", (2, 4, 4, 8, 8))[:] = 1.5
        seen.append(run.tensor("residual_0", (8, 8, 8, 8)).copy())

    seen: list[np.ndarray] = []
    machine.build("unet", pass_residuals, "bfloat16")
    engine = machine.loader("bfloat16").open("unet")
    random = np.random.default_rng(0)
    inputs = {
        tensor.name: random.standard_normal(SIZES.resolve(tensor.shape), np.float32)  # type: ignore[arg-type]
        for tensor in NETWORKS["unet"].inputs
    }
    assert (engine.run(inputs)["noise_pred"] == 1.5).all()
    np.testing.assert_array_equal(seen[0].view(ml_dtypes.bfloat16), inputs["residual_0"].astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(
        engine.read("residual_0"), inputs["residual_0"].astype(ml_dtypes.bfloat16).astype(np.float32)
    )


def test_non_finite_bfloat16_outputs_are_refused(machine: Machine) -> None:
    def overflow(run: FakeRun) -> None:
        rows = run.shapes["embeddings"][0]
        for level, channels in enumerate(SIZES.channels):
            run.tensor(f"point_features_{level}", (rows, channels))[:] = 0x7F80 if level == 2 else 0

    machine.build(POINTS, overflow, "bfloat16")
    with pytest.raises(EngineError, match=r"non-finite values in bfloat16: point_features_2: 64 of 64"):
        machine.loader("bfloat16").open(POINTS).run(embeddings(2))


def test_one_engine_reads_what_another_wrote(machine: Machine) -> None:
    """As the UNet reads the ControlNet's residuals: nothing is copied in between."""

    def write_residuals(run: FakeRun) -> None:
        run.tensor("residual_3", (8, 8, 4, 4))[:] = run.tensor("timestep", (1,))

    def read_residuals(run: FakeRun) -> None:
        run.tensor("noise_pred", (2, 4, 4, 8, 8))[:] = run.tensor("residual_3", (8, 8, 4, 4))[0, 0, 0, 0]

    machine.build("controlnet", write_residuals)
    machine.build("unet", read_residuals)
    loader = machine.loader()
    controlnet, unet = loader.open("controlnet"), loader.open("unet")
    for name in ("timestep", *(tensor.name for tensor in NETWORKS["controlnet"].outputs)):
        unet.bind(name, controlnet.tensor(name))
    for value in (0.5, -3.0):
        unet.tensor("timestep").upload(np.array([value], np.float32), loader.stream)
        machine.cuda.calls.clear()
        controlnet.enqueue(loader.stream)
        unet.enqueue(loader.stream)
        assert "cudaMemcpyAsync" not in machine.cuda.calls
        assert (unet.read("noise_pred") == value).all()
    unet.close()
    assert controlnet.read("residual_3").shape == (8, 8, 4, 4)  # it was lent, and is still there


def test_a_lent_array_that_was_freed_is_found_before_it_is_used(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    lent = engine.device.zeros((6, 32), "float32", engine.stream)
    engine.bind("embeddings", lent)
    engine.enqueue(engine.stream)
    lent.free()
    with pytest.raises(DeviceError, match="was freed"):
        engine.enqueue(engine.stream)
    assert built.contexts[0].calls.count("execute_async_v3") == 1


def test_engines_share_one_scratch_memory_that_grows(machine: Machine) -> None:
    small, large = machine.build(POINTS, repeat_channels), machine.build(MOTION, add_flows)
    small.device_memory_size_v2, large.device_memory_size_v2 = 1 << 10, 1 << 20
    loader = machine.loader()
    points, motion = loader.open(POINTS), loader.open(MOTION)
    points.allocate()
    assert small.contexts[0].memory[1] == 1 << 10
    motion.allocate()
    assert small.contexts[0].memory == large.contexts[0].memory
    assert large.contexts[0].memory[1] == 1 << 20
    flow = np.ones((2, 2, 64, 64), np.float32)
    for _ in range(2):
        points.run(embeddings(2))
        assert (motion.run({"dense_flow": flow, "trajectory_flow": 3 * flow})["motion_features"] == 2).all()
    points.close()
    motion.close()
    loader.close()
    loader.close()
    assert machine.cuda.blocks == {}
    assert machine.cuda.streams == {}
    with pytest.raises(EngineError, match="its directory was closed"):
        loader.open(POINTS)


def test_an_engine_that_does_not_fit_leaves_the_others_working(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    machine.build(MOTION, add_flows).device_memory_size_v2 = 1 << 30
    loader = machine.loader()
    points, motion = loader.open(POINTS), loader.open(MOTION)
    points.run(embeddings(2))
    used = loader.device.pool.used_bytes
    with pytest.raises(OutOfMemoryError, match="out of memory: 1,074 MB wanted"):
        motion.allocate()
    motion.close()
    assert loader.device.pool.used_bytes == used
    check_points(points, embeddings(2), points.run(embeddings(2)))


def test_engines_attach_again_where_not_even_the_old_memory_is_left(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels).device_memory_size_v2 = 1 << 20
    machine.build(MOTION, add_flows).device_memory_size_v2 = 1 << 30
    loader = machine.loader()
    points, motion = loader.open(POINTS), loader.open(MOTION)
    points.allocate()
    for tensor in (*NETWORKS[MOTION].inputs, *NETWORKS[MOTION].outputs):
        motion.tensor(tensor.name)
    free, machine.cuda.memory_bytes = machine.cuda.memory_bytes, 0
    with pytest.raises(OutOfMemoryError):
        motion.allocate()
    with pytest.raises(OutOfMemoryError):
        points.run(embeddings(2))
    machine.cuda.memory_bytes = free
    check_points(points, embeddings(2), points.run(embeddings(2)))


# a lack of memory


def test_what_the_pool_keeps_is_given_back_before_others_allocate(machine: Machine) -> None:
    """Engines, graphs, and the workspace that a larger one replaces."""
    small, large = machine.build(POINTS, repeat_channels), machine.build(MOTION, add_flows)
    small.device_memory_size_v2, large.device_memory_size_v2 = 1 << 20, 3 << 20
    large.weights_bytes = 2 << 20
    loader, cuda = machine.loader(), machine.cuda
    pool = loader.device.pool
    points = loader.open(POINTS)
    points.run(embeddings(2))
    loader.device.empty((2 << 20,), "uint8").free()
    cuda.memory_bytes = cuda.used_bytes  # what is kept is all that is left
    motion = loader.open(MOTION)
    assert pool.reserved_bytes == pool.used_bytes
    cuda.memory_bytes += 8 << 20
    motion.allocate()
    assert pool.reserved_bytes == pool.used_bytes == cuda.used_bytes
    points.run(embeddings(2))
    loader.device.empty((4 << 20,), "uint8").free()
    cuda.graph_bytes, cuda.memory_bytes = 4 << 20, cuda.used_bytes + cuda.foreign_bytes
    graph = loader.capture(lambda: points.enqueue(loader.stream))
    graph.close()
    motion.close()
    assert small.contexts[0].memory[1] == 3 << 20
    check_points(points, embeddings(2), points.run(embeddings(2)))
    assert small.contexts[0].memory[1] == 1 << 20  # no more than it needs by itself
    points.close()
    loader.close()
    assert cuda.used_bytes == cuda.foreign_bytes == 0


def test_allocations_that_fail_in_tensorrt_are_told_from_damage(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    loader = machine.loader()
    helps = rf"free:\n.*\nClose other programs.*decode_chunk.*dispose-rt doctor {machine.folder} --plan"
    for attribute, words in (("weights_bytes", "cannot load"), ("context_bytes", "cannot prepare")):
        setattr(built, attribute, 1 << 40)
        with pytest.raises(
            OutOfMemoryError, match=rf"(?s)tensorrt_rtx .*{words}.*, as the GPU is out of memory.*{helps}"
        ):
            loader.open(POINTS)
        setattr(built, attribute, 0)
    machine.trt.validity = ("INVALID", 4)  # too little memory: loading the plan is what tells
    engine = loader.open(POINTS)
    engine.run(embeddings(1))
    kept = loader.device.empty((1 << 20,), "uint8")
    kept.free()
    built.contexts[-1].fails_once = "CUDA error 2 (out of memory)"
    engine.run(embeddings(1))  # once more, with what the pool kept
    assert loader.device.pool.reserved_bytes == loader.device.pool.used_bytes
    built.contexts[-1].fails = True
    with pytest.raises(EngineError, match="the kernel is unhappy"):
        engine.run(embeddings(1))


# smaller largest batches


def test_a_smaller_limit_takes_less_memory(machine: Machine) -> None:
    built = machine.build(DECODER, enlarge, "float32")
    built.device_memory_size_v2 = 3 << 20
    loader = machine.loader("float32")
    decoder = loader.open(DECODER)
    machine.cuda.memory_bytes = (3 << 20) + 50_000  # enough for scratch memory, not for the frames
    with pytest.raises(OutOfMemoryError):
        decoder.allocate()
    decoder.limit_batch(chunk=2)
    decoder.allocate()
    assert decoder.max_batch("chunk") == 2
    assert decoder.tensor("frames").shape == (2, 3, 64, 64)
    assert built.contexts[0].memory[1] == 2 << 20
    for chunk in (2, 1, 2):
        latents = np.random.default_rng(chunk).standard_normal((chunk, 4, 8, 8), np.float32)
        frames = decoder.run({"latents": latents})["frames"]
        np.testing.assert_array_equal(frames, np.broadcast_to(latents[:, :1, :1, :1], (chunk, 3, 64, 64)))
    with pytest.raises(InputError, match=r"takes 1\.\.2 chunk, got 3"):
        decoder.run({"latents": np.zeros((3, 4, 8, 8), np.float32)})


def test_a_limit_can_be_raised_again(machine: Machine) -> None:
    built = machine.build(DECODER, enlarge, "float32")
    decoder = machine.loader("float32").open(DECODER)
    decoder.limit_batch(chunk=1)
    decoder.run({"latents": np.ones((1, 4, 8, 8), np.float32)})
    decoder.limit_batch(chunk=3)
    assert (decoder.run({"latents": np.ones((3, 4, 8, 8), np.float32)})["frames"] == 1).all()
    assert built.contexts[0].memory[1] == 1000


@pytest.mark.parametrize(("limits", "words"), [({"chunk": 0}, r"1\.\.3 chunk, got 0"), ({"chunk": 4}, "got 4")])
def test_limits_outside_of_the_build_are_refused(machine: Machine, limits: dict[str, int], words: str) -> None:
    machine.build(DECODER, enlarge, "float32")
    decoder = machine.loader("float32").open(DECODER)
    with pytest.raises(InputError, match=words):
        decoder.limit_batch(**limits)
    with pytest.raises(InputError, match="no dynamic dimension"):
        decoder.limit_batch(frames=2)


# graphs


def test_a_graph_repeats_a_run_on_what_its_arrays_hold_by_then(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    loader = machine.loader()
    engine, stream = loader.open(POINTS), loader.stream
    engine.run(embeddings(5))
    graph = loader.capture(lambda: engine.enqueue(stream))
    assert not stream.capturing
    engine.set_batch(points=2)
    for seed in (5, 4):
        values = np.random.default_rng(seed).standard_normal((5, 32), np.float32)
        engine.tensor("embeddings").upload(values, stream)
        graph.launch(stream)
        engine.set_batch(points=5)
        check_points(engine, {"embeddings": values}, read_points(engine))
    graph.close()
    with pytest.raises(DeviceError, match="closed"):
        graph.launch(stream)


def test_what_was_not_allocated_before_cannot_be_captured(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    loader = machine.loader()
    engine = loader.open(POINTS)
    with pytest.raises(DeviceError, match="an allocation cannot be part of a graph"):
        loader.capture(lambda: engine.enqueue(loader.stream))
    check_points(engine, embeddings(3), engine.run(embeddings(3)))  # the stream can be used again


def test_scratch_memory_does_not_grow_while_a_graph_is_captured(machine: Machine) -> None:
    small, large = machine.build(POINTS, repeat_channels), machine.build(MOTION, add_flows)
    large.device_memory_size_v2 = 1 << 20
    loader = machine.loader()
    points, motion = loader.open(POINTS), loader.open(MOTION)
    points.run(embeddings(3))
    for tensor in (*NETWORKS[MOTION].inputs, *NETWORKS[MOTION].outputs):
        motion.tensor(tensor.name)
    memory = small.contexts[0].memory
    with pytest.raises(DeviceError, match="an allocation cannot be part of a graph"):
        loader.capture(lambda: motion.enqueue(loader.stream))
    assert small.contexts[0].memory == memory
    check_points(points, embeddings(3), points.run(embeddings(3)))


def test_a_graph_is_refused_once_the_scratch_memory_has_moved(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    machine.build(MOTION, add_flows).device_memory_size_v2 = 1 << 20
    loader = machine.loader()
    points, motion = loader.open(POINTS), loader.open(MOTION)
    points.run(embeddings(3))
    graph = loader.capture(lambda: points.enqueue(loader.stream))
    graph.launch(loader.stream)
    motion.allocate()
    with pytest.raises(DeviceError, match=r"given up since.*capture it again"):
        graph.launch(loader.stream)
    graph.close()
    again = loader.capture(lambda: points.enqueue(loader.stream))
    again.launch(loader.stream)
    check_points(points, embeddings(3), read_points(points))


def test_a_refusal_on_being_captured_is_an_error_that_leaves_the_stream_usable(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    loader = machine.loader()
    engine = loader.open(POINTS)
    engine.run(embeddings(3))
    built.contexts[0].fails = True
    with pytest.raises(EngineError, match="the kernel is unhappy"):
        loader.capture(lambda: engine.enqueue(loader.stream))
    built.contexts[0].fails = False
    check_points(engine, embeddings(3), engine.run(embeddings(3)))


def test_what_tensorrt_says_it_cannot_capture_is_passed_on(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    engine.run(embeddings(3))
    built.uncapturable = True
    assert engine.capture_problem(engine.stream) == "tensorrt_rtx says that runs of point_encoder cannot be captured"


# refusals


def test_a_failing_run_quotes_the_log(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    built.contexts[0].fails = True
    with pytest.raises(EngineError, match="point_encoder failed in TensorRT:\n  the kernel is unhappy"):
        engine.run(embeddings(1))


def test_a_lost_gpu_is_reported_and_everything_closes(machine: Machine) -> None:
    def fault(run: FakeRun) -> None:
        raise KeyError("an address that is none")

    machine.build(POINTS, fault)
    loader = machine.loader()
    engine = loader.open(POINTS)
    with pytest.raises(DeviceLostError, match="cudaErrorIllegalAddress"):
        engine.run(embeddings(1))
    engine.close()
    loader.close()


def test_non_finite_outputs_are_refused(machine: Machine) -> None:
    machine.build(POINTS, lambda run: None)  # what was allocated holds NaN
    with pytest.raises(EngineError, match="point_encoder returned non-finite values in float16.*bf16"):
        machine.loader().open(POINTS).run(embeddings(1))


def test_other_tensors_are_refused(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    with pytest.raises(InputError, match="cannot take these tensors"):
        engine.run(embeddings(7))
    with pytest.raises(InputError, match="no dynamic dimension"):
        engine.max_batch("frames")


def test_a_closed_engine_says_so(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    array = engine.device.empty((6, 32), "float32")
    engine.close()
    engine.close()
    for use in (
        lambda: engine.run(embeddings(1)),
        lambda: engine.enqueue(engine.stream),
        lambda: engine.tensor("embeddings"),
        lambda: engine.bind("embeddings", array),
        lambda: engine.capture_problem(engine.stream),
        lambda: engine.set_batch(points=2),
        lambda: engine.limit_batch(points=2),
    ):
        with pytest.raises(EngineError, match="point_encoder was closed"):
            use()
