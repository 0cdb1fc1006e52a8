"""A Hugging Face hub on this machine: metadata on one port, the bytes of large files on another, faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dispose_rt.download.files import REPOSITORIES

LARGE = (".safetensors", ".bin", ".pth", ".onnx", ".tar")
TOKEN = "hf_TheTokenOfTheTests"


@dataclass
class FakeRepo:
    """A repository with one state per commit; `main` is the last."""

    commits: dict[str, dict[str, bytes]]
    gated: str | bool = False
    card: dict[str, str] | None = field(default_factory=lambda: {"license": "mit"})

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = list(self.commits)[-1] if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class FakeHub:
    """What the servers hold, and the requests that they got.

    Attributes:
        faults: per path, faults of the next GET requests for its bytes, in order: "cut N" sends N bytes and hangs up,
            "status N" returns that status, "flip" sends other bytes, "whole" ignores a requested range, "silent" sends
            nothing. The last one stays when it ends with "!".
        requests: (method, path, headers) of every request.
    """

    repos: dict[str, FakeRepo]
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    store: str = ""
    api_status: int = 0

    def fault(self, path: str) -> str:
        waiting = self.faults[path]
        if not waiting:
            return ""
        return waiting[0].rstrip("!") if waiting[0].endswith("!") else waiting.pop(0)

    def asked(self, text: str, method: str = "GET") -> list[dict[str, str]]:
        """Headers of the requests whose path holds a text."""
        return [headers for kind, path, headers in self.requests if kind == method and text in path]


def commit(number: int) -> str:
    return f"{number:040x}"


def repos_of(folder: Path) -> dict[str, FakeRepo]:
    """Repositories that hold the files of a checkpoint folder where the published ones have them."""
    repos = {}
    for one in REPOSITORIES.values():
        choices = [choice for wanted in one.wanted for choice in wanted.choices if (folder / choice.local).is_file()]
        files = {choice.remote: (folder / choice.local).read_bytes() for choice in choices}
        licence = {"license": "other", "license_name": "a-licence-with-terms"} if one.gated else {"license": "mit"}
        repos[one.repo] = FakeRepo({commit(1): files}, gated="auto" if one.gated else False, card=licence)
    return repos


def write_placeholders(folder: Path, size_bytes: int = 3000) -> Path:
    """The first choice of every wanted file, with bytes of its own."""
    for one in REPOSITORIES.values():
        for wanted in one.wanted:
            path = folder / wanted.choices[0].local
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hashlib.shake_128(wanted.choices[0].local.encode()).digest(size_bytes))
    return folder


@contextmanager
def serving(repos: Mapping[str, FakeRepo]) -> Iterator[FakeHub]:
    """Serve repositories until the block ends."""
    hub = FakeHub(dict(repos))
    hosts = (("127.0.0.1", _Hub), ("127.0.0.2", _Store))  # clients follow redirects to the same host in other ways
    servers = [_Server((host, 0), type("Handler", (base,), {"hub": hub})) for host, base in hosts]
    hub.endpoint, hub.store = (f"http://{server.server_address[0]}:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up: some tests do."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        self.answer(path)

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say_bytes(self, path: str, data: bytes, **headers: str) -> None:
        """Send a file's bytes, or the fault that is planned for them."""
        fault, first, status = self.hub.fault(path) if self.command == "GET" else "", 0, 200
        if fault.startswith("status"):
            return self.say(int(fault.split()[1]))
        if fault == "silent":
            self.rfile.read(1)  # the client hangs up
            return None
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "") if fault != "whole" else ""):
            first, status = int(match[1]), 206
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        body = data[first:]
        if fault == "flip":
            body = bytes(byte ^ 1 for byte in body)
        if fault.startswith("cut"):
            self.close_connection = True
            headers["Content_Length"] = str(len(body))
            self.say(status, body[: int(fault.split()[1])], **headers)
            self.wfile.flush()
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self.say(status, body, **headers)


class _Hub(_Handler):
    def answer(self, path: str) -> None:
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}", "Bearer hf_stranger"):
            return self.say(401, X_Error_Message="Invalid credentials in Authorization header")
        if self.hub.api_status:
            return self.say(self.hub.api_status, b"<html>an error</html>")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.describe(match[1], match[2] or "main")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        assert match is not None, path
        return self.resolve(*match.groups())

    def describe(self, name: str, revision: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:  # as the hub does, which hides what private ones there are
            return self.say(404 if self.headers.get("Authorization") else 401, X_Error_Code="RepoNotFound")
        found = repo.find(revision)
        if found is None:
            return self.say(404, X_Error_Code="RevisionNotFound")
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": git_digest(data), **_lfs(path, data)}
            for path, data in found[1].items()
        ]
        body = {"id": name, "modelId": name, "sha": found[0], "private": False, "gated": repo.gated, "tags": []}
        text = json.dumps(body | {"siblings": siblings, "cardData": repo.card})
        return self.say(200, text.encode(), Content_Type="application/json")

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos[name]
        if repo.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say(403 if self.headers.get("Authorization") else 401, X_Error_Code="GatedRepo")
        found = repo.find(revision)
        if found is None or path not in found[1]:
            return self.say(404, X_Error_Code="EntryNotFound")
        commit_hash, files = found
        if path.endswith(LARGE):
            digest = hashlib.sha256(files[path]).hexdigest()
            linked = {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(files[path]))}
            location = f"{self.hub.store}/{name}/{commit_hash}/{path}".replace("+", "%2B")
            return self.say(302, Location=location, X_Repo_Commit=commit_hash, **linked)
        return self.say_bytes(path, files[path], ETag=f'"{git_digest(files[path])}"', X_Repo_Commit=commit_hash)


class _Store(_Handler):
    def answer(self, path: str) -> None:
        owner, name, commit_hash, file = path[1:].split("/", 3)
        self.say_bytes(file, self.hub.repos[f"{owner}/{name}"].commits[commit_hash][file])


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(path: str, data: bytes) -> dict[str, object]:
    large = path.endswith(LARGE)
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"lfs": lfs} if large else {}
