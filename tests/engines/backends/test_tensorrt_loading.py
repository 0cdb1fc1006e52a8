"""TensorRT engines: which files are refused, and what is kept beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dispose_rt.engines.backends import tensorrt
from dispose_rt.engines.backends.tensorrt import TensorRtLoader
from dispose_rt.engines.backends.tensorrt_flavour import Flavour
from dispose_rt.errors import DeviceError, EngineError
from dispose_rt.system import sealed_file
from dispose_rt.system.sealed_file import read_sealed, write_sealed
from tests.fakes.tensorrt_machine import POINTS, Machine, embeddings, make_manifest, repeat_channels, write_plan


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_importing_it_imports_neither_tensorrt_nor_cuda() -> None:
    code = "import sys, dispose_rt.engines.backends.tensorrt\n"
    code += "print([n for n in sys.modules if n.startswith(('tensor', 'cuda'))])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_another_network_is_refused_with_the_command_that_mends_it(machine: Machine) -> None:
    engine = machine.build(POINTS, repeat_channels)
    engine.tensors["embeddings"] = ("float16", (-1, 31))
    engine.tensors["extra"] = ("float32", (1,))
    with pytest.raises(EngineError) as caught:
        machine.loader().open(POINTS)
    message = str(caught.value)
    assert r"embeddings is float16 [points, 31], expected float32 [points, 32]" in message
    assert "too many" in message
    assert "dispose-rt build" in message
    assert machine.cuda.used_bytes == 0


def test_a_smaller_range_than_the_directory_needs_is_refused(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels).profile["embeddings"] = (5, 32)
    with pytest.raises(EngineError, match=r"embeddings is at most \[5, 32\], expected \[6, 32\]"):
        machine.loader().open(POINTS)


def test_truncated_and_foreign_files_are_refused(machine: Machine) -> None:
    loader = machine.loader()
    for content, words in (
        (b"", "no plan of tensorrt_rtx: 0 bytes"),
        (b"vtrt", "4 bytes"),
        (b"\x08\x0a\x12" + bytes(100), "no plan of tensorrt_rtx"),
        (b"ftrt" + bytes(100), "no plan of tensorrt_rtx"),
        (b"vtrt" + bytes(12) + (1000).to_bytes(8, "little") + bytes(100), "has 124 bytes, its header says 1000"),
    ):
        (machine.folder / f"{POINTS}.plan").write_bytes(content)
        with pytest.raises(EngineError, match=f"{words}.*Build the directory again"):
            loader.open(POINTS)


def test_a_missing_file_is_refused(machine: Machine) -> None:
    with pytest.raises(EngineError, match=r"point_encoder\.plan cannot be read"):
        machine.loader().open(POINTS)


def test_what_tensorrt_refuses_is_quoted(machine: Machine) -> None:
    write_plan(machine.folder / f"{POINTS}.plan", b"some other bytes")
    with pytest.raises(EngineError, match=r"(?s)cannot load.*assertion failed: this is no engine.*Build the directory"):
        machine.loader().open(POINTS)


def test_a_plan_for_other_gpus_is_refused_before_it_is_loaded(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    machine.trt.validity = ("INVALID", 3)
    with pytest.raises(EngineError, match="another version of tensorrt_rtx; it was not built for this GPU"):
        machine.loader().open(POINTS)


def test_a_network_of_another_backend_is_refused(machine: Machine) -> None:
    loader = machine.loader()
    loader.manifest = make_manifest(machine.folder, backend="tensorrt")
    with pytest.raises(EngineError, match="built for tensorrt, and is opened with tensorrt_rtx"):
        loader.open(POINTS)


def test_no_driver_is_a_device_error(machine: Machine) -> None:
    machine.cuda.gpus = 0
    with pytest.raises(DeviceError, match="none was found"):
        machine.loader()


def test_the_cpu_is_refused(machine: Machine) -> None:
    with pytest.raises(DeviceError, match="on an NVIDIA GPU alone"):
        TensorRtLoader(make_manifest(machine.folder), "cpu")


# runtime cache


def cache_file(machine: Machine) -> Path:
    return machine.folder / f"{POINTS}.sm_86.runtime_cache"


def test_compiled_kernels_are_kept_for_the_next_start(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.loader().open(POINTS)
    assert read_sealed(cache_file(machine)) == b"compiled kernels"
    built.cache.kernels = b"and those of the first run"
    engine.close()
    assert read_sealed(cache_file(machine)) == b"and those of the first run"
    written = cache_file(machine).stat().st_mtime_ns
    built = machine.build(POINTS, repeat_channels)
    machine.loader().open(POINTS).close()
    assert built.cache.kernels == b"and those of the first run"
    assert cache_file(machine).stat().st_mtime_ns == written


@pytest.mark.parametrize("kept", [0, 40])
def test_a_damaged_cache_is_ignored_and_replaced(machine: Machine, kept: int) -> None:
    built = machine.build(POINTS, repeat_channels)
    write_sealed(cache_file(machine), b"kernels of old")
    cache_file(machine).write_bytes(cache_file(machine).read_bytes()[:kept])
    machine.loader().open(POINTS).run(embeddings(1))
    assert built.cache.kernels == b""
    assert read_sealed(cache_file(machine)) == b"compiled kernels"


def test_the_data_centre_flavour_runs_without_such_a_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build(POINTS, repeat_channels)
    (machine.folder / f"{POINTS}.plan").write_bytes(b"ftrt" + bytes(28) + POINTS.encode())
    monkeypatch.setattr(tensorrt, "load_flavour", lambda name: Flavour(machine.trt))  # type: ignore[arg-type]
    engine = TensorRtLoader(make_manifest(machine.folder, backend="tensorrt"), "cuda:0").open(POINTS)
    engine.run(embeddings(3))
    assert engine.capture_problem(engine.stream) is None
    engine.close()
    assert [path.name for path in machine.folder.iterdir()] == [f"{POINTS}.plan"]


def test_a_folder_that_cannot_be_written_does_not_fail_a_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build(POINTS, repeat_channels)

    def refuse(target: Path) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(sealed_file, "atomic_write", refuse)
    engine = machine.loader().open(POINTS)
    engine.run(embeddings(1))
    engine.close()
    assert [path.name for path in machine.folder.iterdir()] == [f"{POINTS}.plan"]
