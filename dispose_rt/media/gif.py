"""Writes animated GIFs: one palette of 256 colours for the whole clip, made and used by FFmpeg's filters."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.filter import Graph

TICKS_PER_S = 100
"""A GIF's clock."""
SHORTEST_TICKS = 2
"""What browsers show at its own speed; a shorter delay becomes a tenth of a second there."""
_log = logging.getLogger("dispose_rt")


def write_gif(
    path: Path, frames: Iterator[tuple[Any, Fraction | None]], rate: Fraction, is_abandoned: Callable[[], bool]
) -> None:
    """Write a GIF that plays for ever.

    The palette can be chosen only when all frames were seen. They wait on the disk, losslessly compressed (FFV1, about
    one byte per pixel and frame), in a nameless file in the same folder. So memory stays flat: the palette's histogram
    takes tens of megabytes for camera pictures.

    Args:
        path: file to write.
        frames: RGB frames, with their times in seconds where those are uneven.
        rate: frames per second where times are even; else the length of the last picture.
        is_abandoned: looked at between frames; True ends the work.

    Raises:
        OSError: the disk is full, for example.
    """
    with tempfile.TemporaryFile(dir=path.parent) as file:
        spool = _Spool(file)
        try:
            palette, end_s, skipped = _spool(spool, frames, rate)
        except av.FFmpegError as error:
            raise spool.failure or error from error
        if palette is None or is_abandoned():
            return
        if skipped:
            _log.info("a gif shows at most 50 pictures per second: %d pictures were left out", skipped)
        spool.seek(0)
        _write(path, spool, palette, end_s, is_abandoned)


class _Spool:
    """A file for PyAV that remembers why it could not be written; FFmpeg forgets."""

    def __init__(self, file: Any) -> None:
        self.failure: OSError | None = None
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self._file = file

    def write(self, data: bytes) -> int:
        if self.failure is not None:  # FFmpeg goes on; PyAV would print a second error on the terminal
            return len(data)
        try:
            written: int = self._file.write(data)
            self._file.flush()
        except OSError as error:
            self.failure = error
            raise
        return written


def _spool(spool: Any, frames: Iterator[tuple[Any, Fraction | None]], rate: Fraction) -> tuple[Any, Fraction, int]:
    """Keep all frames on the disk; return the palette, the end of the last picture and how many found no place."""
    last, skipped, end_s = -SHORTEST_TICKS, 0, Fraction(0)
    graph: Any = None
    stream: Any = None
    with av.open(spool, "w", format="matroska") as container:
        for number, (frame, time_s) in enumerate(frames):
            shown_s = number / rate if time_s is None else time_s
            end_s = shown_s + 1 / rate
            ticks = round(shown_s * TICKS_PER_S)
            if ticks - last < SHORTEST_TICKS:
                skipped += 1
                continue
            last = ticks
            frame.pts, frame.time_base = ticks, Fraction(1, TICKS_PER_S)
            if graph is None:
                graph = _make_graph(frame.width, frame.height)
                stream = _add_spool_stream(container, frame)
            graph.push(frame)
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        if graph is None:
            return None, end_s, skipped
        container.mux(stream.encode(None))
    graph.push(None)
    return graph.pull(), end_s, skipped


def _make_graph(width: int, height: int) -> Any:
    """Frames to their palette."""
    graph: Any = Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, TICKS_PER_S))
    graph.link_nodes(source, graph.add("palettegen"), graph.add("buffersink")).configure()
    return graph


def _add_spool_stream(container: Any, frame: Any) -> Any:
    stream = container.add_stream("ffv1", rate=TICKS_PER_S)
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "bgr0"
    return stream


def _write(path: Path, spool: Any, palette: Any, end_s: Fraction, is_abandoned: Callable[[], bool]) -> None:
    with av.open(spool) as source:
        stamps = [packet.pts for packet in source.demux(video=0) if packet.size]
        last_ticks = max(SHORTEST_TICKS, round(end_s * TICKS_PER_S) - round(max(stamps) * TICKS_PER_S / 1000))
    spool.seek(0)
    with (
        av.open(spool) as source,
        av.open(f"file:{path}", "w", "gif", options={"final_delay": str(last_ticks)}) as container,
    ):
        video = source.streams.video[0]
        graph, pictures, sink = _make_painter(video.width, video.height, palette)
        stream = container.add_stream("gif", rate=TICKS_PER_S)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "pal8"
        stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        for frame in source.decode(video):
            if is_abandoned():
                return
            frame.pts = round(frame.pts * frame.time_base * TICKS_PER_S)
            frame.time_base = Fraction(1, TICKS_PER_S)
            pictures.push(frame)
            container.mux([packet for painted in _pull(sink) for packet in stream.encode(painted)])
        pictures.push(None)
        container.mux([packet for painted in _pull(sink) for packet in stream.encode(painted)])
        container.mux(stream.encode(None))
        del graph  # not before: its filters do not keep it alive


def _make_painter(width: int, height: int, palette: Any) -> tuple[Any, Any, Any]:
    """A graph, where frames go in, and where they come out in the palette's colours."""
    graph: Any = Graph()
    tick = Fraction(1, TICKS_PER_S)
    pictures = graph.add_buffer(width=width, height=height, format="bgr0", time_base=tick)
    colours = graph.add_buffer(width=16, height=16, format=palette.format.name, time_base=tick)
    # Error diffusion, FFmpeg's default, takes six times as long, and its noise crawls where pictures stand still
    painter = graph.add("paletteuse", "dither=bayer:bayer_scale=3")
    sink = graph.add("buffersink")
    pictures.link_to(painter, 0, 0)
    colours.link_to(painter, 0, 1)
    painter.link_to(sink)
    graph.configure()
    palette.pts, palette.time_base = 0, tick
    colours.push(palette)
    colours.push(None)
    return graph, pictures, sink


def _pull(sink: Any) -> Iterator[Any]:
    while True:
        try:
            yield sink.pull()
        except (av.BlockingIOError, av.EOFError):
            return
