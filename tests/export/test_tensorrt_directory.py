"""Every network of the toy checkpoint, built with TensorRT for RTX by the command's own function. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from dispose_rt_export.build.plan import RECIPES
from dispose_rt_export.command import build_engines
from dispose_rt_export.compile.precision import FLOAT32_ALWAYS

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.backends.tensorrt_flavour import load_flavour
from dispose_rt.engines.integrity import check_files
from dispose_rt.engines.manifest import Manifest, read_manifest
from dispose_rt.engines.signature import contract_signature

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def manifest(toy_checkpoint: Path, kept_folder: Path) -> Manifest:
    output = kept_folder / "toy-tensorrt" / "64x64"
    output.parent.mkdir(exist_ok=True)
    options = {"size": (64, 64), "tile": 4, "chunk": 3, "precision": "fp16", "backend": "tensorrt_rtx"}
    assert build_engines(toy_checkpoint, output, **options) is not None
    return read_manifest(output)


def test_the_directory_says_what_it_is(manifest: Manifest) -> None:
    check_files(manifest)
    assert (manifest.backend, manifest.precision, manifest.targets) == ("tensorrt_rtx", "fp16", ())
    assert manifest.versions["tensorrt_rtx"] == load_flavour("tensorrt_rtx").version
    assert set(manifest.networks) == set(NETWORKS)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_compiler_saw_the_contract_s_tensors(manifest: Manifest, network: str) -> None:
    record = manifest.networks[network]
    assert record.backend == "tensorrt_rtx"
    assert record.compute_dtype == ("float32" if network in FLOAT32_ALWAYS else "float16")
    assert record.signature == contract_signature(network, manifest.sizes, record.compute_dtype)
    [plan] = record.files
    head = (manifest.folder / plan.path).read_bytes()[:32]
    assert load_flavour("tensorrt_rtx").plan_problem(head, plan.size_bytes) is None


@pytest.mark.parametrize("network", list(RECIPES))
def test_every_graph_was_compared_with_pytorch(manifest: Manifest, network: str) -> None:
    record = manifest.networks[network]
    assert set(record.verification) == {tensor.name for tensor in NETWORKS[network].outputs}
    assert max(record.verification.values()) <= (1e-4 if network in FLOAT32_ALWAYS else 1e-2)


def test_nothing_but_engines_is_left(manifest: Manifest) -> None:
    named = {file.path for record in manifest.networks.values() for file in record.files}
    left = {path.name for path in manifest.folder.iterdir()} - {"manifest.json", ".build", ".checked.json"}
    assert left == named
