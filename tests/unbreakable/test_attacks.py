"""Attacks that once succeeded, sent to the real page and the real commands: refused within seconds and megabytes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from dispose_rt_export.builds import records

from dispose_rt.engines.manifest import write_manifest
from dispose_rt.media import write_video
from dispose_rt.page import bounds
from dispose_rt.page.uploads import REFUSED
from dispose_rt.system.files import link_or_copy
from tests.engines.damaged_directory import link_copy, signed
from tests.engines.small_directory import write_directory
from tests.engines.test_preflight import write_compiled
from tests.every import every_item
from tests.media.test_picture_limits import bombs, png
from tests.page.client import Client
from tests.page.fake_runner import wait_until
from tests.page.test_browser import find_port

from . import materials

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

ROOT = Path(__file__).parents[2]
LONGEST_S = 5.0
"""Processor time within which the page and the commands refuse, in seconds; starting a command counts. A client gives
up after 30 s of the clock."""
END_S = 2.0
"""Time within which a command ends that is asked to while it reads."""
QUEUE_S = 60.0
"""Time after which silent jobs have left the queue: 10 s, and what a busy machine adds."""
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
    def processor_s(self) -> float:
        """Processor time of all its threads so far."""
        times = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

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

    pictures = bombs()
    words = "too large|more than|picture, which is not read|it is damaged"
    for name in BOMBS:
        yield f"S4 {name}", lambda name=name: check(name, pictures[name], words, False)
        if name in ("gif.gif", "big.tiff"):
            yield f"S4 {name} as a film", lambda name=name: check(name, pictures[name], "video", True)
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
                begin_s, before = page.processor_s, page.peak_bytes
                act()
                seconds, growth = page.processor_s - begin_s, page.peak_bytes - before
                print(f"{name}: {seconds:.2f} s, {growth / 1e6:.0f} MB")
                assert seconds < LONGEST_S
                assert growth < MOST_GROWTH_BYTES
        with every("afterwards"):
            be_served()
        with every("S8, the queue is empty again"):
            wait_until(lambda: queue_size(visitor) == 0, QUEUE_S)
            print(f"S8: {time.monotonic() - joined_s:.1f} s")
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


# --- the commands ---

WATCH = """
import os, sys
child = os.fork()
if not child:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, file=file)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command as a child of a small process: one of ours would count with our own peak memory."""
PROGRAM = Path(sys.executable).with_name("dispose-rt")


class Command:
    """A command at work. Its exit status, output, processor time and peak memory are read at its end."""

    def __init__(self, folder: Path, *words: object, before: str = "") -> None:
        self._usage = folder / f"usage{len(list(folder.glob('usage*')))}"
        self._usage.touch()
        watched = [sys.executable, "-S", "-c", WATCH, self._usage, PROGRAM, *words]
        line = ["sh", "-c", f'{before} exec "$@"', "sh", *map(str, watched)]
        self._process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True
        )

    def end(self) -> tuple[int, str, str]:
        try:
            out, err = self._process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.seconds, self.peak_bytes = map(float, self._usage.read_text().split())
        return self._process.returncode, out, err


def animate(folder: Path, engines: Path, **changes: Path) -> list[object]:
    """Words of the command, with other files than the good ones."""
    files = {"reference": folder / "photo.png", "video": folder / "dance.mkv", "output": folder / "out.mp4", **changes}
    return ["animate", "--engines", engines, *(word for name, path in files.items() for word in (f"--{name}", path))]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a good photo and a good film."""
    materials.picture(tmp_path / "photo.png", materials.draw_photo(64, 64))
    materials.film(tmp_path / "dance.mkv", materials.draw_film(2))
    return tmp_path


def test_commands_refuse_what_the_page_refuses(engines: Path, films: dict[str, bytes], media: Path) -> None:
    """Bombs and lists end with exit status 1, a lack of memory with 3: bounded, explained, and nothing is written."""
    wanted: dict[str, tuple[str, bytes, str]] = {
        name: ("video", content, FILM_REFUSED[name]) for name, content in films.items() if name != "list.mp4"
    }
    pictures = bombs()
    wanted |= {name: ("reference", pictures[name], "too large|more than|not read") for name in ("gif.gif", "big.tiff")}
    commands = {}
    for name, (kind, content, _) in wanted.items():
        path = materials.put(media, name, content)
        commands[name] = Command(media, *animate(media, engines, **{kind: path}))
    large = materials.put(media, "large.png", png(10_000, 10_000))
    limited = Command(media, *animate(media, engines, reference=large), before="ulimit -v 900000;")
    with every_item() as every:
        for name, command in commands.items():
            code, out, err = command.end()
            print(f"{name}: {command.seconds:.2f} s, {command.peak_bytes / 1e6:.0f} MB")
            with every(name):
                assert (code, out) == (1, "")
                assert re.search(wanted[name][2], err), err
                assert err.startswith("dispose-rt: error: ")
                assert command.seconds < LONGEST_S
                assert command.peak_bytes < MOST_BYTES
        with every("a photo within every bound, where `ulimit -v` leaves no room for it"):
            code, out, err = limited.end()
            assert (code, out) == (3, "")
            assert "too little free memory; close other programs, raise the limit if there is one (`ulimit -v`" in err
    assert not (media / "out.mp4").exists()


def read_bytes(process: int, path: Path) -> int:
    """How far a process has read a file."""
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            if entry.readlink() == path:
                return int(Path(f"/proc/{process}/fdinfo/{entry.name}").read_text().split()[1])
        except OSError:  # closed in the meantime
            continue
    return 0


def test_signals_end_a_command_that_reads(engines: Path, media: Path) -> None:
    """A film with a hole of 256 GB, in which FFmpeg looks for the next picture in a single call."""
    film = media / "dance.mkv"
    os.truncate(film, 1 << 38)
    before = sorted(media.iterdir())
    command = list(map(str, [PROGRAM, *animate(media, engines)]))
    with every_item() as every:
        for number in (signal.SIGINT, signal.SIGTERM):
            with every(number.name), subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                try:
                    wait_until(lambda process=process: read_bytes(process.pid, film) > 20_000_000, 60)
                    process.send_signal(number)
                    begin_s = time.monotonic()
                    _, err = process.communicate(timeout=30)
                    seconds = time.monotonic() - begin_s
                finally:
                    process.kill()
                print(f"{number.name}: {seconds:.2f} s")
                assert (process.returncode, err) == (128 + number, "\ndispose-rt: interrupted\n")
                assert seconds < END_S
    assert sorted(media.iterdir()) == before


INJECTION = "2.0'; touch X; echo '"
LOADER = "open(__import__('os').environ['MARKER'], 'a').write(__name__); raise ImportError('a stand-in')"
"""In place of PyTorch, which loads a directory's native code: shows that it was asked to."""


def test_descriptions_of_hostile_directories_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell command as a version and as a folder's name, escape sequences as a hash, and code that no one signed."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("DISPOSE_RT_TRUST", raising=False)
    folder = tmp_path / f"e{INJECTION}"
    hostile = link_copy(write_directory(folder).folder, folder / "hostile")
    signed("versions", "torch", value=INJECTION)(hostile)
    signed("networks", "unet", "files", 0, "sha256", value="\x1b[2J\x9b31m\x07" * 8)(hostile)
    (link_copy(folder, folder / "missing") / "unet.onnx").unlink()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "loaders"))
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    (tmp_path / "loaders").mkdir()
    (tmp_path / "loaders" / "torch.py").write_text(LOADER)
    for backend, targets in (("aotinductor", ("cpu",)), ("tensorrt_rtx", ("sm_89",))):
        write_compiled(tmp_path / backend, backend, targets=targets)
    with every_item() as every:
        for name, path in (("doctor", hostile), ("inspect", hostile), ("doctor", folder / "missing")):
            with every(name, path.name):
                code, out, err = Command(tmp_path, name, path).end()
                said = out + err
                assert code == 1
                assert said.replace("\n", "").isprintable()
                commands = re.findall("dispose-rt build .*", said)
                assert commands
                for command in commands:
                    assert "touch" not in shlex.split(command)
                    assert [word for word in shlex.split(command) if INJECTION in word] == [str(path)]
        for backend in ("aotinductor", "tensorrt_rtx"):
            with every(backend):
                code, out, err = Command(tmp_path, "doctor", tmp_path / backend).end()
                assert code == 1
                assert re.search("(?s)native code.*it is not signed.*dispose-rt trust", out + err)
        with every("nothing has run"):
            assert not (tmp_path / "marker").exists()
            assert not (tmp_path / "X").exists()
        with every("what would have run it, had it been trusted"):
            Command(tmp_path, "doctor", "--trust", tmp_path / "aotinductor").end()
            assert (tmp_path / "marker").exists()


def test_a_build_refuses_an_archive_that_announces_a_terabyte(golden_checkpoint: Path, tmp_path: Path) -> None:
    """Compressed entries are loaded, so what they announce is compared with the free memory, before all work."""
    weights = tmp_path / "weights"
    shutil.copytree(golden_checkpoint, weights, copy_function=os.link)
    path = weights / "DisPose.pth"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        max(archive.infolist(), key=lambda entry: entry.file_size).file_size = 1 << 40
    command = Command(tmp_path, "build", "--weights", weights, "--output", "e", "--size", "64x64")
    code, _, err = command.end()
    print(f"{command.seconds:.2f} s, {command.peak_bytes / 1e6:.0f} MB")
    assert code == 3, err
    assert re.search(r"the entries of .*DisPose\.pth are compressed, and take 1\.\d TB of memory", err), err
    assert command.seconds < 4 * LONGEST_S  # PyTorch is loaded
    assert command.peak_bytes < 1.5e9
    assert not (tmp_path / "e").exists()


def test_links_under_foreseeable_names_are_not_followed(tmp_path: Path) -> None:
    """What writes beside its target never touches a link that lies in wait, and leaves it where it is."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    engines, built = tmp_path / "e", tmp_path / "built"
    written = write_directory(engines)
    built.write_bytes(b"engine")
    (engines / "linked.onnx").symlink_to(mine)
    (engines / ".build").mkdir()
    targets = ("e/manifest.json", "e/unet.onnx", "e/linked.onnx", "e/.build/unet.json", "out.mp4", "out.gif")
    links = [tmp_path / f"{name}{suffix}" for name in targets for suffix in (".part", ".tmp", "~")]
    links += [link.with_name(f".{link.name}") for link in links]
    for link in links:
        link.symlink_to(mine)
    write_manifest(written)
    for name in ("unet.onnx", "linked.onnx"):
        link_or_copy(built, engines / name)
        assert (engines / name).samefile(built)
        link_or_copy(built, engines / name)  # the same file once more leaves no part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "hardlink_to", refuse_to_link)
        link_or_copy(tmp_path / "mine", engines / "unet.onnx")
    assert (engines / "unet.onnx").read_bytes() == b"precious"
    assert not (engines / "unet.onnx").samefile(mine)
    records.write_record(engines, "unet", next(iter(written.networks.values())), 1.0)
    for name in ("out.mp4", "out.gif"):
        write_video(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), 8)
    assert mine.read_bytes() == b"precious"
    assert built.read_bytes() == b"engine"
    assert all(link.is_symlink() for link in links)
    left = [path for path in tmp_path.rglob("*.part") if path not in links]
    assert left == []


def refuse_to_link(*_: object) -> None:
    raise OSError("no hard links here")
