"""What every engine does, on the CPU with ONNX Runtime and with packages of AOTInductor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dispose_rt.contract import NETWORKS
from dispose_rt.device import CpuDevice
from dispose_rt.doctor.trials import sample_inputs
from dispose_rt.engines.backends import Engine, EngineLoader
from dispose_rt.engines.manifest import FileRecord, Manifest, read_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import DeviceError, EngineError, InputError
from tests.engines.aotinductor_packages import compile_once, manifest_for, small_sizes
from tests.golden_case import GoldenCase

POINTS, MOTION = "point_encoder", "motion_encoder"


@pytest.fixture(scope="module", params=["onnxruntime", "aotinductor"])
def manifest(request: pytest.FixtureRequest, golden_checkpoint: Path, kept_folder: Path) -> Manifest:
    """A directory with at least a point encoder and a motion encoder."""
    if request.param == "onnxruntime":
        return read_manifest(request.getfixturevalue("golden_engines")(GoldenCase("one_tile_64")))
    sizes = small_sizes(golden_checkpoint)
    paths = {name: compile_once(kept_folder, golden_checkpoint, name, "float32", "cpu") for name in (POINTS, MOTION)}
    manifests = {name: manifest_for(path, name, sizes) for name, path in paths.items()}
    records = {name: one.networks[name] for name, one in manifests.items()}
    return dataclasses.replace(manifests[POINTS], networks=records, trusted=True)


@pytest.fixture
def loader(manifest: Manifest) -> EngineLoader:
    return Engines(manifest, "cpu").loader


def draw(engine: Engine, manifest: Manifest, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    spec = NETWORKS[engine.name]
    shapes = sample_inputs(spec, manifest.sizes, "float32", dict.fromkeys(spec.dynamic, length))
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(values.shape, np.float32) for name, values in shapes.items()}


def upload(engine: Engine, inputs: dict[str, np.ndarray]) -> None:
    for name, values in inputs.items():
        engine.tensor(name).upload(values, engine.stream)


def read_all(engine: Engine) -> dict[str, np.ndarray]:
    return {tensor.name: engine.read(tensor.name) for tensor in NETWORKS[engine.name].outputs}


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values)


@pytest.mark.parametrize("network", [POINTS, MOTION])
def test_queued_runs_of_every_batch_are_runs(loader: EngineLoader, manifest: Manifest, network: str) -> None:
    engine = loader.open(network)
    [symbol] = NETWORKS[network].dynamic
    most = engine.max_batch(symbol)
    for length in (most, 1, 2, most, 2):
        inputs = draw(engine, manifest, length, seed=length)
        expected = engine.run(inputs)
        for tensor in NETWORKS[network].outputs:
            engine.tensor(tensor.name).clear(engine.stream)
        upload(engine, inputs)
        engine.set_batch(**{symbol: length})
        engine.enqueue(engine.stream)
        assert_equal(read_all(engine), expected)
        assert all(values.any() and len(values) == length for values in expected.values())


def test_a_smaller_batch_leaves_the_rest_of_the_arrays_alone(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(POINTS)
    engine.run(draw(engine, manifest, 5))
    whole = np.full(engine.tensor("point_features_1").shape, 7, np.float32)
    engine.tensor("point_features_1").upload(whole, engine.stream)
    engine.run(draw(engine, manifest, 3))
    answered = engine.tensor("point_features_1").download(engine.stream)
    assert (answered[3:] == 7).all()
    assert (answered[:3] != 7).all()


def test_engines_share_the_arrays_that_are_lent_to_them(loader: EngineLoader, manifest: Manifest) -> None:
    lender, borrower = loader.open(POINTS), loader.open(POINTS)
    inputs = draw(lender, manifest, 4)
    expected = lender.run(inputs)
    borrower.run(draw(borrower, manifest, 4, seed=1))
    own = borrower.tensor("embeddings")
    for name in ("embeddings", *expected):
        borrower.bind(name, lender.tensor(name))
        assert borrower.tensor(name) is lender.tensor(name)
    with pytest.raises(DeviceError, match="freed"):
        _ = own.address
    for name in expected:
        lender.tensor(name).clear(lender.stream)
    borrower.set_batch(points=4)
    borrower.enqueue(loader.stream)  # reads what the other one was given, and writes where it looks
    assert_equal(read_all(lender), expected)
    used = loader.device.pool.used_bytes
    borrower.close()
    assert loader.device.pool.used_bytes == used
    assert_equal(lender.run(inputs), expected)


def test_what_one_engine_answers_another_one_reads(golden_engines: Callable[..., Path]) -> None:
    manifest = read_manifest(golden_engines(GoldenCase("one_tile_64")))
    engines = Engines(manifest)
    encoder, decoder = engines("cmp_image_encoder"), engines("cmp_flow_decoder")
    image = draw(encoder, manifest, 1)
    features = encoder.run(image)
    hints = {name: values for name, values in draw(decoder, manifest, 2).items() if name not in features}
    expected = decoder.run(hints | features)
    for name in features:
        decoder.bind(name, encoder.tensor(name))
        encoder.tensor(name).clear(encoder.stream)
    upload(decoder, hints)
    encoder.enqueue(engines.loader.stream)
    decoder.enqueue(engines.loader.stream)
    assert_equal(read_all(decoder), expected)
    engines.close()


def test_lent_arrays_stay_the_lenders(loader: EngineLoader, manifest: Manifest) -> None:
    engine, device = loader.open(POINTS), loader.device
    shape = engine.tensor("embeddings").shape
    lent = [device.zeros(shape, "float32", loader.stream) for _ in range(2)]
    inputs = draw(engine, manifest, shape[0])
    expected = engine.run(inputs)
    for array in lent:
        engine.bind("embeddings", array)
    lent[1].upload(inputs["embeddings"], loader.stream)
    engine.enqueue(loader.stream)
    assert_equal(read_all(engine), expected)
    engine.limit_batch(points=3)
    assert engine.tensor("embeddings").shape == (3, shape[1])
    engine.close()
    assert [array.address % 256 for array in lent] == [0, 0]  # an address: they were not freed


def test_a_lent_array_that_was_freed_is_found(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(POINTS)
    shape = engine.tensor("embeddings").shape
    lent = loader.device.zeros(shape, "float32", loader.stream)
    engine.bind("embeddings", lent)
    engine.enqueue(loader.stream)
    graph = loader.capture(lambda: engine.enqueue(loader.stream))
    graph.launch(loader.stream)
    lent.free()
    with pytest.raises(DeviceError, match="was freed"):
        engine.enqueue(loader.stream)
    with pytest.raises(DeviceError, match="was freed"):
        graph.launch(loader.stream)
    engine.close()  # it frees nothing twice


def test_arrays_that_do_not_fit_are_refused(loader: EngineLoader) -> None:
    engine, device = loader.open(POINTS), loader.device
    rows, columns = engine.tensor("embeddings").shape
    flat = device.empty((rows * columns + 1,), "float32")
    cases = [
        (device.empty((rows - 1, columns), "float32"), rf"as float32 \[{rows}, {columns}\] on cpu, got float32"),
        (device.empty((rows, columns), "float16"), "got float16"),
        (flat.rows(1, rows * columns + 1).reshape(rows, columns), "multiple of 256 bytes"),
    ]
    for array, words in cases:
        with pytest.raises(InputError, match=words):
            engine.bind("embeddings", array)
    with pytest.raises(InputError, match="no tensor 'surprise'"):
        engine.bind("surprise", flat)


def test_a_graph_repeats_a_run_with_the_shape_that_was_captured(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(MOTION)
    inputs = [draw(engine, manifest, 2, seed) for seed in (1, 2)]
    expected = [engine.run(one) for one in inputs]
    for array in (engine.tensor(tensor.name) for tensor in NETWORKS[MOTION].outputs):
        array.clear(loader.stream)
    graph = loader.capture(lambda: engine.enqueue(loader.stream))
    assert not read_all(engine)["motion_features"].any()  # it was recorded, not done
    engine.set_batch(frames=1)
    engine.enqueue(loader.stream)
    for one, outputs in zip((*inputs, inputs[0]), (*expected, expected[0]), strict=True):
        upload(engine, one)
        graph.launch(loader.stream)
        engine.set_batch(frames=2)
        assert_equal(read_all(engine), outputs)
    graph.close()
    with pytest.raises(DeviceError, match="closed"):
        graph.launch(loader.stream)


def test_a_graph_of_a_closed_engine_says_so(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(POINTS)
    engine.run(draw(engine, manifest, 2))
    graph = loader.capture(lambda: engine.enqueue(loader.stream))
    engine.close()
    with pytest.raises((EngineError, DeviceError), match=r"point_encoder was closed|was freed"):
        graph.launch(loader.stream)


def test_what_was_not_allocated_before_cannot_be_captured(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(POINTS)
    with pytest.raises(DeviceError, match="an allocation cannot be part of a graph"):
        loader.capture(lambda: engine.enqueue(loader.stream))
    engine.allocate()
    assert engine.capture_problem(loader.stream) is None
    loader.capture(lambda: engine.enqueue(loader.stream))
    with pytest.raises(DeviceError, match="cannot be part of a graph"):
        loader.capture(engine.check_finite)
    engine.run(draw(engine, manifest, 2))


def test_a_lower_limit_takes_less_memory(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(MOTION)
    inputs = draw(engine, manifest, 2)
    expected = engine.run(inputs)
    before, used = engine.tensor("dense_flow"), loader.device.pool.used_bytes
    engine.limit_batch(frames=2)
    engine.allocate()
    assert engine.max_batch("frames") == 2
    assert engine.tensor("dense_flow").shape[0] == 2
    assert loader.device.pool.used_bytes < used
    with pytest.raises(DeviceError, match="freed"):
        _ = before.address
    assert_equal(engine.run(inputs), expected)
    with pytest.raises(InputError, match=r"takes 1\.\.2 frames, got 3"):
        engine.run(draw(engine, manifest, 3))
    engine.limit_batch(frames=4)
    engine.run(draw(engine, manifest, 4))


def test_batches_out_of_range_are_refused(loader: EngineLoader) -> None:
    engine = loader.open(MOTION)
    for frames in (0, engine.max_batch("frames") + 1):
        with pytest.raises(InputError, match=rf"motion_encoder takes 1\.\..* frames, got {frames}"):
            engine.set_batch(frames=frames)
    with pytest.raises(InputError, match="no dynamic dimension"):
        engine.set_batch(points=1)


def test_non_finite_outputs_are_found_when_asked_for(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(POINTS)
    inputs = draw(engine, manifest, 3)
    engine.run(inputs)
    engine.check_finite()
    inputs["embeddings"][1, 5] = np.nan
    upload(engine, inputs)
    engine.enqueue(loader.stream)
    with pytest.raises(EngineError, match="point_encoder returned non-finite values in float32: point_features_0"):
        engine.check_finite()


def test_what_is_closed_says_so(loader: EngineLoader, manifest: Manifest) -> None:
    engine = loader.open(POINTS)
    array = loader.device.empty((256, 96), "float32")
    for closable in (engine, loader):
        closable.close()
        closable.close()
    uses: list[Callable[[], Any]] = [
        lambda: engine.run(draw(engine, manifest, 2)),
        lambda: engine.enqueue(engine.stream),
        lambda: engine.tensor("embeddings"),
        lambda: engine.bind("embeddings", array),
        lambda: loader.open(POINTS),
    ]
    for use in uses:
        with pytest.raises(EngineError, match="closed"):
            use()


def test_onnx_runtime_takes_no_bfloat16(golden_engines: Callable[..., Path], tmp_path: Path) -> None:
    """Its CPU kernels know next to none of it."""
    manifest = read_manifest(golden_engines(GoldenCase("one_tile_64")))
    sizes, spec = manifest.sizes, NETWORKS[POINTS]
    outputs = [
        helper.make_tensor_value_info(t.name, TensorProto.BFLOAT16, list(sizes.resolve(t.shape))) for t in spec.outputs
    ]
    nodes, weights = [], []
    for level, tensor in enumerate(spec.outputs):
        weights.append(
            onnx.numpy_helper.from_array(np.ones((sizes.dift, sizes.channels[level]), np.float32), f"w{level}")
        )
        nodes.append(helper.make_node("MatMul", ["embeddings", f"w{level}"], [f"x{level}"]))
        nodes.append(helper.make_node("Cast", [f"x{level}"], [tensor.name], to=TensorProto.BFLOAT16))
    inputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["points", sizes.dift])]
    graph = helper.make_graph(nodes, POINTS, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / f"{POINTS}.onnx")
    record = dataclasses.replace(
        manifest.networks[POINTS], files=(FileRecord(f"{POINTS}.onnx", 1, "0" * 64),), compute_dtype="bfloat16"
    )
    changed = dataclasses.replace(manifest, folder=tmp_path, networks={POINTS: record})
    with pytest.raises(EngineError, match=r"takes no bfloat16.*--precision"):
        Engines(changed)(POINTS)


def test_arrays_of_other_devices_are_refused(loader: EngineLoader) -> None:
    engine = loader.open(POINTS)
    elsewhere = CpuDevice()
    elsewhere.name = "cuda:0"
    with pytest.raises(InputError, match=r"on cpu, got float32 .* on cuda:0"):
        engine.bind("embeddings", elsewhere.empty(engine.tensor("embeddings").shape, "float32"))
