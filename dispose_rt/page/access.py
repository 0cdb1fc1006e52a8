"""Who may use the page: the names it is served under, requests of its own pages, and a token."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from ..errors import InputError
from .addresses import WILDCARDS, read_address

SHORTEST_TOKEN = 8
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::([0-9]{1,5}))?", re.ASCII)
_ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Access:
    """Checks requests by their headers.

    Args:
        host: address that the page listens on.
        port: its port.
        allowed_hosts: further names under which visitors reach the page, for example through a proxy.
        token: what visitors must have; None lets everyone in.

    Raises:
        InputError: a name is no host name, or the token is too short.
    """

    def __init__(self, host: str, port: int, allowed_hosts: Iterable[str] = (), token: str | None = None) -> None:
        self._names = {*_LOCAL_NAMES, *map(_check_name, allowed_hosts)}
        self._serves_every_address = host in WILDCARDS
        if not self._serves_every_address:
            self._names.add(_check_name(host))
        self._token = None if token is None else _check_token(token)
        self._cookie = secrets.token_urlsafe(32)  # stands for the token in browsers, until the page ends
        self.cookie_name = f"dispose-rt-page-{port}"  # a host's pages share their cookies

    def serves(self, host: str, reached: str | None) -> bool:
        """Whether the page is served under a name; a page of another name could be a stranger's (DNS rebinding).

        Args:
            host: header `Host`.
            reached: address of this machine that the request has reached.
        """
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = _write_address(found[1].strip("[]")) or found[1]
        if self._serves_every_address and reached is not None and name == _write_address(reached):
            return True
        return name in self._names

    def is_own(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from the page itself, or from a program that is no browser.

        Args:
            headers: of the request, by lower-case name.
        """
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or _is_same(origin, headers.get("host", ""))

    @property
    def needs_token(self) -> bool:
        """Whether visitors need a token."""
        return self._token is not None

    def is_token(self, text: str) -> bool:
        """Whether a text is the token."""
        return self._token is not None and hmac.compare_digest(_digest(text), self._token)

    def is_cookie(self, text: str) -> bool:
        """Whether a text is the cookie that `write_cookie` sets."""
        return hmac.compare_digest(_digest(text), _digest(self._cookie))

    def write_cookie(self, path: str, is_secure: bool) -> str:
        """Write the header `Set-Cookie` for a visitor who has shown the token."""
        secure = "; Secure" if is_secure else ""
        return f"{self.cookie_name}={self._cookie}; Path={path}; HttpOnly; SameSite=Strict{secure}"


def check_root_path(root_path: str) -> str:
    """Return the path below which a proxy serves the page, without a slash at its end.

    Raises:
        InputError: it is no path.
    """
    path = root_path.rstrip("/")
    if not _ROOT_PATH.fullmatch(path):
        raise InputError(f"the root path is {root_path!r}; it must look like /dispose: letters, digits, - . _ ~ and /")
    return path


def _check_name(name: str) -> str:
    written = _write_address(name.strip("[]")) or name.lower().rstrip(".")
    found = _HOST.fullmatch(written)
    if found is None or found[2] is not None:
        raise InputError(f"{name!r} is no host name; give one like page.example.org, without http:// and port")
    return found[1]


def _write_address(text: str) -> str | None:
    """An IP address as it stands in `Host`; None for a name."""
    address = read_address(text)
    if address is None:
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _is_same(origin: str, host: str) -> bool:
    """Whether `Origin` and `Host` name the same server."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme)
    if default is None:
        return False
    return parts.netloc.removesuffix(f":{default}") == host.lower().removesuffix(f":{default}")


def _check_token(token: str) -> bytes:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"the page's token must have {SHORTEST_TOKEN} or more characters of ASCII, without spaces; make one: "
            'python3 -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return _digest(token)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
