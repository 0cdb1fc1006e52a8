"""Graphics cards of all sizes, scaled: the networks of 576x1024 take megabytes where real ones take gigabytes.

Weights, contexts, activations and graphs are allocated by others than our pool, as TensorRT, torch and the driver do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt.contract import NETWORKS, SchedulerConstants
from dispose_rt.device import Stream, open_device
from dispose_rt.engines.backends import tensorrt
from dispose_rt.engines.backends.tensorrt_flavour import RtxFlavour
from dispose_rt.engines.manifest import FileRecord, Manifest, NetworkRecord
from dispose_rt.engines.open import Engines
from dispose_rt.errors import OutOfMemoryError
from tests.fakes import cuda as fake_cuda
from tests.fakes.engine import FakeEngine as Formula
from tests.fakes.networks import FORMULAS, FakeNetworks
from tests.fakes.tensorrt import FakeEngine, FakeRun, FakeTrt
from tests.fakes.tensorrt_machine import write_plan
from tests.stages.denoise.test_loop import SIZES

GB = 1 << 24
"""Bytes that stand for a gigabyte."""

WEIGHTS_GB = {
    "person_detector": 0.22,
    "pose_estimator": 0.13,
    "dift": 1.69,
    "cmp_image_encoder": 0.1,
    "cmp_flow_decoder": 0.02,
    "image_encoder": 1.27,
    "vae_encoder": 0.14,
    "pose_net": 0.001,
    "motion_encoder": 0.007,
    "point_encoder": 0.003,
    "controlnet": 1.34,
    "unet": 2.99,
    "vae_decoder": 0.15,
}
SCRATCH_GB = dict.fromkeys(NETWORKS, 0.1) | {
    "dift": 0.9,
    "vae_encoder": 1.5,
    "controlnet": 3.0,
    "unet": 3.78,
    "vae_decoder": 7.33,
}


def make_manifest(folder: Path, backend: str) -> Manifest:
    """The manifest of a directory of these networks."""
    records = {
        name: NetworkRecord(
            (FileRecord(f"{name}.plan", int(WEIGHTS_GB[name] * GB), "0" * 64),),
            "key",
            backend=backend,
            scratch_bytes=int(SCRATCH_GB[name] * GB),
        )
        for name in NETWORKS
    }
    return Manifest(folder, backend, "fp32", SIZES, SchedulerConstants(0.002, 700.0), records)


class Card:
    """A GPU with TensorRT.

    Args:
        memory_gb: what is free before anything is loaded.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, memory_gb: float) -> None:
        self.cuda = fake_cuda.install(monkeypatch, memory_bytes=int(memory_gb * GB))
        self.cuda.graph_bytes = 64
        self.trt = FakeTrt()
        monkeypatch.setattr(tensorrt, "load_flavour", lambda name: RtxFlavour(self.trt))  # type: ignore[arg-type]
        monkeypatch.setenv("DISPOSE_RT_TRUST", "all")
        self.folder = folder
        folder.mkdir(exist_ok=True)
        for name in NETWORKS:
            write_plan(folder / f"{name}.plan", name.encode())
            engine = self.trt.engines[name] = FakeEngine(self.cuda, name, SIZES, "float32", compute_formula)
            engine.name = name  # type: ignore[attr-defined]
            engine.weights_bytes = int(WEIGHTS_GB[name] * GB)
            engine.context_bytes = GB // 100
            engine.device_memory_size_v2 = int(SCRATCH_GB[name] * GB)
        self.manifest = make_manifest(folder, "tensorrt_rtx")

    def engines(self) -> Engines:
        """What `run_networks` takes."""
        engines: Any = Engines(self.manifest, "cuda")
        engines.manifest = self.manifest
        return engines  # type: ignore[no-any-return]


def compute_formula(run: FakeRun) -> None:
    """Compute what tests/fakes/networks.py says, at the shapes of the run."""
    network: str = run.engine.name  # type: ignore[attr-defined]
    spec = NETWORKS[network]
    rows = {symbol: SIZES.limit(symbol) for symbol in spec.dynamic}
    for tensor in spec.inputs:
        for place, dim in enumerate(tensor.shape):
            if dim in rows and tensor.name in run.shapes:
                rows[str(dim)] = run.shapes[tensor.name][place]

    def view(name: str, shape: Sequence[int | str]) -> np.ndarray:
        return run.tensor(name, tuple(int(dim) for dim in SIZES.resolve(tuple(shape), rows)))

    outputs = FORMULAS[network]({one.name: view(one.name, one.shape).copy() for one in spec.inputs})
    for one in spec.outputs:
        view(one.name, one.shape)[...] = outputs[one.name]


class TorchCache:
    """Torch's memory on the card: it keeps what a run took until someone asks for it."""

    def __init__(self, cuda: fake_cuda.FakeCuda) -> None:
        self.cuda = cuda
        self.kept_bytes = 0

    def want(self, size: int) -> None:
        if size > self.kept_bytes:
            self.empty()
            if not self.cuda.take_foreign(size):
                raise OutOfMemoryError("CUDA out of memory")
            self.kept_bytes = size

    def empty(self) -> None:
        self.cuda.give_foreign(self.kept_bytes)
        self.kept_bytes = 0


class Package(Formula):
    """A network of AOTInductor, which allocates its weights when it is loaded and its activations when it runs."""

    cache: TorchCache

    def _queue(self, stream: Stream) -> None:
        share = max((self._dynamic[one] / SIZES.limit(one) for one in self._dynamic), default=1)
        self.cache.want(int(SCRATCH_GB[self.name] * GB * share))
        super()._queue(stream)

    def _free(self) -> None:
        self.cache.cuda.give_foreign(int(WEIGHTS_GB[self.name] * GB))


class Packages(FakeNetworks):
    """A directory of AOTInductor on a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory_gb: float) -> None:
        self.cuda = fake_cuda.install(monkeypatch, memory_bytes=int(memory_gb * GB))
        super().__init__(open_device("cuda"))
        self.cache = TorchCache(self.cuda)
        self.loader.device.pool.reclaim = self.cache.empty
        self.manifest = make_manifest(Path("packages"), "aotinductor")

    def __call__(self, name: str) -> Formula:
        if name not in self.loaded:
            self.loader.device.pool.trim()
            if not self.cuda.take_foreign(int(WEIGHTS_GB[name] * GB)):
                raise OutOfMemoryError(f"no room for {name}")
            self.loaded[name] = Package(name, SIZES, FORMULAS[name], stream=self.loader.stream)
            self.loaded[name].cache = self.cache
        return self.loaded[name]
