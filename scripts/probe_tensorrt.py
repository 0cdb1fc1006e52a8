"""Does TensorRT run on this GPU? Builds one convolution, loads it, runs it, and compares with numpy.

    python scripts/probe_tensorrt.py [tensorrt_rtx | tensorrt]

The last line is RUNS, `REFUSED: reason` or `WRONG: error`; the exit status is 0 for RUNS alone. Needs numpy,
cuda-python and the flavour's package, nothing of dispose_rt.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAVOURS = ("tensorrt_rtx", "tensorrt")
CHANNELS, SIZE = 64, 32
TOLERANCE = 0.02  # half precision, sums of 576 products with variance 1


class RefusedError(Exception):
    """TensorRT or CUDA refused; the text names the cause."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    flavour = arguments[0] if arguments else FLAVOURS[0]
    if flavour not in FLAVOURS:
        print(f"{flavour!r} is no flavour of TensorRT; choose from {', '.join(FLAVOURS)}", file=sys.stderr)
        return 2
    try:
        error = probe(flavour)
    except (RefusedError, ImportError) as refusal:
        print(f"REFUSED: {refusal}")
        return 1
    if not error < TOLERANCE:
        print(f"WRONG: relative error {error:.1e}, expected below {TOLERANCE}")
        return 1
    print(f"relative error {error:.1e}\nRUNS")
    return 0


def probe(flavour: str) -> float:
    """Build, load and run. Returns the relative error of the result.

    Raises:
        RefusedError: a step failed.
        ImportError: a package is missing.
    """
    trt = importlib.import_module(flavour)
    cuda = importlib.import_module("cuda.bindings.runtime")
    properties = _check(cuda.cudaGetDeviceProperties(0))
    print(f"{_text(properties.name)}, sm_{properties.major}{properties.minor}, {flavour} {trt.__version__}", flush=True)
    random = np.random.default_rng(0)
    image = random.standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float16)
    weights = (random.standard_normal((CHANNELS, CHANNELS, 3, 3)) / np.sqrt(9 * CHANNELS)).astype(np.float16)
    log = _make_log(trt)
    plan = _build(trt, log, weights)
    print(f"built: {plan.nbytes} bytes", flush=True)
    runtime = trt.Runtime(log)
    engine = _require(runtime.deserialize_cuda_engine(plan), "loading the engine", log)
    context = _require(engine.create_execution_context(), "preparing the engine", log)
    result = _run(cuda, context, image, log)
    expected = _convolve(image.astype(np.float64), weights.astype(np.float64))
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's messages, so that a refusal can be quoted."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.complaints: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.complaints.append(message)

    return Log()


def _build(trt: Any, log: Any, weights: NDArray[np.float16]) -> Any:
    builder = trt.Builder(log)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # where networks may be typed weakly
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    image = network.add_input("image", trt.float16, (1, CHANNELS, SIZE, SIZE))
    bias = np.zeros(CHANNELS, np.float16)
    layer = network.add_convolution_nd(image, CHANNELS, (3, 3), trt.Weights(weights), trt.Weights(bias))
    layer.padding_nd = (1, 1)
    result = layer.get_output(0)
    result.name = "result"
    network.mark_output(result)
    return _require(builder.build_serialized_network(network, builder.create_builder_config()), "building", log)


def _run(cuda: Any, context: Any, image: NDArray[np.float16], log: Any) -> NDArray[np.float64]:
    result = np.full_like(image, np.nan)
    stream = _check(cuda.cudaStreamCreate())
    addresses = {name: _check(cuda.cudaMalloc(image.nbytes)) for name in ("image", "result")}
    kind = cuda.cudaMemcpyKind
    for name, array in (("image", image), ("result", result)):
        upload = cuda.cudaMemcpy(addresses[name], array.ctypes.data, array.nbytes, kind.cudaMemcpyHostToDevice)
        _check(upload)
        context.set_tensor_address(name, addresses[name])
    _require(context.execute_async_v3(int(stream)) or None, "running the engine", log)
    _check(cuda.cudaStreamSynchronize(stream))
    _check(cuda.cudaMemcpy(result.ctypes.data, addresses["result"], result.nbytes, kind.cudaMemcpyDeviceToHost))
    return result.astype(np.float64)


def _convolve(image: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """3 x 3, padded with zeros."""
    padded = np.pad(image[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    convolved: NDArray[np.float64] = np.einsum("kcij,chwij->khw", weights, windows, optimize=True)[None]
    return convolved


def _require(value: Any, what: str, log: Any) -> Any:
    if value is None:
        raise RefusedError(f"{what} failed: {' | '.join(log.complaints[-3:]) or 'TensorRT does not say why'}")
    return value


def _check(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if int(error) != 0:
        raise RefusedError(str(error))
    return values[0] if len(values) == 1 else tuple(values)


def _text(name: Any) -> str:
    return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name)


if __name__ == "__main__":
    sys.exit(main())
