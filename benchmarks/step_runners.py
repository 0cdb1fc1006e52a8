"""Ways to run one tile of a denoising step on the current stream of PyTorch, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dispose_rt.backends import Engines
from dispose_rt.backends.aotinductor import LoadedPackage
from dispose_rt.contract import NETWORKS
from dispose_rt.errors import InputError
from dispose_rt.manifest import read_manifest

CAPTURE_WARM_UP = 3
Network = Callable[..., Any]


class Step(Protocol):
    """One tile: the ControlNet, then the UNet with its residuals."""

    def run(self) -> None:
        """Queue it on the current stream."""

    def parts(self) -> Mapping[str, Callable[[], None]]:
        """The two networks alone."""

    def noise_pred(self) -> Tensor:
        """What the last run computed."""

    def close(self) -> None:
        """Free what it holds."""


class TorchStep:
    """Anything that is called with tensors in the contract's order: modules, or loaded packages.

    Args:
        networks: the ControlNet, which returns 13 residuals, and the UNet, which returns the noise prediction, or a
            sequence with it.
        inputs: by the contract's names, on the device.
    """

    def __init__(self, networks: Sequence[Network], inputs: Mapping[str, Tensor]) -> None:
        self._controlnet, self._unet = networks
        self._for_controlnet, self._for_unet = (
            [inputs[tensor.name] for tensor in NETWORKS[name].inputs if tensor.name in inputs]
            for name in ("controlnet", "unet")
        )
        self._residuals: Sequence[Tensor] = ()
        self._noise_pred: Any = None

    def run(self) -> None:
        """Queue it on the current stream."""
        self._run_controlnet()
        self._run_unet()

    def _run_controlnet(self) -> None:
        self._residuals = self._controlnet(*self._for_controlnet)

    def _run_unet(self) -> None:
        self._noise_pred = self._unet(*self._for_unet, *self._residuals)

    def parts(self) -> Mapping[str, Callable[[], None]]:
        """The two networks alone; the UNet reads the residuals of the last run."""
        return {"controlnet": self._run_controlnet, "unet": self._run_unet}

    def noise_pred(self) -> Tensor:
        """What the last run computed."""
        answer = self._noise_pred
        noise: Tensor = answer if isinstance(answer, Tensor) else answer[0]
        return noise

    def close(self) -> None:
        """Forget networks and tensors."""
        self._controlnet = self._unet = _closed
        self._for_controlnet = self._for_unet = []
        self._residuals, self._noise_pred = (), None


def _closed(*_: Tensor) -> Any:
    raise RuntimeError("the step was closed")


def load_packages(paths: Sequence[Path], device: str) -> list[Network]:
    """Load AOTInductor packages on "cpu" or "cuda:N".

    Raises:
        InputError: one was not compiled.
        DisposeError: one does not fit this torch or this device.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path.name} was not compiled")
    return [_on_contiguous(LoadedPackage(path, device)) for path in paths]


def _on_contiguous(package: LoadedPackage) -> Network:
    """A package reads contiguous tensors; what another one wrote may lie channels-last."""
    return lambda *inputs: package.run([tensor.contiguous() for tensor in inputs])


@dataclass(frozen=True)
class _CurrentStream:
    """PyTorch's current stream as our backends take it."""

    handle: int


class EngineStep:
    """The TensorRT engines of a directory. Residuals are copied from the one to the other on the device.

    Args:
        folder: the engine directory.
        inputs: by the contract's names.

    Raises:
        DisposeError: the directory is unusable here, or was built for another backend.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Tensor]) -> None:
        self._engines = Engines(read_manifest(folder), "cuda")
        # opened through the protocol of all backends; what follows is TensorRT's own
        engines: list[Any] = [self._engines(name) for name in ("controlnet", "unet")]
        if not all(hasattr(engine, "enqueue") for engine in engines):
            raise InputError(f"{folder} holds no TensorRT engines")
        self._controlnet, self._unet = engines
        self._tensors: dict[str, dict[str, Tensor]] = {
            engine.name: {tensor: _view(array) for tensor, array in engine.tensors.items()} for engine in engines
        }
        for tensors in self._tensors.values():
            for name, value in inputs.items():
                if name in tensors:
                    tensors[name].copy_(value)

    def run(self) -> None:
        """Queue it on the current stream."""
        self._enqueue(self._controlnet)
        residuals = self._tensors["unet"]
        for name, value in self._tensors["controlnet"].items():
            if name.startswith("residual_"):
                residuals[name].copy_(value)
        self._enqueue(self._unet)

    def _enqueue(self, engine: Any) -> None:
        engine.enqueue(_CurrentStream(torch.cuda.current_stream().cuda_stream))

    def parts(self) -> Mapping[str, Callable[[], None]]:
        """The two networks alone."""
        return {
            "controlnet": lambda: self._enqueue(self._controlnet),
            "unet": lambda: self._enqueue(self._unet),
        }

    def noise_pred(self) -> Tensor:
        """What the last run computed."""
        return self._tensors["unet"]["noise_pred"]

    def close(self) -> None:
        """Free the engines."""
        torch.cuda.synchronize()
        self._tensors.clear()
        self._engines.close()


class _Exposed:
    """Device memory of ours under the protocol by which PyTorch takes it without a copy."""

    def __init__(self, array: Any) -> None:
        kinds = {"float32": "<f4", "float16": "<f2"}
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": kinds[array.dtype],
            "data": (array.address, False),
            "version": 3,
        }


def _view(array: Any) -> Tensor:
    return torch.as_tensor(_Exposed(array), device="cuda")


def captured(step: Step) -> Callable[[], None]:
    """Capture a step into a CUDA graph. What synchronizes cannot be captured.

    Returns:
        A function that replays it on the current stream; `step.noise_pred()` is written by every replay.

    Raises:
        RuntimeError: the capture failed.
    """
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_WARM_UP):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph.replay
