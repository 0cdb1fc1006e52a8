"""What a written file says about itself, and that nothing else in it changes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dispose_rt.errors import InputError
from dispose_rt.media import SUFFIXES, VideoWriter, open_video, read_metadata, write_video
from tests.every import each, every_item

from .conftest import noise_frames

COMMENT = "a line\nanother one, ü 🜁, " + "and more of it " * 40
XMP = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x/><?xpacket end="r"?>'
METADATA = {"comment": COMMENT, "title": "a title", "xmp": XMP}


def contents(path: Path) -> list[tuple[bytes, int | None]]:
    """Compressed pictures and sound, and when they are shown; pixels of a gif, whose first packet holds its header."""
    if path.suffix == ".gif":
        return [(frame.tobytes(), round(100 * float(time_s))) for frame, time_s in open_video(path).timed_frames()]
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.pts) for packet in container.demux() if packet.size]


def write_tone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        tone = container.add_stream("aac", rate=48_000, layout="mono")
        for pixels in noise_frames(4, 64, 64):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        wave = np.sin(np.arange(24_000) * 0.05).astype(np.float32)[None] * np.float32(0.3)
        samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 48_000, 0
        container.mux(tone.encode(samples))
        container.mux(tone.encode(None))
    return path


def test_every_format_keeps_metadata_pictures_and_sound(tmp_path: Path) -> None:
    frames, tone = noise_frames(4), write_tone(tmp_path / "tone.mp4")
    with every_item() as every:
        for suffix in SUFFIXES:
            with every(suffix):
                plain = write_video(tmp_path / f"plain{suffix}", frames, 8, audio=tone)
                path = write_video(tmp_path / f"out{suffix}", frames, 8, audio=tone, metadata=METADATA)
                found, before = read_metadata(path), read_metadata(plain)
                assert found["comment"] == COMMENT
                assert "comment" not in before
                assert found.get("title") == (None if suffix == ".gif" else "a title")
                assert len(contents(path)) >= len(frames)
                assert contents(path) == contents(plain)
                if suffix in (".mp4", ".m4v", ".mov"):  # where FFmpeg's own reader looks for it
                    with av.open(str(path), options={"export_xmp": "1"}) as container:
                        assert container.metadata["xmp"] == XMP
    picture = Image.open(tmp_path / "out.gif")
    assert picture.info["comment"].decode() == COMMENT
    assert (picture.n_frames, picture.info["loop"]) == (4, 0)
    assert b"\x21\xff\x0bXMP DataXMP" + XMP.encode() + b"\x01\xff\xfe" in (tmp_path / "out.gif").read_bytes()


@each(metadata=[{"comment": ""}, {"": "a"}, {"comment": 3}, {"title": "a\0b"}, {"title": "\ud800"}])
def test_metadata_that_no_container_holds_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(InputError, match="pass strings that are not empty"):
        VideoWriter("out.mp4", 8, 64, 64, metadata=metadata)
