"""Ways to run one tile of a denoising step on the current stream of PyTorch, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dispose_rt.contract import NETWORKS
from dispose_rt.device import Graph
from dispose_rt.engines.backends.aotinductor import LoadedPackage
from dispose_rt.engines.backends.torch_tensors import view_as_tensor
from dispose_rt.engines.manifest import read_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import InputError
from dispose_rt.stages.denoise.step import share_tensors

CAPTURE_WARM_UP = 3
Network = Callable[..., Any]


class Step(Protocol):
    """One tile: the ControlNet, then the UNet with its residuals."""

    def run(self) -> None:
        """Queue it on the current stream."""

    def parts(self) -> Mapping[str, Callable[[], None]]:
        """The two networks alone."""

    def noise_pred(self) -> Tensor:
        """Return the result of the last run."""

    def close(self) -> None:
        """Free its memory."""


class TorchStep:
    """A callable of tensors in the contract's order: a module, or a loaded package.

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
        """Return the result of the last run."""
        answer = self._noise_pred
        noise: Tensor = answer if isinstance(answer, Tensor) else answer[0]
        return noise

    def close(self) -> None:
        """Release networks and tensors."""
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
    """Make tensors contiguous, as packages read them; outputs of other packages may be channels-last."""
    return lambda *inputs: package.run([tensor.contiguous() for tensor in inputs])


class EngineStep:
    """The engines of a directory, on their own stream, sharing tensors as in the runtime.

    Args:
        folder: the engine directory.
        inputs: by the contract's names.

    Raises:
        DisposeError: the directory is unusable here.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Tensor]) -> None:
        self._engines = Engines(read_manifest(folder))
        self._loader = self._engines.loader
        self._graph: Graph | None = None
        self._controlnet, self._unet = self._engines("controlnet"), self._engines("unet")
        share_tensors(self._controlnet, self._unet)
        for engine in (self._controlnet, self._unet):
            for tensor in NETWORKS[engine.name].inputs:
                if tensor.name in inputs:
                    view_as_tensor(torch, engine.tensor(tensor.name)).copy_(inputs[tensor.name])
        if self._loader.device.name != "cpu":
            torch.cuda.synchronize()

    def run(self) -> None:
        """Queue it after the work of PyTorch's current stream, which then waits for it."""
        self._in_turn(self._enqueue)

    def _enqueue(self) -> None:
        self._controlnet.enqueue(self._loader.stream)
        self._unet.enqueue(self._loader.stream)

    def _in_turn(self, queue: Callable[[], None]) -> None:
        if self._loader.device.name == "cpu":
            queue()
            return
        ours: Any = torch.cuda.ExternalStream(self._loader.stream.handle, self._loader.device.name)  # type: ignore[no-untyped-call]
        ours.wait_stream(torch.cuda.current_stream())
        queue()
        torch.cuda.current_stream().wait_stream(ours)

    def parts(self) -> Mapping[str, Callable[[], None]]:
        """The two networks alone."""
        stream = self._loader.stream
        return {
            "controlnet": lambda: self._in_turn(lambda: self._controlnet.enqueue(stream)),
            "unet": lambda: self._in_turn(lambda: self._unet.enqueue(stream)),
        }

    def capture(self) -> Callable[[], None]:
        """Capture a step, as the runtime does. Returns a function that launches it.

        Raises:
            DisposeError: it cannot be captured.
        """
        self._enqueue()
        self._loader.stream.synchronize()
        graph = self._graph = self._loader.capture(self._enqueue)
        return lambda: self._in_turn(lambda: graph.launch(self._loader.stream))

    def noise_pred(self) -> Tensor:
        """Return the result of the last run."""
        noise: Tensor = view_as_tensor(torch, self._unet.tensor("noise_pred"))
        return noise

    def close(self) -> None:
        """Free graph and engines."""
        self._loader.stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        self._engines.close()


def captured(step: Step) -> Callable[[], None]:
    """Capture a step into a CUDA graph; work that synchronizes cannot be captured.

    Returns:
        A function that replays it on the current stream; `step.noise_pred()` is written by every replay.

    Raises:
        RuntimeError: PyTorch's capture failed.
        DisposeError: ours did.
    """
    if isinstance(step, EngineStep):
        return step.capture()
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
