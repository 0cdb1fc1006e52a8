"""`Animator(engine_dir).run(ref, video)`: the whole method as one straight line."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from .errors import InputError
from .hooks.observer import Observer, ObserverFunction
from .hooks.progress import Progress, ProgressCallback
from .noise import NoiseSource, seeded_noise
from .pipeline.pace import find_audio
from .pipeline.provenance import describe_run
from .pipeline.queue import RunQueue
from .pipeline.run import Run
from .pipeline.task import Task, make_task
from .pipeline.warmup import WARMUP, standing_figure
from .settings import SettingsOptions, list_settings
from .stages.pose.cache import PoseCache
from .types import U8

__all__ = ["Animation", "Animator", "Observer"]

_LOG = logging.getLogger("dispose_rt")


class Animator:
    """Animates photos with the engines of one directory.

    Several threads may use it: one run is at work at a time, the others wait in the order of their arrival, or are
    refused. It stays usable after an error, a cancelled run, a stream that was left early, and Ctrl-C.

    Args:
        engine_dir: a directory that `dispose-rt build` wrote, or a parent of several, of which every run takes the one
            whose aspect ratio is nearest to its reference's.
        device: "cpu", "cuda", "cuda:1" and so on; "auto" takes what the engines were built for.
        when_busy: what a run does while another one is at work: "wait" for it, or "raise" a BusyError.
        pose_cache: a folder that remembers the poses of driving videos from run to run; None detects them in every run.
            Results are the same. It keeps itself below 512 MiB, and may be shared by processes.
        trust: whether to run native code of directories that no trusted key signed; see `dispose-rt trust --help`.

    Attributes:
        engine_dir: as given.
        device: as given.

    Raises:
        ManifestError: the directory is missing, damaged, not trusted, or built for another version, TensorRT or GPU;
            lists every problem.
        InputError: the device is unknown, or `when_busy` is something else.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        engine_dir: str | os.PathLike[str],
        device: str = "auto",
        *,
        when_busy: str = "wait",
        pose_cache: str | os.PathLike[str] | None = None,
        trust: bool = False,
    ) -> None:
        if not is_device_name(device):
            raise InputError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
        if not isinstance(engine_dir, (str, os.PathLike)):
            raise InputError(f"engine_dir is {engine_dir!r}; pass the path of a directory of engines")
        self.engine_dir, self.device = Path(engine_dir), device
        self._queue = RunQueue(when_busy)
        # absolute: the process may change its folder before the first run
        self._pose_cache = PoseCache(Path(pose_cache).absolute()) if pose_cache is not None else None
        self._directories = EngineDirectories(self.engine_dir.absolute(), device, trust=trust)
        self._engines: dict[Path, Engines] = {}

    def __repr__(self) -> str:
        """Name the engines and the state."""
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
        """Free all engines, after the current run; queued runs and open streams raise EngineError.

        Calling it twice is fine; running afterwards is an EngineError.

        Raises:
            BusyError: it was called from within a run, by its progress or observer.
        """
        self._queue.close()
        for engines in self._engines.values():
            engines.close()
        self._engines.clear()

    def warmup(self) -> None:
        """Load every engine and run each once, so that the first run is as fast as the others.

        Of several directories, those are warmed up that fit on the device together; the log names them, and the others.
        A run of another one closes the directory that was used least recently.

        Raises:
            EngineError: an engine cannot be loaded, or failed.
            DeviceError: the device failed, or (OutOfMemoryError) has too little memory.
            BusyError: see `run`.
        """
        progress = Progress(False)
        for manifest in self._directories.manifests:
            sizes = manifest.sizes
            with self._queue.take(progress.check):
                is_alone = not self._engines.keys() - {manifest.folder}
                run = Run(WARMUP, self._open(manifest), manifest, seeded_noise(WARMUP.seed), progress)
                if not (is_alone or run.keeps_all()):
                    _LOG.info("%s is not warmed up: it does not fit on the device beside the others", manifest.folder)
                    self._engines.pop(manifest.folder).close()
                    continue
                _LOG.info("warming up %s: loading its engines", manifest.folder)
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
        provenance: bool = True,
        keep_frames: bool = True,
        progress: bool | ProgressCallback = True,
        cancel: threading.Event | None = None,
        observer: Observer | ObserverFunction | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> Animation:
        """Animate the person of `ref` with the movement of the person of `video`.

        If several people are visible, the most prominent one is followed. Frames without a person take the pose of the
        nearest frame that shows one, and a warning names them.

        Args:
            ref: path, uint8 [height, width, 3] RGB array, or PIL image.
            video: path of a video or of a folder of pictures, or any iterable of uint8 [height, width, 3] RGB frames.
            settings: settings of the method, as keywords (steps, guidance_scale, ...); see `Settings`.
            noise: `(name, shape) -> float32 array` instead of the draws from `seed`; see `noise.NoiseSource`.
            output: mp4, m4v, mov, mkv, webm or gif file to write as well, while decoding goes on. It appears under its
                name when it is complete.
            audio: whether the output gets the sound of the video, if there is any and the speed stays as it is.
            provenance: whether the output, and what `Animation.save` writes, says in its metadata that it is generated,
                with settings, seed, engines and versions; it names no file, user or machine.
            keep_frames: False leaves `Animation.frames` empty, which keeps memory flat with long clips; it needs an
                output.
            progress: True for bars in the terminal, False for none, or a callable; see `ProgressCallback`. The stages
                are those of `hooks.progress.STAGES`, in this order. Not called while the run is queued.
            cancel: set it from another thread to end the run, queued or not, with `Cancelled`.
            observer: gets intermediate results; see `Observer`.

        Returns:
            The animation.

        Raises:
            InputError: the image, video or a setting cannot be used, or (OutputError) the output cannot be written.
            NoPersonError: no one is visible in the reference, or in the whole video.
            ManifestError: files of the engine directory have changed since the Animator opened it.
            EngineError: an engine failed, or returned non-finite values; or the Animator was closed.
            DeviceError: the device failed, or (OutOfMemoryError) has too little memory.
            BusyError: another run is at work, and `when_busy` is "raise"; or it is this thread's own.
            Cancelled: `cancel` was set.

        Warns:
            InputWarning: something about the input was worked around, or the sound is left out since `fps` changes the
                speed.
        """
        if not keep_frames and output is None:
            raise InputError(
                "with keep_frames=False and no output the result would be lost; pass an output, or keep it"
            )
        self._queue.check_open()
        task = make_task(self._directories, ref, video, settings, noise, output, progress, cancel, observer)
        sound = find_audio(task.video, task.pace, output is not None, cancel) if audio else None
        metadata = describe_run(task.settings, task.manifest, noise is not None) if provenance else {}
        frames: U8 = np.empty((0, 0, 0, 3), np.uint8)
        fps, done = task.pace.fps, 0
        with self._queue.take(task.check_cancelled), self._start(task) as run, ExitStack() as file:
            for chunk in file.enter_context(closing(run.chunks(task.image, task.video, task.pace.step, keep_frames))):
                height, width = chunk.shape[1:3]
                if not done:
                    frames = np.empty((run.frame_count if keep_frames else 0, height, width, 3), np.uint8)
                    sink = media.open_writer(
                        output,
                        fps,
                        width,
                        height,
                        sound,
                        cancel=cancel,
                        metadata=metadata,
                        audio_start_s=task.video.start_s,
                    )
                    write = file.enter_context(sink)
                for number, frame in enumerate(chunk, done):
                    write(frame, run.time_stamps[number] if run.time_stamps is not None else None)
                    if keep_frames:
                        frames[number] = frame
                done += len(chunk)
            with run.timer.stage("decode"):  # which the encoder's last frames are part of
                file.close()
        count, times, begin_s = run.frame_count, run.time_stamps, task.video.start_s
        return Animation(frames, fps, run.timings, run.peak_bytes, count, times, sound, metadata, begin_s)

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
        """Animate like `run`, and yield the frames as they are decoded, with a few at a time in memory.

        Settings are checked and media opened by the call. The work begins, and the Animator is busy, when the first
        frame is asked for. It is free again when the last frame was taken, after an error, or when the generator is
        closed or dropped, as by leaving a `for` loop over it. Another thread may continue reading.

        Args:
            ref: see `run`.
            video: see `run`.
            settings: see `run`.
            noise: see `run`.
            progress: see `run`.
            cancel: see `run`.
            observer: see `run`.

        Yields:
            uint8 [height, width, 3], RGB, in the order of display.

        Raises:
            As `run` does: InputError by the call for what can be checked at once, all else while frames are read.
        """
        self._queue.check_open()
        task = make_task(self._directories, ref, video, settings, noise, None, progress, cancel, observer)
        return self._frames(task)

    @contextmanager
    def _start(self, task: Task) -> Iterator[Run]:
        """Make the run of a task that has its turn."""
        progress = Progress(task.report, task.cancel)
        with closing(progress):
            engines = self._open(task.manifest)
            yield Run(
                task.settings,
                engines,
                task.manifest,
                task.noise,
                progress,
                task.observer,
                self._pose_cache,
                lambda: self._close_idle(engines),
            )

    def _open(self, manifest: Manifest) -> Engines:
        """The engines of a directory, which is the last one of `_engines` from now on.

        Each of them is loaded when it is first needed, and kept while memory suffices.
        """
        opened = self._engines.pop(manifest.folder, None)
        self._engines[manifest.folder] = opened or Engines(manifest, self.device)
        return self._engines[manifest.folder]

    def _close_idle(self, used: Engines) -> bool:
        """Close the directory on the same device that was used least recently; False where there is no other."""
        for folder, engines in self._engines.items():
            if engines is not used and engines.loaded and engines.loader.device.name == used.loader.device.name:
                _LOG.info("memory is short: closing the engines of %s", folder)
                self._engines.pop(folder).close()
                return True
        return False

    def _streamed_chunks(self, task: Task) -> Generator[U8]:
        with self._start(task) as run:
            yield from run.chunks(task.image, task.video, task.pace.step)

    def _frames(self, task: Task) -> Generator[U8]:
        """Frame by frame; the Animator may be closed while the reader works on one."""
        with self._queue.take(task.check_cancelled) as turn:
            turn.work = self._streamed_chunks(task)
            for chunk in turn.work:
                for frame in chunk:
                    turn.paused = True
                    yield frame
                    self._queue.resume(turn)
