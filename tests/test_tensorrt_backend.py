"""TensorRT engines: what they refuse, how they share a GPU, and (with one) that they compute what ONNX Runtime does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from fake_gpu import FakeContext, FakeCuda, FakeEngine, FakeTrt
from golden_case import GoldenCase

from dispose_rt import device
from dispose_rt.backends import open_engine, tensorrt
from dispose_rt.backends.protocol import Engine
from dispose_rt.backends.sealed_file import read_sealed, write_sealed
from dispose_rt.backends.tensorrt import TensorRtEngine, TensorRtOpener
from dispose_rt.backends.tensorrt_flavour import (
    Flavour,
    RtxFlavour,
    load_flavour,
    portable_plan_runs_on,
    tensorrt_version,
)
from dispose_rt.backends.validation import host_dtype
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.device import Stream, find_gpus
from dispose_rt.errors import DeviceError, EngineError, InputError
from dispose_rt.manifest import FileRecord, Manifest, NetworkRecord, read_manifest
from dispose_rt.scheduler import SchedulerConstants

SIZES = Sizes(64, 64, tile=4, chunk=3, channels=(8, 16, 32, 32), embed=24, dift=32, points=6)
POINTS, MOTION = "point_encoder", "motion_encoder"


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
        self.cuda = FakeCuda()
        self.trt = FakeTrt()
        monkeypatch.setattr(device, "_cuda", lambda: self.cuda)
        monkeypatch.setattr(tensorrt, "load_flavour", lambda name: RtxFlavour(self.trt))  # type: ignore[arg-type]

    def build(self, network: str, compute: Callable[[FakeContext], None], dtype: str = "float16") -> FakeEngine:
        write_plan(self.folder / f"{network}.plan", network.encode())
        self.trt.engines[network] = FakeEngine(self.cuda, network, SIZES, dtype, compute)
        return self.trt.engines[network]

    def opener(self, dtype: str = "float16") -> TensorRtOpener:
        return TensorRtOpener(make_manifest(self.folder, dtype), "auto")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def repeat_channels(context: FakeContext) -> None:
    """A point encoder that answers the first channels, doubled."""
    rows = context.shapes["embeddings"][0]
    embeddings = context.tensor("embeddings", (rows, SIZES.dift))
    for level, channels in enumerate(SIZES.channels):
        context.tensor(f"point_features_{level}", (rows, channels))[:] = 2 * embeddings[:, :channels]


def add_flows(context: FakeContext) -> None:
    """A motion encoder that answers the mean of both flows everywhere."""
    frames = context.shapes["dense_flow"][0]
    both = [context.tensor(name, (frames, 2, 64, 64)) for name in ("dense_flow", "trajectory_flow")]
    context.tensor("motion_features", (frames, 8, 8, 8))[:] = np.mean(both)


def embeddings(rows: int) -> dict[str, np.ndarray]:
    return {"embeddings": np.random.default_rng(rows).standard_normal((rows, SIZES.dift), np.float32)}


# running


def test_an_engine_computes_from_its_inputs_to_its_outputs(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    assert isinstance(engine, Engine)
    for rows in (6, 2, 1, 6):
        inputs = embeddings(rows)
        outputs = engine.run(inputs)
        for level, channels in enumerate(SIZES.channels):
            expected = (2 * inputs["embeddings"][:, :channels]).astype(np.float16)
            np.testing.assert_array_equal(outputs[f"point_features_{level}"], expected)
    assert engine.max_batch("points") == 6


def test_addresses_are_bound_once_and_shapes_when_they_change(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    for rows in (6, 3, 3, 5):
        engine.run(embeddings(rows))
    calls = built.contexts[0].calls
    assert sum(call.startswith("set_tensor_address") for call in calls) == 5
    shapes = [call for call in calls if call.startswith("set_input_shape")]
    assert shapes == [f"set_input_shape embeddings ({rows}, 32)" for rows in (6, 3, 5)]


def test_a_queued_run_neither_copies_nor_allocates_nor_waits(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    engine.run(embeddings(4))
    machine.cuda.calls.clear()
    built.contexts[0].calls.clear()
    stream = Stream()
    engine.enqueue(stream)
    assert machine.cuda.calls == []
    assert built.contexts[0].calls == ["execute_async_v3"]
    assert engine.is_capturable(stream)


def test_bfloat16_tensors_are_float32_on_the_host(machine: Machine) -> None:
    def pass_residuals(context: FakeContext) -> None:
        context.tensor("noise_pred", (2, 4, 4, 8, 8))[:] = 1.5
        seen.append(context.tensor("residual_0", (8, 8, 8, 8)).copy())

    seen: list[np.ndarray] = []
    machine.build("unet", pass_residuals, "bfloat16")
    engine = machine.opener("bfloat16").open("unet")
    random = np.random.default_rng(0)
    inputs = {
        tensor.name: random.standard_normal(SIZES.resolve(tensor.shape), np.float32)  # type: ignore[arg-type]
        for tensor in NETWORKS["unet"].inputs
    }
    assert (engine.run(inputs)["noise_pred"] == 1.5).all()
    np.testing.assert_array_equal(seen[0].view(ml_dtypes.bfloat16), inputs["residual_0"].astype(ml_dtypes.bfloat16))


def test_engines_share_one_scratch_memory_that_grows(machine: Machine) -> None:
    small, large = machine.build(POINTS, repeat_channels), machine.build(MOTION, add_flows)
    small.device_memory_size_v2, large.device_memory_size_v2 = 1 << 10, 1 << 20
    opener = machine.opener()
    points = opener.open(POINTS)
    assert small.contexts[0].memory[1] == 1 << 10
    motion = opener.open(MOTION)
    assert small.contexts[0].memory == large.contexts[0].memory
    assert large.contexts[0].memory[1] == 1 << 20
    flow = np.ones((2, 2, 64, 64), np.float32)
    for _ in range(2):
        points.run(embeddings(2))
        assert (motion.run({"dense_flow": flow, "trajectory_flow": 3 * flow})["motion_features"] == 2).all()
    points.close()
    motion.close()
    opener.close()
    opener.close()
    assert machine.cuda.blocks == {}


def test_an_engine_that_does_not_fit_leaves_the_others_working(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    machine.build(MOTION, add_flows).device_memory_size_v2 = 1 << 30
    opener = machine.opener()
    points = opener.open(POINTS)
    used = machine.cuda.used_bytes
    with pytest.raises(DeviceError, match="out of memory: 1,074 MB wanted"):
        opener.open(MOTION)
    assert machine.cuda.used_bytes == used
    points.run(embeddings(2))


def test_a_failing_run_quotes_the_log(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    built.contexts[0].fails = True
    with pytest.raises(EngineError, match="point_encoder failed in TensorRT:\n  the kernel is unhappy"):
        engine.run(embeddings(1))


def test_non_finite_outputs_are_refused(machine: Machine) -> None:
    machine.build(POINTS, lambda context: None)  # what was allocated holds NaN
    with pytest.raises(EngineError, match="point_encoder answered non-finite values in float16.*bf16"):
        machine.opener().open(POINTS).run(embeddings(1))


def test_other_tensors_are_refused(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    with pytest.raises(InputError, match="cannot take these tensors"):
        engine.run(embeddings(7))
    with pytest.raises(InputError, match="no dynamic dimension"):
        engine.max_batch("frames")


def test_a_closed_engine_says_so(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="point_encoder was closed"):
        engine.run(embeddings(1))
    with pytest.raises(EngineError, match="point_encoder was closed"):
        engine.enqueue(Stream())


# loading


def test_importing_it_imports_neither_tensorrt_nor_cuda() -> None:
    code = (
        "import sys, dispose_rt.backends.tensorrt; print([n for n in sys.modules if n.startswith(('tensor', 'cuda'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_another_network_is_refused_with_the_command_that_mends_it(machine: Machine) -> None:
    engine = machine.build(POINTS, repeat_channels)
    engine.tensors["embeddings"] = ("float16", (-1, 31))
    engine.tensors["extra"] = ("float32", (1,))
    with pytest.raises(EngineError) as caught:
        machine.opener().open(POINTS)
    message = str(caught.value)
    assert r"embeddings is float16 [points, 31], expected float32 [points, 32]" in message
    assert "too many" in message
    assert "python export/build_engines.py" in message
    assert machine.cuda.used_bytes == 0


def test_a_smaller_range_than_the_directory_needs_is_refused(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels).profile["embeddings"] = (5, 32)
    with pytest.raises(EngineError, match=r"embeddings is at most \[5, 32\], expected \[6, 32\]"):
        machine.opener().open(POINTS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no plan of tensorrt_rtx: 0 bytes"),
        (b"vtrt", "4 bytes"),
        (b"\x08\x0a\x12" + bytes(100), "no plan of tensorrt_rtx"),
        (b"ftrt" + bytes(100), "no plan of tensorrt_rtx"),
        (b"vtrt" + bytes(12) + (1000).to_bytes(8, "little") + bytes(100), "has 124 bytes, its header says 1000"),
    ],
)
def test_truncated_and_foreign_files_are_refused(machine: Machine, content: bytes, words: str) -> None:
    (machine.folder / f"{POINTS}.plan").write_bytes(content)
    with pytest.raises(EngineError, match=f"{words}.*Build the directory again"):
        machine.opener().open(POINTS)


def test_a_missing_file_is_refused(machine: Machine) -> None:
    with pytest.raises(EngineError, match=r"point_encoder\.plan cannot be read"):
        machine.opener().open(POINTS)


def test_what_tensorrt_refuses_is_quoted(machine: Machine) -> None:
    write_plan(machine.folder / f"{POINTS}.plan", b"some other bytes")
    with pytest.raises(EngineError, match=r"(?s)cannot load.*assertion failed: this is no engine.*Build the directory"):
        machine.opener().open(POINTS)


def test_a_plan_for_other_gpus_is_refused_before_it_is_loaded(machine: Machine) -> None:
    machine.build(POINTS, repeat_channels)
    machine.trt.validity = ("INVALID", 3)
    with pytest.raises(EngineError, match="another version of tensorrt_rtx; it was not built for this GPU"):
        machine.opener().open(POINTS)


def test_a_network_of_another_backend_is_refused(machine: Machine) -> None:
    opener = machine.opener()
    opener.manifest = make_manifest(machine.folder, backend="tensorrt")
    with pytest.raises(EngineError, match="built for tensorrt, and is opened with tensorrt_rtx"):
        opener.open(POINTS)


def test_no_driver_is_a_device_error(machine: Machine) -> None:
    machine.cuda.gpus = 0
    with pytest.raises(DeviceError, match="none was found"):
        machine.opener()


def test_the_cpu_is_refused(machine: Machine) -> None:
    with pytest.raises(DeviceError, match="on an NVIDIA GPU alone"):
        TensorRtOpener(make_manifest(machine.folder), "cpu")


# runtime cache


def cache_file(machine: Machine) -> Path:
    return machine.folder / f"{POINTS}.sm_86.runtime_cache"


def test_compiled_kernels_are_kept_for_the_next_start(machine: Machine) -> None:
    built = machine.build(POINTS, repeat_channels)
    engine = machine.opener().open(POINTS)
    assert read_sealed(cache_file(machine)) == b"compiled kernels"
    built.cache.kernels = b"and those of the first run"
    engine.close()
    assert read_sealed(cache_file(machine)) == b"and those of the first run"
    written = cache_file(machine).stat().st_mtime_ns
    built = machine.build(POINTS, repeat_channels)
    machine.opener().open(POINTS).close()
    assert built.cache.kernels == b"and those of the first run"
    assert cache_file(machine).stat().st_mtime_ns == written


@pytest.mark.parametrize("kept", [0, 1, 32, 40])
def test_a_damaged_cache_is_ignored_and_replaced(machine: Machine, kept: int) -> None:
    built = machine.build(POINTS, repeat_channels)
    write_sealed(cache_file(machine), b"kernels of old")
    cache_file(machine).write_bytes(cache_file(machine).read_bytes()[:kept])
    machine.opener().open(POINTS).run(embeddings(1))
    assert built.cache.kernels == b""
    assert read_sealed(cache_file(machine)) == b"compiled kernels"


def test_the_data_centre_flavour_runs_without_such_a_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build(POINTS, repeat_channels)
    (machine.folder / f"{POINTS}.plan").write_bytes(b"ftrt" + bytes(28) + POINTS.encode())
    monkeypatch.setattr(tensorrt, "load_flavour", lambda name: Flavour(machine.trt))  # type: ignore[arg-type]
    engine = TensorRtOpener(make_manifest(machine.folder, backend="tensorrt"), "cuda:0").open(POINTS)
    engine.run(embeddings(3))
    assert engine.is_capturable(Stream())
    engine.close()
    assert [path.name for path in machine.folder.iterdir()] == [f"{POINTS}.plan"]


def test_a_folder_that_cannot_be_written_does_not_fail_a_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build(POINTS, repeat_channels)

    def refuse(self: Path, content: bytes) -> int:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    engine = machine.opener().open(POINTS)
    engine.run(embeddings(1))
    engine.close()
    assert [path.name for path in machine.folder.iterdir()] == [f"{POINTS}.plan"]


# flavours


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=rf"{name} cannot be imported.*pip install"):
        load_flavour(name)


def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    with pytest.raises(EngineError, match=r"tensorrt 10\.3\.0 is too old, at least 10\.8"):
        load_flavour("tensorrt")


@pytest.mark.parametrize(("version", "flags"), [("10.14.1.48", 2), ("11.0.0", 0), ("11.4.0.1", 0)])
def test_networks_are_strongly_typed_in_every_version(version: str, flags: int) -> None:
    trt = SimpleNamespace(
        __version__=version, NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1, EXPLICIT_BATCH=0)
    )
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert Flavour(trt).create_network(builder) == flags  # type: ignore[arg-type]


def test_the_data_centre_flavour_targets_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(device, "_cuda", lambda: cuda)
    flavour = Flavour(SimpleNamespace(__version__="10.14.1"))  # type: ignore[arg-type]
    assert flavour.resolve_targets(()) == flavour.resolve_targets(("sm_86",)) == ("sm_86",)
    with pytest.raises(InputError, match="cannot target sm_89"):
        flavour.resolve_targets(("sm_86", "sm_89"))
    cuda.gpus = 0
    with pytest.raises(DeviceError, match="builds for the GPU at hand alone.*--backend tensorrt_rtx"):
        flavour.resolve_targets(())


def test_a_plan_of_the_other_flavour_is_told_apart() -> None:
    flavour = Flavour(SimpleNamespace(__version__="10.14.1"))  # type: ignore[arg-type]
    assert flavour.plan_problem(b"vtrt" + bytes(60), 64) == "it was built by tensorrt_rtx"
    assert flavour.plan_problem(b"ftrt" + bytes(60), 64) is None


class TestRtx:
    """Against the installed tensorrt_rtx."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("tensorrt_rtx")

    def test_its_version_is_that_of_the_module(self) -> None:
        assert tensorrt_version("tensorrt_rtx") == sys.modules["tensorrt_rtx"].__version__

    def test_it_has_every_name_that_is_used(self) -> None:
        """The fakes of this file have the names that the backend calls: the real one must have them too."""
        trt = load_flavour("tensorrt_rtx").trt
        pairs = {
            FakeTrt: trt,
            FakeContext: trt.IExecutionContext,
            FakeEngine: trt.ICudaEngine,
        }
        own = {"tensor", "cuda", "compute", "log", "cache", "contexts", "tensors", "profile", "engines", "validity"}
        for fake, real in pairs.items():
            names = {name for name in vars(fake) if not name.startswith("__")} - own
            assert names <= set(dir(real)), fake
        assert {"set_runtime_cache", "create_runtime_cache", "dynamic_shapes_kernel_specialization_strategy"} <= set(
            dir(trt.IRuntimeConfig)
        )

    def test_targets_are_those_of_the_package(self) -> None:
        flavour = load_flavour("tensorrt_rtx")
        assert flavour.resolve_targets(()) == ()
        assert flavour.resolve_targets(("sm_120", "sm_89", "sm_89")) == ("sm_89", "sm_120")
        with pytest.raises(InputError, match="cannot target sm_61; it knows sm_75, sm_80"):
            flavour.resolve_targets(("sm_89", "sm_61"))

    def test_its_log_keeps_the_last_errors(self) -> None:
        flavour = load_flavour("tensorrt_rtx")
        log = flavour.create_log()
        severity = flavour.trt.ILogger.Severity
        for number in range(30):
            log.log(severity.ERROR, f"error {number}")
        log.log(severity.WARNING, "a warning")
        assert log.quote().splitlines() == [f"  error {number}" for number in range(18, 30)]
        assert log.quote() == "  (it gave no reason)"


@pytest.mark.parametrize("capability", ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121", "sm_130"])
def test_a_plan_without_targets_runs_on(capability: str) -> None:
    assert portable_plan_runs_on(capability)


@pytest.mark.parametrize("capability", ["sm_70", "sm_75", "sm_90", "sm_100", "sm_103", "sm_110"])
def test_a_plan_without_targets_does_not_run_on(capability: str) -> None:
    assert not portable_plan_runs_on(capability)


# on a GPU

CUDA_CASE = GoldenCase("one_tile_64")


def require_tensorrt() -> None:
    """Skip where TensorRT for RTX is missing, or does not know the GPU."""
    pytest.importorskip("tensorrt_rtx")
    if not find_gpus():
        pytest.skip("no GPU here")
    if not portable_plan_runs_on(find_gpus()[0].capability):
        pytest.skip(f"TensorRT for RTX does not run on {find_gpus()[0].capability}")


@pytest.fixture(scope="session")
def gpu_folders(golden_engines: Callable[..., Path]) -> Callable[[str], tuple[Manifest, Manifest]]:
    """`gpu_folders(precision)` is a directory for ONNX Runtime in FP32, and one of TensorRT for RTX."""
    require_tensorrt()

    def build(precision: str) -> tuple[Manifest, Manifest]:
        folders = [golden_engines(CUDA_CASE), golden_engines(CUDA_CASE, precision, "tensorrt_rtx")]
        return read_manifest(folders[0]), read_manifest(folders[1])

    return build


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_network_computes_what_onnx_runtime_does(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]], network: str, precision: str
) -> None:
    """Held to the tolerance that the exported graph is held to against PyTorch."""
    from export.onnx_export import sample_inputs
    from export.verify import TOLERANCES, relative_error

    manifests = gpu_folders(precision)
    reference, engine = (open_engine(manifest, network) for manifest in manifests)
    spec, compute_dtype = NETWORKS[network], manifests[1].networks[network].compute_dtype
    for pick in (lambda limit: 1, lambda limit: limit):
        dynamic = {symbol: pick(engine.max_batch(symbol)) for symbol in spec.dynamic}
        samples = sample_inputs(spec, manifests[0].sizes, "float32", dynamic, seed=1)
        inputs = {name: value.numpy() for name, value in samples.items()}
        rounded = {
            tensor.name: inputs[tensor.name].astype(host_dtype(tensor.resolve_dtype(compute_dtype)))
            for tensor in spec.inputs
        }
        expected, actual, again = reference.run(inputs), engine.run(rounded), engine.run(rounded)
        for name, values in expected.items():
            assert relative_error(actual[name], values) <= TOLERANCES[precision][network], (name, dynamic)
            np.testing.assert_array_equal(actual[name], again[name], err_msg="two runs of the same differ")
    engine.close()


@pytest.mark.cuda
def test_a_second_start_finds_its_kernels(gpu_folders: Callable[[str], tuple[Manifest, Manifest]]) -> None:
    manifest = gpu_folders("fp16")[1]
    for _ in range(2):
        opener = TensorRtOpener(manifest, "auto")
        engine = opener.open(POINTS)
        assert isinstance(engine, TensorRtEngine)
        rows = engine.max_batch("points")
        engine.run({"embeddings": np.ones((rows, manifest.sizes.dift), np.float32)})
        engine.close()
        opener.close()
        assert read_sealed(manifest.folder / f"{POINTS}.{opener.gpu.capability}.runtime_cache")


@pytest.mark.cuda
def test_a_damaged_plan_does_not_end_the_process(
    gpu_folders: Callable[[str], tuple[Manifest, Manifest]], tmp_path: Path
) -> None:
    manifest = gpu_folders("fp16")[1]
    plan = manifest.engine_path(POINTS).read_bytes()
    damaged = replace(manifest, folder=tmp_path)
    opener = TensorRtOpener(damaged, "auto")
    for length in (0, 1, 31, 32, 63, 64, 1000, len(plan) // 2, len(plan) - 1):
        damaged.engine_path(POINTS).write_bytes(plan[:length])
        with pytest.raises(EngineError, match="Build the directory again"):
            opener.open(POINTS)
    opener.close()
