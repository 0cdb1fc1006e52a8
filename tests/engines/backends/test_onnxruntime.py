"""The ONNX Runtime backend takes what the contract says, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.backends import Engine, onnxruntime
from dispose_rt.engines.integrity import check_files
from dispose_rt.engines.manifest import Manifest, read_manifest
from dispose_rt.engines.open import open_engine
from dispose_rt.errors import EngineError, InputError, ManifestError
from dispose_rt.system.cores import THREADS_VARIABLE
from tests.golden_case import GoldenCase


@pytest.fixture(scope="module")
def manifest(golden_engines: Callable[..., Path]) -> Manifest:
    return read_manifest(golden_engines(GoldenCase("one_tile_64")))


def embeddings(rows: int = 3, columns: int = 96, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {"embeddings": np.ones((rows, columns), dtype)}


def test_every_network_opens_and_is_an_engine(manifest: Manifest) -> None:
    for name, spec in NETWORKS.items():
        engine = open_engine(manifest, name)
        assert isinstance(engine, Engine)
        assert engine.name == name
        assert all(engine.max_batch(symbol) == manifest.sizes.limit(symbol) for symbol in spec.dynamic)
        engine.close()


def test_sessions_take_the_threads_of_the_process_and_keep_no_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    options = onnxruntime._session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("in", "out")]
    graph = helper.make_graph([helper.make_node("Neg", ["in"], ["out"])], "negate", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "one.onnx"
    )
    monkeypatch.delenv(THREADS_VARIABLE)
    core = min(os.sched_getaffinity(0))
    run = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, str(core), str(tmp_path / "one.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("1\n", "")  # ONNX Runtime pins its threads to all cores, and complains


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
from dispose_rt.engines.backends import onnxruntime
options = onnxruntime._session_options()
onnxruntime.onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
print(options.intra_op_num_threads)
"""


def test_any_number_of_rows_up_to_the_limit(manifest: Manifest) -> None:
    engine = open_engine(manifest, "point_encoder")
    for rows in (1, 18, 256):
        outputs = engine.run(embeddings(rows))
        assert [outputs[f"point_features_{i}"].shape for i in range(4)] == [(rows, c) for c in manifest.sizes.channels]


OTHER_TENSORS: list[tuple[dict[str, np.ndarray], str]] = [
    ({}, "embeddings is missing"),
    (embeddings() | {"surprise": np.ones(1)}, "surprise is no input"),
    (embeddings(dtype=np.float64), "float64"),
    (embeddings(columns=95), r"\(3, 95\), expected float32 \('points', 96\)"),
    (embeddings(rows=257), r"\(257, 96\)"),
    (embeddings(rows=0), r"\(0, 96\)"),
    ({"embeddings": np.ones((3, 96, 1), np.float32)}, r"\(3, 96, 1\)"),
]


def test_other_tensors_are_refused(manifest: Manifest) -> None:
    engine = open_engine(manifest, "point_encoder")
    for inputs, words in OTHER_TENSORS:
        with pytest.raises(InputError, match=f"point_encoder cannot take these tensors.*{words}"):
            engine.run(inputs)


def test_dynamic_dimensions_must_agree(manifest: Manifest) -> None:
    flow = np.zeros((2, 2, 64, 64), np.float32)
    with pytest.raises(InputError, match="trajectory_flow"):
        open_engine(manifest, "motion_encoder").run({"dense_flow": flow, "trajectory_flow": flow[:1]})


def test_a_network_without_that_dimension_says_so(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="no dynamic dimension of unet"):
        open_engine(manifest, "unet").max_batch("frames")


def test_a_closed_engine_says_so(manifest: Manifest) -> None:
    engine = open_engine(manifest, "point_encoder")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(embeddings())


@pytest.fixture
def copied(manifest: Manifest, tmp_path: Path) -> Manifest:
    shutil.copytree(manifest.folder, tmp_path / "e")
    return read_manifest(tmp_path / "e")


def test_a_truncated_file_is_a_typed_error(copied: Manifest) -> None:
    path = copied.engine_path("point_encoder")
    content = path.read_bytes()
    for kept in (0, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(ManifestError, match=r"point_encoder\.onnx has"):
            check_files(copied)
        with pytest.raises(EngineError, match=r"point_encoder.*Build the directory again"):
            open_engine(copied, "point_encoder")


def test_a_file_of_another_network_is_a_typed_error(copied: Manifest) -> None:
    shutil.copyfile(copied.engine_path("pose_net"), copied.engine_path("point_encoder"))
    with pytest.raises(EngineError, match="file and contract differ"):
        open_engine(copied, "point_encoder")
