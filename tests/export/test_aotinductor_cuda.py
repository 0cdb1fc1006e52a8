"""Packages that AOTInductor compiled for the GPU at hand, against ONNX Runtime in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from aotinductor_packages import build_module, compile_once, manifest_for, small_sizes
from torch import Tensor

from dispose_rt.backends.aotinductor import AotInductorEngine, AotInductorOpener
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import DeviceError, InputError
from export.aotinductor_build import package_target
from export.onnx_export import export_onnx, sample_inputs
from export.verify import TOLERANCES, dynamic_sizes, relative_error

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
def engines(golden_checkpoint: Path, kept_folder: Path, sizes: Sizes) -> Open:
    """`engines(network, precision)` compiles a network (once) and opens it."""

    def open_(network: str, precision: str) -> AotInductorEngine:
        compute_dtype = COMPUTE_DTYPES[precision]
        path = compile_once(kept_folder, golden_checkpoint, network, compute_dtype, "cuda")
        manifest = manifest_for(path, network, sizes, compute_dtype, targets=(package_target(),))
        return AotInductorOpener(manifest, "auto").open(network)

    return open_


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


def to_gpu(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in inputs.items()}


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
        through_host = engine.run(host)
        on_device = engine.run_tensors(to_gpu(inputs))
        errors = {name: relative_error(through_host[name], expected[name]) for name in names}
        print(f"{network} {precision} {dynamic or ''}: " + ", ".join(f"{error:.1e}" for error in errors.values()))
        assert max(errors.values()) <= TOLERANCES[precision][network]
        for name in names:
            assert on_device[name].is_cuda
            straight = on_device[name].float().cpu().numpy()
            assert relative_error(straight, expected[name]) <= TOLERANCES[precision][network]


@pytest.mark.parametrize(
    ("network", "precision"), [("point_encoder", "fp32"), ("vae_decoder", "fp16"), ("unet", "fp16")]
)
def test_a_cuda_graph_replays_a_package(network: str, precision: str, engines: Open, sizes: Sizes) -> None:
    spec, engine = NETWORKS[network], engines(network, precision)
    dynamic = {symbol: sizes.limit(symbol) for symbol in spec.dynamic}
    first, second = (to_gpu(sample_inputs(spec, sizes, COMPUTE_DTYPES[precision], dynamic, seed)) for seed in (0, 1))
    inputs = {name: tensor.clone() for name, tensor in first.items()}
    warmed = torch.cuda.Stream()
    warmed.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warmed):
        for _ in range(2):
            engine.run_tensors(inputs)
    torch.cuda.current_stream().wait_stream(warmed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = engine.run_tensors(inputs)
    for values in (second, first):
        for name, tensor in inputs.items():
            tensor.copy_(values[name])
        graph.replay()
        replayed = {name: tensor.float().cpu().numpy() for name, tensor in outputs.items()}
        expected = {name: tensor.float().cpu().numpy() for name, tensor in engine.run_tensors(values).items()}
        for name, array in replayed.items():
            assert relative_error(array, expected[name]) <= (1e-5 if precision == "fp32" else 1e-3)


def test_runs_of_several_lengths_follow_each_other(engines: Open, sizes: Sizes) -> None:
    engine = engines("motion_encoder", "fp32")
    flow = np.random.default_rng(0).standard_normal((sizes.tile, 2, sizes.height, sizes.width), dtype=np.float32)
    whole = engine.run({"dense_flow": flow, "trajectory_flow": flow})["motion_features"]
    for length in range(1, sizes.tile + 1):
        part = engine.run({"dense_flow": flow[:length], "trajectory_flow": flow[:length]})["motion_features"]
        assert relative_error(part, whole[:length]) <= 1e-5


def test_tensors_of_the_host_are_refused(engines: Open) -> None:
    with pytest.raises(InputError, match=r"on cpu, expected torch.float32 on cuda:0"):
        engines("point_encoder", "fp32").run_tensors({"embeddings": torch.ones(3, 96)})


def test_a_package_of_another_gpu_is_refused(
    engines: Open, golden_checkpoint: Path, kept_folder: Path, sizes: Sizes
) -> None:
    path = compile_once(kept_folder, golden_checkpoint, "point_encoder", "float32", "cuda")
    with pytest.raises(DeviceError, match="compiled for sm_75, cuda:0 is sm_"):
        AotInductorOpener(manifest_for(path, "point_encoder", sizes, targets=("sm_75",)), "auto")
