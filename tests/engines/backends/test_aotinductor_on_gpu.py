"""Packages of AOTInductor on a fake GPU: streams, graphs and memory that torch and the runtime share."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.backends import aotinductor
from dispose_rt.engines.backends.aotinductor import AotInductorEngine, AotInductorLoader
from dispose_rt.engines.backends.torch_tensors import view_as_tensor
from dispose_rt.errors import DeviceError, EngineError, OutOfMemoryError
from tests.fakes import cuda as fake_cuda
from tests.fakes.tensorrt_machine import POINTS, SIZES, embeddings, make_manifest
from tests.fakes.torch import FakePackage, FakeTensor, FakeTorch


class Machine:
    """A fake GPU with a torch of its own, and one network on it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str = "float32") -> None:
        self.cuda = fake_cuda.install(monkeypatch)
        self.torch = FakeTorch(self.cuda)
        monkeypatch.setattr(aotinductor, "import_torch", lambda version="": self.torch)
        manifest = make_manifest(folder, dtype, "aotinductor")
        object.__setattr__(manifest, "targets", ("sm_86",))
        self.loader = AotInductorLoader(manifest, "auto")
        self.stream = self.loader.stream
        self.package = FakePackage(self.torch, SIZES.channels)
        self.engine = AotInductorEngine(self.loader, manifest, POINTS, self.package)  # type: ignore[arg-type]

    def capture(self) -> Any:
        return self.loader.capture(lambda: self.engine.enqueue(self.stream))

    def read(self) -> dict[str, np.ndarray]:
        return {tensor.name: self.engine.read(tensor.name) for tensor in NETWORKS[POINTS].outputs}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def check(outputs: dict[str, np.ndarray], values: np.ndarray) -> None:
    for level, channels in enumerate(SIZES.channels):
        np.testing.assert_array_equal(outputs[f"point_features_{level}"], 2 * values[:, :channels])


def test_a_package_runs_on_the_stream_that_is_given(machine: Machine) -> None:
    other = machine.engine.device.stream()
    for rows in (6, 2, 1, 6):
        inputs = embeddings(rows)
        check(machine.engine.run(inputs), inputs["embeddings"])
    machine.engine.enqueue(other)
    assert machine.package.streams == [machine.stream.handle] * 4 + [other.handle]
    assert machine.torch.current == 0
    assert machine.loader.device.name == "cuda:0"


def test_a_queued_run_neither_copies_through_the_host_nor_waits(machine: Machine) -> None:
    machine.engine.run(embeddings(4))
    machine.cuda.calls.clear()
    machine.engine.enqueue(machine.stream)
    assert machine.cuda.calls == []


def test_a_graph_has_memory_of_its_own_for_as_long_as_it_lives(machine: Machine) -> None:
    machine.engine.run(embeddings(5))
    emptied = machine.torch.emptied
    graph = machine.capture()
    assert machine.package.pools[0] is None
    assert machine.package.pools[1] is not None
    assert machine.torch.emptied > emptied
    assert machine.torch.pool is None
    machine.package.pools.clear()
    machine.engine.set_batch(points=1)
    for seed in (1, 2):
        values = np.random.default_rng(seed).standard_normal((5, SIZES.dift), np.float32)
        machine.engine.tensor("embeddings").upload(values, machine.stream)
        graph.launch(machine.stream)
        machine.engine.set_batch(points=5)
        check(machine.read(), values)
    assert machine.package.pools == []  # a launch runs nothing of Python
    assert len(machine.torch.pools) == 1
    graph.close()
    graph.close()
    gc.collect()
    assert len(machine.torch.pools) == 0
    with pytest.raises(DeviceError, match="closed"):
        graph.launch(machine.stream)


def test_what_was_not_allocated_before_cannot_be_captured(machine: Machine) -> None:
    with pytest.raises(DeviceError, match="an allocation cannot be part of a graph"):
        machine.capture()
    check(machine.engine.run(embeddings(3)), embeddings(3)["embeddings"])


@pytest.mark.parametrize("kind", ["package", "torch", "typed"])
def test_a_capture_that_fails_leaves_everything_usable(machine: Machine, kind: str) -> None:
    machine.engine.run(embeddings(3))

    def body() -> None:
        machine.engine.enqueue(machine.stream)
        if kind == "torch":
            machine.torch.cuda.synchronize()
        if kind == "typed":
            machine.stream.synchronize()

    if kind == "package":
        machine.package.errors = [lambda: RuntimeError("operation not permitted when stream is capturing")]
    expected: type[Exception] = EngineError if kind == "package" else DeviceError
    with pytest.raises(expected, match=r"not permitted when stream is capturing|cannot be part of a graph"):
        machine.loader.capture(body)
    assert machine.torch.pool is None
    assert not machine.stream.capturing
    machine.package.pools.clear()
    gc.collect()
    assert len(machine.torch.pools) == 0
    check(machine.engine.run(embeddings(3)), embeddings(3)["embeddings"])
    graph = machine.capture()
    graph.launch(machine.stream)
    check(machine.read(), embeddings(3)["embeddings"])


def test_running_out_of_memory_is_told_from_other_failures(machine: Machine) -> None:
    def unnamed() -> Exception:
        machine.torch.out_of_memory += 1
        return RuntimeError("run_func_(...) API call failed")

    machine.engine.run(embeddings(2))
    for error in (unnamed, lambda: torch.OutOfMemoryError("CUDA out of memory")):
        machine.package.errors = [error]
        with pytest.raises(OutOfMemoryError, match="point_encoder needs more memory than cuda:0 has left"):
            machine.engine.run(embeddings(2))
    machine.package.errors = [lambda: RuntimeError("API call failed")]
    with pytest.raises(EngineError, match="point_encoder failed in AOTInductor: API call failed"):
        machine.engine.run(embeddings(2))
    check(machine.engine.run(embeddings(2)), embeddings(2)["embeddings"])


def test_memory_that_is_kept_for_later_is_given_up_first(machine: Machine) -> None:
    machine.engine.run(embeddings(2))
    machine.engine.device.empty((1000,), "float32").free()
    pool = machine.engine.device.pool
    assert pool.reserved_bytes > pool.used_bytes
    machine.package.errors = [lambda: torch.OutOfMemoryError("CUDA out of memory")]
    check(machine.engine.run(embeddings(2)), embeddings(2)["embeddings"])
    assert pool.reserved_bytes == pool.used_bytes


def test_what_torch_keeps_is_given_up_where_the_device_has_no_room(machine: Machine) -> None:
    device = machine.engine.device
    machine.cuda.memory_bytes, machine.torch.kept_bytes = 1000, 1 << 20
    assert device.empty((1 << 20,), "uint8").nbytes == 1 << 20
    assert machine.torch.emptied == 1
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        device.empty((1 << 20,), "uint8")
    assert machine.torch.emptied == 2


def test_arrays_are_seen_where_they_are(machine: Machine) -> None:
    device = machine.engine.device
    for dtype, kind in (("float32", "<f4"), ("float16", "<f2"), ("bfloat16", "<i2"), ("int32", "<i4")):
        array = device.empty((3, 5), dtype)
        tensor: FakeTensor = view_as_tensor(machine.torch, array)
        assert tensor.bits.ctypes.data == array.address
        assert (tensor.bits.dtype.str, tensor.shape) == (kind, (3, 5))
        assert tensor.dtype == (torch.bfloat16 if dtype == "bfloat16" else None)


def test_closing_unloads_and_frees(machine: Machine) -> None:
    machine.engine.run(embeddings(2))
    machine.engine.close()
    machine.loader.close()
    assert machine.package.closed
    assert machine.cuda.blocks == {}
    assert machine.cuda.streams == {}
