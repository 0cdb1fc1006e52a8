"""Carries a source's sound into an output: as it is where the container takes it, else encoded again."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.stream import Disposition
from numpy.typing import NDArray

from ..errors import InputError, InputWarning
from .accepted import open_container
from .containers import find_start
from .interruptible import call_in_thread

KEPT_CODECS = {
    ".mp4": ("aac", "mp3"),
    ".m4v": ("aac", "alac"),
    ".mov": ("aac", "ac3", "alac", "eac3", "mp3", "pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_s24le"),
    ".mkv": ("aac", "ac3", "alac", "dts", "eac3", "flac", "mp2", "mp3", "opus", "pcm_s16le", "pcm_s24le", "vorbis"),
    ".webm": ("opus", "vorbis"),
}
"""What each container, and most players of it, take; everything else is encoded again. Browsers play mp4 files, and of
AC-3, E-AC-3 and ALAC in them most browsers play nothing."""
BIT_RATE = 192_000
PIECE_SAMPLES = 1024
PROBED_PACKETS = 100
"""If none of so many packets can be decoded, the sound is taken for damaged."""
SLACK_S = Fraction(1, 50)
"""Time stamps may be this much off before silence is filled in or samples are dropped."""
_OPUS_LEAD_S = Fraction(8, 1000)  # Opus streams begin 6.5 ms early; the container's header takes that back
_REFUSALS = (av.error.InvalidDataError, av.error.ArgumentError, av.error.PatchWelcomeError, av.error.EOFError)


class Sound:
    """The sound of one file on its way into an output container that has a stream for it.

    Time 0 is the time stamp of the source's first picture, or `start_s` later. Sound before it is left out, a later
    begin stays late.

    Args:
        source: file that was found to have sound.
        container: output container, before its header is written.
        suffix: of the output, in lower case.
        beat: is called whenever a piece of the source is read; what it raises ends the work.
        start_s: time of the output's first picture, in seconds from the source's first one.
    """

    def __init__(
        self, source: Path, container: Any, suffix: str, beat: Callable[[], None], start_s: Fraction = Fraction(0)
    ) -> None:
        self.problem: str | None = None
        self._container = container
        self._opened = ExitStack()
        self._source, self._input = self._opened.enter_context(_open_sound(source, beat))
        self._start_s = _find_zero(source, self._input, beat) + start_s
        self._end_s: Fraction | None = None
        self._damaged = 0
        self._waiting: tuple[Fraction, Any] | None = None
        if self._input.codec_context.codec.canonical_name in KEPT_CODECS[suffix]:
            self._stream = container.add_stream_from_template(self._input)
            self._packets = self._keep(suffix)
        else:
            self._stream = _add_encoder(container, suffix, self._input)
            self._packets = self._encode()

    def mux_until(self, time_s: Fraction) -> None:
        """Hand over all packets before a time, so that sound and pictures lie side by side in the file."""
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = packet
            if packet is None or packet[0] >= time_s:
                return
            self._waiting = None
            self._mux(packet[1])

    def finish(self, end_s: Fraction) -> None:
        """Hand over all that is left before the end of the last picture."""
        self._end_s = end_s
        self.mux_until(Fraction(2**40))
        self.close()
        if self._damaged and not self.problem:
            self.problem = f"{self._damaged} pieces of its sound are damaged and left out"

    def close(self) -> None:
        """Close the source."""
        self._opened.close()

    def _mux(self, packet: Any) -> None:
        try:
            self._container.mux(packet)
        except _REFUSALS as error:
            self.problem = f"its sound is left out from some point on, as the output refuses it ({error})"
            self._packets = iter(())

    def _read(self) -> Iterator[tuple[Fraction | None, Any]]:
        """Packets in their order, with their times; what cannot be read ends the sound."""
        try:
            for packet in self._source.demux(self._input):
                if packet.size and packet.is_corrupt:
                    self._damaged += 1
                elif packet.size:
                    stamp = packet.pts if packet.pts is not None else packet.dts
                    yield stamp * Fraction(packet.time_base) - self._start_s if stamp is not None else None, packet
        except (av.FFmpegError, OSError) as error:
            self.problem = f"its sound is damaged and ends early ({error})"

    def _keep(self, suffix: str) -> Iterator[tuple[Fraction, Any]]:
        """Shift packets to the output's time, and leave out those that lie outside of it."""
        last_dts = None
        lead_s = _OPUS_LEAD_S if suffix in (".mkv", ".webm") and "opus" in self._input.codec_context.name else 0
        for time_s, packet in self._read():
            if time_s is None or time_s < -lead_s:
                continue
            if self._end_s is not None and time_s >= self._end_s:
                return
            shift = round(self._start_s / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.dts - shift if packet.dts is not None else packet.pts
            if last_dts is not None and packet.dts <= last_dts:
                self._damaged += 1
                continue
            last_dts = packet.dts
            packet.stream = self._stream
            yield time_s, packet

    def _encode(self) -> Iterator[tuple[Fraction, Any]]:
        context, done = self._stream.codec_context, 0
        for samples in self._aligned_samples(context.sample_rate, context.layout):
            if self._end_s is not None:
                samples = samples[:, : max(0, int(self._end_s * context.sample_rate) - done)]  # noqa: PLW2901
            if not samples.shape[1]:
                break
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=context.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = context.sample_rate, done, Fraction(1, context.sample_rate)
            done += samples.shape[1]
            yield from _timed(self._stream.encode(frame))
        if done:
            yield from _timed(self._stream.encode(None))

    def _aligned_samples(self, rate: int, layout: Any) -> Iterator[NDArray[np.float32]]:
        """Decoded samples from time 0 on, in pieces: silence where there are none, and none twice."""
        done, slack = 0, int(SLACK_S * rate)
        for time_s, samples in self._decode(rate, layout):
            gap = round(time_s * rate) - done if time_s is not None else 0
            if gap > slack or (gap > 0 and not done):
                for at in range(0, gap, PIECE_SAMPLES):
                    yield np.zeros((samples.shape[0], min(PIECE_SAMPLES, gap - at)), np.float32)
                done += gap
            elif gap < -slack or (gap < 0 and not done):
                samples = samples[:, -gap:]  # noqa: PLW2901
            for at in range(0, samples.shape[1], PIECE_SAMPLES):
                yield samples[:, at : at + PIECE_SAMPLES]
            done += samples.shape[1]

    def _decode(self, rate: int, layout: Any) -> Iterator[tuple[Fraction | None, NDArray[np.float32]]]:
        resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        for _, packet in chain(self._read(), [(None, None)]):
            try:
                frames = self._input.decode(packet)
                parts = [part for frame in frames for part in resampler.resample(frame)]
                if packet is None:
                    parts += resampler.resample(None)
            except (av.FFmpegError, ValueError):
                self._damaged += 1
                continue
            for part in parts:
                tick = Fraction(part.time_base or Fraction(1, rate))  # the resampler may hand a frame through as it is
                time_s = part.pts * tick - self._start_s if part.pts is not None else None
                yield time_s, part.to_ndarray().astype(np.float32, copy=False)


def has_sound(source: Path, cancel: threading.Event | None = None) -> bool:
    """Whether a file has sound that can be decoded.

    Args:
        source: an existing file. One that FFmpeg cannot open, or must not, has none.
        cancel: ends the reading once it is set.

    Raises:
        Cancelled: `cancel` was set.

    Warns:
        InputWarning: it has sound, but not one piece of it can be decoded.
    """
    is_there, problem = call_in_thread(lambda pulse: _probe(source, pulse.beat), f"the sound of {source}", cancel)
    if problem:
        warnings.warn(f"the sound of {source} is damaged and left out: {problem}", InputWarning, stacklevel=3)
    return is_there


def _probe(source: Path, beat: Callable[[], None]) -> tuple[bool, str]:
    """Whether there is sound, and what is wrong with it."""
    try:
        with _open_sound(source, beat) as (container, stream):
            if stream is None:
                return False, ""
            for packet in islice(container.demux(stream), PROBED_PACKETS):
                with suppress(av.FFmpegError):
                    if stream.decode(packet):
                        return True, ""
        return False, "not one piece of it can be decoded"
    except (av.FFmpegError, InputError, OSError, ValueError) as error:
        return False, str(error)


@contextmanager
def _open_sound(source: Path, beat: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
    """Open a file and find its default audio stream, or the first one, or None."""
    with open_container(source, beat) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        chosen = [stream for stream in streams if stream.disposition & Disposition.default] or streams
        yield container, chosen[0] if chosen else None


def _find_zero(source: Path, stream: Any, beat: Callable[[], None]) -> Fraction:
    """Time stamp of the first picture; of a file without pictures, of the sound itself."""
    try:
        start = find_start(source, beat)
    except InputError:
        start = None
    if start is None and stream.start_time is not None:
        start = stream.start_time * Fraction(stream.time_base)
    return start or Fraction(0)


def _add_encoder(container: Any, suffix: str, source: Any) -> Any:
    rate = source.codec_context.sample_rate
    if suffix == ".webm":
        stream = container.add_stream("libopus", rate=48000)
    else:
        stream = container.add_stream("aac", rate=rate if rate in (44100, 48000) else 48000)
    stream.codec_context.layout = "mono" if source.codec_context.channels == 1 else "stereo"
    stream.codec_context.bit_rate = BIT_RATE
    return stream


def _timed(packets: Any) -> Iterator[tuple[Fraction, Any]]:
    return ((packet.pts * Fraction(packet.time_base), packet) for packet in packets)
