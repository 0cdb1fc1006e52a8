"""Damaged requests to a served page, and damaged uploads that go all the way through it."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dispose_rt.media import open_video, open_writer, read_image
from dispose_rt.page import serve_page

from .area import Area, Problem
from .damage import damage_bytes, damage_json
from .manifests import write_small_directory
from .media import Media

LOOK_AFTER = 10
"""Cases after which a visit to the page must succeed."""
_QUIET_S = 1.0
"""A connection on which nothing came for so long is given its end: the server may wait for the rest of a request."""
_BOUNDARY = "fuzz-boundary"
_BUG = "Something went wrong inside dispose-rt"
_MOST_ANSWER = 4 * 2**20


class Requests(Area):
    """A page in a process of its own, whose animations read their inputs and draw black frames."""

    limit_s = 30.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "media").mkdir()
        self._media = Media(folder / "media")
        self._log = folder / "server.txt"
        script = Path(__file__).resolve().parents[1] / "fuzz.py"
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, str(script), "--serve", str(folder)], stdout=subprocess.PIPE, stderr=log
            )
        self.watched_pid = self._server.pid
        assert self._server.stdout is not None
        self._port = int(self._server.stdout.readline())
        self._since_look = 0
        config = json.loads(_body_of(self._ask(_request("GET", "/config"), "127.0.0.1")))
        self._functions = config["dependencies"]
        values = {one["id"]: one["props"].get("value") for one in config["components"]}
        begin = next(one for one in self._functions if len(one["inputs"]) > 2)
        self._form = [values[number] for number in begin["inputs"]]
        self._begin = begin["id"]
        self._checks = [one["id"] for one in self._functions if "upload" in [event for _, event in one["targets"]]]
        self._run = next(one["id"] for one in self._functions if "change" in [event for _, event in one["targets"]])

    def draw(self, rng: random.Random, case: Path, number: int) -> str:
        session = f"s{number}-{rng.randrange(10**6)}"
        way = rng.random()
        if way < 0.15:
            plan, done = self._draw_upload(rng, case, session)
        elif way < 0.45:
            plan, done = self._draw_join(rng, session)
        else:
            plan, done = self._draw_raw(rng, session)
        plan["address"] = f"127.{1 + number // 62500 % 250}.{1 + number // 250 % 250}.{1 + number % 250}"
        plan["session"] = session
        (case / "plan.json").write_text(json.dumps(plan))
        return done

    def _draw_upload(self, rng: random.Random, case: Path, session: str) -> tuple[dict[str, Any], str]:
        """A damaged file that is uploaded, checked, and animated."""
        files, done = [], []
        for name in ("reference", "video"):
            folder = case / name
            folder.mkdir()
            done.append(f"{name}: {self._media.draw(rng, folder, 0)}")
            [path] = folder.iterdir()
            files.append(str(path.relative_to(case)))
        return {"way": "upload", "files": files, "animate": rng.random() < 0.5}, "; ".join(done)

    def _draw_join(self, rng: random.Random, session: str) -> tuple[dict[str, Any], str]:
        """A damaged place in the queue."""
        function = rng.choice(self._functions)
        data = list(self._form) if function["id"] == self._begin else [None] * len(function["inputs"])
        file = {"path": rng.choice(("/etc/passwd", "x", "/proc/self/mem", "")), "meta": {"_type": "gradio.FileData"}}
        data = [file if value is None and rng.random() < 0.1 else value for value in data]
        body = {
            **{"fn_index": function["id"], "data": data, "session_hash": session},
            **{"event_data": None, "trigger_id": rng.randrange(50)},
        }
        damaged, done = damage_json(rng, body)
        path = rng.choice(("queue/join", "queue/join", "queue/join", "cancel", "reset", "run/predict"))
        text = json.dumps(damaged)
        return {"way": "join", "path": path, "text": text}, f"{path}: {done}"

    def _draw_raw(self, rng: random.Random, session: str) -> tuple[dict[str, Any], str]:
        """Damaged bytes on the wire, the length of the body mostly stated as it is."""
        form = _form({"files": [("a.png", b"\x89PNG" + rng.randbytes(20)), ("b.mp4", rng.randbytes(40))]})
        join = json.dumps({"fn_index": self._begin, "data": self._form, "session_hash": session, "trigger_id": 3})
        pages = ("/", "/config", "/theme.css", f"/gradio_api/heartbeat/{session}", "/gradio_api/info", "/static/a.js")
        streams = (f"/gradio_api/queue/data?session_hash={session}", "/gradio_api/upload_progress?upload_id=1")
        files = ("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../x", "/assets/../../../etc/passwd")
        method, path, kind, body = rng.choice(
            (
                *(("GET", one, "", b"") for one in (*pages, *streams, *files)),
                *(("POST", "/gradio_api/upload", f"multipart/form-data; boundary={_BOUNDARY}", form),) * 6,
                *(("POST", "/gradio_api/queue/join", "application/json", join.encode()),) * 4,
            )
        )
        other, done = rng.choice((form, join.encode())), []
        if body and rng.random() < 0.6:
            body, more = damage_bytes(rng, body, other)
            done.append(f"body: {more}")
        head = _head(method, path, kind, len(body))
        if not done or rng.random() < 0.3:
            head, more = rng.choice((damage_bytes(rng, head, other), _damage_head(rng, head)))
            done.append(f"head: {more}")
        return {"way": "raw", "bytes": (head + body).decode("latin-1")}, f"{method} {path}: {'; '.join(done)}"

    def run(self, case: Path) -> bool:
        plan = json.loads((case / "plan.json").read_text())
        logged = self._log.stat().st_size
        try:
            accepted = getattr(self, f"_run_{plan['way']}")(plan, case)
            self._since_look += 1
            if self._since_look >= LOOK_AFTER:
                self._since_look = 0
                if _status_of(self._ask(_request("GET", "/"), plan["address"])) != 200:
                    raise Problem("page", "it serves no more")
        except (OSError, EOFError) as error:
            if self._server.poll() is not None:
                said = self._log.read_text(errors="replace")[-4000:]
                raise Problem("crash", f"the page ended with status {self._server.returncode}\n{said}") from error
            raise
        with self._log.open("rb") as file:
            file.seek(logged)
            said = file.read().decode("utf-8", "replace")
        if "Traceback (most recent" in said or _BUG in said:
            raise Problem("traceback", said[-6000:])
        return bool(accepted)

    def _run_raw(self, plan: dict[str, Any], case: Path) -> bool:
        return self._check(self._ask(plan["bytes"].encode("latin-1"), plan["address"]))

    def _run_join(self, plan: dict[str, Any], case: Path) -> bool:
        request = _request("POST", f"/gradio_api/{plan['path']}", plan["text"].encode())
        accepted = self._check(self._ask(request, plan["address"]))
        if accepted and plan["path"] == "queue/join":
            self._listen(plan)
        return accepted

    def _run_upload(self, plan: dict[str, Any], case: Path) -> bool:
        uploaded = []
        for name in plan["files"]:
            body = _form({"files": [(Path(name).name, (case / name).read_bytes())]})
            kind = f"multipart/form-data; boundary={_BOUNDARY}"
            answer = self._ask(_head("POST", "/gradio_api/upload", kind, len(body)) + body, plan["address"])
            if not self._check(answer):
                raise Problem("page", f"an upload is refused: {answer[:500]!a}")
            path = json.loads(_body_of(answer))[0]
            uploaded.append({"path": path, "orig_name": Path(name).name, "meta": {"_type": "gradio.FileData"}})
        fine = True
        for function, file in zip(self._checks, (uploaded[0], {"video": uploaded[1]}), strict=True):
            data = file if "video" not in file else uploaded[1]
            fine &= "cannot be used" not in self._call(function, [data], plan)
        if plan["animate"]:
            self._call(self._begin, [*uploaded, *self._form[2:]], plan)
            fine &= "did not work" not in self._call(self._run, [], plan)
        return fine

    def _call(self, function: int, data: list[Any], plan: dict[str, Any]) -> str:
        """Queue an event of the page, and return what comes of it."""
        body = {
            "fn_index": function,
            "data": data,
            "session_hash": plan["session"],
            "event_data": None,
            "trigger_id": 1,
        }
        answer = self._ask(_request("POST", "/gradio_api/queue/join", json.dumps(body).encode()), plan["address"])
        if not self._check(answer):
            raise Problem("page", f"the queue refuses the page's own request: {answer[:500]!a}")
        heard = self._listen(plan)
        if '"process_completed"' not in heard or '"success":false' in heard.replace(" ", ""):
            raise Problem("page", f"no result: {heard[-2000:]}")
        return heard

    def _listen(self, plan: dict[str, Any]) -> str:
        """Everything that the queue says to a visitor until its events are over."""
        path = f"/gradio_api/queue/data?session_hash={plan['session']}"
        over = (b"close_stream", b"process_completed")
        answer = self._ask(_request("GET", path), plan["address"], lambda heard: any(one in heard for one in over))
        self._check(answer)
        return answer.decode("utf-8", "replace")

    def _check(self, answer: bytes) -> bool:
        """Whether an answer is one of success; one of failure on the server's side is a problem."""
        text, status = answer.decode("utf-8", "replace"), _status_of(answer)
        if "Traceback (most recent" in text or _BUG in text:
            raise Problem("traceback", text[-4000:])
        if status >= 500 and status not in (503, 507):
            raise Problem("page", f"status {status}: {text[:2000]}")
        return 200 <= status < 400

    def _ask(self, request: bytes, address: str, is_over: Callable[[bytes], bool] = lambda heard: False) -> bytes:
        """Send bytes and return what comes back until the server closes, has nothing to say, or all was heard."""
        end_s, heard = time.monotonic() + self.limit_s, b""
        waits = b"/queue/data?" in request[:200] and is_over(b"close_stream")
        with socket.create_connection(
            ("127.0.0.1", self._port), self.limit_s, source_address=(address, 0)
        ) as connection:
            with suppress(ConnectionError):  # it may refuse before it has heard everything
                connection.sendall(request)
            is_ended = False
            while time.monotonic() < end_s and len(heard) < _MOST_ANSWER and not is_over(heard):
                connection.settimeout(self.limit_s if is_ended or waits else _QUIET_S)
                try:
                    piece = connection.recv(1 << 16)
                except TimeoutError:
                    if is_ended:
                        raise Problem("hang", "the server does not close the connection") from None
                    connection.shutdown(socket.SHUT_WR)
                    is_ended = True
                    continue
                except ConnectionError:
                    break
                if not piece:
                    break
                heard += piece
        return heard

    def close(self) -> None:
        """End the page."""
        self._server.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._server.wait(10)
        self._server.kill()
        self._server.wait()


def serve(folder: Path) -> None:
    """Serve the page, and print its port once it can be opened. It ends with the process that started it."""
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    engines, stop, parent = folder / "engines" / "64x64", threading.Event(), os.getppid()
    write_small_directory(engines)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        stop.set()

    threading.Thread(target=end_with_parent, daemon=True).start()
    serve_page(_Runner(), engines, port=port, announce=lambda url: print(port, flush=True), stop=stop)


class _Runner:
    """Stands for an Animator: reads what one reads, and writes a black frame for each that it has read."""

    def run(self, ref: str, video: str, *, output: Path, progress: Any, cancel: Any, **rest: Any) -> Any:
        read_image(ref)
        film, count, frame = open_video(video, cancel=cancel), 0, np.zeros((16, 24, 3), np.uint8)
        with open_writer(output, 24, 24, 16, video if rest.get("audio") else None, cancel=cancel) as write:
            for _ in film.frames():
                count += 1
                progress("pose", count, film.frame_count)
                write(frame)
        return SimpleNamespace(frames=np.zeros((0, 16, 24, 3)), frame_count=count, fps=24.0, timings={"pose": 0.1})


def _head(method: str, path: str, kind: str = "", length: int = 0) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Content-Type: {kind}", f"Content-Length: {length}"] if kind else []
    return "\r\n".join([*lines, "", ""]).encode()


def _request(method: str, path: str, body: bytes = b"") -> bytes:
    return _head(method, path, "application/json" if body else "", len(body)) + body


def _damage_head(rng: random.Random, head: bytes) -> tuple[bytes, str]:
    """Add a header, or change the method or path."""
    lines = head.split(b"\r\n")
    if rng.random() < 0.3:
        words = lines[0].split(b" ")
        words[rng.randrange(2)] = rng.choice(
            (b"PUT", b"OPTIONS", b"/" + b"a" * 70000, b"/%00", b"//x", b"*", b"http://x/", b"/gradio_api/%2e%2e/config")
        )
        lines[0] = b" ".join(words)
        return b"\r\n".join(lines), f"{lines[0]!a:.60}"
    value = rng.choice(
        (b"", b"0", b"-1", b"99999999999999999999", b"x" * 9000, b"\xff\xfe", b"chunked", b"http://[", b"gzip")
    )
    name = rng.choice(
        (
            *(b"Content-Length", b"Transfer-Encoding", b"Host", b"Origin", b"Sec-Fetch-Site", b"Cookie", b"Range"),
            *(b"Authorization", b"Content-Type", b"X-Forwarded-For", b"X-Forwarded-Host", b"Expect", b"Upgrade"),
        )
    )
    if rng.random() < 0.5:
        lines = [line for line in lines if not line.lower().startswith(name.lower())]
    lines.insert(-2, name + b": " + value)
    return b"\r\n".join(lines), f"{name!a}: {value!a:.40}"


def _form(fields: dict[str, list[tuple[str, bytes]]]) -> bytes:
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'.encode()
        + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
        for field, files in fields.items()
        for name, content in files
    ]  # fmt: skip
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def _status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(found[1]) if found else 0


def _body_of(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    joined = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        joined, body = joined + rest[:length], rest[length + 2 :]
    return joined
