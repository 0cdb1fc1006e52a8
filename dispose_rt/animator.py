"""`Animator(engine_dir).run(ref, video)`: the whole method as one straight line."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Unpack

import numpy as np

from . import media
from .animation import Animation
from .device import is_device_name
from .engines.directory import EngineDirectories
from .engines.manifest import Manifest
from .engines.open import Engines
from .errors import EngineError, InputError
from .hooks.observer import Observer, ObserverFunction, as_observer
from .hooks.progress import Progress, ProgressCallback
from .noise import NoiseSource, seeded_noise
from .pipeline.queue import CLOSED, RunQueue
from .pipeline.run import Run, check_request, find_audio
from .pipeline.warmup import WARMUP, standing_figure
from .settings import Settings, SettingsOptions, list_settings
from .stages.pose.cache import PoseCache
from .types import U8

__all__ = ["Animation", "Animator", "Observer"]

_LOG = logging.getLogger("dispose_rt")


@dataclass(frozen=True)
class _Request:
    """What `run` and `stream` were asked for, checked as far as that takes no time."""

    settings: Settings
    image: U8
    video: media.Video
    manifest: Manifest
    noise: NoiseSource
    observer: Observer
    report: bool | ProgressCallback
    cancel: threading.Event | None


class Animator:
    """Animates photos with the engines of one directory.

    Several threads may use it: one run goes on at a time, the others wait for their turn in the order in which they
    came, or are refused. After an error, a cancelled run, a stream that was left early, or Ctrl-C it can be used again.

    Args:
        engine_dir: a directory that `dispose-rt build` wrote, or a parent of several, of which every run takes
            the one whose aspect ratio is nearest to its reference's.
        device: "cpu", "cuda", "cuda:1" and so on; "auto" takes what the engines were built for.
        when_busy: what happens to a run while another one goes on: "wait" for it, or "raise" a BusyError.
        pose_cache: a folder that remembers the poses of driving videos from run to run; None detects them in every run.
            Results are the same. It keeps itself below 512 MiB, and may be shared by processes.

    Attributes:
        engine_dir: as given.
        device: as given.

    Raises:
        ManifestError: the directory is missing, damaged, or built for another version, TensorRT or GPU; lists every
            problem.
        InputError: unknown device, or `when_busy` is something else.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        engine_dir: str | os.PathLike[str],
        device: str = "auto",
        *,
        when_busy: str = "wait",
        pose_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if not is_device_name(device):
            raise InputError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
        if not isinstance(engine_dir, (str, os.PathLike)):
            raise InputError(f"engine_dir is {engine_dir!r}; pass the path of a directory of engines")
        self.engine_dir, self.device = Path(engine_dir), device
        self._queue = RunQueue(when_busy)
        self._pose_cache = PoseCache(pose_cache) if pose_cache is not None else None
        self._directories = EngineDirectories(self.engine_dir, device)
        self._engines: dict[Path, Engines] = {}

    def __repr__(self) -> str:
        """Say what it animates with, and what it is doing."""
        state = "closed" if self.closed else "busy" if self._queue.busy else "idle"
        kinds = ", ".join(
            f"{one.backend} {one.precision} {one.sizes.width}x{one.sizes.height}" for one in self._directories.manifests
        )
        return f"<Animator {str(self.engine_dir)!r} on {self.device}: {kinds}; {state}>"

    def __enter__(self) -> Animator:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engines."""
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._queue.closed

    def close(self) -> None:
        """Free all engines, after the run that goes on. Runs that wait, and streams that are read on, get EngineError.

        Calling it twice is fine; running afterwards is an EngineError.

        Raises:
            BusyError: it was called from within a run, by its progress or observer.
        """
        self._queue.close()
        for engines in self._engines.values():
            engines.close()
        self._engines.clear()

    def warmup(self) -> None:
        """Load every engine of every directory and run each once, so that the first run has no surprises.

        Raises:
            EngineError: an engine cannot be loaded, or failed.
            DeviceError: the device failed, or (OutOfMemoryError) has too little memory.
            BusyError: see `run`.
        """
        progress = Progress(False)
        for manifest in self._directories.manifests:
            sizes = manifest.sizes
            with self._queue.take(progress.check):
                _LOG.info("warming up %s", manifest.folder)
                run = Run(WARMUP, self._open(manifest), manifest, seeded_noise(WARMUP.seed), progress)
                run.warm_up(standing_figure(sizes.width, sizes.height))

    @list_settings
    def run(
        self,
        ref: media.ImageSource,
        video: media.VideoSource,
        *,
        noise: NoiseSource | None = None,
        output: str | os.PathLike[str] | None = None,
        audio: bool = True,
        keep_frames: bool = True,
        progress: bool | ProgressCallback = True,
        cancel: threading.Event | None = None,
        observer: Observer | ObserverFunction | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> Animation:
        """Animate the person of `ref` with the movement of the person of `video`.

        Where several people are seen, the most prominent one is followed. Where nobody is seen in a frame, the nearest
        frame's pose stands in, and a warning names the frames.

        Args:
            ref: path, uint8 [height, width, 3] RGB array, or PIL image.
            video: path of a video or of a folder of pictures, or any iterable of uint8 [height, width, 3] RGB frames.
            noise: `(name, shape) -> float32 array` instead of the draws from `seed`; see `noise.NoiseSource`.
            output: mp4, m4v, mov, mkv, webm or gif to write as well, frame by frame while decoding goes on. It appears
                when it is complete.
            audio: whether the output gets the sound of the video, where that has some and the speed stays as it is.
            keep_frames: False leaves `frames` of the answer empty, which keeps memory flat with long clips; it needs an
                output.
            progress: True for bars in the terminal, False for silence, or a callable (stage, done, total); the stages
                are those of `timing.STAGES`, in this order. Not called while the run waits for its turn.
            cancel: set it from another thread to end the run, or its waiting, with `Cancelled`.
            observer: gets intermediate results; see `Observer`.
            settings: of the method, as keywords; see `Settings`.

        Returns:
            The animation.

        Raises:
            InputError: the image, video or a setting cannot be used, or (OutputError) the output cannot be written.
            NoPersonError: nobody is visible in the reference, or in the whole video.
            EngineError: an engine failed, or answered non-finite values; or the Animator was closed.
            DeviceError: the device failed, or (OutOfMemoryError) has too little memory.
            BusyError: another run goes on, and `when_busy` is "raise"; or it is this thread's own.
            Cancelled: `cancel` was set.

        Warns:
            InputWarning: something about the input was worked around, or the sound is left out since `fps` changes the
                speed.
        """
        if not keep_frames and output is None:
            raise InputError(
                "with keep_frames=False and no output the result would be lost; pass an output, or keep it"
            )
        chosen = Settings(**settings)  # type: ignore[arg-type]  # any sequence of controls becomes a tuple
        request = self._prepare(chosen, ref, video, noise, output, progress, cancel, observer)
        sound = find_audio(request.video, chosen, warn=output is not None) if audio else None
        sizes, kept = request.manifest.sizes, 0
        with self._queue.take(Progress(False, cancel).check), self._start(request) as one_run:
            frames: U8 = np.empty((0, sizes.height, sizes.width, 3), np.uint8)
            with closing(one_run.chunks(request.image, request.video, output, sound, keep_frames)) as chunks:
                for chunk in chunks:
                    if keep_frames and not kept:
                        frames = np.empty((one_run.frame_count, *chunk.shape[1:]), np.uint8)
                    if keep_frames:
                        frames[kept : kept + len(chunk)] = chunk
                        kept += len(chunk)
        return Animation(
            frames,
            chosen.fps or request.video.fps / media.frame_step(chosen.stride, request.video.fps),
            one_run.timings,
            one_run.peak_bytes,
            one_run.frame_count,
            one_run.time_stamps,
            sound,
        )

    @list_settings
    def stream(
        self,
        ref: media.ImageSource,
        video: media.VideoSource,
        *,
        noise: NoiseSource | None = None,
        progress: bool | ProgressCallback = True,
        cancel: threading.Event | None = None,
        observer: Observer | ObserverFunction | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> Generator[U8]:
        """Animate like `run`, and hand out the frames as they are decoded, a few at a time in memory.

        Settings are checked and media opened by the call; the work begins, and the Animator is busy, when the first
        frame is asked for. It is free again when the last frame was taken, on an error, or when the generator is closed
        or dropped, which leaving a `for` loop over it does. Another thread may read on.

        Args:
            ref: path, uint8 [height, width, 3] RGB array, or PIL image.
            video: path of a video or of a folder of pictures, or any iterable of uint8 [height, width, 3] RGB frames.
            noise: `(name, shape) -> float32 array` instead of the draws from `seed`; see `noise.NoiseSource`.
            progress: see `run`.
            cancel: see `run`.
            observer: see `run`.
            settings: see `run`.

        Yields:
            uint8 [height, width, 3], RGB, in the order of display.

        Raises:
            As `run` does: InputError for what can be seen at once by the call, all else while frames are read.
        """
        chosen = Settings(**settings)  # type: ignore[arg-type]  # any sequence of controls becomes a tuple
        return self._frames(self._prepare(chosen, ref, video, noise, None, progress, cancel, observer))

    def _prepare(
        self,
        settings: Settings,
        ref: media.ImageSource,
        video: media.VideoSource,
        noise: NoiseSource | None,
        output: str | os.PathLike[str] | None,
        report: bool | ProgressCallback,
        cancel: threading.Event | None,
        observer: Observer | ObserverFunction | None,
    ) -> _Request:
        """Refuse what can be refused before the long work."""
        if self.closed:
            raise EngineError(CLOSED)
        if noise is not None and not callable(noise):
            raise InputError(f"noise is {noise!r}; pass a function (name, shape) -> float32 array, or None")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise InputError(f"cancel is {cancel!r}; pass a threading.Event, or None")
        watching = as_observer(observer)
        image = media.read_image(ref)
        manifest = self._directories.pick(image.shape[1], image.shape[0])
        check_request(settings, manifest, output)
        film = media.open_video(video)
        _LOG.info("engines of %s for a photo of %d x %d pixels", manifest.folder, image.shape[1], image.shape[0])
        _LOG.debug("%s: %d x %d pixels, %g fps; %s", film.name, film.width, film.height, film.fps, settings)
        return _Request(settings, image, film, manifest, noise or seeded_noise(settings.seed), watching, report, cancel)

    @contextmanager
    def _start(self, request: _Request) -> Iterator[Run]:
        """Make a run of a request whose turn it is."""
        manifest = request.manifest
        progress = Progress(request.report, request.cancel)
        with closing(progress):
            engines = self._open(manifest)
            yield Run(request.settings, engines, manifest, request.noise, progress, request.observer, self._pose_cache)

    def _open(self, manifest: Manifest) -> Engines:
        """Engines of a directory; each of them is loaded when it is first needed, and kept."""
        if manifest.folder not in self._engines:
            self._engines[manifest.folder] = Engines(manifest, self.device)
        return self._engines[manifest.folder]

    def _chunks(self, request: _Request) -> Generator[U8]:
        with self._start(request) as one_run:
            yield from one_run.chunks(request.image, request.video)

    def _frames(self, request: _Request) -> Generator[U8]:
        """Frame by frame; the Animator may be closed while the reader is busy."""
        with self._queue.take(Progress(False, request.cancel).check) as turn:
            turn.work = self._chunks(request)
            for chunk in turn.work:
                for frame in chunk:
                    turn.paused = True
                    yield frame
                    self._queue.resume(turn)
