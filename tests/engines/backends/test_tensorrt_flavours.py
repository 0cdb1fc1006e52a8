"""What differs between the two flavours of TensorRT, and that the installed one has what is called."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dispose_rt.engines.backends.tensorrt_flavour import Flavour, load_flavour, portable_plan_runs_on, tensorrt_version
from dispose_rt.errors import DeviceError, EngineError, InputError
from tests.every import each, every_item
from tests.fakes import cuda as fake_cuda
from tests.fakes.tensorrt import FakeContext, FakeEngine, FakeRuntime, FakeTrt


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=rf"{name} cannot be imported.*pip install"):
        load_flavour(name)


def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    with pytest.raises(EngineError, match=r"tensorrt 10\.3\.0 is too old, at least 10\.8"):
        load_flavour("tensorrt")


@each(version__flags=[("10.14.1.48", 2), ("11.0.0", 0), ("11.4.0.1", 0)])
def test_networks_are_strongly_typed_in_every_version(version: str, flags: int) -> None:
    trt = SimpleNamespace(
        __version__=version, NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1, EXPLICIT_BATCH=0)
    )
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert Flavour(trt).create_network(builder) == flags  # type: ignore[arg-type]


def test_the_data_centre_flavour_targets_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
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


RTX_ONLY = {
    *("create_runtime_config", "is_stream_capturable", "get_engine_validity"),
    *(
        "EngineValidity",
        "EngineInvalidityDiagnostics",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
    ),
}
"""What the backend calls of tensorrt_rtx alone."""


def check_names(trt: Any, leaving_out: set[str]) -> None:
    """The fakes have the names that the backend calls: the real classes must have them too, with as many parameters."""
    own = {"scratch_bytes", "engines"} | leaving_out
    pairs = {FakeTrt: trt, FakeRuntime: trt.Runtime, FakeEngine: trt.ICudaEngine, FakeContext: trt.IExecutionContext}
    with every_item() as every:
        for fake, real in pairs.items():
            for name in {name for name in vars(fake) if not name.startswith("_")} - own:
                with every(fake.__name__, name):
                    described = str(getattr(real, name).__doc__)
                    if "(self: " in described and inspect.isfunction(getattr(fake, name)):
                        listed = [one for one in described.splitlines() if "(self: " in one]
                        counts = {len(re.findall(r"[(,] ?\w+: ", one)) for one in listed}
                        assert len(inspect.signature(getattr(fake, name)).parameters) in counts, listed


def test_the_data_centre_flavour_has_every_name_that_is_used() -> None:
    """tensorrt_lean is the runtime half of `tensorrt`, which installs and imports without a GPU."""
    trt = importlib.import_module("tensorrt_lean")
    check_names(trt, RTX_ONLY)
    flavour = Flavour(trt)
    assert (
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
        in trt.ExecutionContextAllocationStrategy.__members__.values()
    )
    log = flavour.create_log()
    log.log(trt.ILogger.Severity.ERROR, "an error")
    assert log.quote() == "  an error"
    names = {flavour.dtype_name(dtype) for dtype in trt.DataType.__members__.values()}
    assert {"float32", "float16", "bfloat16", "int32", "int64", "bool"} <= names


class TestRtx:
    """Against the installed tensorrt_rtx."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("tensorrt_rtx")

    def test_its_version_is_that_of_the_module(self) -> None:
        assert tensorrt_version("tensorrt_rtx") == sys.modules["tensorrt_rtx"].__version__

    def test_it_has_every_name_that_is_used(self) -> None:
        trt = load_flavour("tensorrt_rtx").trt
        check_names(trt, leaving_out=set())
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


def test_where_a_plan_without_targets_runs() -> None:
    capabilities = [f"sm_{number}" for number in (70, 75, 80, 86, 89, 90, 100, 103, 110, 120, 121, 130)]
    assert [one for one in capabilities if portable_plan_runs_on(one)] == [
        f"sm_{number}" for number in (80, 86, 89, 120, 121, 130)
    ]


_OLD_BUILDERS_IN_CYCLES = """
import gc
from dispose_rt.engines.backends.tensorrt_flavour import load_flavour

flavour = load_flavour("tensorrt_rtx")
for threshold in range(1, 80):  # at some of them the collector runs in the middle of the log call
    gc.disable()
    gc.collect()
    log = flavour.create_log()
    builder = flavour.create_builder(log)
    network = flavour.create_network(builder)
    cycle = [log, builder, network, flavour.trt.OnnxParser(network, log)]
    cycle.append(cycle)
    del builder, network, cycle
    log = flavour.create_log()
    gc.set_threshold(threshold)
    gc.enable()
    flavour.create_builder(log)
"""


def test_old_builders_that_wait_for_the_garbage_collector_block_no_new_one() -> None:
    """TensorRT logs, which is Python, while it holds the lock that destroying a builder takes."""
    pytest.importorskip("tensorrt_rtx")
    subprocess.run([sys.executable, "-c", _OLD_BUILDERS_IN_CYCLES], check=True, timeout=60)
