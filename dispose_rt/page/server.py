"""Serves the page to this machine, without telling anybody else."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import ipaddress
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..engines.manifest import read_manifests
from ..errors import InputError, InputWarning
from .jobs import Jobs, Runner
from .style import CSS, FONTS, MONOSPACE_FONTS, THEME

if TYPE_CHECKING:
    from gradio import Blocks

LARGEST_UPLOAD = "8gb"
LONGEST_QUEUE = 20
"""Visitors who may wait; more are refused."""
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""Nothing is fetched from, or sent to, another server, and no other page shows this one inside itself."""


def check_gradio() -> None:
    """Find out whether the page's packages are there.

    Raises:
        InputError: they are not; says how to install them.
    """
    try:
        found = importlib.util.find_spec("gradio") is not None
    except ValueError:  # in place of the module there is None
        found = False
    if not found:
        raise InputError(
            "the web page needs the Python package 'gradio', which is not installed; install it: "
            "pip install 'dispose-rt[page]'"
        )


def build_page(jobs: Jobs, engines: Path) -> Blocks:
    """Build the page, without serving it.

    Args:
        jobs: animations of the visitors.
        engines: directory of the jobs' animator; its manifests give the footer, and ranges of settings.

    Raises:
        InputError: Gradio is not installed.
        ManifestError: the directory holds no engines.
    """
    _import_gradio()
    from .layout import make_blocks

    blocks: Blocks = make_blocks(jobs, engines, read_manifests(engines))
    return blocks


def serve_page(
    animator: Runner,
    engines: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    announce: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Serve the page until `stop` is set, or an exception such as KeyboardInterrupt arrives.

    Uploads and results lie in one private folder, which is removed in the end.

    Args:
        animator: makes the animations; it stays the caller's to close.
        engines: its directory.
        host: address to listen on.
        port: TCP port, 1..65535.
        announce: gets the page's address once it can be opened.
        stop: ends the page.

    Raises:
        InputError: Gradio is not installed, or the address cannot be had.
        ManifestError: the directory holds no engines.

    Warns:
        InputWarning: other machines can reach the page.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"port is {port}; it must lie in 1..65535")
    _check_address(host, port)
    if not _is_loopback(host):
        message = (
            f"{host} is more than this machine: whoever reaches port {port} can use the page, which asks for no "
            "password. Leave --host out to keep it to yourself"
        )
        warnings.warn(message, InputWarning, stacklevel=2)
    with (
        tempfile.TemporaryDirectory(prefix="dispose-rt-page-", ignore_cleanup_errors=True) as folder,
        _private_environment(Path(folder), host) as (results, copies),
    ):
        gradio = _import_gradio()  # reads the environment
        jobs = Jobs(animator, results, copies)
        page = build_page(jobs, engines)
        try:
            announce(_launch(gradio, page, host, port))
            stop.wait()
        finally:
            jobs.close()
            page.close(verbose=False)


def _check_address(host: str, port: int) -> None:
    """Find out whether the address can be had, before the page is made."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name != "nt":  # where it means that another program may have the port as well
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(_explain_address(host, port, error)) from error


def _explain_address(host: str, port: int, error: OSError) -> str:
    head = f"the page cannot be served at {host}, port {port}: {error}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{head}. Pass an address of this machine with --host, or leave it out"
    return f"{head}; is it in use? Take another one, for example --port {port % 65535 + 1}"


def _launch(gradio: ModuleType, page: Any, host: str, port: int) -> str:
    from starlette.middleware import Middleware

    theme = gradio.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE_FONTS)
    theme = theme.set(**THEME)
    try:
        _, url, _ = page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            max_file_size=LARGEST_UPLOAD,
            app_kwargs={"middleware": [Middleware(_KeepInside)]},
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        raise InputError(_explain_address(host, port, error)) from error
    return str(url)


class _KeepInside:
    """Adds headers to every answer that keep browsers from talking to anybody else."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = ((b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


@contextmanager
def _private_environment(folder: Path, host: str) -> Iterator[tuple[Path, Path]]:
    """Tell Gradio where to keep files, to report to nobody, and not to look for this machine behind a proxy."""
    results, copies = folder / "results", folder / "gradio"
    results.mkdir()
    copies.mkdir()
    local = ",".join((os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost", host)).strip(",")
    wanted = {
        "GRADIO_TEMP_DIR": str(copies),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": local,
        "no_proxy": local,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield results, copies
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _import_gradio() -> ModuleType:
    check_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"  # Gradio looks at it when it is imported, and later on
    return importlib.import_module("gradio")
