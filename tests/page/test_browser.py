"""The page in a real browser: animate, wait in the queue, cancel, leave, and read what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from dispose_rt import pictures
from dispose_rt.media import open_video, write_video
from dispose_rt.page import serve_page
from dispose_rt.page import server as page_server
from dispose_rt.puppet import Stance, dance, draw_puppet, place_joints

from .fake_runner import FakeRunner, wait_until

pytestmark = pytest.mark.timeout(240)

LIMIT_MS = 60_000
FRAMES, STRIDE = 6, 2


def find_browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        message = "no Chromium here; install it, for example with: apt-get install chromium"
        if os.environ.get("DISPOSE_RT_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    pictures.save_png(folder / "photo.png", draw_puppet(place_joints(Stance(), 0.5), 256, 128))
    moves = dance(FRAMES, 0.75, stance=Stance(centre_unit=0.53, top_unit=0.16, height_unit=0.68), period=24)
    write_video(folder / "dance.mp4", [draw_puppet(joints, 160, 120) for joints in moves], 24)
    (folder / "broken.mp4").write_bytes(b"this is no video" * 40)
    return folder


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """The command `dispose-rt page`, in a process of its own."""

    def __init__(self, engines: Path, folder: Path) -> None:
        port = find_port()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.log = folder / "log.txt"
        command = [str(Path(sys.executable).with_name("dispose-rt")), "page", "--engines", str(engines)]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self.url = f"http://127.0.0.1:{port}/"

    def wait_until_up(self) -> None:
        end_s = time.monotonic() + 120
        while self.url not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.1)

    def kept(self) -> list[str]:
        return [path.name for path in self.temporary.rglob("*.mp4")]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(toy_engines: Callable[[int, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    find_browser()  # before anything is started
    started = Server(toy_engines(128, 192), tmp_path_factory.mktemp("server"))
    try:
        started.wait_until_up()
        yield started
        assert started.end() == 128 + signal.SIGTERM
        # ONNX Runtime leaves a small file of its own
        assert [path.name for path in started.temporary.iterdir() if path.is_dir()] == []
        assert "Traceback" not in started.log.read_text()
    finally:
        started.process.kill()
        started.process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root, as in a container, cannot use the sandbox; the page is our own
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield opened
        finally:
            opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(url)` opens the page as a new visitor, without a way to any other machine."""
    contexts, outside = [], []

    def open_page(url: str, width: int = 1280, scheme: str = "light") -> Any:
        def guard(route: Any) -> None:
            if route.request.url.startswith(url):
                route.continue_()
            else:
                outside.append(route.request.url)
                route.abort()

        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(LIMIT_MS)
        context.route(re.compile("^(?!data:|blob:)"), guard)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#animate")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert outside == []


def upload(page: Any, media: Path, video: str = "dance.mp4") -> None:
    page.set_input_files("#reference input[type=file]", media / "photo.png")
    page.set_input_files("#video input[type=file]", media / video)
    page.wait_for_selector("#reference img")
    page.wait_for_selector("#video video", state="attached")


def fill(page: Any, **numbers: int) -> None:
    for name, value in numbers.items():
        page.fill(f"#{name} input", str(value))


def test_a_visitor_makes_a_video_and_takes_it_home(
    visit: Callable[..., Any], server: Server, media: Path, tmp_path: Path
) -> None:
    page = visit(server.url)
    page.click("#animate")
    page.wait_for_selector("text=There is no picture and no video yet.")
    assert page.is_enabled("#animate")
    assert "nobody's likeness without that person's consent" in page.inner_text("body")
    upload(page, media)
    page.get_by_label("Motion fields").uncheck()  # half of the run's time
    fill(page, steps=3, stride=STRIDE)
    page.click("#animate")
    page.wait_for_selector(".dr-running .dr-now [role=progressbar]")
    assert page.is_disabled("#animate")
    page.wait_for_selector(".dr-done")
    page.wait_for_function("['driving', 'result'].every(id => document.querySelector(`#${id} video`)?.readyState >= 2)")
    for name, width, height in (("desktop", 1280, 900), ("phone", 390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    served = tmp_path / "served.mp4"
    served.write_bytes(page.request.get(page.get_attribute("#result video", "src")).body())
    with page.expect_download() as caught:
        page.click("#download")
    taken = tmp_path / caught.value.suggested_filename
    caught.value.save_as(taken)
    assert re.fullmatch(r"photo-dance-\w+\.mp4", taken.name)
    assert taken.read_bytes() == served.read_bytes()
    frames = list(open_video(served).frames(1))
    assert [frame.shape for frame in frames] == [(192, 128, 3)] * (FRAMES // STRIDE)
    page.click("#play-both")
    page.wait_for_function("document.querySelector('#result video').currentTime > 0")
    page.context.close()
    end_s = time.monotonic() + 30
    while taken.name in server.kept():  # a visitor's results go with the visitor
        assert time.monotonic() < end_s, server.kept()
        time.sleep(0.1)


def test_bad_input_is_explained(visit: Callable[..., Any], server: Server, media: Path) -> None:
    page = visit(server.url, 390, "dark")
    upload(page, media, "broken.mp4")
    page.wait_for_selector("text=This file cannot be used.")
    page.click("#animate")
    page.wait_for_selector("text=This did not work.")
    message = page.inner_text(".dr-message")
    assert message.startswith("the video broken.mp4 cannot be opened")
    assert "pass an mp4" in message
    page.click("#video button[aria-label=Clear]")
    upload(page, media)
    fill(page, steps=0)
    page.click("#animate")
    page.wait_for_selector("text=steps is 0; it must lie in 1..1000")


def test_visitors_take_turns(
    visit: Callable[..., Any],
    toy_engines: Callable[[int, int], Path],
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One animation at a time, a queue with an end, and no visitor who cancels or leaves holds it up."""
    monkeypatch.setattr(page_server, "LONGEST_QUEUE", 1)
    runner, stop, urls = FakeRunner(), threading.Event(), Queue[str]()
    named = {"port": find_port(), "announce": urls.put, "stop": stop}
    serving = threading.Thread(target=serve_page, args=(runner, toy_engines(128, 192)), kwargs=named)
    serving.start()
    try:
        url = urls.get(timeout=120)
        first, second, third = visit(url), visit(url), visit(url)
        for page in (first, second, third):
            upload(page, media)
        first.click("#animate")
        first.wait_for_selector(".dr-running .dr-now")
        second.click("#animate")
        second.wait_for_selector("text=queue: 1/1")  # its place, as Gradio shows it
        assert second.evaluate("document.querySelector('#status [data-testid=status-tracker]').clientHeight") > 10
        assert second.is_disabled("#animate")
        third.click("#animate")
        third.wait_for_selector("text=/queue is full|busy/i")
        third.wait_for_selector("#animate:enabled")
        second.click("#cancel")  # while it waits
        second.wait_for_selector(".dr-cancelled")
        third.click("#animate")
        third.wait_for_selector("text=queue: 1/1")
        third.context.close()  # leaves while it waits
        wait_until(lambda: _try_to_queue(second), 60)
        first.click("#cancel")  # while it runs
        first.wait_for_selector(".dr-cancelled")
        second.wait_for_selector(".dr-running .dr-now")  # the queue went on, without the third
        assert len(runner.calls) == 2
        first.click("#animate")
        first.wait_for_selector("text=queue: 1/1")
        second.context.close()  # leaves while it runs
        first.wait_for_selector(".dr-running .dr-now")
        runner.go_on.set()
        first.wait_for_selector(".dr-done")
        assert (len(runner.calls), runner.most_at_work) == (3, 1)
        runner.go_on.clear()
        first.click("#animate")
        first.wait_for_selector(".dr-running .dr-now")
    finally:
        stop.set()  # while one is at work
        serving.join(60)
    assert not serving.is_alive()
    assert runner.at_work == 0


def _try_to_queue(page: Any) -> bool:
    """Press Animate; False where the queue is still full, or has not shown the place yet.

    The words of an earlier refusal may still be there when the press is accepted. The next press finds the button
    disabled then, which `page.click` would wait out and the browser's own click ignores.
    """
    page.evaluate("document.querySelector('#animate').click()")
    page.wait_for_selector("text=/queue: 1.1|queue is full|busy/i")
    return bool(page.query_selector("text=queue: 1/1"))
