"""`Animator(engine_dir).run(ref, video)`: the whole method as one straight line."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import media
from .backends import Engines
from .directory import EngineDirectories
from .errors import EngineError, InputError
from .manifest import Manifest
from .noise import NoiseSource, seeded_noise
from .pipeline import Animation, Run
from .settings import CONTROLS, Settings
from .timing import Progress, ProgressCallback

__all__ = ["Animation", "Animator", "Observer"]

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")

Observer = Callable[[str, Any], None]
"""`observer(name, value)` sees intermediate results: "reference" (uint8 [H, W, 3]), "driving" (uint8 [h, w, 3], once
per frame), "poses" (uint8 [frames, 3, H, W]), "motion" (types.Motion), "conditions" (types.Conditions), "denoise_step"
(denoise.StepTrace, once per step), "latents" (float32 [frames, 4, H/8, W/8])."""


class Animator:
    """Animates photos with the engines of one directory.

    Args:
        engine_dir: a directory that `export/build_engines.py` wrote, or a parent of several, of which every run takes
            the one whose aspect ratio is nearest to its reference's.
        device: "cpu", "cuda", "cuda:1" and so on; "auto" takes what the engines were built for.

    Raises:
        ManifestError: the directory is missing, damaged, or built for another version, TensorRT or GPU; lists every
            problem.
        InputError: unknown device.

    Use it as a context manager, or call `close`. Runs from several threads wait for each other.
    """

    def __init__(self, engine_dir: str | os.PathLike[str], device: str = "auto") -> None:
        if not _DEVICE.fullmatch(device):
            raise InputError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
        self._directories = EngineDirectories(Path(engine_dir), device)
        self._engines = _OpenDirectories(device)
        self._lock = threading.Lock()

    def __enter__(self) -> Animator:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engines."""
        self.close()

    def close(self) -> None:
        """Free all engines. Calling it twice is fine; running afterwards is an EngineError."""
        with self._lock:
            self._engines.close()

    def run(
        self,
        ref: media.ImageSource,
        video: media.VideoSource,
        *,
        steps: int = 25,
        guidance_scale: float = 2.0,
        overlap: int = 6,
        stride: int = 2,
        seed: int = 0,
        fps: float | None = None,
        controls: Sequence[str] = CONTROLS,
        noise_aug_strength: float = 0.0,
        motion_bucket_id: int = 127,
        decode_chunk: int | None = None,
        conditions_memory: str = "auto",
        noise: NoiseSource | None = None,
        output: str | os.PathLike[str] | None = None,
        progress: bool | ProgressCallback = True,
        cancel: threading.Event | None = None,
        observer: Observer | None = None,
    ) -> Animation:
        """Animate the person of `ref` with the movement of the person of `video`.

        Where several people are seen, the most prominent one is followed. Where nobody is seen in a frame, the nearest
        frame's pose stands in, and a warning names the frames.

        Args:
            ref: path, uint8 [height, width, 3] RGB array, or PIL image.
            video: path, or any iterable of uint8 [height, width, 3] RGB frames.
            steps: Euler steps, 1..1000.
            guidance_scale: classifier-free guidance, 1..100; at 1 the conditional half alone.
            overlap: frames that neighbouring tiles share, 0..tile - 2.
            stride: every `stride * max(1, int(source fps / 24))`-th source frame is used.
            seed: of the default noise.
            fps: frame rate of the result; None keeps the speed of the source.
            controls: guidance signals that are on, any of "motion" and "points".
            noise_aug_strength: standard deviation of noise added to the reference before the VAE, 0..1.
            motion_bucket_id: Stable Video Diffusion's amount-of-motion id, 0..1023.
            decode_chunk: frames that the VAE decodes at once; None takes the engines' chunk, as the reference does, or
                less where the device lacks the memory, with a PerformanceWarning: pixels depend a little on it.
            conditions_memory: "device", "host", or "auto": where per-frame conditions wait; no result depends on it.
            noise: `(name, shape) -> float32 array` instead of the draws from `seed`; see `noise.NoiseSource`.
            output: mp4 to write as well, frame by frame while decoding goes on.
            progress: True for a line in the terminal, False for silence, or a callable (stage, done, total).
            cancel: set it from another thread to end the run with `Cancelled`.
            observer: gets intermediate results by name; see `Observer`.

        Returns:
            The animation.

        Raises:
            InputError: the image, video or a setting cannot be used.
            NoPersonError: nobody is visible in the reference, or in the whole video.
            EngineError: an engine failed, or answered non-finite values.
            DeviceError: the device failed, or (OutOfMemoryError) has too little memory.
            Cancelled: `cancel` was set.
        """
        settings = Settings(
            steps=steps,
            guidance_scale=guidance_scale,
            overlap=overlap,
            stride=stride,
            seed=seed,
            fps=fps,
            controls=controls,  # type: ignore[arg-type]  # checked and made a tuple there
            noise_aug_strength=noise_aug_strength,
            motion_bucket_id=motion_bucket_id,
            decode_chunk=decode_chunk,
            conditions_memory=conditions_memory,
        )
        with self._lock:
            image = media.read_image(ref)
            manifest = self._directories.pick(image.shape[1], image.shape[0])
            one_run = Run(
                settings,
                self._engines.of(manifest),
                manifest,
                noise or seeded_noise(settings.seed),
                Progress(progress, cancel),
                observer,
            )
            return one_run.animate(image, media.open_video(video), output)


class _OpenDirectories:
    """Engines by directory, loaded when first needed and kept."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._open: dict[Path, Engines] = {}
        self._closed = False

    def of(self, manifest: Manifest) -> Engines:
        if self._closed:
            raise EngineError("this Animator was closed; make a new one")
        if manifest.folder not in self._open:
            self._open[manifest.folder] = Engines(manifest, self._device)
        return self._open[manifest.folder]

    def close(self) -> None:
        self._closed = True
        for engines in self._open.values():
            engines.close()
        self._open.clear()
