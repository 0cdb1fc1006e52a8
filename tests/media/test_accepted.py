"""Which files FFmpeg opens at all, how large they may be, and that reading one can end at any time."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import pytest

from dispose_rt.errors import Cancelled, InputError
from dispose_rt.media import VideoWriter, accepted, containers, interruptible, open_video, write_video
from dispose_rt.media.parts import Choice
from dispose_rt.media.reference_frames import KeptFrames
from dispose_rt.media.sound import has_sound
from tests.every import each, every_item

from .conftest import ClipMaker, noise_frames, numbered_frames
from .test_sound import make_source

LISTS = {
    "live.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{name}\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nfile://{path}\n#EXT-X-ENDLIST\n",
    "up.ts": "\ufeff\n#EXTM3U\n#EXTINF:1.0,\n../{folder}/{name}\n#EXT-X-ENDLIST\n",
    "data.m3u8": "#EXTM3U\n#EXTINF:1.0,\ndata:video/mp4;base64,AAAA\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile '{path}'\n",
    "film.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{path}</BaseURL></MPD>',
    "film.ism": '<?xml version="1.0"?>\n<SmoothStreamingMedia MajorVersion="2"/>',
    "call.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "radio.pls": "[playlist]\nFile1=http://127.0.0.1/a.mp4\n",
    "lavfi.mp4": "movie={path}\n",
    "song.cue": 'FILE "{path}" WAVE\n',
    "a.idx": "# VobSub index file, v7\nid: en, index: 0\n",
}


def write_lists(folder: Path, clip: Path) -> list[Path]:
    for name, text in LISTS.items():
        filled = text.format(path=clip, name=clip.name, folder=clip.parent.name)
        (folder / name).write_text(filled, encoding="utf-8")
    return [folder / name for name in LISTS]


def refer_outside(clip: Path, path: Path) -> bytes:
    """An mp4 whose pictures lie in another file: a Macintosh alias instead of "in this file" (QuickTime, 'dref')."""
    data = bytearray(clip.read_bytes())
    name = bytes(path)
    name += bytes(len(name) % 2)
    alias = bytes(150) + struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
    at = data.index(b"url \0\0\0\x01") - 4
    data[at : at + 12] = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        where = data.rindex(box, 0, at) - 4
        data[where : where + 4] = struct.pack(">I", int.from_bytes(data[where : where + 4], "big") + len(alias))
    return bytes(data)


def test_what_leads_to_other_files_is_refused(
    make_clip: ClipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the driving video and as the source of sound; quickly, and without a word of FFmpeg's on the terminal."""
    clip = make_source(tmp_path / "private.ts", length_s=0.5)
    opened: list[Any] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and is_watching:
            opened.append(arguments[0])

    is_watching = True
    sys.addaudithook(watch)  # it stays, and is quiet from the end of this test on
    (tmp_path / "%d.png").write_bytes(b"1")
    outside = tmp_path / "outside.mov"
    outside.write_bytes(refer_outside(make_clip("plain.mp4", numbered_frames(3)), clip))
    with every_item() as every:
        for path in (*write_lists(tmp_path, clip), tmp_path / "%d.png", outside):
            with every(path.name):
                begin_s = time.monotonic()
                message = "no frame that can be decoded" if path is outside else "cannot be opened: .*an mp4, mov, mkv"
                with pytest.raises(InputError, match=message):
                    open_video(path)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert not has_sound(path)
                assert time.monotonic() - begin_s < 2
    is_watching = False
    assert str(clip) not in map(str, opened)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(PermissionError, match="names another file"):
        accepted._refuse("file:///etc/passwd", 0, {})


@each(
    name__codec=[
        *[("a.mp4", "libx264"), ("a.mov", "mjpeg"), ("a.mkv", "ffv1"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")],
        *[("a.ts", "libx264"), ("a.mpg", "mpeg2video"), ("a.flv", "flv"), ("a.wmv", "msmpeg4"), ("a.ogv", "libvpx")],
        *[("a.h264", "libx264"), ("a.gif", "gif"), ("a.3gp", "mpeg4"), ("a.mxf", "mpeg2video")],
    ],
)
def test_contents_decide_and_not_the_name(make_clip: ClipMaker, tmp_path: Path, name: str, codec: str) -> None:
    frames = numbered_frames(5)
    clip = write_video(tmp_path / name, frames, 25) if codec == "gif" else make_clip(name, frames, 25, codec)
    other = clip.rename(tmp_path / "list.m3u8")
    assert len(list(open_video(other).frames())) == 5


# --- reading ends when it should ---


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file delivers one byte in half a second."""
    read = accepted._OneFile.read

    def crawl(self: Any, size: int) -> bytes:
        time.sleep(0.5)
        return read(self, 1)

    monkeypatch.setattr(accepted._OneFile, "read", crawl)


def hang(path: Path, beat: Callable[[], None]) -> None:
    time.sleep(4)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda after_s: signal.setitimer(signal.ITIMER_REAL, after_s)  # type: ignore[misc]
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_reading_ends_within_two_seconds(
    make_clip: ClipMaker, alarm: Callable[[float], None], slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Ctrl-C or a cancel event, and of a file that delivers nothing: while FFmpeg opens it, reads it, and hangs."""
    clip = make_clip("clip.mp4", numbered_frames(3))
    cases: dict[str, Callable[[threading.Event], Any]] = {
        "open": lambda cancel: open_video(clip, cancel=cancel),
        "stamps": lambda cancel: containers.read_stamps(clip, cancel),
        "frames": lambda cancel: next(iter(containers.read_frames(clip, Choice(1), cancel))),
        "sound": lambda cancel: has_sound(clip, cancel),
        "hang": lambda cancel: containers._call(hang, clip, cancel),
    }
    with every_item() as every:
        for name, read in cases.items():
            for error in (KeyboardInterrupt, Cancelled, InputError):
                if name != "hang" and error is not (KeyboardInterrupt if name == "open" else Cancelled):
                    continue
                with every(name, error.__name__):
                    cancel = threading.Event()
                    timer = threading.Timer(0.2, cancel.set)
                    begin_s = time.monotonic()
                    if error is Cancelled:
                        timer.start()
                    elif error is KeyboardInterrupt:
                        alarm(0.2)
                    else:
                        monkeypatch.setattr(interruptible, "STALL_S", 0.3)
                    with pytest.raises(error):
                        read(cancel)
                    assert time.monotonic() - begin_s < 2


def test_a_pipe_can_be_left(make_clip: ClipMaker, tmp_path: Path, alarm: Callable[[float], None]) -> None:
    """What has become a pipe since it was checked blocks the calls into FFmpeg themselves: while it is opened, read."""
    whole = make_clip("clip.ts", noise_frames(20)).read_bytes()
    with every_item() as every:
        for sent, error in ((b"", KeyboardInterrupt), (whole[: len(whole) // 2], Cancelled)):
            with every(len(sent), error.__name__):
                pipe = tmp_path / f"{error.__name__}.ts"
                os.mkfifo(pipe)
                kept: list[int] = []
                if sent:
                    threading.Thread(target=_send, args=(pipe, sent, kept)).start()
                cancel, begin_s = threading.Event(), time.monotonic()
                if error is Cancelled:
                    threading.Timer(0.3, cancel.set).start()
                else:
                    alarm(0.3)
                with pytest.raises(error):
                    containers.probe_file(pipe, True, cancel)
                assert time.monotonic() - begin_s < 2
                for one in kept or [os.open(pipe, os.O_RDWR)]:  # lets the reader go
                    os.close(one)


def _send(pipe: Path, content: bytes, kept: list[int]) -> None:
    kept.append(os.open(pipe, os.O_WRONLY))
    with suppress(BrokenPipeError):
        os.write(kept[0], content)


def test_films_that_take_too_much_memory_are_refused(
    make_clip: ClipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames that a decoder keeps are read from the headers, in front of the film and inside."""
    frames = numbered_frames(20)
    monkeypatch.setattr(containers, "MAX_DECODING_BYTES", 16 * 96 * 64 * 2)  # 11 frames of H.264 at 2 bytes a pixel
    with every_item() as every:
        for suffix, count in itertools.product(("mp4", "ts"), (4, 16)):
            with every(suffix, count):
                options = {"x264-params": f"ref={count}:bframes=0", "preset": "ultrafast"}
                clip = make_clip(f"clip.{suffix}", frames, options=options)
                if count < 16:
                    assert len(list(open_video(clip, 24).frames())) == 20
                    continue
                with pytest.raises(InputError, match="keep 16 frames of 96 x 64 pixels, which takes 0 MB"):
                    open_video(clip)
        for suffix, count in (("mp4", 5), ("ts", 3)):
            with every("hevc", suffix, count):
                options = {"x265-params": f"ref={count}:bframes=0:log-level=error", "preset": "ultrafast"}
                clip = make_clip(f"hevc.{suffix}", frames, codec="libx265", options=options)
                with av.open(str(clip)) as container:
                    kept = KeptFrames("hevc", container.streams.video[0].codec_context.extradata)
                assert kept.count == count
        with every("inside"):
            few, many = (
                make_clip(f"{count}.h264", frames, options={"x264-params": f"ref={count}:bframes=0"}).read_bytes()
                for count in (1, 16)
            )
            (tmp_path / "joined.h264").write_bytes(few + many)
            video = open_video(tmp_path / "joined.h264", 24)
            with pytest.raises(InputError, match="keep 1[6-9] frames"):
                list(video.frames())
        with every("waiting"), containers._open(tmp_path / "joined.h264", lambda: None) as (container, stream):
            memory = containers._DecoderMemory(tmp_path / "joined.h264", stream)
            packet = next(container.demux(stream))
            memory.feed(packet, 10)
            with pytest.raises(InputError, match="keep 12 frames"):  # ten wait to be shown, and one is on its way
                memory.feed(packet, 11)


def test_an_abandoned_output_waits_for_no_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "in.mkv", length_s=1)
    begin_s = 0.0
    reading = threading.Event()
    read = accepted._OneFile.read

    def crawl(self: Any, size: int) -> bytes:
        if threading.current_thread().name == "video encoder":
            reading.set()
            time.sleep(0.5)
            return read(self, 1)
        return read(self, size)

    monkeypatch.setattr(accepted._OneFile, "read", crawl)
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", 20, 96, 64, source) as out:  # noqa: PT012
        out.write(numbered_frames(1)[0])
        assert reading.wait(30)
        begin_s = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - begin_s < 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_frames_are_decoded_when_they_are_asked_for(make_clip: ClipMaker) -> None:
    """The thread never works ahead, ends with its reader, and hands on an error of its own."""
    clip = make_clip("clip.mp4", noise_frames(20))
    before = threading.active_count()
    frames = open_video(clip).frames()
    next(frames)
    assert threading.active_count() == before + 1
    del frames
    assert threading.active_count() == before
    taken: list[int] = []

    def work(pulse: Any) -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number
            pulse.beat()
        raise ZeroDivisionError

    numbers = interruptible.in_thread(work, "the file")
    assert next(numbers) == 0
    assert next(numbers) == 1
    time.sleep(0.05)
    assert taken == [0, 1]
    with pytest.raises(ZeroDivisionError):
        list(numbers)
