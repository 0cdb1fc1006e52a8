"""Compiled engine directories that do not fit the machine: all that is wrong in one error, damage first.

The machine is made up, so that every case runs everywhere; the engines are a few bytes each, which no preflight minds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispose_rt import Animator
from dispose_rt.contract import NETWORKS, SchedulerConstants
from dispose_rt.device import Gpu, find_gpus
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.footprint import least_bytes
from dispose_rt.engines.manifest import Manifest, NetworkRecord, read_manifest, record_file, write_manifest
from dispose_rt.engines.preflight import Host, check_directory
from dispose_rt.engines.signature import contract_signature
from dispose_rt.errors import DeviceError, EngineError, InputError, ManifestError
from tests.engines.damaged_directory import (
    Damage,
    edited,
    filled,
    flipped,
    removed,
    replaced,
    signed,
    swapped,
    truncated,
)
from tests.engines.small_directory import SIZES

VERSIONS = {"tensorrt_rtx": "1.7.1.116", "tensorrt": "10.13.2.6", "torch": "2.13.0"}
GPU = Gpu(0, "NVIDIA L40S", "sm_89", 48 * 10**9, 40 * 10**9, "13.0")
SUFFIXES = {"tensorrt_rtx": ".plan", "tensorrt": ".plan", "aotinductor": ".pt2"}
BACKENDS = ("tensorrt_rtx", "tensorrt", "aotinductor")
REMEDY = "dispose-rt build --weights WEIGHTS --output"


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust is no question here; see test_trust.py."""
    monkeypatch.setenv("DISPOSE_RT_TRUST", "all")


def make_host(
    gpu: Gpu | None = GPU,
    versions: dict[str, str] = VERSIONS,
    bindings: str | None = "13.4.4",
    kernels: str | None = None,
) -> Host:
    """A machine with this GPU and these packages."""

    def resolve(device: str) -> Gpu:
        if gpu is None:
            raise DeviceError(f"the device {device!r} needs an NVIDIA GPU, and none was found")
        return gpu

    def tensorrt_version(flavour: str) -> str:
        if flavour not in versions:
            raise EngineError(f"{flavour} cannot be imported")
        return versions[flavour]

    packages = {"torch": versions.get("torch"), "cuda-bindings": bindings}
    return Host(resolve, tensorrt_version, packages.get, lambda: kernels)


def write_compiled(folder: Path, backend: str = "tensorrt_rtx", **changes: Any) -> Manifest:
    """An engine directory in fp16 whose published networks are left to ONNX Runtime."""
    folder.mkdir()
    records = {}
    for name, spec in NETWORKS.items():
        suffix = ".onnx" if spec.published else SUFFIXES[backend]
        (folder / f"{name}{suffix}").write_bytes(b"vtrt" + name.encode() * (50 + len(records)))
        records[name] = NetworkRecord(
            (record_file(folder, f"{name}{suffix}"),),
            "key",
            "float32" if spec.published else "float16",
            backend="onnxruntime" if spec.published else backend,
            signature={} if spec.published else contract_signature(name, SIZES, "float16"),
        )
    versions = {"dispose_rt": "0.1.0", **VERSIONS}
    manifest = Manifest(
        folder, backend, "fp16", SIZES, SchedulerConstants(), records, versions=versions, targets=("sm_89", "sm_120")
    )
    manifest = replace(manifest, **changes)
    write_manifest(manifest)
    return manifest


def refusal(folder: Path, device: str = "auto", host: Host | None = None) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        EngineDirectories(folder, device, host or make_host())
    return caught.value


def test_directories_that_fit_are_accepted(tmp_path: Path) -> None:
    for backend in BACKENDS:
        written = write_compiled(tmp_path / backend, backend)
        for device in ("auto", "cuda", "cuda:0"):
            EngineDirectories(tmp_path / backend, device, make_host())
        assert read_manifest(tmp_path / backend) == written


def test_a_package_for_the_cpu_needs_no_gpu(tmp_path: Path) -> None:
    write_compiled(tmp_path / "e", "aotinductor", targets=("cpu",))
    EngineDirectories(tmp_path / "e", "cpu", make_host(gpu=None))
    assert "its engines run on the CPU, device is 'cuda'" in str(refusal(tmp_path / "e", "cuda"))


def test_engines_on_a_gpu_need_our_kernels_there(tmp_path: Path) -> None:
    for backend in BACKENDS:
        write_compiled(tmp_path / backend, backend)
        error = refusal(tmp_path / backend, host=make_host(kernels="the compiled cuda kernels cannot be loaded"))
        assert "the compiled cuda kernels cannot be loaded" in str(error)
        assert "DISPOSE_RT_CUDA=ON pip install" in str(error)
    write_compiled(tmp_path / "cpu", "aotinductor", targets=("cpu",))
    EngineDirectories(tmp_path / "cpu", host=make_host(gpu=None, kernels="not there"))


def test_portable_plans_fit_what_tensorrt_for_rtx_runs_on(tmp_path: Path) -> None:
    write_compiled(tmp_path / "e", targets=())
    for capability in ("sm_80", "sm_86", "sm_121"):
        EngineDirectories(tmp_path / "e", host=make_host(replace(GPU, capability=capability)))


class TestMachines:
    """The directory is intact, and the machine is another one."""

    CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # noqa: RUF012
        "another GPU": (
            {},
            {"gpu": replace(GPU, name="NVIDIA H200", capability="sm_90")},
            r"built for sm_89, sm_120, and NVIDIA H200 \(cuda:0\) is sm_90(?s:.*)--backend aotinductor",
        ),
        "another GPU of the same kind of engine": (
            {},
            {"gpu": replace(GPU, name="NVIDIA RTX A6000", capability="sm_86")},
            r"built for sm_89, sm_120, and NVIDIA RTX A6000 \(cuda:0\) is sm_86(?s:.*)--target sm_86",
        ),
        "another GPU, AOTInductor": (
            {"backend": "aotinductor", "targets": ("sm_89",)},
            {"gpu": replace(GPU, name="NVIDIA H200", capability="sm_90")},
            r"built for sm_89, and NVIDIA H200 \(cuda:0\) is sm_90(?s:.*)--backend aotinductor.*--target sm_90",
        ),
        "a portable plan on Hopper": (
            {"targets": ()},
            {"gpu": replace(GPU, name="NVIDIA H200", capability="sm_90")},
            r"for what TensorRT for RTX runs on, and NVIDIA H200 \(cuda:0\) is sm_90(?s:.*)--backend aotinductor",
        ),
        "a portable plan on Turing": (
            {"targets": ()},
            {"gpu": replace(GPU, name="NVIDIA T4", capability="sm_75")},
            r"for what TensorRT for RTX runs on, and NVIDIA T4 \(cuda:0\) is sm_75(?s:.*)--target sm_75",
        ),
        "too little memory": (
            {},
            {"gpu": replace(GPU, free_bytes=1000)},
            r"0.00 of 48.00 GB free; a run takes at least .* GB, with engines closed(?s:.*)--tile-frames 3",
        ),
        "an old driver": (
            {},
            {"gpu": replace(GPU, driver_version="12.8")},
            "supports CUDA 12.8.*need 13.0(?s:.*)Update",
        ),
        "no GPU": ({}, {"gpu": None}, r"none was found(?s:.*)--output \S+-onnxruntime --backend onnxruntime"),
        "another TensorRT": (
            {},
            {"versions": {**VERSIONS, "tensorrt_rtx": "1.8.0.5"}},
            r"(?s)built with tensorrt_rtx 1\.7\.1\.116, installed is 1\.8\.0\.5.*install 'tensorrt-rtx-cu13==1\.7\.1\.",
        ),
        "no TensorRT": (
            {},
            {"versions": {}},
            "(?s)needs tensorrt_rtx 1.7.1.116: .*cannot be imported.*pip install",
        ),
        "the other TensorRT": (
            {"backend": "tensorrt"},
            {"versions": {**VERSIONS, "tensorrt": "11.0.0"}},
            r"built with tensorrt 10\.13\.2\.6, installed is 11(?s:.*)pip install 'tensorrt==10",
        ),
        "another torch": (
            {"backend": "aotinductor"},
            {"versions": {"torch": "2.14.0+cu130"}},
            r"built with torch 2\.13\.0, installed is 2\.14\.0\+cu130(?s:.*)pip install 'torch==2\.13\.0'",
        ),
        "no torch": ({"backend": "aotinductor"}, {"versions": {}}, "needs torch 2.13.0, which is not installed"),
        "an unknown builder": ({"versions": {}}, {}, "does not say which version of tensorrt_rtx built it"),
    }

    def test_other_machines(self, tmp_path: Path) -> None:
        failures = []
        for number, (name, (changes, machine, words)) in enumerate(self.CASES.items()):
            write_compiled(tmp_path / f"{number}", **changes)
            error = refusal(tmp_path / f"{number}", host=make_host(**machine))
            if len(error.problems) != 1 or not re.search(words, str(error)):
                failures.append(f"{name}: {error}")
        assert failures == []

    def test_all_at_once(self, tmp_path: Path) -> None:
        write_compiled(tmp_path / "e")
        poor = Gpu(0, "NVIDIA T4", "sm_75", 10, 5, "12.2")
        error = refusal(tmp_path / "e", host=make_host(poor, {"tensorrt_rtx": "1.6.0.0"}))
        assert len(error.problems) == 4

    def test_the_cpu_is_no_gpu(self, tmp_path: Path) -> None:
        write_compiled(tmp_path / "e")
        text = str(refusal(tmp_path / "e", "cpu"))
        assert "tensorrt_rtx engines need an NVIDIA GPU, device is 'cpu'" in text
        assert "--backend onnxruntime --precision fp32 --size 64x64" in text
        assert "--target" not in text

    def test_onnx_files_are_no_gpu_memory(self, tmp_path: Path) -> None:
        manifest = write_compiled(tmp_path / "e")
        needed = least_bytes(manifest)
        EngineDirectories(tmp_path / "e", host=make_host(replace(GPU, free_bytes=needed)))
        refusal(tmp_path / "e", host=make_host(replace(GPU, free_bytes=needed - 1)))

    def test_memory_beside_the_files_counts(self, tmp_path: Path) -> None:
        """What runs of TensorRT's engines need, and tensors: twice the files, at 576x1024."""
        manifest = write_compiled(tmp_path / "e")
        unet = replace(manifest.networks["unet"], scratch_bytes=10**9)
        scratchy = replace(manifest, networks={**manifest.networks, "unet": unet})
        write_manifest(scratchy)
        assert least_bytes(scratchy) > 10**9 > least_bytes(manifest)
        error = refusal(tmp_path / "e", host=make_host(replace(GPU, free_bytes=10**9)))
        assert f"a run takes at least {least_bytes(scratchy) / 1e9:.2f} GB" in str(error)
        assert least_bytes(replace(scratchy, backend="onnxruntime")) == 0

    def test_unknown_devices_are_the_callers_mistake(self, tmp_path: Path) -> None:
        manifest = write_compiled(tmp_path / "e")
        with pytest.raises(InputError, match="cuda:x"):
            check_directory(manifest, "cuda:x", replace(make_host(), resolve_gpu=Host().resolve_gpu))


DAMAGES: dict[str, tuple[Callable[[str], Damage], str]] = {
    "empty": (lambda unet: truncated(unet, lambda size: 0), "has 0 bytes"),
    "1 byte": (lambda unet: truncated(unet, lambda size: 1), "has 1 bytes"),
    "half": (lambda unet: truncated(unet, lambda size: size // 2), r"has \d+ bytes"),
    "all but a byte": (lambda unet: truncated(unet, lambda size: size - 1), r"has \d+ bytes"),
    "first bit": (lambda unet: flipped(unet, 0.0, 0), "has other contents"),
    "middle bit": (lambda unet: flipped(unet, 0.5, 5), "has other contents"),
    "last bit": (lambda unet: flipped(unet, 1.0, 7), "has other contents"),
    "zeros": (lambda unet: filled(unet, bytes), "has other contents"),
    "missing": (removed, "is missing"),
    "a directory": (lambda unet: replaced(unet, Path.mkdir), "is no regular file"),
    "swapped": (lambda unet: swapped(unet, unet.replace("unet", "controlnet")), r"has \d+ bytes"),
    "by hand": (lambda unet: edited("targets", value=[]), "checksum does not fit"),
    "of another size": (
        lambda unet: signed("sizes", "width", value=128),
        r"dift: features is float32 \[1, 96, 4, 4\], .* 8\]",
    ),
    "of another tile": (
        lambda unet: signed("sizes", "tile", value=9),
        r"latents is float32 \[7, 4, 8, 8\], .*\[9,",
    ),
    "of another precision": (
        lambda unet: signed("networks", "unet", "compute_dtype", value="float32"),
        r"pose_latents is float16 \[7, 32, 8, 8\], expected float32",
    ),
    "of another backend": (
        lambda unet: signed("backend", value="onnxruntime"),
        "backend is '.*', expected one of o",
    ),
}


def test_damage_is_the_reason_given(tmp_path: Path) -> None:
    """On any machine, a GPU or not: the damage is what is named first, with the command that builds this backend."""
    failures = []
    for number, ((name, (damage, words)), backend) in enumerate(
        (case, backend) for case in DAMAGES.items() for backend in BACKENDS
    ):
        folder = write_compiled(tmp_path / f"{number}", backend).folder
        damage(f"unet{SUFFIXES[backend]}")(folder)
        with pytest.raises(ManifestError) as caught:
            Animator(folder)
        text = str(caught.value)
        if not (re.search(words, caught.value.problems[0]) and REMEDY in text and "--precision fp16 --size" in text):
            failures.append(f"{name}, {backend}: {text}")
    assert failures == []


def test_intact_directories_on_a_machine_without_gpu(tmp_path: Path) -> None:
    if find_gpus():
        pytest.skip("this machine has a GPU")
    for backend in BACKENDS:
        write_compiled(tmp_path / backend, backend)
        with pytest.raises(ManifestError, match="none was found|cannot be imported") as caught:
            Animator(tmp_path / backend)
        assert "--backend onnxruntime" in str(caught.value)


def test_targets_that_are_none(tmp_path: Path) -> None:
    for target in ("cpu", "sm_8", "sm_089", "89", "SM_89", "sm_89a"):
        write_compiled(tmp_path / target, targets=(target,))
        assert re.search(r"targets(\[0\] is| name the CPU)", str(refusal(tmp_path / target))), target
