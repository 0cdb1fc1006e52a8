"""Writes videos while the caller goes on computing; a file appears under its name only when it is complete."""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from itertools import chain, islice, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np

from ..errors import InputError, InputWarning, OutputError
from ..settings import MAX_FPS, MIN_FPS
from ..system.files import atomic_write, real_path, remove_leftovers
from ..types import U8
from .encoders import FORMATS, TICKS_PER_S, add_stream, container_options, encode, pad_to_even
from .gif import write_gif
from .inputs import find_file
from .interruptible import Stopped
from .metadata import check_metadata, finish_metadata, set_tags
from .outputs import check_output_path, explain_failure, is_same_file
from .sound import Sound, has_sound

QUEUED_FRAMES = 16
"""Frames that may wait for the encoder, so that it never holds up a chunk of the decoder's nor hoards memory."""
_SOUND_LAG_S = Fraction(1, 2)  # behind the pictures, so that nothing is encoded beyond their end
_log = logging.getLogger("dispose_rt")


class VideoWriter:
    """Encodes frames in a thread of its own; the suffix decides how.

    | suffix | pictures | sound |
    |---|---|---|
    | mp4, m4v, mov, mkv | H.264 (yuv420p, BT.709, limited range) | AAC, or the source's own |
    | webm | VP9 (the same) | Opus, or the source's own |
    | gif | 256 colours for the whole clip, at most 50 per second | none |

    Use it as a context manager. The file is written under a hidden temporary name in the same folder. It gets its own
    name when the `with` block ends without an exception; otherwise it is removed, and what was there before stays.

    Args:
        path: mp4, m4v, mov, mkv, webm or gif file.
        fps: frames per second, 0.01 to 1000; the nearest fraction with a denominator up to 1001 is stored. With
            uneven times it is the average, and tells how long the last frame is shown.
        width, height: size of every frame in pixels. An odd size is padded by its last row or column (a gif's is not).
        audio: file whose sound goes into the output: its default audio stream, or the first one. The time stamp of the
            file's first picture is the output's time 0, and the sound ends with the output's last picture. None, or a
            file without sound, makes a silent video.
        cancel: set it from another thread to end the reading of `audio`.
        metadata: texts by name, stored as they are: "comment", which every format has; "title", "genre" and
            "copyright", which all but gif have; "xmp", an XMP packet, which all but mkv and webm have; mkv and webm
            take any other name. What a format has no place for is left out.
        audio_start_s: seconds of `audio` that are left out: time of the output's first picture, counted from the first
            picture of that file, >= 0.

    Raises:
        OutputError: the path cannot be written.
        InputError: a number is out of range, there is no file `audio`, or it is the output itself, or `metadata` holds
            anything but strings.
        Cancelled: `cancel` was set while the sound was read.

    Warns:
        InputWarning: the sound is damaged, and left out as far as it is.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction,
        width: int,
        height: int,
        audio: str | os.PathLike[str] | None = None,
        *,
        cancel: threading.Event | None = None,
        metadata: Mapping[str, str] | None = None,
        audio_start_s: Fraction | float = 0,
    ) -> None:
        if not MIN_FPS <= fps <= MAX_FPS:
            raise InputError(f"fps of the output is {fps}; it must lie in {MIN_FPS:g}..{MAX_FPS:g}")
        if width < 1 or height < 1:
            raise InputError(f"the output has {width} x {height} pixels; both must be at least 1")
        self.path = check_output_path(path)
        self._suffix = self.path.suffix.lower()
        self._audio = None if audio is None else find_file(audio, "video")
        if self._audio is not None and is_same_file(self.path, self._audio):
            raise InputError(f"the output {self.path} is the source of the sound itself; give it another name")
        if not 0 <= audio_start_s < math.inf:
            raise InputError(f"audio_start_s is {audio_start_s}; it must be 0 or more")
        self._audio_start_s = Fraction(audio_start_s)
        self._cancel = cancel
        self._metadata = check_metadata(metadata or {})
        self._shape = (height, width, 3)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._part = ""
        self._closing = ExitStack()
        self._queue: queue.Queue[Any] = queue.Queue(QUEUED_FRAMES)
        self._thread = threading.Thread(target=self._work, name="video encoder", daemon=True)
        self._failure: Exception | None = None
        self._abandoned = threading.Event()
        self._sound_problem: str | None = None
        self._written = 0
        self._last_s: Fraction | None = None

    def __enter__(self) -> VideoWriter:
        """Start the encoder."""
        if self._audio is not None and self._suffix == ".gif":
            _log.info("%s gets no sound: a gif has none", self.path)
            self._audio = None
        if self._audio is not None and not has_sound(self._audio, self._cancel):
            self._audio = None
        try:
            target = real_path(self.path)  # a link stays, and the file behind it is replaced
            remove_leftovers(target.parent, target.name)
            self._part = self._closing.enter_context(atomic_write(target, durable=True)).name
            self._closing.callback(self._stop)
            self._thread.start()
        except BaseException as error:  # Ctrl-C as well: no one calls `__exit__` then
            self._closing.close()
            if isinstance(error, OSError):
                raise OutputError(explain_failure(self.path, error)) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or remove it if the block failed."""
        if kind is not None:
            self._closing.__exit__(kind, error, trace)
            return
        try:
            with self._closing:
                self._finish()
        except OSError as problem:
            raise OutputError(explain_failure(self.path, problem)) from problem
        if self._sound_problem:
            warnings.warn(f"the sound of {self._audio}: {self._sound_problem}", InputWarning, stacklevel=3)

    def write(self, frame: U8, time_s: Fraction | float | None = None) -> None:
        """Hand over the next frame; waits only while `QUEUED_FRAMES` of them are waiting already.

        Args:
            frame: uint8 [height, width, 3], RGB. It is copied.
            time_s: when it is shown, in seconds, after the time of the frame before by 1/90000 s or more. Given for all
                frames or for none; without it they follow each other evenly.

        Raises:
            InputError: wrong shape or dtype, or a time that is not after the last one.
            OutputError: the file could not be written (the disk is full, for example).
        """
        self._raise_failure()
        if not self._thread.is_alive():
            raise InputError("the video writer is not open; use it inside `with VideoWriter(...) as writer:`")
        shape, dtype = getattr(frame, "shape", None), getattr(frame, "dtype", None)
        if shape != self._shape or dtype != np.uint8:
            raise InputError(
                f"frame {self._written} for {self.path} is {dtype} {shape}, expected uint8 {self._shape}; all frames "
                "must have the size that the writer was opened with"
            )
        time = self._check_time(time_s)
        pixels = np.ascontiguousarray(frame) if self._suffix == ".gif" else pad_to_even(frame)
        self._queue.put((av.VideoFrame.from_ndarray(pixels, format="rgb24"), time))
        self._written += 1

    def _check_time(self, time_s: Fraction | float | None) -> Fraction | None:
        if self._written and (time_s is None) != (self._last_s is None):
            raise InputError(f"frame {self._written} for {self.path}: give a time for all frames, or for none")
        if time_s is None:
            return None
        if not math.isfinite(time_s) or time_s < 0:
            raise InputError(f"the time of frame {self._written} for {self.path} is {time_s}; it must be 0 or more")
        time = Fraction(round(Fraction(time_s) * TICKS_PER_S), TICKS_PER_S)
        if self._last_s is not None and time <= self._last_s:
            raise InputError(
                f"the time of frame {self._written} for {self.path} is {float(time_s):g} s, not after that of the "
                f"frame before ({float(self._last_s):g} s); times must ascend"
            )
        self._last_s = time
        return time

    def _finish(self) -> None:
        if not self._written:
            raise InputError(f"no frame was given for {self.path}; a video needs at least one")
        self._queue.put(None)
        self._thread.join()
        self._raise_failure()

    def _stop(self) -> None:
        """End the thread at once."""
        self._abandoned.set()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise OutputError(explain_failure(self.path, self._failure)) from self._failure

    def _work(self) -> None:
        """Body of the thread. After a failure it goes on emptying the queue, so that `write` never waits for good."""
        frames = self._take_frames()
        try:
            if self._suffix == ".gif":
                write_gif(Path(self._part), frames, self._rate, self._abandoned.is_set)
            else:
                self._write_streams(frames)
            if not self._abandoned.is_set():
                finish_metadata(Path(self._part), self._suffix, self._metadata)
        except Exception as error:  # raised again in the caller's thread
            self._failure = error
        for _ in frames:
            pass

    def _take_frames(self) -> Iterator[tuple[Any, Fraction | None]]:
        """Yield frames and their times until the end mark."""
        while (item := self._queue.get()) is not None:
            if not self._abandoned.is_set():
                yield item

    def _write_streams(self, frames: Iterator[tuple[Any, Fraction | None]]) -> None:
        head = list(islice(frames, 1))
        if not head:
            return
        is_uneven = head[0][1] is not None
        with ExitStack() as stack:
            name, options = f"file:{self._part}", container_options(self._suffix)
            container = stack.enter_context(av.open(name, "w", FORMATS[self._suffix], options=options))
            set_tags(container, self._suffix, self._metadata)
            stream = add_stream(container, self._suffix, self._rate, self._shape, is_uneven)
            sound = None
            if self._audio is not None:
                sound = Sound(self._audio, container, self._suffix, self._beat, self._audio_start_s)
                stack.enter_context(closing(sound))
            for packet, time_s in encode(stream, chain(head, frames), self._rate):
                if self._abandoned.is_set():
                    return
                container.mux(packet)
                if sound is not None:
                    sound.mux_until(time_s - _SOUND_LAG_S)
            if sound is not None:
                last_s = (self._written - 1) / self._rate if self._last_s is None else self._last_s
                sound.finish(last_s + 1 / self._rate)
                self._sound_problem = sound.problem

    def _beat(self) -> None:
        """End the reading of sound for an output that nobody wants any more."""
        if self._abandoned.is_set():
            raise Stopped


class FrameSink(Protocol):
    """What `open_writer` hands out."""

    def __call__(self, frame: U8, time_s: Fraction | float | None = None) -> None:
        """Take the next frame; see `VideoWriter.write`."""
        ...


@contextmanager
def open_writer(
    path: str | os.PathLike[str] | None,
    fps: float,
    width: int,
    height: int,
    audio: str | os.PathLike[str] | None = None,
    *,
    cancel: threading.Event | None = None,
    metadata: Mapping[str, str] | None = None,
    audio_start_s: Fraction | float = 0,
) -> Iterator[FrameSink]:
    """Open a `VideoWriter` where there is a path, and throw frames away where there is none.

    Args:
        path: see `VideoWriter`; None writes nothing.
        fps: see `VideoWriter`.
        width: see `VideoWriter`.
        height: see `VideoWriter`.
        audio: see `VideoWriter`.
        cancel: see `VideoWriter`.
        metadata: see `VideoWriter`.
        audio_start_s: see `VideoWriter`.

    Yields:
        A function that takes the next frame, and its time where times are uneven.

    Raises:
        InputError: see `VideoWriter`.
    """
    if path is None:
        yield lambda frame, time_s=None: None
        return
    with VideoWriter(
        path, fps, width, height, audio, cancel=cancel, metadata=metadata, audio_start_s=audio_start_s
    ) as writer:
        yield writer.write


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[U8],
    fps: float | Fraction,
    audio: str | os.PathLike[str] | None = None,
    times_s: Iterable[Fraction | float] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    audio_start_s: Fraction | float = 0,
) -> Path:
    """Write frames to a file; see `VideoWriter`.

    Args:
        path: mp4, m4v, mov, mkv, webm or gif file.
        frames: uint8 arrays [height, width, 3] in RGB, at least one, all of one size.
        fps: frames per second, 0.01 to 1000.
        audio: file whose sound goes into the output.
        times_s: when each frame is shown, seconds, ascending; None shows them evenly.
        metadata: see `VideoWriter`.
        audio_start_s: see `VideoWriter`.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
        InputError: there is no frame, a frame has another size or dtype, or there are not as many times as frames.
    """
    target = check_output_path(path)
    iterator = iter(frames)
    head = list(islice(iterator, 1))
    if not head:
        raise InputError(f"no frame was given for {target}; a video needs at least one")
    shape = np.shape(head[0])
    if len(shape) != 3:
        raise InputError(f"frame 0 for {target} has shape {shape}, expected [height, width, 3]")
    with VideoWriter(target, fps, shape[1], shape[0], audio, metadata=metadata, audio_start_s=audio_start_s) as writer:
        if times_s is None:
            for frame in chain(head, iterator):
                writer.write(frame)
        else:
            for frame, time_s in zip_longest(chain(head, iterator), times_s):
                if frame is None or time_s is None:
                    raise InputError(f"{target} gets another number of times than of frames; give one time per frame")
                writer.write(frame, time_s)
    return target
