"""Stands before Gradio: what a request must be to reach it, and the headers of every answer.

Gradio has some sixty routes; the page needs the few in `_READ` and `_WRITE`. Importing this imports Starlette.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from html import escape
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from ..errors import InputError
from .access import Access
from .bounds import EVENTS_QUEUED, GIB, LARGEST_UPLOAD_BYTES, Bounds, name_address
from .events import Events, read_document
from .multipart import PartsCheck
from .uploads import REFUSED, Uploads
from .visits import Visits, count_events

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""Nothing is fetched from, or sent to, another server, and no other page shows this one inside itself."""
LARGEST_JSON_BYTES = 2**20
SMALLEST_FREE_BYTES = GIB
"""Space on the disk of uploads that no upload may take."""

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_API = "/gradio_api/"
_FILE = f"{_API}file="
_SESSION = r"[A-Za-z0-9_-]{1,64}"
_READ = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(?:assets|static|svelte)/[^\\]+"
    rf"|{_API}(?:info|app_id|startup-events|theme\.css|upload_progress|queue/data|queue/status|heartbeat/{_SESSION})"
)
_JSON = re.compile(rf"{_API}(?:queue/join|cancel|reset|run/predict)/?")
_EVENT = re.compile(rf"{_API}(?:queue/join|run/predict)/?")
_UPLOAD = f"{_API}upload"
_HEARTBEAT = f"{_API}heartbeat/"
_STREAM = f"{_API}queue/data"
_JOIN = f"{_API}queue/join"
_UNKNOWN_SESSION = 'data: {"msg":"unexpected_error","message":"404","success":false,"session_not_found":true}\n\n'
"""What Gradio tells the page's script about a session that has asked for nothing, beside a traceback in the log."""
_ENTER = (
    '<!doctype html><meta charset="utf-8"><title>dispose_rt</title><script>location.replace({path})</script>'
    '<a href="{link}">Open the page</a>'
)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application that passes on what it lets in.

    Args:
        app: the page.
        access: who is let in.
        uploads: files that requests may name.
        bounds: what one address may ask for.
        visits: sessions that listen.
        queue: Gradio's queue.
        events: what visitors may ask for.
        root_path: path below which a proxy serves the page, "" or "/...". Requests may come with or without it.
    """

    def __init__(
        self,
        app: App,
        access: Access,
        uploads: Uploads,
        bounds: Bounds,
        visits: Visits,
        queue: Any,
        events: Events,
        root_path: str,
    ) -> None:
        self._app = app
        self._access = access
        self._uploads = uploads
        self._bounds = bounds
        self._visits = visits
        self._queue = queue
        self._events = events
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # the page uses none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._serve(scope, receive, _add_headers(send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        address = name_address((scope.get("client") or ("",))[0])
        try:
            with ExitStack() as stack:
                if not stack.enter_context(self._bounds.take_request(address)):
                    raise HTTPException(429, "There are too many open requests from your address.")
                scope = self._enter(scope, headers)
                answer = self._log_in(scope, headers, address)
                if answer is None:
                    scope, receive = await self._examine(scope, headers, receive, address)
                    session = _find_session(scope)
                    if session is not None:
                        stack.enter_context(self._visits.listen(session))
                    if scope["path"] != _STREAM or session in self._queue.pending_messages_per_session:
                        await self._app(scope, receive, send)
                        return
                    answer = Response(_UNKNOWN_SESSION, media_type="text/event-stream")
        except HTTPException as error:
            answer = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        except ClientDisconnect:  # an upload broke off: no one is there to be answered, and it is no bug
            return
        await answer(scope, receive, send)

    def _enter(self, scope: Scope, headers: Headers) -> Scope:
        """Check where a request comes from, and bring its path and headers to one form."""
        hosts = headers.getlist("host")
        reached = (scope.get("server") or (None,))[0]
        if len(hosts) != 1 or not self._access.serves(hosts[0], reached):
            raise HTTPException(
                421, "This page is not served under this name. Whoever runs it can allow the name: --allowed-host NAME"
            )
        path = scope["path"]
        if self._root_path and (path == self._root_path or path.startswith(f"{self._root_path}/")):
            path = path[len(self._root_path) :]
        is_navigation = scope["method"] in ("GET", "HEAD") and not path.startswith(_API)
        if not is_navigation and not self._access.is_own(headers):
            raise HTTPException(403, "This request comes from another site.")
        # Gradio builds addresses from these; what a trusted proxy says of the scheme is in the scope by now
        kept = [
            (name, value) for name, value in scope["headers"] if not name.startswith((b"x-forwarded-", b"x-gradio-"))
        ]
        return {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "headers": kept}

    def _log_in(self, scope: Scope, headers: Headers, address: str) -> Response | None:
        """Return an answer instead of the page's where the visitor has no token yet, or has just shown it."""
        if not scope["path"]:
            return RedirectResponse(f"{self._root_path}/")
        if not self._access.needs_token:
            return None
        shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        bearer = bearer.strip() if scheme.lower() == "bearer" else ""
        if not shown and not bearer:
            if self._access.is_cookie(cookie_parser(headers.get("cookie", "")).get(self._access.cookie_name, "")):
                return None
            raise HTTPException(401, "This page needs a token. Open its address with ?token=TOKEN at the end.")
        if not self._bounds.may_log_in(address):
            raise HTTPException(429, "There were too many wrong tokens from your address. Try again in a minute.")
        if not self._access.is_token(shown or bearer):
            self._bounds.note_wrong_token(address)
            raise HTTPException(401, "This is not the token of this page.")
        if not shown or scope["path"] != "/" or scope["method"] != "GET":
            return None
        path = f"{self._root_path}/"
        cookie = self._access.write_cookie(path, scope.get("scheme") == "https")
        # not a redirect: after a link on another site, browsers follow one without the new cookie
        text = _ENTER.format(path=json.dumps(path), link=escape(path))
        return HTMLResponse(text, headers={"set-cookie": cookie, "cache-control": "no-store"})

    async def _examine(self, scope: Scope, headers: Headers, receive: Receive, address: str) -> tuple[Scope, Receive]:
        """Let through what the page itself asks for."""
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD"):
            if path.startswith(_FILE):
                self._find_file(path.removeprefix(_FILE), 403)
            elif not _READ.fullmatch(path) or ".." in path:
                raise HTTPException(404, "There is no such page.")
            return scope, receive
        if method == "POST" and path == _UPLOAD:
            return scope, self._take_upload(headers, receive, address)
        if method == "POST" and _JSON.fullmatch(path):
            if path.rstrip("/") == _JOIN and count_events(self._queue, address) >= EVENTS_QUEUED:
                raise HTTPException(503, "There are too many jobs from your address in the queue.")
            return await self._take_json(scope, receive)
        raise HTTPException(405 if _READ.fullmatch(path) else 404, "There is no such page.")

    def _find_file(self, path: str, status: int) -> None:
        try:
            self._uploads.find(path)
        except InputError as error:
            raise HTTPException(status, str(error)) from error

    def _take_upload(self, headers: Headers, receive: Receive, address: str) -> Receive:
        """Check the size of an upload against the bounds, and its parts while they arrive."""
        text = headers.get("content-length", "")
        if not text.isdecimal():
            raise HTTPException(411, "An upload must state its length.")
        size_bytes = int(text)
        if size_bytes > LARGEST_UPLOAD_BYTES:
            raise HTTPException(413, f"An upload may have at most {LARGEST_UPLOAD_BYTES // GIB} GiB.")
        if shutil.disk_usage(self._uploads.folder).free - size_bytes < SMALLEST_FREE_BYTES:
            raise HTTPException(507, "The page has no room for this upload at the moment.")
        if not self._bounds.take_upload(address, size_bytes):
            raise HTTPException(429, "There were too many uploads from your address today.")
        check = PartsCheck(headers.get("content-type", ""))

        async def receive_checked() -> dict[str, Any]:
            message = await receive()
            if message["type"] == "http.request":
                check.feed(message.get("body", b""))
            return message

        return receive_checked

    async def _take_json(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Read a JSON document, check the files that it names, and pass on what was checked."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise HTTPException(400, "The request broke off.")
            body += message.get("body", b"")
            if len(body) > LARGEST_JSON_BYTES:
                raise HTTPException(413, f"A request may have at most {LARGEST_JSON_BYTES // 1024} KiB.")
            if not message.get("more_body"):
                break
        try:
            document = read_document(bytes(body))
            session = document.get("session_hash")
            if session is not None and not (isinstance(session, str) and re.fullmatch(_SESSION, session)):
                raise ValueError
            self._uploads.check(document)
            if _EVENT.fullmatch(scope["path"]):
                self._events.check(document)
            checked = json.dumps(document).encode()
        except InputError:
            raise HTTPException(400, REFUSED) from None
        except (ValueError, RecursionError):
            raise HTTPException(400, "The request cannot be read.") from None
        kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")]
        kept += [(b"content-length", str(len(checked)).encode()), (b"content-type", b"application/json")]
        left = [{"type": "http.request", "body": checked, "more_body": False}]

        async def receive_checked() -> dict[str, Any]:
            return left.pop() if left else await receive()

        return {**scope, "headers": kept}, receive_checked


def _find_session(scope: Scope) -> str | None:
    """The session whose stream of messages a request opens, if it is one."""
    path = scope["path"]
    if path.startswith(_HEARTBEAT):
        return str(path.removeprefix(_HEARTBEAT))
    if path == _STREAM:
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[-1]
        return session if re.fullmatch(_SESSION, session) else None
    return None


def _add_headers(send: Send) -> Send:
    """Add the page's headers to every answer, and take those off that would let other sites read it."""

    async def send_with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message.get("headers", ())
                if not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": [*kept, *_HEADERS]}
        await send(message)

    return send_with_headers
