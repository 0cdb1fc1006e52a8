"""Attacks that once succeeded, sent to the real page and the real commands: refused within seconds and megabytes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dispose_rt.page import bounds
from dispose_rt.page.uploads import REFUSED
from tests.engines.small_directory import write_directory
from tests.every import every_item
from tests.media.test_picture_limits import bombs
from tests.page.client import Client
from tests.page.fake_runner import wait_until
from tests.page.test_browser import find_port

from . import materials

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

ROOT = Path(__file__).parents[2]
LONGEST_S = 5.0
"""The page and commands refuse within this time; starting a command counts."""
MOST_GROWTH_BYTES = 300e6
"""Of the page's peak memory, by one attack."""
MOST_BYTES = 500e6
"""Peak memory of a command that refuses."""
LIVE = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{name}\n"
CLOSED = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nfile://{path}\n#EXT-X-ENDLIST\n"
BOMBS = ("gif.gif", "big.tiff", "j2k.jp2", "huge.png", "exif.jpg")


def webp_bomb() -> bytes:
    """An animated WebP of 1.5 kB: 32 frames of one pixel each on a canvas of 4096 x 4096."""
    pixel = bytes.fromhex("2f00000000071011fd0f4444ff03")
    frame = bytes(12) + struct.pack("<I", 40) + b"VP8L" + struct.pack("<I", len(pixel)) + pixel
    canvas = bytes((0x12, 0, 0, 0)) + b"\xff\x0f\0" * 2
    parts = [(b"VP8X", canvas), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 32]
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(part)) + part for kind, part in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_directory(tmp_path_factory.mktemp("engines") / "64x64").folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is no film of its own, by name, and how each of them is refused."""
    private = materials.film(tmp_path_factory.mktemp("private") / "private.ts", materials.draw_film(9), "libx264")
    return {
        "live.m3u8": LIVE.format(name=private.name).encode(),
        "renamed.mp4": CLOSED.format(path=private).encode(),
        "list.mp4": f"ffconcat version 1.0\nfile '{private}'\n".encode(),
        "bomb.webp": webp_bomb(),
    }


FILM_REFUSED = {
    "live.m3u8": r"cannot be opened: it is a list of other files or addresses \(HLS\)",
    "renamed.mp4": r"cannot be opened: it is a list of other files or addresses \(HLS\)",
    "list.mp4": r"cannot be opened: it is a list of other files or addresses \(concat\)",
    "bomb.webp": r"has frames of 4096 x 4096 pixels, more than the \d+ that are accepted",
}

# --- the page ---

PAGE = """
import signal, sys
import dispose_rt
from dispose_rt import cli
from tests.page.fake_runner import FakeRunner

class Animator(FakeRunner):
    def __init__(self, engines, **options):
        super().__init__()
        signal.signal(signal.SIGUSR1, lambda *_: self.go_on.set())
    def __enter__(self): return self
    def __exit__(self, *error): pass

dispose_rt.Animator = Animator
sys.exit(cli.main(sys.argv[1:]))
"""


class Page:
    """The command `dispose-rt page` in a process of its own, but for the networks.

    A run waits for SIGUSR1.
    """

    def __init__(self, engines: Path, temporary: Path, log: Path) -> None:
        port = find_port()
        self.url, self.temporary, self._log = f"http://127.0.0.1:{port}/", temporary, log
        command = [sys.executable, "-c", PAGE, "page", "--engines", str(engines), "--port", str(port)]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=ROOT)

    def __enter__(self) -> Page:
        end_s = time.monotonic() + 120
        while self.url not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end_s, self.said
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    @property
    def folders(self) -> list[Path]:
        return [path for path in self.temporary.iterdir() if path.is_dir()]


def break_off_an_upload(page: Page) -> None:
    """Send a half of what was announced."""
    host, port = page.url.removeprefix("http://").strip("/").split(":")
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="half.mp4"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + bytes(500_000))


def attack(visitor: Client, page: Page, films: dict[str, bytes]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every attack by one request or two; it returns what must hold."""

    def check(name: str, content: bytes, words: str, is_film: bool) -> None:
        text = visitor.check(visitor.upload(name, content), is_film=is_film)
        assert re.search(words, text), text
        assert "This file cannot be used" in text
        assert str(page.temporary) not in text

    for name in BOMBS:
        yield (
            f"S4 {name}",
            lambda name=name: check(name, bombs()[name], "too large|more than|picture, which is not read", False),
        )
        if name in ("gif.gif", "big.tiff"):
            yield f"S4 {name} as a film", lambda name=name: check(name, bombs()[name], "video", True)
    for name, content in films.items():
        yield f"S2, S3, S5 {name}", lambda name=name, content=content: check(name, content, FILM_REFUSED[name], True)
    for path in ("/etc/passwd", "/no/such/file", f"file://{page.temporary}", str(page.folders[0] / "lock")):

        def name_path(path: str = path) -> None:
            refused = (400, json.dumps({"detail": REFUSED}, separators=(",", ":")))
            assert visitor.join(visitor.begin, [{"path": path}, *visitor.form[1:]]) == refused
            assert visitor.join(visitor.checks[1], [{"path": path}]) == refused
            assert visitor.get(f"gradio_api/file={path}") == (403, refused[1])

        yield f"S1 {path}", name_path

    def be_a_stranger() -> None:
        for host in ("evil.example.org", f"evil.example.org:{page.url.split(':')[-1].strip('/')}"):
            assert visitor.get("", Host=host)[0] == 421
            assert visitor.get("config", Host=host)[0] == 421
        for headers in ({"Origin": "http://evil.example.org"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = visitor.send_file("a.png", b"x", **headers)
            assert (answer.status_code, answer.json()["detail"]) == (403, "This request comes from another site.")
            assert not [name for name in answer.headers if name.startswith("access-control-")]

    yield "S7", be_a_stranger
    yield "S9 an upload that breaks off", lambda: break_off_an_upload(page)


def take_the_queue(attacker: Client, photo: bytes, film: bytes) -> None:
    """Begin a run, and join the queue 24 times, without a look at what comes of it."""
    attacker.prepare(attacker.upload("a.png", photo), attacker.upload("a.mkv", film), "silent")
    answers = [attacker.join(attacker.run, [], "silent" if number == 0 else f"silent{number}") for number in range(24)]
    assert [status for status, _ in answers].count(200) <= bounds.EVENTS_QUEUED
    assert {text for status, text in answers if status != 200} == {
        '{"detail":"There are too many jobs from your address in the queue."}'
    }


def queue_size(client: Client) -> int:
    return int(json.loads(client.get("gradio_api/queue/status")[1])["queue_size"])


def test_the_page_outlives_every_attack(engines: Path, films: dict[str, bytes], tmp_path: Path) -> None:
    """Each is refused in the expected words, in less than LONGEST_S and MOST_GROWTH_BYTES; then a visitor is served."""
    photo = materials.png(materials.draw_photo(64, 64))
    film = materials.film(tmp_path / "dance.mkv", materials.draw_film(2)).read_bytes()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with every_item() as every, Page(engines, temporary, tmp_path / "first.txt") as page:
        visitor, attacker = Client(page.url), Client(page.url, "127.0.0.2")

        def be_served() -> None:
            for name, content, is_film in (("good.png", photo, False), ("good.mkv", film, True)):
                text = visitor.check(visitor.upload(name, content), is_film=is_film)
                assert "process_completed" in text
                assert "cannot be used" not in text

        be_served()  # loads the decoders
        with every("S8"):
            take_the_queue(attacker, photo, film)
            joined_s = time.monotonic()
        for name, act in attack(visitor, page, films):
            with every(name):
                begin_s, before = time.monotonic(), page.peak_bytes
                act()
                seconds, growth = time.monotonic() - begin_s, page.peak_bytes - before
                print(f"{name}: {seconds:.2f} s, {growth / 1e6:.0f} MB")
                assert seconds < LONGEST_S
                assert growth < MOST_GROWTH_BYTES
        with every("afterwards"):
            be_served()
        with every("S8, the queue is empty again"):
            wait_until(lambda: queue_size(visitor) == 0, 30)
            print(f"S8: {time.monotonic() - joined_s:.1f} s")
            assert time.monotonic() - joined_s < 30
            page.process.send_signal(signal.SIGUSR1)
            visitor.prepare(visitor.upload("good.png", photo), visitor.upload("good.mkv", film), "good")
            assert visitor.join(visitor.run, [], "good")[0] == 200
            result = re.search(r"/gradio_api/file=([^\"]*good[^\"]*\.mp4)", visitor.listen("good"))
            assert result is not None
        with every("the log"):
            assert "Traceback" not in page.said
            print(f"peak: {page.peak_bytes / 1e6:.0f} MB")
        with every("S9 kill -9"):
            [left] = page.folders
            assert len([path for path in left.rglob("*") if path.is_file()]) > 10
            page.process.kill()
            page.process.wait()
            with Page(engines, temporary, tmp_path / "second.txt") as second:
                [folder] = second.folders
                assert folder != left
                second.process.send_signal(signal.SIGTERM)
                assert second.process.wait(30) == 128 + signal.SIGTERM
            assert second.folders == []
