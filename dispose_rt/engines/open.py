"""Opens the networks of an engine directory, each with the backend that its record names."""

from __future__ import annotations

from collections.abc import Collection

from .backends import Engine, EngineLoader
from .footprint import LENDERS
from .integrity import check_unchanged
from .manifest import Manifest
from .trust import require_trust


class Engines:
    """The networks of one engine directory, each loaded at its first use and kept until `close`.

    Args:
        manifest: the directory.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Attributes:
        used_before_bytes: memory of the device that was in use before the directory's networks were loaded.
    """

    def __init__(self, manifest: Manifest, device: str = "auto") -> None:
        self.used_before_bytes = 0
        self._manifest = manifest
        self._device = device
        self._loaders: dict[str, EngineLoader] = {}
        self._loaded: dict[str, Engine] = {}

    def __call__(self, network: str) -> Engine:
        """Return a network, loading it the first time.

        Raises:
            ManifestError: a file has changed since the directory was checked, or its native code is not trusted.
            EngineError: its backend is not installed, or refuses the file.
            DeviceError: the device is not there, or does not fit.
        """
        if network not in self._loaded:
            check_unchanged(self._manifest, network)
            self._loaded[network] = self._loader(self._manifest.networks[network].backend).open(network)
        return self._loaded[network]

    @property
    def loader(self) -> EngineLoader:
        """Loader of the directory's own engines, which share its device, its stream and how their runs are captured."""
        return self._loader(self._manifest.backend)

    def _loader(self, backend: str) -> EngineLoader:
        if backend not in self._loaders:
            loader = self._loaders[backend] = _make_loader(backend, self._manifest, self._device)
            if backend == self._manifest.backend:
                free, total = loader.device.memory_bytes()
                self.used_before_bytes = total - free
        return self._loaders[backend]

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the networks that are loaded."""
        return tuple(self._loaded)

    def release(self, networks: Collection[str]) -> None:
        """Close networks that are loaded, and those that read tensors of theirs. They are loaded again when used."""
        borrowers = [name for name, lender in LENDERS.items() if lender in networks]
        closed = {*networks, *borrowers} & self._loaded.keys()
        for loader in self._loaders.values():
            loader.drop_graphs(closed)
        for name in closed:
            self._loaded.pop(name).close()

    def close(self) -> None:
        """Free all engines and what they share. Calling it twice is fine."""
        for loader in self._loaders.values():
            loader.drop_graphs()
        for engine in self._loaded.values():
            engine.close()
        for loader in self._loaders.values():
            loader.close()
        self._loaded.clear()
        self._loaders.clear()


def _make_loader(backend: str, manifest: Manifest, device: str) -> EngineLoader:
    require_trust(manifest)
    # imported here: each needs packages that the others do not
    if backend == "onnxruntime":
        from .backends.onnxruntime import OnnxRuntimeLoader

        return OnnxRuntimeLoader(manifest, device)
    if backend == "aotinductor":
        from .backends.aotinductor import AotInductorLoader

        return AotInductorLoader(manifest, device)
    from .backends.tensorrt import TensorRtLoader

    return TensorRtLoader(manifest, device)


def open_engine(manifest: Manifest, network: str, device: str = "auto") -> Engine:
    """Load one network of an engine directory with the backend that built it.

    Raises:
        EngineError: the backend is not installed, or refuses the file.
        DeviceError: the device is not there, or does not fit.
    """
    return Engines(manifest, device)(network)
