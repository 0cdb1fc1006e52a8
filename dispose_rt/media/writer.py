"""Writes H.264 files while the caller goes on computing; a file appears under its name only when it is complete."""

from __future__ import annotations

import math
import os
import queue
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from ..errors import InputError
from ..types import U8

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
MAX_FPS = 1000.0
CRF = "18"
"""x264's constant quality: 18 is usually taken as visually lossless."""
_X264_OPTIONS = {
    "crf": CRF,
    "preset": "medium",
    # With its macroblock tree, what x264 (core 165) writes depends on what the process encoded before: of some 1500
    # encodings of one clip between other videos, 3 % had other bytes; without it, none of 788. It costs 7 % of size.
    "x264-params": "mbtree=0",
}
QUEUED_FRAMES = 16
"""Frames that may wait for the encoder, so that it never holds up a chunk of the decoder's nor hoards memory."""
_BT709 = 1  # ISO/IEC 23091-2 code point of primaries, transfer and matrix alike


def check_output_path(path: str | os.PathLike[str]) -> Path:
    """Find out before a long run whether a video could be written.

    Args:
        path: where the video shall go; an existing file will be replaced.

    Raises:
        InputError: unknown suffix, no such folder, no right to write there, or the path is a directory.
    """
    target = Path(path)
    problem = _find_output_problem(target)
    if problem:
        raise InputError(f"the output {target} cannot be written: {problem}")
    return target


def _find_output_problem(target: Path) -> str | None:
    if target.suffix.lower() not in SUFFIXES:
        return f"its suffix is {target.suffix!r}; name it with one of {', '.join(SUFFIXES)}"
    if target.is_dir():
        return f"it is a directory; name a file in it, such as {target / 'out.mp4'}"
    if not target.parent.is_dir():
        return f"the folder {target.parent} does not exist; create it: mkdir -p {target.parent}"
    try:
        with tempfile.TemporaryFile(dir=target.parent):  # the only test that sees read-only file systems and quotas
            return None
    except OSError as error:
        return f"{error}; choose a folder that you may write to"


class VideoWriter:
    """Encodes frames to H.264 (yuv420p, BT.709, limited range) in a thread of its own.

    Use it as a context manager. The file is written under a temporary name in the same folder. It gets its own name
    when the `with` block ends without an exception; otherwise it is removed, and what was there before stays.

    Args:
        path: mp4, m4v, mov or mkv file.
        fps: frames per second, 0 < fps <= 1000; the nearest fraction with a denominator up to 1001 is stored.
        width, height: size of every frame in pixels. An odd size is padded by its last row or column.

    Raises:
        InputError: the path cannot be written, or a number is out of range.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | Fraction, width: int, height: int) -> None:
        if not 0 < fps <= MAX_FPS or not math.isfinite(fps):
            raise InputError(f"fps of the output is {fps}; it must be above 0 and at most {MAX_FPS:g}")
        if width < 1 or height < 1:
            raise InputError(f"the output has {width} x {height} pixels; both must be at least 1")
        self.path = check_output_path(path)
        self._shape = (height, width, 3)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._part = self.path.with_name(f".{self.path.stem}.{secrets.token_hex(4)}.part{self.path.suffix}")
        self._queue: queue.Queue[Any] = queue.Queue(QUEUED_FRAMES)
        self._thread = threading.Thread(target=self._work, name="video encoder", daemon=True)
        self._failure: Exception | None = None
        self._abandoned = threading.Event()
        self._written = 0

    def __enter__(self) -> VideoWriter:
        """Start the encoder."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or remove it if the block failed."""
        finished = False
        try:
            if kind is None:
                self._finish()
                finished = True
        finally:
            if not finished:
                self._discard()

    def write(self, frame: U8) -> None:
        """Hand over the next frame; waits only while `QUEUED_FRAMES` of them are waiting already.

        Args:
            frame: uint8 [height, width, 3], RGB. It is copied.

        Raises:
            InputError: wrong shape or dtype, or the file could not be written (the disk is full, for example).
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
        self._queue.put(av.VideoFrame.from_ndarray(_pad_to_even(frame), format="rgb24"))
        self._written += 1

    def _finish(self) -> None:
        if not self._written:
            raise InputError(f"no frame was given for {self.path}; a video needs at least one")
        self._queue.put(None)
        self._thread.join()
        self._raise_failure()
        try:
            self._part.replace(self.path)
        except OSError as error:
            raise InputError(f"the output {self.path} cannot be written: {error}") from error

    def _discard(self) -> None:
        """End the thread at once and remove what it wrote."""
        self._abandoned.set()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._part.unlink(missing_ok=True)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            advice = "make room there or choose another folder"
            raise InputError(f"the output {self.path} cannot be written: {self._failure}; {advice}") from self._failure

    def _work(self) -> None:
        """Body of the thread. After a failure it goes on emptying the queue, so that nobody waits for a full one."""
        frames = self._take_frames()
        try:
            with av.open(str(self._part), "w", options=_container_options(self.path)) as container:
                self._encode(container, frames)
        except Exception as error:  # whatever it is, it is raised again in the caller's thread
            self._failure = error
            for _ in frames:
                pass

    def _take_frames(self) -> Iterator[Any]:
        """Yield frames until the end mark."""
        while (frame := self._queue.get()) is not None:
            if not self._abandoned.is_set():
                yield frame

    def _encode(self, container: Any, frames: Iterator[Any]) -> None:
        stream = _add_stream(container, self._rate, self._shape)
        reformatter = VideoReformatter()  # kept: it caches the conversion
        for number, frame in enumerate(frames):
            picture = _to_yuv(reformatter, frame)
            picture.pts, picture.time_base = number, 1 / self._rate
            container.mux(stream.encode(picture))
        if not self._abandoned.is_set():
            container.mux(stream.encode(None))


def _container_options(path: Path) -> dict[str, str]:
    """Put the index in front, so that a browser can start to play before it has the whole file."""
    return {} if path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}


def _add_stream(container: Any, rate: Fraction, shape: tuple[int, int, int]) -> Any:
    stream = container.add_stream("libx264", rate=rate, options=_X264_OPTIONS)
    height, width, _ = shape
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    return stream


def _to_yuv(reformatter: Any, frame: Any) -> Any:
    """Convert by the matrix that the file is tagged with; FFmpeg's own choice would be BT.601."""
    return reformatter.reformat(
        frame,
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )


def _pad_to_even(frame: U8) -> U8:
    """Repeat the last row or column of an odd size: yuv420p stores colour for 2 x 2 pixels."""
    height, width, _ = frame.shape
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)


@contextmanager
def open_writer(
    path: str | os.PathLike[str] | None, fps: float, width: int, height: int
) -> Iterator[Callable[[U8], None]]:
    """Open a `VideoWriter` where there is a path, and throw frames away where there is none.

    Args:
        path: see `VideoWriter`; None writes nothing.
        fps: see `VideoWriter`.
        width: see `VideoWriter`.
        height: see `VideoWriter`.

    Yields:
        A function that takes the next frame.

    Raises:
        InputError: see `VideoWriter`.
    """
    if path is None:
        yield lambda frame: None
        return
    with VideoWriter(path, fps, width, height) as writer:
        yield writer.write


def write_video(path: str | os.PathLike[str], frames: Iterable[U8], fps: float | Fraction) -> Path:
    """Write frames to a file; see `VideoWriter`.

    Args:
        path: mp4, m4v, mov or mkv file.
        frames: uint8 arrays [height, width, 3] in RGB, at least one, all of one size.
        fps: frames per second, 0 < fps <= 1000.

    Returns:
        The path.

    Raises:
        InputError: there is no frame, a frame has another size or dtype, or the file cannot be written.
    """
    target = check_output_path(path)
    iterator = iter(frames)
    head = list(islice(iterator, 1))
    if not head:
        raise InputError(f"no frame was given for {target}; a video needs at least one")
    shape = np.shape(head[0])
    if len(shape) != 3:
        raise InputError(f"frame 0 for {target} has shape {shape}, expected [height, width, 3]")
    with VideoWriter(target, fps, shape[1], shape[0]) as writer:
        for frame in chain(head, iterator):
            writer.write(frame)
    return target
