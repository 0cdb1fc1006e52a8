"""Packages of AOTInductor that are damaged, foreign or stale, and devices that they do not fit."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dispose_rt.contract import Sizes
from dispose_rt.engines.backends import aotinductor, aotinductor_package
from dispose_rt.engines.backends.aotinductor import AotInductorLoader
from dispose_rt.errors import DeviceError, DisposeError, EngineError, InputError
from tests.engines.aotinductor_packages import compile_once, manifest_for, relabel, rewrite, small_sizes
from tests.every import each
from tests.fakes import cuda as fake_cuda

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
from dispose_rt.engines.backends.aotinductor import AotInductorLoader, LoadedPackage
from dispose_rt.errors import EngineError

attempts = [
    lambda: AotInductorLoader(SimpleNamespace(versions={{"torch": "2.13.0+cpu"}}, targets=("cpu",)), "auto"),
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


@each(
    device__targets__error__words=[
        ("tpu", ("cpu",), InputError, "pass auto, cpu, cuda or cuda:N"),
        ("cpu:1", ("cpu",), InputError, "'cpu:1' is not known"),
        ("cpu", ("sm_90",), DeviceError, "compiled for sm_90, device is 'cpu'.*--target cpu"),
        ("cpu", (), DeviceError, "compiled for no device"),
    ]
)
def test_devices_that_do_not_fit(
    device: str, targets: tuple[str, ...], error: type[DisposeError], words: str, packages: Packages, sizes: Sizes
) -> None:
    with pytest.raises(error, match=words):
        AotInductorLoader(manifest_for(packages(POINTS), POINTS, sizes, targets=targets), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@each(targets=[("cpu",), ("sm_90",)], device=["cuda", "cuda:1"])
def test_without_a_gpu_the_error_says_why(
    device: str, targets: tuple[str, ...], packages: Packages, sizes: Sizes
) -> None:
    manifest = manifest_for(packages(POINTS), POINTS, sizes, targets=targets)
    with pytest.raises(DeviceError, match=f"compiled for {targets[0]}, device is '{device}', but"):
        AotInductorLoader(manifest, device)


class FakeTorch:
    """A torch that sees a GPU."""

    __version__ = torch.__version__
    version = SimpleNamespace(cuda="13.0")
    device = torch.device
    cuda = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: None)


@pytest.mark.parametrize(
    ("device", "targets", "outcome"),
    [
        ("auto", ("sm_86",), "cuda:0"),
        ("cuda", ("sm_80", "sm_86"), "cuda:0"),
        ("cuda:0", ("sm_86",), "cuda:0"),
        ("cuda:9", ("sm_86",), "there is no device 'cuda:9'; this machine has cuda:0"),
        ("auto", ("sm_80",), "compiled for sm_80, cuda:0 is sm_86. Build engines for it: .*--target sm_86"),
        ("cuda", ("cpu",), "compiled for cpu, cuda:0 is sm_86"),
    ],
)
def test_devices_where_there_is_a_gpu(
    device: str, targets: tuple[str, ...], outcome: str, packages: Packages, sizes: Sizes, monkeypatch: Any
) -> None:
    monkeypatch.setattr(aotinductor, "import_torch", lambda version="": FakeTorch)
    fake_cuda.install(monkeypatch)
    manifest = manifest_for(packages(POINTS), POINTS, sizes, targets=targets)
    if outcome.startswith("cuda"):
        assert AotInductorLoader(manifest, device).device.name == outcome
    else:
        with pytest.raises(DeviceError, match=outcome):
            AotInductorLoader(manifest, device)


def refusal(path: Path, sizes: Sizes, **changes: Any) -> str:
    """Open a package and return the message of the typed error."""
    with pytest.raises((EngineError, DeviceError)) as caught:
        AotInductorLoader(manifest_for(path, POINTS, sizes, **changes), "auto").open(POINTS)
    assert "Build the directory again: dispose-rt build" in str(caught.value)
    return str(caught.value)


def test_truncated_packages(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    content = packages(POINTS).read_bytes()
    path = tmp_path / f"{POINTS}.pt2"
    for kept in (0, 1, 30, len(content) // 2, len(content) - 4096, len(content) - 22, len(content) - 1):
        path.write_bytes(content[:kept])
        assert "is damaged, or no AOTInductor package" in refusal(path, sizes), kept


def test_a_missing_package(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    manifest = manifest_for(packages(POINTS), POINTS, sizes)
    with pytest.raises(EngineError, match="FileNotFoundError"):
        AotInductorLoader(dataclasses.replace(manifest, folder=tmp_path), "auto").open(POINTS)


def test_flipped_bits_are_found_or_harmless(packages: Packages, sizes: Sizes, tmp_path: Path) -> None:
    """Headers and directory bit by bit in a sample; a package that still opens computes the same."""
    content = packages(POINTS).read_bytes()
    inputs = {"embeddings": np.ones((2, 96), np.float32)}
    expected = AotInductorLoader(manifest_for(packages(POINTS), POINTS, sizes), "auto").open(POINTS).run(inputs)
    directory = content.rindex(b"PK\x05\x06")
    places = [*range(0, 80, 3), *range(directory - 90, len(content), 5), *np.linspace(200, directory, 12, dtype=int)]
    refused = 0
    for number, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (number % 8)
        path = tmp_path / f"{POINTS}.pt2"
        path.write_bytes(damaged)
        try:
            outputs = AotInductorLoader(manifest_for(path, POINTS, sizes), "auto").open(POINTS).run(inputs)
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
        AotInductorLoader(manifest, "auto").open(POINTS)


def test_a_full_folder_for_temporary_files(packages: Packages, sizes: Sizes, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "Free space there, or set TMPDIR" in refusal(packages(POINTS), sizes)
