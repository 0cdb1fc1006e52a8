"""Attacks on the page are refused, and it goes on serving: files of the host, strangers, bounds, silent visitors."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from dispose_rt.errors import InputError
from dispose_rt.page import bounds, guard, layout, serve_page, server, visits
from dispose_rt.page.access import Access, check_root_path
from dispose_rt.page.bounds import Bounds, name_address
from dispose_rt.page.guard import Guard
from dispose_rt.page.uploads import REFUSED, Uploads
from dispose_rt.page.visits import Visits
from tests.engines.small_directory import write_directory
from tests.every import each, every_item

from .client import META, Client
from .fake_runner import FakeRunner, wait_until
from .test_browser import find_port

TOKEN = "correct horse".replace(" ", "-")


class Page(Client):
    """A client of the page that this process serves."""

    def __init__(self, url: str, runner: FakeRunner) -> None:
        super().__init__(url)
        self.runner = runner
        self.port = urlsplit(url).port
        self.folder = Path(os.environ["GRADIO_TEMP_DIR"])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    engines = tmp_path_factory.mktemp("engines") / "64x64"
    write_directory(engines)
    runner, stop, urls = FakeRunner(), threading.Event(), Queue[str]()
    named = {"port": find_port(), "announce": urls.put, "stop": stop, "root_path": "/dispose"}
    serving = threading.Thread(target=serve_page, args=(runner, engines), kwargs=named)
    serving.start()
    try:
        yield Page(urls.get(timeout=120), runner)
    finally:
        stop.set()
        serving.join(60)
    assert not serving.is_alive()


def test_no_request_reaches_a_file_that_was_not_uploaded(
    page: Page, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Every way to name a file of the host is refused in the same words, whether there is such a file or not."""
    upload = Path(page.upload("a photo.png", b"no picture"))
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    inside = page.folder / "0123"
    inside.mkdir()
    (inside / "link.png").symlink_to(secret)
    os.link(secret, inside / "hard.png")
    os.mkfifo(inside / "fifo.png")
    (inside / "folder").mkdir()
    (page.folder / "linked").symlink_to(tmp_path)
    (page.folder / "part").write_bytes(b"an upload that goes on")
    paths: list[Any] = [
        *map(
            str, (secret, secret.with_name("missing.png"), "/etc/passwd", "/proc/self/fd/0", "/dev/zero", page.folder)
        ),
        *(str(inside / name) for name in ("link.png", "hard.png", "fifo.png", "folder", "missing.png", "..")),
        *map(str, (page.folder / "linked" / secret.name, page.folder / "part", page.folder.parent / "lock")),
        f"{inside}/../{upload.parent.name}/{upload.name}",
        f"{upload.parent}/../../../../../../../../etc/passwd",
        f"{upload.parent}/./{upload.name}",
        f"{upload}\0.png",
        f"file://{upload}",
        "http://127.0.0.1:9/a.png",
        "https://example.org/a.png",
        "secret.png",
        "",
        None,
        7,
        ["a"],
        {"path": str(secret)},
    ]
    shapes: dict[str, Callable[[Any], Any]] = {
        "bare": lambda path: {"path": path},
        "with meta": lambda path: {"path": path, "meta": META, "url": "http://127.0.0.1:9/a"},
        "deep": lambda path: [{"video": {"path": path}}],
    }
    refused = (400, json.dumps({"detail": REFUSED}, separators=(",", ":")))
    with every_item() as every:
        for path in paths:
            for shape, make in shapes.items():
                for position in range(len(page.form) if path == paths[0] else 3):
                    with every(path, shape, position):
                        data = [*page.form[:position], make(path), *page.form[position + 1 :]]
                        assert page.join(page.begin, data) == refused
            with every(path, "check"):
                for check in page.checks:
                    assert page.join(check, [{"path": path}]) == refused
            with every(path, "beside the data"):
                body = {
                    "fn_index": page.begin["id"],
                    "data": page.form,
                    "session_hash": "abc",
                    "event_data": {"path": path},
                }
                assert page.post("queue/join", body) == refused
                assert page.post("run/predict", {**body, "data": [{"path": path}]}) == refused
            if isinstance(path, str) and "\0" not in path:
                with every(path, "file="):
                    address = urllib.request.quote(path)
                    assert page.get(f"gradio_api/file={address}") == (403, refused[1])
        with every("encodings"):
            text = json.dumps({"fn_index": page.begin["id"], "data": [{"path": str(secret)}], "session_hash": "a"})
            for encoding in ("utf-16", "utf-32", "utf-8-sig"):
                assert page.post("queue/join", text.encode(encoding)) == refused
            assert page.post("queue/join", b'{"data": [{"path": "/a", "p\\u0061th": "/b"}]}') == refused
        with every("what is no request"):
            for body in (b"", b"[]", b"[" * 100_000, b'{"session_hash": "../a"}', b"\xff"):
                assert page.post("queue/join", body) == (400, '{"detail":"The request cannot be read."}')
        whole = {"fn_index": page.begin["id"], "data": page.form, "session_hash": "abc", "trigger_id": 1}
        numbers = [number for number, value in enumerate(page.form) if type(value) in (int, float)]
        choices = next(number for number, value in enumerate(page.form) if isinstance(value, list))
        unseen = next(one["id"] for one in json.loads(page.get("config")[1])["dependencies"] if not one["backend_fn"])
        damages: list[tuple[Any, ...]] = [
            *(("fn_index", value) for value in (None, -1, 10**6, 1.0, "0", True, unseen)),
            *(("data", value) for value in (None, [], {}, page.form[1:], [*page.form, None])),
            *(("session_hash", None), ("trigger_id", "1"), ("event_data", float("nan")), ("event_data", float("inf"))),
            *(("event_data", 2**63), ("event_data", 10**400), ("event_data", "\ud800"), ("\ud800", 1)),
            *(("data", numbers[0], value) for value in ("1", [], {}, True, float("nan"))),
            *(("data", choices, value) for value in (0.0, [None], ["other"], {})),
            *(("data", 0, value) for value in (0, "", [], {}, {"meta": {"_type": "gradio.FileData"}})),
            *(("data", 1, {"path": str(upload), "meta": value}) for value in (None, {}, {"_type": "x"})),
            ("data", 1, {"path": str(upload), "meta": {"_type": "gradio.FileData"}, "size": "1"}),
        ]
        for *keys, value in damages:
            with every("not what the page sends", keys, f"{value!a:.40}"):
                body = copy.deepcopy(whole)
                (body if len(keys) == 1 else body[keys[0]])[keys[-1]] = value
                for route in ("queue/join", "run/predict"):
                    assert page.post(route, body) == (400, '{"detail":"The request cannot be read."}')
        with every("a session that has asked for nothing"):
            assert '"session_not_found":true' in page.get("gradio_api/queue/data?session_hash=unknown")[1]
            assert '"session_not_found":true' in page.get("gradio_api/queue/data?session_hash=../x")[1]
        with every("an upload that breaks off"), socket.create_connection(("127.0.0.1", page.port)) as connection:
            head = "POST /dispose/gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
            kind = "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            connection.sendall((head + kind).encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        for route in (
            "proxy=http://127.0.0.1:9/",
            "deep_link",
            "vibe-code/",
            "openapi.json",
            "runs",
            "stream/a/b/c/d.ts",
        ):
            with every(route):
                assert page.get(f"gradio_api/{route}")[0] == 404
        for route in ("component_server", "call/begin", "process_recording", "vibe-edit", "api/predict", "stream/a"):
            with every(route):
                assert page.post(route, {})[0] == 404
    assert page.get(f"gradio_api/file={urllib.request.quote(str(upload))}") == (200, "no picture")
    assert page.join(page.checks[0], [{"path": str(upload), "meta": META}])[0] == 200
    status, text = page.get("")
    assert status == 200
    assert str(Path.cwd()) not in text
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err + caplog.text  # visitors write nothing into the page's log


def test_jobs_end_whose_visitor_does_not_listen(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address gets a part of the queue, and keeps it for as long as it listens."""
    monkeypatch.setattr(visits, "UNHEARD_S", 1.5)
    photo, video = (page.upload(name, b"x") for name in ("a.png", "b.mp4"))
    before = len(page.runner.calls)
    page.prepare(photo, video, "loud")
    assert page.join(page.run, [], "loud")[0] == 200
    with httpx.stream("GET", f"{page.url}gradio_api/queue/data?session_hash=loud", trust_env=False, timeout=30):
        wait_until(lambda: page.runner.at_work == 1)
        joined = [page.join(page.run, [], f"silent{number}") for number in range(24)]
        assert [status for status, _ in joined].count(200) == bounds.EVENTS_QUEUED - 1
        assert {text for status, text in joined if status != 200} == {
            '{"detail":"There are too many jobs from your address in the queue."}'
        }
        wait_until(lambda: json.loads(page.get("gradio_api/queue/status")[1])["queue_size"] == 0)
        assert page.runner.at_work == 1  # somebody listens to this one
    wait_until(lambda: page.runner.at_work == 0)
    page.prepare(photo, video, "quiet")
    assert page.join(page.run, [], "quiet")[0] == 200
    wait_until(lambda: len(page.runner.calls) == before + 2)
    wait_until(lambda: page.runner.at_work == 0)  # nobody has opened a stream of messages for it


def test_uploads_are_checked_one_at_a_time(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and films of all visitors queue for the same place, beside the runs."""
    at_work, most, go_on = [0], [0], threading.Event()

    def check(path: str) -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        assert go_on.wait(30)
        at_work[0] -= 1

    monkeypatch.setattr(layout, "read_image", check)
    monkeypatch.setattr(layout, "open_video", check)
    files = [{"path": page.upload(name, b"x"), "meta": META} for name in ("a.png", "b.mp4")]
    for number in range(4):
        assert page.join(page.checks[number % 2], [files[number % 2]], f"checked{number}")[0] == 200
    wait_until(lambda: at_work[0] == 1)
    wait_until(lambda: json.loads(page.get("gradio_api/queue/status")[1])["queue_size"] == 3)
    page.prepare(files[0]["path"], files[1]["path"], "beside")
    assert most == [1]
    go_on.set()
    for number in range(4):
        assert "process_completed" in page.listen(f"checked{number}")
    assert most == [1]


def test_an_upload_that_breaks_off_is_removed(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole uploads stay, and no traceback fills the log."""
    whole = Path(page.upload("a.png", b"x"))
    files = set(page.folder.iterdir())
    host, _, port = page.url.removeprefix("http://").partition("/")[0].partition(":")
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="half.mp4"\r\n\r\n'
    )
    with caplog.at_level(logging.WARNING):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + bytes(500_000))
            wait_until(lambda: not files.issuperset(page.folder.iterdir()))
            [part] = set(page.folder.iterdir()) - files
        monkeypatch.setattr(server, "BROKEN_OFF_S", 0.1)
        wait_until(lambda: not part.exists())
    assert whole.read_bytes() == b"x"
    assert caplog.records == []


class Stub:
    """Stands behind the guard: reads the body, and answers as Gradio does."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        while (await receive()).get("more_body"):
            pass
        headers = [(b"access-control-allow-origin", b"*"), (b"Access-Control-Allow-Credentials", b"true")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"in"})


class Asker:
    """Asks a guard in this process."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", root_path: str = "", **named: Any) -> None:
        self.stub = Stub()
        queue = SimpleNamespace(event_queue_per_concurrency_id={}, active_jobs=[], pending_messages_per_session={})
        self.bounds = Bounds()
        access = Access(host, 7860, **named)
        events: Any = SimpleNamespace(check=lambda document: None)
        app: Any = Guard(self.stub, access, Uploads(folder), self.bounds, Visits(), queue, events, root_path)
        self.transport = httpx.ASGITransport(app, client=("192.0.2.7", 5000))

    def ask(self, method: str, path: str, host: str = "localhost:7860", **named: Any) -> httpx.Response:
        headers = {"Host": host, **named.pop("headers", {})}

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://127.0.0.1:7860") as client:
                return await client.request(method, path, headers=headers, **named)

        return asyncio.run(send())


JOIN = "/gradio_api/queue/join"
PAGE = "https://page.example.org:8443"
STRANGERS = [
    {"host": "evil.example.org"},
    {"host": "localhost.evil.example.org"},
    {"host": "evil.example.org@localhost"},
    {"host": "169.254.169.254"},
    {"host": ""},
    {"headers": {"Origin": "http://evil.example.org"}},
    {"headers": {"Origin": "http://localhost:3000"}},
    {"headers": {"Origin": "null"}},
    {"headers": {"Origin": PAGE}},
    {"headers": {"Sec-Fetch-Site": "cross-site"}},
    {"headers": {"Sec-Fetch-Site": "same-site"}},
]
OWN: list[dict[str, Any]] = [
    {},
    {"host": "127.0.0.1:7860", "headers": {"Origin": "http://127.0.0.1:7860", "Sec-Fetch-Site": "same-origin"}},
    {"host": "LOCALHOST."},
    {"host": "[::1]:7860", "headers": {"Origin": "http://[::1]:7860"}},
    {"host": "page.example.org:8443", "headers": {"Origin": PAGE}},
    {"host": "page.example.org", "headers": {"Origin": "https://page.example.org:443"}},
]


def test_strangers_are_refused(tmp_path: Path) -> None:
    client = Asker(tmp_path, allowed_hosts=["Page.Example.org"], root_path="/dispose")
    with every_item() as every:
        for kind in STRANGERS:
            for method, path in (("POST", JOIN), ("POST", "/gradio_api/upload"), ("GET", "/gradio_api/heartbeat/abc")):
                with every(kind, path):
                    answer = client.ask(method, path, **kind, content=b"{}" if method == "POST" else None)
                    assert answer.status_code in (403, 421), answer.text
                    assert client.stub.seen == []
        for kind in OWN:
            with every(kind):
                answer = client.ask("POST", f"/dispose{JOIN}", **kind, content=b"{}")
                assert (answer.status_code, client.stub.seen.pop()["path"]) == (200, JOIN)
                assert "access-control" not in " ".join(answer.headers).lower()
                assert answer.headers["x-content-type-options"] == "nosniff"
        with every("a link on another site"):
            assert client.ask("GET", "/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
        with every("preflight"):
            asking = {"Origin": "http://evil.example.org", "Access-Control-Request-Method": "POST"}
            answer = client.ask("OPTIONS", JOIN, headers=asking)
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        with every("what only a proxy may say"):
            client.ask("GET", "/", headers={"X-Forwarded-Host": "evil.example.org", "X-Gradio-Server": "http://evil"})
            assert not [name for name, _ in client.stub.seen[-1]["headers"] if name.startswith((b"x-f", b"x-g"))]
        with every("the root path"):
            answer = client.ask("GET", "/dispose")
            assert (answer.status_code, answer.headers["location"]) == (307, "/dispose/")
        with every("all addresses"):
            everywhere = Asker(tmp_path, host="0.0.0.0")  # the transport says that 127.0.0.1 was reached
            assert everywhere.ask("GET", "/", "evil.example.org").status_code == 421
            assert everywhere.ask("GET", "/", "192.0.2.8").status_code == 421
    for wrong in ("http://page.example.org", "a b", "page.example.org:80", ""):
        with pytest.raises(InputError, match="no host name"):
            Access("127.0.0.1", 7860, [wrong])
    for wrong in ("dispose", "/../a", "/a b", "//evil.example.org"):
        with pytest.raises(InputError, match="root path"):
            check_root_path(wrong)


def test_a_token_lets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Asker(tmp_path, token=TOKEN, root_path="/dispose")
    for path in ("/", "/assets/a.js", "/config", "/dispose/"):
        assert client.ask("GET", path).status_code == 401
    for wrong in ({"params": {"token": "wrong"}}, {"headers": {"Authorization": "Bearer wrong"}}):
        assert client.ask("GET", "/", **wrong).status_code == 401
    assert (
        client.ask("POST", JOIN, content=b"{}", headers={"Cookie": f"dispose-rt-page-7860={TOKEN}"}).status_code == 401
    )
    assert client.stub.seen == []
    assert client.ask("POST", JOIN, content=b"{}", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    answer = client.ask("GET", "/", params={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert cookie.endswith("; Path=/dispose/; HttpOnly; SameSite=Strict")
    assert TOKEN not in cookie
    assert TOKEN not in answer.text
    assert 'location.replace("/dispose/")' in answer.text
    assert client.ask("GET", "/", headers={"Cookie": cookie.partition(";")[0]}).status_code == 200
    for _ in range(bounds.WRONG_TOKENS):
        client.ask("GET", "/", params={"token": "wrong"})
    answer = client.ask("GET", "/", params={"token": TOKEN})
    assert (answer.status_code, "too many wrong tokens" in answer.text) == (429, True)
    assert client.ask("GET", "/", headers={"Cookie": cookie.partition(";")[0]}).status_code == 200
    for wrong_token in ("", "short", "with space", "ünicode-token"):
        with pytest.raises(InputError, match="must have 8 or more characters"):
            Access("127.0.0.1", 7860, token=wrong_token)


def form(*parts: tuple[str, str]) -> dict[str, Any]:
    lines = "".join(f"--x\r\nContent-Disposition: form-data; {part}\r\n\r\n{text}\r\n" for part, text in parts)
    return {"content": f"{lines}--x--\r\n".encode(), "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


async def _stream() -> AsyncIterator[bytes]:
    yield b"--x"


FILE = ('name="files"; filename="a.png"', "pixels")


@each(
    status__sent=[
        (200, form(FILE)),
        (400, form(('name="files"', "kept in memory"))),
        (400, form(*[FILE] * 11)),
        (400, {"content": b"{}"}),
        (400, {"content": b"--y nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
        (411, {"content": None, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
        (413, {**form(FILE), "large": True}),
        (507, {**form(FILE), "full": True}),
        (429, {**form(FILE), "count": bounds.UPLOADS_KEPT}),
        (429, {**form(FILE), "bytes": bounds.UPLOADS_KEPT_BYTES}),
    ]
)
def test_uploads_have_bounds(tmp_path: Path, status: int, sent: dict[str, Any]) -> None:
    wanted = dict(sent)
    client = Asker(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        if wanted.pop("large", False):
            patch.setattr(guard, "LARGEST_UPLOAD_BYTES", 10)
        if wanted.pop("full", False):
            patch.setattr(guard, "SMALLEST_FREE_BYTES", 2**60)
        for _ in range(wanted.pop("count", 0)):
            client.bounds.take_upload("192.0.2.7", 1)
        client.bounds.take_upload("192.0.2.7", wanted.pop("bytes", 0))
        if not isinstance(wanted["content"], bytes):
            wanted["content"] = _stream()
        answer = client.ask("POST", "/gradio_api/upload", **wanted)
    assert answer.status_code == status, answer.text


def test_one_address_has_bounds_until_their_time_is_over(tmp_path: Path) -> None:
    now = SimpleNamespace(s=0.0)
    kept = Bounds(lambda: now.s)
    assert all(kept.take_upload("a", 1) for _ in range(bounds.UPLOADS_KEPT))
    assert not kept.take_upload("a", 1)
    assert kept.take_upload("b", 1)
    now.s = bounds.KEPT_S + 1.0
    assert kept.take_upload("a", bounds.UPLOADS_KEPT_BYTES)
    now.s *= 2
    kept.forget_old()
    assert kept._uploads == {}
    client = Asker(tmp_path)
    with ExitStack() as stack:
        for _ in range(bounds.REQUESTS_AT_ONCE):
            assert stack.enter_context(client.bounds.take_request("192.0.2.7"))
        assert client.ask("GET", "/").status_code == 429
    assert client.ask("GET", "/").status_code == 200
    assert client.ask("POST", JOIN, content=b" " * (guard.LARGEST_JSON_BYTES + 1)).status_code == 413
    same = {name_address(host) for host in ("2001:db8::1", "2001:db8::ffff:1")}
    assert same == {"2001:db8::/64"}
    assert name_address("::ffff:192.0.2.7") == name_address("192.0.2.7") != name_address("192.0.2.8")
