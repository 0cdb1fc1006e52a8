"""Sound: a tone that begins at a known time of the source begins at that time of the output."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dispose_rt.errors import InputError, InputWarning
from dispose_rt.media import VideoWriter, open_video, sound, write_video
from tests.every import each

from .conftest import numbered_frames

FPS = 20
AUDIO_FRAME_S = 1024 / 44100
"""What the sound may be early or late."""
TONE_S = 0.7
"""When the tone begins, counted from the first picture."""


@pytest.fixture(autouse=True)
def _warnings_fail() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        yield


def make_source(
    path: Path,
    audio: str | Sequence[str] = "aac",
    video: str = "libx264",
    picture_start_s: float = 0,
    sound_start_s: float = 0,
    length_s: float = 2,
    rate: int = 44100,
    channels: int = 1,
    tone_s: float = TONE_S,
    default: int | None = None,
) -> Path:
    """A clip whose pictures and sound begin at given times; the tone begins `tone_s` after the first picture.

    With several audio codecs the n-th stream has its tone n / 10 s later.
    """
    codecs = [audio] if isinstance(audio, str) else list(audio)
    rate = 48000 if "opus" in codecs[0] else rate
    layout = "mono" if channels == 1 else "stereo" if channels == 2 else "5.1"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(video, rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
        tick = Fraction(1, FPS if path.suffix == ".avi" else 1000)
        pictures.codec_context.time_base = tick
        sounds = []
        for number, codec in enumerate(codecs):
            stream = container.add_stream(codec, rate=rate)
            stream.codec_context.layout = layout
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else 0
            sounds.append(stream)
        packets: list[Any] = []
        for number, pixels in enumerate(numbered_frames(int(length_s * FPS))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round((picture_start_s + number / FPS) / tick), tick
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        for number, stream in enumerate(sounds):
            times = sound_start_s - picture_start_s + np.arange(int(length_s * rate)) / rate
            wave = np.where(times >= tone_s + number / 10, 0.5 * np.sin(2 * np.pi * 1000 * times), 0).astype(np.float32)
            for at in range(0, len(wave), 1024):
                piece = np.repeat(wave[None, at : at + 1024], channels, axis=0)
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(sound_start_s * rate) + at
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def read_sound(path: Path) -> tuple[str, float, float, float]:
    """Codec, begin of the tone, begin and end of the sound, in seconds since the first picture."""
    with av.open(str(path)) as container:
        pictures = [frame.time for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        [stream] = container.streams.audio
        frames = list(container.decode(stream))
        rate = stream.codec_context.sample_rate
        codec = stream.codec_context.codec.canonical_name
    tone = None
    for frame in frames:
        samples = frame.to_ndarray().astype(np.float64)
        if not frame.format.is_planar:
            samples = samples.reshape(-1, frame.layout.nb_channels).T
        loud = np.flatnonzero(np.abs(samples[0]) / (32768 if "s16" in frame.format.name else 1) > 0.2)
        if tone is None and len(loud):
            tone = frame.time + loud[0] / rate
    assert tone is not None
    return (
        codec,
        tone - pictures[0],
        frames[0].time - pictures[0],
        frames[-1].time + frames[-1].samples / rate - pictures[0],
    )


def animate(source: Path, output: Path, start_s: float = 0) -> Path:
    """What a run does with the source's pictures and sound."""
    video = open_video(source).part(start_s)
    if not video.is_variable:
        return write_video(output, video.frames(), video.fps, audio=source, audio_start_s=video.start_s)
    frames, times = zip(*video.timed_frames(), strict=True)
    return write_video(output, frames, video.fps, audio=source, times_s=times, audio_start_s=video.start_s)


SOURCES: dict[str, dict[str, Any]] = {
    "phone.mp4": {},
    "stereo.mp4": {"channels": 2, "rate": 48000},
    "early.mp4": {"picture_start_s": 0.35},
    "late.mp4": {"sound_start_s": 0.4},
    "browser.webm": {"audio": "libopus", "video": "libvpx"},
    "offset.webm": {"audio": "libopus", "video": "libvpx", "picture_start_s": 3.25, "sound_start_s": 3.0},
    "offset.mkv": {"audio": "flac", "picture_start_s": 5, "sound_start_s": 4.5},
    "late.mkv": {"audio": "aac", "picture_start_s": 5, "sound_start_s": 5.5},
    "cut.mov": {"audio": "aac", "picture_start_s": 0.5, "sound_start_s": 0.25},
    "camera.mov": {"audio": "pcm_s16le", "rate": 48000},
    "player.avi": {"audio": "mp3", "video": "mpeg4"},
    "broadcast.ts": {"audio": "mp2", "picture_start_s": 10, "sound_start_s": 9.8, "rate": 48000},
    "aac.ts": {"audio": "aac", "picture_start_s": 10, "sound_start_s": 9.8},
    "surround.mkv": {"audio": "ac3", "channels": 6, "rate": 48000},
}


PAIRS = [(name, suffix) for name in SOURCES for suffix in (".mp4", ".webm")]
PAIRS += [("phone.mp4", ".mkv"), ("camera.mov", ".mov"), ("offset.mkv", ".mkv"), ("browser.webm", ".mkv")]
PAIRS += [("aac.ts", ".mkv"), ("player.avi", ".mov"), ("early.mp4", ".m4v")]


@each(name__suffix=PAIRS)
def test_the_tone_begins_when_it_should(tmp_path: Path, name: str, suffix: str) -> None:
    source = make_source(tmp_path / name, **SOURCES[name])
    heard = read_sound(source)
    codec, tone_s, begin_s, end_s = read_sound(animate(source, tmp_path / f"out{suffix}"))
    assert abs(heard[1] - TONE_S) < 0.03
    assert abs(tone_s - heard[1]) < 0.003
    assert -0.001 <= begin_s < max(heard[2], 0) + 2 * AUDIO_FRAME_S
    assert abs(end_s - min(heard[3], 2)) < 2 * AUDIO_FRAME_S
    assert codec == (heard[0] if heard[0] in sound.KEPT_CODECS[suffix] else "opus" if suffix == ".webm" else "aac")
    assert suffix != ".mp4" or codec in ("aac", "mp3")  # what every browser plays in it


@each(name__suffix=[("phone.mp4", ".mp4"), ("offset.webm", ".mp4"), ("late.mkv", ".mkv"), ("broadcast.ts", ".mov")])
def test_the_sound_of_a_part_begins_with_its_pictures(tmp_path: Path, name: str, suffix: str) -> None:
    source = make_source(tmp_path / name, **SOURCES[name])
    heard = read_sound(source)
    start_s = float(open_video(source).part(0.31).start_s)
    assert 0.3 < start_s < 0.4
    codec, tone_s, begin_s, _ = read_sound(animate(source, tmp_path / f"out{suffix}", 0.31))
    assert abs(tone_s - (heard[1] - start_s)) < 0.003
    assert -0.001 <= begin_s < max(heard[2] - start_s, 0) + 2 * AUDIO_FRAME_S
    assert codec == (heard[0] if heard[0] in sound.KEPT_CODECS[suffix] else "aac")
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="audio_start_s is"):
            write_video(tmp_path / "bad.mp4", numbered_frames(2), FPS, audio=source, audio_start_s=bad)


def test_copied_sound_has_the_bytes_of_the_source(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mp4")

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(animate(source, tmp_path / "out.mp4")) == packets(source)[1:]  # the first one holds no sample


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("count", [1, 7, 23])
def test_the_sound_ends_with_the_last_picture(tmp_path: Path, suffix: str, count: int) -> None:
    source = make_source(tmp_path / "in.mp4", tone_s=0)
    output = write_video(tmp_path / f"out{suffix}", numbered_frames(count), FPS, audio=source)
    assert abs(read_sound(output)[3] - count / FPS) < 2 * AUDIO_FRAME_S
    with av.open(str(output)) as container:
        assert abs(container.duration / av.time_base - count / FPS) < 2 * AUDIO_FRAME_S


def test_a_short_sound_is_no_reason_to_end(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mp4", length_s=1)
    output = write_video(tmp_path / "out.mp4", numbered_frames(60), FPS, audio=source)
    assert len(list(open_video(output).frames())) == 60
    assert abs(read_sound(output)[3] - 1) < 2 * AUDIO_FRAME_S


def test_uneven_pictures_keep_their_sound(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mp4")
    times = [0, 0.04, 0.3, 0.31, 0.9, 1.5]
    output = write_video(tmp_path / "out.mp4", numbered_frames(6), 4, audio=source, times_s=times)
    assert abs(read_sound(output)[1] - TONE_S) < AUDIO_FRAME_S
    assert abs(read_sound(output)[3] - 1.75) < 2 * AUDIO_FRAME_S


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_stream_is_taken(tmp_path: Path, default: int) -> None:
    source = make_source(tmp_path / "in.mkv", audio=["aac", "aac"], default=default)
    tone_s = read_sound(animate(source, tmp_path / "out.mp4"))[1]
    assert abs(tone_s - TONE_S - default / 10) < AUDIO_FRAME_S


def test_sound_and_pictures_lie_side_by_side(tmp_path: Path) -> None:
    """A player that reads a long file in order must not have to look for the sound at its end."""
    source = make_source(tmp_path / "in.mp4", length_s=8, rate=48000)
    output = animate(source, tmp_path / "out.mp4")
    with av.open(str(output)) as container:
        at = {"video": 0.0, "audio": 0.0}
        for packet in container.demux():
            if packet.size:
                at[packet.stream.type] = float(packet.dts * packet.time_base)
                assert abs(at["video"] - at["audio"]) < 1.2


def test_a_silent_source_makes_a_silent_video(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", numbered_frames(4), FPS)
    output = write_video(tmp_path / "out.mp4", numbered_frames(4), FPS, audio=source)
    assert output.read_bytes() == source.read_bytes()


def test_a_gif_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(tmp_path / "in.mp4", length_s=0.5)
    with caplog.at_level("INFO", "dispose_rt"):
        animate(source, tmp_path / "out.gif")
    assert "a gif has none" in caplog.text


def test_a_song_without_pictures(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mp4")
    with av.open(str(source)) as container, av.open(str(tmp_path / "song.m4a"), "w") as song:
        stream = song.add_stream_from_template(container.streams.audio[0])
        for packet in container.demux(audio=0):
            if packet.size:
                packet.stream = stream
                song.mux(packet)
    output = write_video(tmp_path / "out.mp4", numbered_frames(40), FPS, audio=tmp_path / "song.m4a")
    assert abs(read_sound(output)[1] - TONE_S) < 2 * AUDIO_FRAME_S


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.mp4 does not exist"):
        VideoWriter(tmp_path / "out.mp4", FPS, 96, 64, audio=tmp_path / "no.mp4")


# --- damage costs the sound, not the video ---


def damage_sound(path: Path, first: float, last: float, value: int | None) -> None:
    """Overwrite the sound's packets between two parts of the clip; None takes noise."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at, size in places[int(first * len(places)) : int(last * len(places))]:
        data[at : at + size] = rng.bytes(size) if value is None else bytes([value]) * size
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_sound_that_cannot_be_decoded_is_left_out(tmp_path: Path, suffix: str) -> None:
    source = make_source(tmp_path / "in.mp4", video="mpeg4")
    damage_sound(source, 0, 1, 255)
    with pytest.warns(InputWarning, match=r"sound of .*in\.mp4 is damaged and left out"):
        output = animate(source, tmp_path / f"out{suffix}")
    with av.open(str(output)) as container:
        assert not container.streams.audio
    assert len(list(open_video(output).frames())) == 40


def test_damage_in_the_middle_is_silence(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mp4", tone_s=0)
    damage_sound(source, 0.4, 0.6, 255)
    with pytest.warns(InputWarning, match=r"sound of .*in\.mp4: \d+ pieces of its sound are damaged"):
        output = animate(source, tmp_path / "out.webm")
    assert len(list(open_video(output).frames())) == 40
    assert abs(read_sound(output)[3] - 2) < 2 * AUDIO_FRAME_S


def test_a_sound_that_the_container_refuses_costs_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "in.mp4")
    keep = sound.Sound._keep

    def scramble(self: Any, suffix: str) -> Iterator[Any]:
        for number, (time_s, packet) in enumerate(keep(self, suffix)):
            if number == 20:
                packet.dts -= 10_000
            yield time_s, packet

    monkeypatch.setattr(sound.Sound, "_keep", scramble)
    with pytest.warns(InputWarning, match="left out from some point on"):
        output = animate(source, tmp_path / "out.mp4")
    assert len(list(open_video(output).frames())) == 40
