"""Every network of the golden checkpoint, compiled with TensorRT for RTX by the command's own function; no GPU needed.

The graphs are those of the golden engines: tracing does not depend on the backend.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dispose_rt_export.builds import network as network_build
from dispose_rt_export.builds.plan import RECIPES, NetworkPlan
from dispose_rt_export.checkpoints import Weights
from dispose_rt_export.command import build_engines
from dispose_rt_export.compile.precision import FLOAT32_ALWAYS

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.engines.backends.tensorrt_flavour import load_flavour
from dispose_rt.engines.integrity import check_files
from dispose_rt.engines.manifest import Manifest, read_manifest
from dispose_rt.engines.signature import contract_signature
from tests.golden_case import GoldenCase

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def manifest(golden_checkpoint: Path, golden_engines: Callable[..., Path], kept_folder: Path) -> Manifest:
    case = GoldenCase("one_tile_64")
    traced = golden_engines(case, "fp16")

    def take_traced(plan: NetworkPlan, weights: Weights, wanted: list[tuple[Sizes, Path]]) -> int:
        for _, path in wanted:
            shutil.copyfile(traced / f"{plan.spec.name}.onnx", path)
        return network_build.checksum_values(RECIPES[plan.spec.name].build(weights))

    output = kept_folder / "golden-tensorrt" / "64x64"
    output.parent.mkdir(exist_ok=True)
    options = {"size": case.size, "tile": case.tile, "chunk": case.chunk, "precision": "fp16"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_build, "trace_network", take_traced)
        assert build_engines(golden_checkpoint, output, backend="tensorrt_rtx", **options) is not None
    return read_manifest(output)


def test_the_directory_says_what_it_is(manifest: Manifest) -> None:
    check_files(manifest)
    assert (manifest.backend, manifest.precision, manifest.targets) == ("tensorrt_rtx", "fp16", ())
    assert manifest.versions["tensorrt_rtx"] == load_flavour("tensorrt_rtx").version
    assert set(manifest.networks) == set(NETWORKS)


def test_the_compiler_saw_the_contract_s_tensors(manifest: Manifest) -> None:
    flavour, problems = load_flavour("tensorrt_rtx"), {}
    for network, record in manifest.networks.items():
        dtype = "float32" if network in FLOAT32_ALWAYS else "float16"
        [plan] = record.files
        head = (manifest.folder / plan.path).read_bytes()[:32]
        expected = ("tensorrt_rtx", dtype, contract_signature(network, manifest.sizes, dtype), None)
        found = (record.backend, record.compute_dtype, record.signature, flavour.plan_problem(head, plan.size_bytes))
        if found != expected:
            problems[network] = found
    assert problems == {}


def test_every_graph_was_compared_with_pytorch(manifest: Manifest) -> None:
    problems = {}
    for network in RECIPES:
        errors = manifest.networks[network].verification
        allowed = 1e-4 if network in FLOAT32_ALWAYS else 1e-2
        if set(errors) != {tensor.name for tensor in NETWORKS[network].outputs} or max(errors.values()) > allowed:
            problems[network] = errors
    assert problems == {}


def test_nothing_but_engines_is_left(manifest: Manifest) -> None:
    named = {file.path for record in manifest.networks.values() for file in record.files}
    others = {"manifest.json", "signature.json", ".build", ".checked.json"}
    left = {path.name for path in manifest.folder.iterdir()} - others
    assert left == named
