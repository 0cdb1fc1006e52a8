"""Packages that AOTInductor really compiled for the CPU: what they compute, and what is refused."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from aotinductor_packages import build_module, compile_once, manifest_for, relabel, rewrite, small_sizes
from torch import Tensor, nn

from dispose_rt.backends import Engine, aotinductor, aotinductor_package
from dispose_rt.backends.aotinductor import AotInductorEngine, AotInductorOpener
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import DeviceError, DisposeError, EngineError, InputError, VerificationError
from export.aotinductor_build import compare_package, compile_package, package_target
from export.onnx_export import sample_inputs
from export.verify import expected_outputs, relative_error

POINTS, MOTION, DECODER = "point_encoder", "motion_encoder", "vae_decoder"
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
        return AotInductorOpener(manifest, "auto").open(network)

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


@pytest.mark.parametrize(
    ("network", "lengths"), [(POINTS, (1, 2, 18, 256)), (MOTION, (1, 2, 3, 4)), (DECODER, (1, 2, 3))]
)
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
    """Stands in for a loaded package: keeps what it is given, and answers it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        self.seen = inputs
        return [inputs[0].new_zeros(2, 4, 4, 8, 8)]


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    sizes, spec, package = Sizes(64, 64, tile=4), NETWORKS["unet"], Recorder()
    engine = AotInductorEngine(package, spec, sizes, "bfloat16", None)  # type: ignore[arg-type]
    inputs = sample_inputs(spec, sizes, "float32", {})
    unit = 2.0**-8  # half of the distance between neighbours of 1
    inputs["pose_latents"].flatten()[:4] = torch.tensor([1 + unit, 1 + 3 * unit, 1 + 1.01 * unit, -1 - unit])
    engine.run(as_arrays(inputs))
    [seen] = [t for t, s in zip(package.seen, spec.inputs, strict=True) if s.name == "pose_latents"]
    assert seen.dtype == torch.bfloat16
    assert seen.flatten()[:4].tolist() == [1, 1 + 4 * unit, 1 + 2 * unit, -1]
    assert {t.dtype for t, s in zip(package.seen, spec.inputs, strict=True) if s.dtype == "float32"} == {torch.float32}


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


def test_tensors_go_straight_through(engines: Callable[..., AotInductorEngine], sizes: Sizes) -> None:
    engine, inputs = engines(), draw(POINTS, sizes, 5)
    outputs, expected = engine.run_tensors(inputs), engine.run(as_arrays(inputs))
    for name, tensor in outputs.items():
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(3, 96, dtype=torch.float64), "float64 on cpu, expected torch.float32"),
        (torch.ones(3, 96, device="meta"), "on meta, expected torch.float32 on cpu"),
        (torch.ones(96, 3).T, "not contiguous"),
        (torch.ones(3, 95), r"\(3, 95\), expected float32 \('points', 96\)"),
        (torch.ones(257, 96), r"\(257, 96\)"),
    ],
)
def test_other_tensors_are_refused(tensor: Tensor, words: str, engines: Callable[..., AotInductorEngine]) -> None:
    with pytest.raises(InputError, match=f"point_encoder cannot take these tensors.*{words}"):
        engines().run_tensors({"embeddings": tensor})


@pytest.mark.parametrize("inputs", [{}, {"embeddings": np.ones((3, 95), np.float32)}, {"surprise": np.ones(1)}])
def test_other_arrays_are_refused(inputs: dict[str, Any], engines: Callable[..., AotInductorEngine]) -> None:
    with pytest.raises(InputError, match="point_encoder cannot take these tensors"):
        engines().run(inputs)
    with pytest.raises(InputError, match="point_encoder cannot take these tensors"):
        engines().run_tensors({name: torch.from_numpy(array) for name, array in inputs.items()})


def test_non_finite_outputs_are_refused(engines: Callable[..., AotInductorEngine]) -> None:
    with pytest.raises(EngineError, match="point_encoder answered non-finite values in float32"):
        engines().run({"embeddings": np.full((2, 96), np.nan, np.float32)})


def test_what_is_closed_says_so(packages: Packages, sizes: Sizes) -> None:
    opener = AotInductorOpener(manifest_for(packages(POINTS), POINTS, sizes), "cpu")
    engine = opener.open(POINTS)
    with pytest.raises(InputError, match="no dynamic dimension of point_encoder"):
        engine.max_batch("frames")
    for closable in (engine, opener):
        closable.close()
        closable.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"embeddings": np.ones((3, 96), np.float32)})
    with pytest.raises(EngineError, match="closed"):
        opener.open(POINTS)


def test_threads_wait_for_each_other(engines: Callable[..., AotInductorEngine], sizes: Sizes) -> None:
    engine, inputs = engines(DECODER), [as_arrays(draw(DECODER, sizes, length)) for length in (1, 2, 3)]
    expected = [engine.run(one)["frames"] for one in inputs]
    actual: list[Any] = [None] * 3

    def work(index: int) -> None:
        actual[index] = engine.run(inputs[index])["frames"]

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
    opener = AotInductorOpener(manifest_for(output, POINTS, sizes), "cpu")
    engine = opener.open(POINTS)
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
@pytest.mark.parametrize("devices", [(), ("sm_90",)])
def test_a_gpu_that_is_not_here_is_no_target(devices: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError, match="only where it is.*--target cpu"):
        package_target(devices)


def test_without_torch_the_message_says_what_to_install(packages: Packages, tmp_path: Path) -> None:
    script = f"""
import importlib.abc, sys
from pathlib import Path

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'")

sys.meta_path.insert(0, Blocked())
from types import SimpleNamespace
from dispose_rt.backends.aotinductor import AotInductorOpener, LoadedPackage
from dispose_rt.errors import EngineError

attempts = [
    lambda: AotInductorOpener(SimpleNamespace(versions={{"torch": "2.13.0+cpu"}}, targets=("cpu",)), "auto"),
    lambda: LoadedPackage(Path({str(packages(POINTS))!r}), "cpu"),
]
for attempt in attempts:
    try:
        attempt()
    except EngineError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, version in zip(lines, ("2.13.0", torch.__version__.partition("+")[0]), strict=True):
        assert f"pip install 'torch=={version}'" in line


@pytest.mark.parametrize(
    ("device", "targets", "error", "words"),
    [
        ("tpu", ("cpu",), InputError, "expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ("cpu:1", ("cpu",), InputError, "expected 'auto'"),
        ("cpu", ("sm_90",), DeviceError, "compiled for sm_90, device is 'cpu'.*--target cpu"),
        ("cpu", (), DeviceError, "compiled for no device"),
    ],
)
def test_devices_that_do_not_fit(
    device: str, targets: tuple[str, ...], error: type[DisposeError], words: str, packages: Packages, sizes: Sizes
) -> None:
    with pytest.raises(error, match=words):
        AotInductorOpener(manifest_for(packages(POINTS), POINTS, sizes, targets=targets), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("targets", [("cpu",), ("sm_90",)])
def test_without_a_gpu_the_error_says_why(
    device: str, targets: tuple[str, ...], packages: Packages, sizes: Sizes
) -> None:
    manifest = manifest_for(packages(POINTS), POINTS, sizes, targets=targets)
    with pytest.raises(DeviceError, match=f"compiled for {targets[0]}, device is '{device}', but"):
        AotInductorOpener(manifest, device)


class FakeTorch:
    """A torch that sees one H200."""

    __version__ = torch.__version__
    version = SimpleNamespace(cuda="13.0")
    device = torch.device
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_capability=lambda device: (9, 0),
        Stream=lambda device: f"stream of {device}",
    )


@pytest.mark.parametrize(
    ("device", "targets", "outcome"),
    [
        ("auto", ("sm_90",), "cuda:0"),
        ("cuda", ("sm_80", "sm_90"), "cuda:0"),
        ("cuda:0", ("sm_90",), "cuda:0"),
        ("cuda:1", ("sm_90",), "there is no cuda:1: this machine has 1 GPUs"),
        ("auto", ("sm_80",), "compiled for sm_80, cuda:0 is sm_90. Build engines for it: .*--target sm_90"),
        ("cuda", ("cpu",), "compiled for cpu, cuda:0 is sm_90"),
    ],
)
def test_devices_where_there_is_a_gpu(
    device: str, targets: tuple[str, ...], outcome: str, packages: Packages, sizes: Sizes, monkeypatch: Any
) -> None:
    monkeypatch.setattr(aotinductor, "import_torch", lambda version="": FakeTorch)
    manifest = manifest_for(packages(POINTS), POINTS, sizes, targets=targets)
    if outcome.startswith("cuda"):
        assert AotInductorOpener(manifest, device)._device == outcome
    else:
        with pytest.raises(DeviceError, match=outcome):
            AotInductorOpener(manifest, device)


def refusal(path: Path, sizes: Sizes, **changes: Any) -> str:
    """Open a package and return the message of the typed error."""
    with pytest.raises((EngineError, DeviceError)) as caught:
        AotInductorOpener(manifest_for(path, POINTS, sizes, **changes), "auto").open(POINTS)
    assert "Build the directory again: python export/build_engines.py" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 29, 30, 100, 5000, 0.5, 0.9, -4096, -100, -22, -1])
def test_truncated_packages(kept: float, packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    content = packages(POINTS).read_bytes()
    path = tmp_path / f"{POINTS}.pt2"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "is damaged, or no AOTInductor package" in refusal(path, sizes)


def test_a_missing_package(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    manifest = manifest_for(packages(POINTS), POINTS, sizes)
    with pytest.raises(EngineError, match="FileNotFoundError"):
        AotInductorOpener(dataclasses.replace(manifest, folder=tmp_path), "auto").open(POINTS)


def test_flipped_bits_are_found_or_harmless(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    """Headers and directory bit by bit in a sample; a package that still opens computes the same."""
    content = packages(POINTS).read_bytes()
    inputs = {"embeddings": np.ones((2, 96), np.float32)}
    expected = AotInductorOpener(manifest_for(packages(POINTS), POINTS, sizes), "auto").open(POINTS).run(inputs)
    directory = content.rindex(b"PK\x05\x06")
    places = [*range(0, 80, 3), *range(directory - 90, len(content), 5), *np.linspace(200, directory, 12, dtype=int)]
    refused = 0
    for number, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (number % 8)
        path = tmp_path / f"{POINTS}.pt2"
        path.write_bytes(damaged)
        try:
            outputs = AotInductorOpener(manifest_for(path, POINTS, sizes), "auto").open(POINTS).run(inputs)
        except EngineError:
            refused += 1
            continue
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, expected[name])
    assert refused >= len(places) // 2


def test_archives_of_something_else(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    path = tmp_path / f"{POINTS}.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing to see here")
    assert "does not hold one compiled library" in refusal(path, sizes)
    rewrite(packages(POINTS), path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert "not stored plainly" in refusal(path, sizes)
    rewrite(packages(POINTS), path, lambda name, content: b"{}" if name.endswith(".json") else content)
    assert "KeyError: 'dispose_rt'" in refusal(path, sizes)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside", "")
    assert "lies outside of it" in refusal(path, sizes)


@pytest.mark.parametrize("garbage", [b"", b"\x7fELF" + bytes(60), b"echo"])
def test_a_library_that_is_none(
    garbage: bytes, packages: Packages, sizes: Sizes, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / f"{POINTS}.pt2"
    rewrite(packages(POINTS), path, lambda name, content: garbage if name.endswith(".so") else content)
    assert "torch cannot load" in refusal(path, sizes)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": "2.11.0"}, "compiled by torch 2.11.0, installed is .*pip install 'torch==2.11.0'"),
        ({"target": "sm_90"}, "compiled for sm_90, this device is cpu"),
        ({"machine": "linux riscv64"}, "compiled on linux riscv64 for its own processor"),
        ({"cpu_features": ["avx2048"]}, "which lacks avx2048"),
        ({"network": "motion_encoder"}, "it is motion_encoder for"),
        (
            {"limits": {"points": 8}},
            "it is point_encoder for {'points': 8}, expected point_encoder for {'points': 256}",
        ),
        ({"signature": {"embeddings": ["float32", ["points", 96]]}}, "lacks the tensor point_features_0"),
        ({"signature": None}, "no AOTInductor package of dispose_rt"),
        ({"limits": []}, "no AOTInductor package of dispose_rt"),
    ],
)
def test_packages_for_something_else(
    changes: dict[str, Any], words: str, packages: Packages, sizes: Sizes, tmp_path: Path
) -> None:
    if "cpu_features" in changes and not aotinductor_package.cpu_features():
        pytest.skip("this system does not list the processor's instruction sets")
    path = relabel(packages(POINTS), tmp_path / f"{POINTS}.pt2", changes)
    message = refusal(path, sizes)
    assert re.search(words, message)


def test_a_package_of_another_network(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    path = tmp_path / f"{POINTS}.pt2"
    path.write_bytes(packages(MOTION).read_bytes())
    assert "point_encoder: the engine lacks the tensor embeddings" in refusal(path, sizes)


def test_other_sizes_or_another_record(packages: Packages, sizes: Sizes) -> None:
    assert "float32 [points, 96], expected float32 [points, 95]" in refusal(
        packages(POINTS), dataclasses.replace(sizes, dift=95)
    )
    manifest = manifest_for(packages(POINTS), POINTS, sizes)
    record = dataclasses.replace(manifest.networks[POINTS], signature={"embeddings": ("float32", ("points", 97))})
    manifest = dataclasses.replace(manifest, networks={POINTS: record})
    with pytest.raises(EngineError, match="its tensors are not those that the manifest lists"):
        AotInductorOpener(manifest, "auto").open(POINTS)


def test_a_full_folder_for_temporary_files(packages: Packages, sizes: Sizes, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "Free space there, or set TMPDIR" in refusal(packages(POINTS), sizes)
