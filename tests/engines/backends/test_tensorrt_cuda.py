"""TensorRT engines on a GPU compute what ONNX Runtime does, replayed from a graph as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dispose_rt.contract import NETWORKS
from dispose_rt.doctor.trials import sample_inputs as draw_inputs
from dispose_rt.engines.backends.tensorrt import TensorRtEngine, TensorRtLoader
from dispose_rt.engines.backends.validation import host_dtype
from dispose_rt.engines.manifest import Manifest, read_manifest
from dispose_rt.engines.open import open_engine
from dispose_rt.errors import EngineError
from dispose_rt.system.sealed_file import read_sealed
from tests.fakes.tensorrt_machine import DECODER, POINTS, require_tensorrt
from tests.golden_case import GoldenCase

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(1200)]

CUDA_CASE = GoldenCase("one_tile_64")


@pytest.fixture(scope="session")
def gpu_folders(golden_engines: Callable[..., Path]) -> Callable[[str], tuple[Manifest, Manifest]]:
    """`gpu_folders(precision)` is a directory for ONNX Runtime in FP32, and one of TensorRT for RTX."""
    require_tensorrt()

    def build(precision: str) -> tuple[Manifest, Manifest]:
        folders = [golden_engines(CUDA_CASE), golden_engines(CUDA_CASE, precision, "tensorrt_rtx")]
        return read_manifest(folders[0]), read_manifest(folders[1])

    return build


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_network_computes_what_onnx_runtime_does(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]], network: str, precision: str
) -> None:
    """Held to the tolerance that the exported graph is held to against PyTorch."""
    from dispose_rt_export.compile.trace import sample_inputs
    from dispose_rt_export.compile.verify import TOLERANCES, relative_error

    manifests = gpu_folders(precision)
    reference, engine = (open_engine(manifest, network) for manifest in manifests)
    spec, compute_dtype = NETWORKS[network], manifests[1].networks[network].compute_dtype
    for pick in (lambda limit: 1, lambda limit: limit):
        dynamic = {symbol: pick(engine.max_batch(symbol)) for symbol in spec.dynamic}
        samples = sample_inputs(spec, manifests[0].sizes, "float32", dynamic, seed=1)
        inputs = {name: value.numpy() for name, value in samples.items()}
        rounded = {
            tensor.name: inputs[tensor.name].astype(host_dtype(tensor.resolve_dtype(compute_dtype)))
            for tensor in spec.inputs
        }
        expected, actual, again = reference.run(inputs), engine.run(rounded), engine.run(rounded)
        for name, values in expected.items():
            assert relative_error(actual[name], values) <= TOLERANCES[precision][network], (name, dynamic)
            np.testing.assert_array_equal(actual[name], again[name], err_msg="two runs of the same differ")
    engine.close()


def test_a_second_start_finds_its_kernels(gpu_folders: Callable[[str], tuple[Manifest, Manifest]]) -> None:
    manifest = gpu_folders("fp16")[1]
    for _ in range(2):
        loader = TensorRtLoader(manifest, "auto")
        engine = loader.open(POINTS)
        assert isinstance(engine, TensorRtEngine)
        rows = engine.max_batch("points")
        engine.run({"embeddings": np.ones((rows, manifest.sizes.dift), np.float32)})
        engine.close()
        loader.close()
        assert read_sealed(manifest.folder / f"{POINTS}.{loader.device.gpu.capability}.runtime_cache")


def test_a_damaged_plan_does_not_end_the_process(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]], tmp_path: Path
) -> None:
    manifest = gpu_folders("fp16")[1]
    plan = manifest.engine_path(POINTS).read_bytes()
    damaged = replace(manifest, folder=tmp_path)
    loader = TensorRtLoader(damaged, "auto")
    for length in (0, 1, 31, 32, 63, 64, 1000, len(plan) // 2, len(plan) - 1):
        damaged.engine_path(POINTS).write_bytes(plan[:length])
        with pytest.raises(EngineError, match="Build the directory again"):
            loader.open(POINTS)
    loader.close()


def scaled_inputs(manifest: Manifest, network: str, factor: float, dynamic: dict[str, int]) -> dict[str, np.ndarray]:
    compute_dtype = manifest.networks[network].compute_dtype
    inputs = draw_inputs(NETWORKS[network], manifest.sizes, compute_dtype, dynamic)
    return {name: (factor * values).astype(values.dtype) for name, values in inputs.items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("network", [POINTS, "unet", DECODER])
def test_a_graph_repeats_a_run(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]], network: str, precision: str
) -> None:
    manifest = gpu_folders(precision)[1]
    loader = TensorRtLoader(manifest, "auto")
    engine, stream = loader.open(network), loader.stream
    dynamic = {symbol: engine.max_batch(symbol) for symbol in NETWORKS[network].dynamic}
    samples = [scaled_inputs(manifest, network, factor, dynamic) for factor in (1, 0.5)]
    expected = [engine.run(inputs) for inputs in samples]
    assert engine.capture_problem(stream) is None
    graph = loader.capture(lambda: engine.enqueue(stream))
    for turn in (0, 1, 0):
        for name, values in samples[turn].items():
            engine.tensor(name).upload(values, stream)
        graph.launch(stream)
        for name, values in expected[turn].items():
            np.testing.assert_array_equal(engine.read(name), values)
    graph.close()
    engine.close()
    loader.close()


def test_one_graph_holds_two_networks_that_share_arrays(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]],
) -> None:
    manifest = gpu_folders("fp16")[1]
    loader = TensorRtLoader(manifest, "auto")
    controlnet, unet, stream = loader.open("controlnet"), loader.open("unet"), loader.stream
    inputs = {name: scaled_inputs(manifest, name, 1, {}) for name in ("controlnet", "unet")}
    residuals = controlnet.run(inputs["controlnet"])
    expected = unet.run(inputs["unet"] | residuals)["noise_pred"]
    for name in residuals:
        unet.bind(name, controlnet.tensor(name))

    def run_both() -> None:
        controlnet.enqueue(stream)
        unet.enqueue(stream)

    run_both()
    np.testing.assert_array_equal(unet.read("noise_pred"), expected)
    graph = loader.capture(run_both)
    for name in residuals:
        controlnet.tensor(name).clear(stream)
    unet.tensor("noise_pred").clear(stream)
    graph.launch(stream)
    np.testing.assert_array_equal(unet.read("noise_pred"), expected)
    graph.close()
    unet.close()
    controlnet.close()
    loader.close()


def test_a_limited_decoder_takes_less_memory_and_computes_the_same(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]],
) -> None:
    from dispose_rt_export.compile.verify import relative_error

    manifest = gpu_folders("fp32")[1]
    latents = scaled_inputs(manifest, DECODER, 1, {"chunk": 1})
    results, sizes = [], []
    for limits in ({}, {"chunk": 1}):
        loader = TensorRtLoader(manifest, "auto")
        engine = loader.open(DECODER)
        engine.limit_batch(**limits)
        results.append(engine.run(latents)["frames"])
        sizes.append(loader.device.pool.used_bytes)
        engine.close()
        loader.close()
    assert sizes[1] < sizes[0]
    assert relative_error(results[1], results[0]) <= 1e-6
