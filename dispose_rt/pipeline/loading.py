"""Loads the engines of a run when they are needed, and closes them where the device's memory is short."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ..clip.plan import FreeMemory
from ..engines.footprint import (
    RESIDENCIES,
    STAGES,
    MemoryPlan,
    footprints,
    needed_networks,
    plan_memory,
    resident_networks,
    shares_scratch,
)
from ..engines.manifest import Manifest
from ..engines.open import Engines
from ..errors import DeviceError, OutOfMemoryError
from ..hooks.progress import Progress
from ..settings import Settings
from ..stages.decode import fit_decoder
from ..stages.denoise.loop import Denoiser
from ..system.memory import return_freed_memory

_LOG = logging.getLogger("dispose_rt")


class RunEngines:
    """The engines of one run, loaded and closed as `engines.footprint` plans it.

    Args:
        engines: engines of the directory; those that are loaded already stay as they are where memory suffices.
        settings: settings of the run; signals that are off need no networks.
        manifest: manifest of the engine directory.
        progress: gets a tick of "load" per network that is loaded in that stage.
        make_room: frees memory of the device that others hold, an idle engine directory's, say; returns False where
            nothing is left to free.

    Attributes:
        plan: what is loaded when, since `decide`.
        recomputes: whether the clip's conditions are recomputed while denoising, for which their networks are needed.
    """

    plan: MemoryPlan

    def __init__(
        self,
        engines: Engines,
        settings: Settings,
        manifest: Manifest,
        progress: Progress,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engines = engines
        self._settings = settings
        self._manifest = manifest
        self._sizes = manifest.sizes
        self._progress = progress
        self._make_room = make_room
        self._networks = footprints(manifest)
        self._shares_scratch = shares_scratch(manifest)
        self._needed = needed_networks(settings.controls)
        self._ready: set[str] = set()
        self._stage = "pose"
        self.recomputes = True

    def decide(self, clip_bytes: int) -> MemoryPlan:
        """Plan the run, before its first stage or after the poses; `begin` carries it out.

        Idle engine directories are closed before any network of this run is.

        Args:
            clip_bytes: the least that the clip takes of the device.

        Raises:
            OutOfMemoryError: the engines do not fit, not even stage by stage.
        """
        while True:
            self.plan = self.propose(clip_bytes)
            if (self.plan.fits and self.plan.residency == "all") or not self._make_room():
                break
        if self._is_known and self.plan.engine_bytes > self.plan.available_bytes:
            raise OutOfMemoryError(self._refusal())
        if self.plan.residency != "all":
            _LOG.info(
                "engines are closed behind their stages (%r), as %.2f GB of device memory are available: see "
                "`dispose-rt doctor DIR --plan`",
                self.plan.residency,
                self.plan.available_bytes / 1e9,
            )
        return self.plan

    @property
    def _is_known(self) -> bool:
        """Whether no figure of the plan is an estimate."""
        return all(self._networks[name].is_measured for name in self._needed)

    def _refusal(self) -> str:
        worst = max(self.plan.stages, key=lambda one: one.peak_bytes)
        tile, folder = max(2, self._manifest.sizes.tile // 2), self._manifest.folder
        device = self._engines.loader.device.name
        return (
            f"the engines of {folder} take {worst.peak_bytes / 1e9:.2f} GB of {device} in the stage "
            f"{worst.stage}, with all others closed, and {self.plan.available_bytes / 1e9:.2f} GB are available. "
            "Close other programs on the GPU (nvidia-smi lists them), or build engines for a smaller --size or shorter "
            f"tiles: {self._manifest.rebuild_command(**{'tile-frames': str(tile)})}. `dispose-rt doctor "
            f"{shlex.quote(str(folder))} --plan` says what fits"
        )

    def propose(self, clip_bytes: int) -> MemoryPlan:
        """Return what `decide` would, with nothing closed for it."""
        available_bytes = FreeMemory.of(self._engines.loader.device).device_bytes + self._held_bytes()
        return plan_memory(
            self._networks,
            self._sizes,
            available_bytes,
            controls=self._settings.controls,
            chunk=self._settings.decode_chunk,
            clip_bytes=clip_bytes,
            shares_scratch=self._shares_scratch,
        )

    def _held_bytes(self) -> int:
        """Memory of the device that the run's loaded networks hold."""
        weights_bytes = sum(self._networks[name].weights_bytes for name in self._engines.loaded if name in self._needed)
        others_bytes = sum(
            self._networks[name].tensor_bytes for name in self._engines.loaded if name not in self._needed
        )
        return max(weights_bytes + self._engines.loader.device.pool.used_bytes - others_bytes, 0)

    def free_memory(self) -> FreeMemory:
        """Return what is free for the clip beside everything that the plan still loads, or allocates while it runs."""
        free = FreeMemory.of(self._engines.loader.device)
        plan = replace(self.plan, available_bytes=free.device_bytes + self._held_bytes())
        if not plan.engine_bytes or not (plan.free_bytes or self._is_known):  # nothing, or too much, to subtract
            return free
        return replace(free, device_bytes=plan.free_bytes)

    def begin(self, stage: str) -> None:
        """Load and allocate what a stage needs, and close what neither it nor a later one does where memory is short.

        Args:
            stage: one of STAGES, or "load", for all networks that stay loaded from stage to stage.

        Raises:
            EngineError: an engine cannot be loaded.
            OutOfMemoryError: the device has no room, with everything closed that may be.
        """
        self._stage = stage
        self._close_others()
        total = len(self._wanted())
        while missing := [name for name in self._wanted() if name not in self._ready]:
            try:
                self._prepare(missing[0])
            except OutOfMemoryError:
                if not self._make_room() and not self._close_more():
                    raise
            else:
                self._ready.add(missing[0])
                if stage == "load":
                    self._progress.step(stage, total - len(missing) + 1, total)

    def _wanted(self) -> list[str]:
        """Networks that the stage needs loaded; the largest first, and the decoder, which takes what is left, last."""
        if self._stage != "load":
            return [name for name in STAGES[self._stage] if name in self._needed]
        closed = {*RESIDENCIES[self.plan.residency], *STAGES["pose"]}
        largest = [name for name in STAGES["denoise"] if name in self._needed]
        ordered = [*largest, *(name for name in self._needed if name not in largest)]
        return [name for name in ordered if name not in closed]

    def _prepare(self, name: str) -> None:
        """Load a network, with its tensors and scratch memory."""
        engine = self._engines(name)
        if name in STAGES["denoise"]:
            if name == "unet":
                self.denoiser().allocate()
        elif name != "vae_decoder":
            engine.allocate()
        elif self.plan.residency == "stages":
            fit_decoder(engine, self._settings.decode_chunk, self._sizes.chunk)
        else:  # other engines are closed before a chunk is shortened, which changes pixels
            fit_decoder(engine, self._settings.decode_chunk or self._sizes.chunk, self._sizes.chunk)

    def denoiser(self) -> Denoiser:
        """Return the sampling loop with its networks, which are loaded."""
        engines = self._engines
        controlnet = engines("controlnet") if "controlnet" in self._needed else None
        return Denoiser(controlnet, engines("unet"), engines.loader)

    def _close_more(self) -> bool:
        """Close more than the plan says, as there is less memory than it expected. Returns False if nothing is left."""
        order = list(RESIDENCIES)
        if self.plan.residency == order[-1]:
            return False
        self.plan = replace(self.plan, residency=order[order.index(self.plan.residency) + 1])
        _LOG.info("memory is short: engines are closed behind their stages (%r)", self.plan.residency)
        self._close_others()
        return True

    def _close_others(self) -> None:
        """Close what the plan does not keep in this stage."""
        if self.plan.residency == "all":
            return
        stage = "motion" if self._stage == "load" else self._stage
        kept = resident_networks(stage, self.plan.residency, self._needed, self.recomputes)
        if self._stage == "load" and self.plan.residency == "stages":
            kept = ()
        self._close([name for name in self._engines.loaded if name not in kept])

    def _close(self, names: list[str]) -> None:
        if names:
            self._engines.release(names)
            self._ready &= set(self._engines.loaded)
            self._engines.loader.trim()

    def finish(self) -> None:
        """Close what the plan keeps no longer than a run, and give back memory that is kept for later."""
        with suppress(DeviceError):  # of a GPU that is lost; the run's own error explains more
            closed = RESIDENCIES[self.plan.residency]
            self._close([name for name in self._engines.loaded if name in closed])
            self._engines.loader.trim()
            if self._engines.loader.device.synchronous:
                return_freed_memory()
