"""Packages that AOTInductor really compiled for the CPU: what they compute, and what is refused."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dispose_rt_export.compile.aotinductor import compare_package, compile_package, package_target
from dispose_rt_export.compile.trace import sample_inputs
from dispose_rt_export.compile.verify import expected_outputs, relative_error
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.engines.backends import Engine
from dispose_rt.engines.backends.aotinductor import AotInductorEngine, AotInductorLoader
from dispose_rt.errors import DeviceError, EngineError, InputError, VerificationError
from tests.engines.aotinductor_packages import build_module, compile_once, manifest_for, small_sizes
from tests.every import each

POINTS, MOTION = "point_encoder", "motion_encoder"
Packages = Callable[..., Path]


@pytest.fixture(scope="session")
def sizes(golden_checkpoint: Path) -> Sizes:
    return small_sizes(golden_checkpoint)


@pytest.fixture(scope="session")
def packages(golden_checkpoint: Path, kept_folder: Path) -> Packages:
    """`packages(network, compute_dtype)` compiles a network, once."""

    def compile_(network: str, compute_dtype: str = "float32") -> Path:
        return compile_once(kept_folder, golden_checkpoint, network, compute_dtype, "cpu")

    return compile_


@pytest.fixture
def engines(packages: Packages, sizes: Sizes) -> Callable[..., AotInductorEngine]:
    def open_(network: str = POINTS, compute_dtype: str = "float32") -> AotInductorEngine:
        manifest = manifest_for(packages(network, compute_dtype), network, sizes, compute_dtype)
        return AotInductorLoader(manifest, "auto").open(network)

    return open_


def draw(network: str, sizes: Sizes, length: int, compute_dtype: str = "float32") -> dict[str, Tensor]:
    [symbol] = NETWORKS[network].dynamic
    return sample_inputs(NETWORKS[network], sizes, compute_dtype, {symbol: length}, seed=length)


def in_pytorch(module: nn.Module, network: str, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = module(*inputs.values())
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {tensor.name: output.numpy() for tensor, output in zip(NETWORKS[network].outputs, outputs, strict=True)}


def as_arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.mark.parametrize(("network", "lengths"), [(POINTS, (1, 2, 18, 256)), (MOTION, (1, 2, 3, 4))])
def test_every_length_computes_what_pytorch_does(
    network: str,
    lengths: tuple[int, ...],
    engines: Callable[..., AotInductorEngine],
    sizes: Sizes,
    golden_checkpoint: Path,
) -> None:
    engine, module = engines(network), build_module(golden_checkpoint, network)
    assert isinstance(engine, Engine)
    assert engine.max_batch(NETWORKS[network].dynamic[0]) == lengths[-1]
    for length in lengths:
        inputs = draw(network, sizes, length)
        expected, actual = in_pytorch(module, network, inputs), engine.run(as_arrays(inputs))
        assert actual.keys() == expected.keys()
        for name, array in actual.items():
            assert array.flags.c_contiguous
            assert relative_error(array, expected[name]) <= 1e-5


# measured: float16 7e-4, bfloat16 5e-3, a unit in the last place of either
@pytest.mark.parametrize(("compute_dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_half_precision_on_the_cpu(
    compute_dtype: str,
    tolerance: float,
    engines: Callable[..., AotInductorEngine],
    sizes: Sizes,
    golden_checkpoint: Path,
) -> None:
    engine, module = engines(POINTS, compute_dtype), build_module(golden_checkpoint, POINTS)
    for length in (1, 18):
        inputs = draw(POINTS, sizes, length)
        expected, actual = in_pytorch(module, POINTS, inputs), engine.run(as_arrays(inputs))
        for name, array in actual.items():
            assert array.dtype == (np.float16 if compute_dtype == "float16" else np.float32)
            assert relative_error(array, expected[name]) <= tolerance


class Recorder:
    """Stands in for a loaded package: keeps its inputs, and returns zeros."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        self.seen = [tensor.clone() for tensor in inputs]
        return [torch.zeros(2, 4, 4, 8, 8)]

    def close(self) -> None:
        pass


def test_bfloat16_is_rounded_to_the_nearest_even(packages: Packages) -> None:
    sizes, spec, package = Sizes(64, 64, tile=4), NETWORKS["unet"], Recorder()
    manifest = manifest_for(packages(POINTS), "unet", sizes, "bfloat16")
    engine = AotInductorEngine(AotInductorLoader(manifest, "cpu"), manifest, "unet", package)  # type: ignore[arg-type]
    inputs = sample_inputs(spec, sizes, "float32", {})
    unit = 2.0**-8  # half of the distance between neighbours of 1
    inputs["pose_latents"].flatten()[:4] = torch.tensor([1 + unit, 1 + 3 * unit, 1 + 1.01 * unit, -1 - unit])
    engine.run(as_arrays(inputs))
    [seen] = [t for t, s in zip(package.seen, spec.inputs, strict=True) if s.name == "pose_latents"]
    assert seen.dtype == torch.bfloat16
    assert seen.flatten()[:4].tolist() == [1, 1 + 4 * unit, 1 + 2 * unit, -1]
    assert {t.dtype for t, s in zip(package.seen, spec.inputs, strict=True) if s.dtype == "float32"} == {torch.float32}
    np.testing.assert_array_equal(engine.read("pose_latents"), seen.float().numpy())


def test_outputs_of_other_shapes_are_refused(packages: Packages) -> None:
    sizes, package = Sizes(64, 64, tile=3), Recorder()
    manifest = manifest_for(packages(POINTS), "unet", sizes)
    engine = AotInductorEngine(AotInductorLoader(manifest, "cpu"), manifest, "unet", package)  # type: ignore[arg-type]
    inputs = as_arrays(sample_inputs(NETWORKS["unet"], sizes, "float32", {}))
    with pytest.raises(EngineError, match=r"unet returned tensors of \[\(2, 4, 4, 8, 8\)\], expected \[\(2, 3, "):
        engine.run(inputs)


def test_inputs_of_any_layout_are_read_and_left_as_they_are(
    engines: Callable[..., AotInductorEngine], sizes: Sizes
) -> None:
    engine, inputs = engines(MOTION), as_arrays(draw(MOTION, sizes, 3))
    kept = {name: array.copy() for name, array in inputs.items()}
    expected = engine.run(inputs)["motion_features"]
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, kept[name])
    turned = {name: np.asfortranarray(array) for name, array in inputs.items()}
    frozen = {name: array.copy() for name, array in inputs.items()}
    for array in frozen.values():
        array.flags.writeable = False
    for others in (turned, frozen):
        np.testing.assert_array_equal(engine.run(others)["motion_features"], expected)


def test_outputs_outlive_the_engine_and_each_other(engines: Callable[..., AotInductorEngine], sizes: Sizes) -> None:
    engine = engines()
    first = engine.run(as_arrays(draw(POINTS, sizes, 2)))
    kept = {name: array.copy() for name, array in first.items()}
    engine.run(as_arrays(draw(POINTS, sizes, 3)))
    engine.close()
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("inputs", [{}, {"embeddings": np.ones((3, 95), np.float32)}, {"surprise": np.ones(1)}])
def test_other_arrays_are_refused(inputs: dict[str, Any], engines: Callable[..., AotInductorEngine]) -> None:
    with pytest.raises(InputError, match="point_encoder cannot take these tensors"):
        engines().run(inputs)


def test_non_finite_outputs_are_refused(engines: Callable[..., AotInductorEngine]) -> None:
    with pytest.raises(EngineError, match="point_encoder returned non-finite values in float32"):
        engines().run({"embeddings": np.full((2, 96), np.nan, np.float32)})


def test_what_is_closed_says_so(packages: Packages, sizes: Sizes) -> None:
    loader = AotInductorLoader(manifest_for(packages(POINTS), POINTS, sizes), "cpu")
    engine = loader.open(POINTS)
    with pytest.raises(InputError, match="no dynamic dimension of point_encoder"):
        engine.max_batch("frames")
    for closable in (engine, loader):
        closable.close()
        closable.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"embeddings": np.ones((3, 96), np.float32)})
    with pytest.raises(EngineError, match="closed"):
        loader.open(POINTS)


def test_threads_wait_for_each_other(engines: Callable[..., AotInductorEngine], sizes: Sizes) -> None:
    engine, inputs = engines(MOTION), [as_arrays(draw(MOTION, sizes, length)) for length in (1, 2, 3)]
    expected = [engine.run(one)["motion_features"] for one in inputs]
    actual: list[Any] = [None] * 3

    def work(index: int) -> None:
        actual[index] = engine.run(inputs[index])["motion_features"]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_left_behind(golden_checkpoint: Path, sizes: Sizes, tmp_path: Path, monkeypatch: Any) -> None:
    temporary, output = tmp_path / "temporary", tmp_path / "engines" / f"{POINTS}.pt2"
    temporary.mkdir()
    output.parent.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    module = build_module(golden_checkpoint, POINTS)
    compile_package(module, NETWORKS[POINTS], sizes, "float32", device="cpu", output=output)
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert list(temporary.iterdir()) == []
    loader = AotInductorLoader(manifest_for(output, POINTS, sizes), "cpu")
    engine = loader.open(POINTS)
    assert len(list(temporary.iterdir())) == 1  # what the loader has unpacked
    engine.close()
    assert list(temporary.iterdir()) == []


def test_without_a_compiler_the_build_says_what_it_needs(
    golden_checkpoint: Path, sizes: Sizes, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", lambda *_, **__: 1 / 0)
    module, output = build_module(golden_checkpoint, POINTS), tmp_path / f"{POINTS}.pt2"
    with pytest.raises(
        EngineError, match="cannot compile point_encoder for cpu: ZeroDivisionError.*\n.*C\\+\\+ compiler"
    ):
        compile_package(module, NETWORKS[POINTS], sizes, "float32", device="cpu", output=output)
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_compared_with_pytorch(
    packages: Packages, golden_checkpoint: Path, sizes: Sizes, tmp_path: Path
) -> None:
    spec, expected = NETWORKS[MOTION], tmp_path / "expected.npz"
    expected_outputs(build_module(golden_checkpoint, MOTION), spec, sizes, "float32", expected)
    errors = compare_package(spec, packages(MOTION), expected, "cpu", 1e-4)
    assert errors.keys() == {"motion_features"}
    assert 0 < errors["motion_features"] <= 1e-5
    with pytest.raises(VerificationError, match="differs from PyTorch"):
        compare_package(spec, packages(MOTION), expected, "cpu", 1e-9)


def test_targets() -> None:
    assert package_target(("cpu",)) == "cpu"
    with pytest.raises(InputError, match="one device at a time"):
        package_target(("sm_90", "sm_89"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@each(devices=[(), ("sm_90",)])
def test_a_gpu_that_is_not_here_is_no_target(devices: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError, match="only where it is.*--target cpu"):
        package_target(devices)
