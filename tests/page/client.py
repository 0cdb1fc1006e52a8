"""A visitor of a served page that is no browser."""

from __future__ import annotations

import html
import http.client
import json
import urllib.error
import urllib.request
from functools import partial
from typing import Any

import httpx

META = {"_type": "gradio.FileData"}


class Client:
    """Sends requests to a page as its own script does, or as an attacker would.

    Args:
        url: of the page.
        address: of this machine from which the requests come; the page's bounds are by address.

    Attributes:
        begin: the function behind the button Animate, as the page describes it.
        run: the one that animates.
        checks: those that check an uploaded picture, and an uploaded video.
        form: default values of `begin`'s inputs.
    """

    def __init__(self, url: str, address: str = "127.0.0.1") -> None:
        self.url, self._address = url, address
        config = json.loads(self.get("config")[1])
        self.begin = next(one for one in config["dependencies"] if len(one["inputs"]) > 2)
        self.checks = [one for one in config["dependencies"] if ["upload"] in [[event] for _, event in one["targets"]]]
        self.run = next(one for one in config["dependencies"] if "change" in [event for _, event in one["targets"]])
        values = {one["id"]: one["props"].get("value") for one in config["components"]}
        self.form = [values[number] for number in self.begin["inputs"]]

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self._ask(urllib.request.Request(f"{self.url}{path}", headers=headers))

    def post(self, path: str, body: Any) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(f"{self.url}gradio_api/{path}", data, kind))

    def join(self, function: Any, data: list[Any], session: str = "abc") -> tuple[int, str]:
        body = {"fn_index": function["id"], "data": data, "session_hash": session, "event_data": None, "trigger_id": 1}
        return self.post("queue/join", body)

    def listen(self, session: str) -> str:
        """Wait for the end of all that a session has joined, and return what was said."""
        status, text = self.get(f"gradio_api/queue/data?session_hash={session}")
        assert status == 200, text
        return html.unescape(text)

    def check(self, path: str, *, is_film: bool, session: str = "abc") -> str:
        """Let an upload be checked, as the page does when one arrives."""
        status, text = self.join(self.checks[is_film], [{"path": path, "meta": META}], session)
        assert status == 200, text
        return self.listen(session)

    def prepare(self, photo: str, video: str, session: str) -> None:
        """Press Animate; `run` would come next."""
        data = [{"path": photo, "meta": META}, {"path": video, "meta": META}, *self.form[2:]]
        assert self.join(self.begin, data, session)[0] == 200
        assert "Waiting for its turn" in self.listen(session)

    def send_file(self, name: str, content: bytes, **headers: str) -> httpx.Response:
        transport = httpx.HTTPTransport(local_address=self._address)
        with httpx.Client(transport=transport, trust_env=False, timeout=60) as sender:
            address = f"{self.url}gradio_api/upload"
            return sender.post(address, files={"files": (name, content)}, headers=headers)

    def upload(self, name: str, content: bytes) -> str:
        answer = self.send_file(name, content)
        assert answer.status_code == 200, answer.text
        return str(answer.json()[0])

    def _ask(self, request: urllib.request.Request) -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _From(self._address))
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class _From(urllib.request.HTTPHandler):
    """Connects from one of this machine's addresses."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(http.client.HTTPConnection, source_address=(self._address, 0)), request)  # type: ignore[arg-type]
