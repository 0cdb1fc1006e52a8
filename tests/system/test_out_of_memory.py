"""Running out of memory ends alike in every library: OutOfMemoryError, exit code 3, and what helps."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from dispose_rt.cli import inspect, main
from dispose_rt.engines.backends import onnxruntime as backend
from dispose_rt.engines.manifest import read_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import EngineError, OutOfMemoryError
from dispose_rt.system.memory import is_out_of_memory
from tests.engines.test_onnx_file import with_model

MEANT: tuple[Exception, ...] = (
    MemoryError(),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Exception during initialization: bad allocation"),
    RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 1966080"),
    ImportError("onnxruntime_pybind11_state.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)
OTHERS: tuple[Exception, ...] = (RuntimeError("Invalid rank for input"), OSError(errno.ENOSPC, "No space left"))


def test_running_out_of_memory_has_a_type_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = with_model(tmp_path / "e")
    for error in (*MEANT, *OTHERS):
        is_meant = error in MEANT
        assert is_out_of_memory(error) == is_meant, error

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(backend.onnxruntime, "InferenceSession", fail)
        with pytest.raises(OutOfMemoryError if is_meant else EngineError, match="unet"):
            Engines(manifest)("unet")
        monkeypatch.setattr(inspect, "read_manifests", fail)
        code = main(["inspect", str(tmp_path / "e")])
        said = capsys.readouterr().err
        assert (code == 3) == is_meant, error
        assert ("ulimit -v" in said) == is_meant, error
    assert read_manifest(tmp_path / "e") == manifest
