"""A folder of plans and the fake GPU that they run on, and whether there is a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.device import find_gpus
from dispose_rt.engines.backends import tensorrt
from dispose_rt.engines.backends.tensorrt import TensorRtLoader
from dispose_rt.engines.backends.tensorrt_flavour import RtxFlavour, portable_plan_runs_on
from dispose_rt.engines.manifest import FileRecord, Manifest, NetworkRecord
from tests.fakes import cuda as fake_cuda
from tests.fakes.tensorrt import FakeEngine, FakeRun, FakeTrt

SIZES = Sizes(64, 64, tile=4, chunk=3, channels=(8, 16, 32, 32), embed=24, dift=32, points=6)
POINTS, MOTION, DECODER = "point_encoder", "motion_encoder", "vae_decoder"


def write_plan(path: Path, body: bytes) -> None:
    """A file whose header is that of a plan of tensorrt_rtx 1.x."""
    path.write_bytes(b"vtrt" + bytes(12) + (32 + len(body)).to_bytes(8, "little") + bytes(8) + body)


def make_manifest(folder: Path, compute_dtype: str = "float16", backend: str = "tensorrt_rtx") -> Manifest:
    records = {
        name: NetworkRecord((FileRecord(f"{name}.plan", 1, "0" * 64),), "key", compute_dtype, {}, backend)
        for name in NETWORKS
    }
    constants = SchedulerConstants(0.002, 700.0)
    return Manifest(folder, backend, "fp16", SIZES, constants, records)


class Machine:
    """A folder of plans and the fake GPU that they run on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.cuda = fake_cuda.install(monkeypatch)
        self.trt = FakeTrt()
        monkeypatch.setattr(tensorrt, "load_flavour", lambda name: RtxFlavour(self.trt))  # type: ignore[arg-type]

    def build(self, network: str, compute: Callable[[FakeRun], None], dtype: str = "float16") -> FakeEngine:
        write_plan(self.folder / f"{network}.plan", network.encode())
        self.trt.engines[network] = FakeEngine(self.cuda, network, SIZES, dtype, compute)
        return self.trt.engines[network]

    def loader(self, dtype: str = "float16") -> TensorRtLoader:
        return TensorRtLoader(make_manifest(self.folder, dtype), "auto")


def repeat_channels(run: FakeRun) -> None:
    """A point encoder that answers the first channels, doubled."""
    rows = run.shapes["embeddings"][0]
    embeddings = run.tensor("embeddings", (rows, SIZES.dift))
    for level, channels in enumerate(SIZES.channels):
        run.tensor(f"point_features_{level}", (rows, channels))[:] = 2 * embeddings[:, :channels]


def add_flows(run: FakeRun) -> None:
    """A motion encoder that answers the mean of both flows everywhere."""
    frames = run.shapes["dense_flow"][0]
    both = [run.tensor(name, (frames, 2, 64, 64)) for name in ("dense_flow", "trajectory_flow")]
    run.tensor("motion_features", (frames, 8, 8, 8))[:] = np.mean(both)


def enlarge(run: FakeRun) -> None:
    """A decoder that answers the first value of each latent."""
    frames = run.shapes["latents"][0]
    latents = run.tensor("latents", (frames, 4, 8, 8))
    run.tensor("frames", (frames, 3, 64, 64))[:] = latents[:, :1, :1, :1]


def embeddings(rows: int) -> dict[str, np.ndarray]:
    return {"embeddings": np.random.default_rng(rows).standard_normal((rows, SIZES.dift), np.float32)}


def require_tensorrt() -> None:
    """Skip where TensorRT for RTX is missing, or does not know the GPU."""
    pytest.importorskip("tensorrt_rtx")
    if not find_gpus():
        pytest.skip("no GPU here")
    if not portable_plan_runs_on(find_gpus()[0].capability):
        pytest.skip(f"TensorRT for RTX does not run on {find_gpus()[0].capability}")
