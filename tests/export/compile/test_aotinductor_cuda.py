"""Packages that AOTInductor compiled for the GPU at hand, against ONNX Runtime in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from dispose_rt_export.compile.aotinductor import package_target
from dispose_rt_export.compile.trace import export_onnx, sample_inputs
from dispose_rt_export.compile.verify import TOLERANCES, dynamic_sizes, relative_error

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.device import CpuDevice
from dispose_rt.engines.backends.aotinductor import AotInductorEngine, AotInductorLoader
from dispose_rt.errors import DeviceError, InputError, OutOfMemoryError
from tests.engines.aotinductor_packages import build_module, compile_once, manifest_for, small_sizes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

COMPUTE_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
CASES = [
    *(("point_encoder", precision) for precision in COMPUTE_DTYPES),
    *((network, precision) for network in ("motion_encoder", "vae_decoder", "unet") for precision in ("fp32", "fp16")),
    ("controlnet", "fp16"),
    ("vae_encoder", "fp32"),
    ("dift", "fp32"),
]
Open = Callable[[str, str], AotInductorEngine]


@pytest.fixture(scope="session")
def sizes(golden_checkpoint: Path) -> Sizes:
    return small_sizes(golden_checkpoint)


@pytest.fixture(scope="session")
def loaders(golden_checkpoint: Path, kept_folder: Path, sizes: Sizes) -> Callable[[str, str], AotInductorLoader]:
    """`loaders(network, precision)` compiles a network (once) and returns the loader of its directory."""

    def open_(network: str, precision: str) -> AotInductorLoader:
        compute_dtype = COMPUTE_DTYPES[precision]
        path = compile_once(kept_folder, golden_checkpoint, network, compute_dtype, "cuda")
        return AotInductorLoader(manifest_for(path, network, sizes, compute_dtype, targets=(package_target(),)), "auto")

    return open_


@pytest.fixture(scope="session")
def engines(loaders: Callable[[str, str], AotInductorLoader]) -> Open:
    """`engines(network, precision)` opens a network."""
    return lambda network, precision: loaders(network, precision).open(network)


@pytest.fixture(scope="session")
def sessions(golden_checkpoint: Path, sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """`sessions(network)` is the network in ONNX Runtime, float32."""
    opened: dict[str, onnxruntime.InferenceSession] = {}

    def open_(network: str) -> onnxruntime.InferenceSession:
        if network not in opened:
            path = tmp_path_factory.mktemp("onnx") / f"{network}.onnx"
            export_onnx(build_module(golden_checkpoint, network), NETWORKS[network], sizes, "float32", path)
            opened[network] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return opened[network]

    return open_


def host_inputs(network: str, precision: str, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    """Inputs of the largest shapes; numpy has no bfloat16: such tensors are float32 outside."""
    spec = NETWORKS[network]
    dynamic = {symbol: sizes.limit(symbol) for symbol in spec.dynamic}
    inputs = sample_inputs(spec, sizes, COMPUTE_DTYPES[precision], dynamic, seed)
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in inputs.items()}


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_a_package_computes_what_onnx_runtime_does(
    network: str, precision: str, engines: Open, sessions: Callable[..., onnxruntime.InferenceSession], sizes: Sizes
) -> None:
    spec, compute_dtype = NETWORKS[network], COMPUTE_DTYPES[precision]
    engine, session = engines(network, precision), sessions(network)
    for seed, dynamic in enumerate(dynamic_sizes(spec, sizes)):
        inputs = sample_inputs(spec, sizes, compute_dtype, dynamic, seed)
        wide = {name: tensor.float().numpy() for name, tensor in inputs.items()}
        names = [tensor.name for tensor in spec.outputs]
        expected = dict(zip(names, session.run(names, wide), strict=True))
        # numpy has no bfloat16: such tensors are float32 outside
        host = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in inputs.items()}
        outputs = engine.run(host)
        errors = {name: relative_error(outputs[name], expected[name]) for name in names}
        print(f"{network} {precision} {dynamic or ''}: " + ", ".join(f"{error:.1e}" for error in errors.values()))
        assert max(errors.values()) <= TOLERANCES[precision][network]


GRAPH_CASES = [("point_encoder", "fp32"), ("point_encoder", "bf16"), ("vae_decoder", "fp16"), ("unet", "fp16")]


@pytest.mark.parametrize(("network", "precision"), GRAPH_CASES)
def test_a_graph_repeats_a_run(
    network: str, precision: str, loaders: Callable[[str, str], AotInductorLoader], sizes: Sizes
) -> None:
    loader = loaders(network, precision)
    engine, stream = loader.open(network), loader.stream
    inputs = [host_inputs(network, precision, sizes, seed) for seed in (0, 1)]
    expected = [engine.run(one) for one in inputs]
    assert engine.capture_problem(stream) is None
    graphs = [loader.capture(lambda: engine.enqueue(stream)) for _ in range(2)]  # each with memory of its own
    engine.run(inputs[0])
    for turn, graph in ((1, graphs[0]), (0, graphs[1]), (1, graphs[1]), (0, graphs[0])):
        for name, values in inputs[turn].items():
            engine.tensor(name).upload(values, stream)
        graph.launch(stream)
        for name, values in expected[turn].items():
            assert relative_error(engine.read(name), values) <= (1e-5 if precision == "fp32" else 1e-3)
    for graph in graphs:
        graph.close()
    engine.close()
    loader.close()


def test_a_closed_graph_gives_its_memory_back(loaders: Callable[[str, str], AotInductorLoader], sizes: Sizes) -> None:
    loader = loaders("vae_decoder", "fp16")
    engine = loader.open("vae_decoder")
    engine.run(host_inputs("vae_decoder", "fp16", sizes, 0))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graph = loader.capture(lambda: engine.enqueue(loader.stream))
    assert torch.cuda.memory_reserved() > before
    graph.launch(loader.stream)
    loader.stream.synchronize()
    graph.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
    engine.close()
    loader.close()


def test_a_capture_that_fails_leaves_the_stream_usable(
    loaders: Callable[[str, str], AotInductorLoader], sizes: Sizes
) -> None:
    loader = loaders("point_encoder", "fp32")
    engine, inputs = loader.open("point_encoder"), host_inputs("point_encoder", "fp32", sizes, 0)
    expected = engine.run(inputs)

    def wait_inside() -> None:
        engine.enqueue(loader.stream)
        torch.cuda.synchronize()

    with pytest.raises(DeviceError):
        loader.capture(wait_inside)
    for name, values in engine.run(inputs).items():
        assert relative_error(values, expected[name]) <= 1e-5
    graph = loader.capture(lambda: engine.enqueue(loader.stream))
    graph.launch(loader.stream)
    for name, values in expected.items():
        assert relative_error(engine.read(name), values) <= 1e-5
    graph.close()


def test_running_out_of_memory_is_a_typed_error(engines: Open, sizes: Sizes) -> None:
    engine, inputs = engines("vae_decoder", "fp16"), host_inputs("vae_decoder", "fp16", sizes, 0)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        with pytest.raises(OutOfMemoryError, match="vae_decoder needs more memory than cuda:0 has left"):
            engine.run(inputs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    engine.run(inputs)


def test_runs_of_several_lengths_follow_each_other(engines: Open, sizes: Sizes) -> None:
    engine = engines("motion_encoder", "fp32")
    flow = np.random.default_rng(0).standard_normal((sizes.tile, 2, sizes.height, sizes.width), dtype=np.float32)
    whole = engine.run({"dense_flow": flow, "trajectory_flow": flow})["motion_features"]
    for length in range(1, sizes.tile + 1):
        part = engine.run({"dense_flow": flow[:length], "trajectory_flow": flow[:length]})["motion_features"]
        assert relative_error(part, whole[:length]) <= 1e-5


def test_arrays_of_the_host_are_refused(engines: Open) -> None:
    engine = engines("point_encoder", "fp32")
    with pytest.raises(InputError, match=r"on cuda:0, got float32 .* on cpu"):
        engine.bind("embeddings", CpuDevice().empty(engine.tensor("embeddings").shape, "float32"))


def test_a_package_of_another_gpu_is_refused(
    engines: Open, golden_checkpoint: Path, kept_folder: Path, sizes: Sizes
) -> None:
    path = compile_once(kept_folder, golden_checkpoint, "point_encoder", "float32", "cuda")
    with pytest.raises(DeviceError, match="compiled for sm_75, cuda:0 is sm_"):
        AotInductorLoader(manifest_for(path, "point_encoder", sizes, targets=("sm_75",)), "auto")
