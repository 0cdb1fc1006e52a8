"""What one call of `Animator.run` or `Animator.stream` asks for, checked before the long work."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass

from .. import media
from ..engines.directory import EngineDirectories
from ..engines.manifest import Manifest
from ..errors import InputError
from ..hooks.observer import Observer, ObserverFunction, as_observer
from ..hooks.progress import Progress, ProgressCallback
from ..noise import NoiseSource, seeded_noise
from ..settings import Settings, SettingsOptions
from ..stages.decode import check_chunk
from ..stages.denoise.tiles import check_overlap
from ..types import U8
from .pace import Pace

_LOG = logging.getLogger("dispose_rt")


@dataclass(frozen=True)
class Task:
    """A checked call.

    Attributes:
        settings: settings of the run.
        image: uint8 [height, width, 3], RGB, the photo.
        video: the driving video, or the part of it that is used, not yet decoded.
        pace: which of its frames are used, and how fast they are shown.
        manifest: manifest of the engine directory that suits the photo.
        noise: source of all random draws.
        observer: gets intermediate results.
        report: where progress goes, see `Progress`.
        cancel: ends the run once it is set.
    """

    settings: Settings
    image: U8
    video: media.Video
    pace: Pace
    manifest: Manifest
    noise: NoiseSource
    observer: Observer
    report: bool | ProgressCallback
    cancel: threading.Event | None

    def check_cancelled(self, where: str) -> None:
        """Raise Cancelled if the caller asked for it."""
        Progress(False, self.cancel).check(where)


def make_task(
    directories: EngineDirectories,
    ref: media.ImageSource,
    video: media.VideoSource,
    settings: SettingsOptions,
    noise: NoiseSource | None,
    output: str | os.PathLike[str] | None,
    report: bool | ProgressCallback,
    cancel: threading.Event | None,
    observer: Observer | ObserverFunction | None,
) -> Task:
    """Check the arguments of a call, and open its media.

    Args:
        directories: engine directories to choose from, by the photo's aspect ratio.
        ref: see `Animator.run`, as for all that follow.
        video: see there.
        settings: see there.
        noise: see there.
        output: see there.
        report: its `progress`.
        cancel: see there.
        observer: see there.

    Raises:
        InputError: something cannot be used, or (OutputError) the output cannot be written.
    """
    chosen = Settings(**settings)  # type: ignore[arg-type]  # any sequence of controls becomes a tuple
    if noise is not None and not callable(noise):
        raise InputError(f"noise is {noise!r}; pass a function (name, shape) -> float32 array, or None")
    if not (report is None or isinstance(report, bool) or callable(report)):
        raise InputError(f"progress is {report!r}; pass True, False, or a function of stage, done and total")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise InputError(f"cancel is {cancel!r}; pass a threading.Event, or None")
    watching = as_observer(observer)
    image = media.read_image(ref)
    manifest = directories.pick(image.shape[1], image.shape[0])
    if output is not None:
        media.check_output_path(output)
        media.protect_inputs(output, reference=ref, video=video)
    check_overlap(chosen.overlap_in(manifest.sizes.tile), manifest.sizes.tile)
    check_chunk(chosen.decode_chunk, manifest.sizes.chunk)
    film = media.open_video(video, cancel=cancel).part(chosen.start_s, chosen.duration_s)
    _LOG.info("engines of %s for a photo of %d x %d pixels", manifest.folder, image.shape[1], image.shape[0])
    _LOG.debug("%s: %d x %d pixels, %g fps; %s", film.name, film.width, film.height, film.fps, chosen)
    draws = noise or seeded_noise(chosen.seed)
    return Task(chosen, image, film, Pace.of(film, chosen), manifest, draws, watching, report, cancel)
