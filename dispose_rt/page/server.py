"""Serves the page, by default to this machine alone, and reports to no one."""

from __future__ import annotations

import asyncio
import errno
import importlib
import importlib.util
import ipaddress
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..engines.manifest import read_manifests
from ..errors import InputError, InputWarning
from .access import Access, check_root_path
from .addresses import WILDCARDS
from .bounds import LARGEST_UPLOAD_BYTES, Bounds
from .events import Events
from .folders import private_folder
from .jobs import Jobs, Runner
from .style import CSS, FONTS, MONOSPACE_FONTS, THEME
from .visits import Visits, end_unheard

if TYPE_CHECKING:
    from gradio import Blocks

LONGEST_QUEUE = 20
"""Visitors who may wait; more are refused."""
SWEEP_S = 1.0
"""Interval at which the page looks for visitors who have left, in seconds."""
BROKEN_OFF_S = 600.0
"""Time after which the part of an upload that was broken off is removed, in seconds."""
_START_S = 60.0
_END_S = 2
_LOG = logging.getLogger("dispose_rt")


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
    allowed_hosts: Sequence[str] = (),
    token: str | None = None,
    root_path: str = "",
) -> None:
    """Serve the page until `stop` is set, or an exception such as KeyboardInterrupt arrives.

    Uploads and results lie in one private folder, which is removed in the end; folders of pages that were killed are
    removed first. docs/PAGE.md says what is promised to whom.

    Args:
        animator: makes the animations; it stays the caller's to close.
        engines: its directory.
        host: address to listen on.
        port: TCP port, 1..65535.
        announce: gets the page's address once it can be opened.
        stop: ends the page.
        allowed_hosts: names under which visitors may reach the page, beside `host` and this machine's own: a proxy's.
        token: what visitors must have, 8 or more characters; None lets everyone in who reaches the page.
        root_path: path below which a proxy serves the page, for example "/dispose".

    Raises:
        InputError: Gradio is not installed, the address cannot be had, or a name, the token or the path is malformed.
        ManifestError: the directory holds no engines.

    Warns:
        InputWarning: other machines can reach the page, and no token is asked for.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"port is {port}; it must lie in 1..65535")
    access, root_path = Access(host, port, allowed_hosts, token), check_root_path(root_path)
    _check_address(host, port)
    if token is None and not _is_loopback(host):
        message = (
            f"{host} is more than this machine: whoever reaches port {port} can use the page, which asks for no "
            "password. Leave --host out to keep it to yourself, or give visitors a token: --token TOKEN"
        )
        warnings.warn(message, InputWarning, stacklevel=2)
    with private_folder() as folder, _private_environment(folder, host) as (results, copies):
        gradio = _import_gradio()  # reads the environment
        jobs = Jobs(animator, results, copies)
        page = build_page(jobs, engines)
        with _serving(gradio, page, jobs, access, host, port, root_path):
            try:
                announce(f"http://{_name_host(host)}:{port}{root_path}/")
                stop.wait()
            finally:
                jobs.close()


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


@contextmanager
def _serving(
    gradio: ModuleType, page: Any, jobs: Jobs, access: Access, host: str, port: int, root_path: str
) -> Iterator[None]:
    """Serve the page in a thread."""
    import uvicorn

    from .guard import Guard

    visits, bounds = Visits(), Bounds()

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await end_unheard(page._queue, jobs, visits)
                bounds.forget_old()
                _remove_broken_off(jobs.uploads.folder)
            except Exception:
                _LOG.exception("the page could not look for visitors who have left")

    app = Guard(
        _mount(gradio, page, sweep, root_path),
        access,
        jobs.uploads,
        bounds,
        visits,
        page._queue,
        Events(page.fns),
        root_path,
    )
    config = uvicorn.Config(
        app,
        host=host.strip("[]"),
        port=port,
        log_level="warning",
        access_log=False,  # a token may stand in an address
        server_header=False,
        timeout_graceful_shutdown=_END_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="web page", daemon=True)
    thread.start()
    try:
        _wait_until_served(server, thread, host, port)
        yield
    finally:
        page._queue.close()
        page.is_running = False
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open streams are no errors at the end
        server.should_exit = True
        thread.join(_END_S + 10)


def _mount(gradio: ModuleType, page: Any, sweep: Callable[[], Any], root_path: str) -> Any:
    """Make the web application; `sweep` runs beside it."""
    from fastapi import FastAPI

    @asynccontextmanager
    async def beside(app: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    theme = gradio.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE_FONTS)
    theme = theme.set(**THEME)
    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1, api_open=False)
    return gradio.mount_gradio_app(
        FastAPI(lifespan=beside, docs_url=None, redoc_url=None, openapi_url=None),
        page,
        "/",
        root_path=root_path or None,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        max_file_size=LARGEST_UPLOAD_BYTES,
        theme=theme,
        css=CSS,
    )


def _wait_until_served(server: Any, thread: threading.Thread, host: str, port: int) -> None:
    end_s = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end_s:
            raise InputError(f"the page cannot be served at {host}, port {port}; the reason is above")
        time.sleep(0.005)


def _name_host(host: str) -> str:
    """The name of an address in a URL; one that stands for all addresses is reached as localhost."""
    if host in WILDCARDS:
        return "localhost"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _remove_broken_off(folder: Path) -> None:
    """Remove parts of uploads that broke off: Gradio moves whole ones into subfolders, and forgets the others."""
    for path in folder.iterdir():
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > BROKEN_OFF_S:
                path.unlink()


@contextmanager
def _private_environment(folder: Path, host: str) -> Iterator[tuple[Path, Path]]:
    """Set where Gradio keeps files, that it reports to no one, and that this machine is not behind a proxy."""
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
