"""How torch computes on a GPU while a package runs; the host program's own choices come back afterwards.

torch keeps these choices per process. A host program may have set them through either of torch's two interfaces
(`allow_tf32`, `set_float32_matmul_precision`, or `fp32_precision` per operator), which refuse to be read once both were
used. Only the choices of single operators can always be read and set, so those are what is changed here.
"""

from __future__ import annotations

import os
import threading
from typing import Any

BENCHMARK_VARIABLE = "DISPOSE_RT_CUDNN_BENCHMARK"
"""Set to 1, it lets cuDNN time its convolutions once per shape and keep the fastest: which that is, and so the last
bits of results, may differ from process to process. Otherwise cuDNN chooses by rules, alike in every process with the
same GPU, the same versions, and enough free memory for what it chooses."""

_LOCK = threading.Lock()
_within: list[ExactNumerics] = []
_kept: list[tuple[Any, str, Any]] = []


class ExactNumerics:
    """Within it float32 means float32, and half-precision products are summed in float32.

    Several threads may be within it at a time: the first to come changes torch's choices, the last to leave restores
    them. The host program's own work on the GPU is computed under the same rules meanwhile.

    Args:
        torch: the module, which the caller has imported.
    """

    def __init__(self, torch: Any) -> None:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        benchmark = os.environ.get(BENCHMARK_VARIABLE) == "1"
        self._wanted: list[tuple[Any, str, Any]] = [
            (cudnn.conv, "fp32_precision", "ieee"),
            (matmul, "fp32_precision", "ieee"),
            # cuBLAS would add up the parts of a long sum in half precision
            (matmul, "allow_fp16_reduced_precision_reduction", False),
            (matmul, "allow_bf16_reduced_precision_reduction", False),
            (cudnn, "enabled", True),
            (cudnn, "benchmark", benchmark),
            (cudnn, "deterministic", not benchmark),
        ]

    def __enter__(self) -> None:
        """Change torch's choices, unless another thread has done so."""
        with _LOCK:
            if not _within:
                _kept[:] = [(place, name, getattr(place, name)) for place, name, _ in self._wanted]
                _set(self._wanted)
            _within.append(self)

    def __exit__(self, *raised: object) -> None:
        """Restore them, unless another thread is still within."""
        with _LOCK:
            _within.remove(self)
            if not _within:
                _set(_kept)


def _set(choices: list[tuple[Any, str, Any]]) -> None:
    for place, name, value in choices:
        setattr(place, name, value)
