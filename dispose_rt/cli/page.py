"""`dispose-rt page`: a web page that makes videos."""

from __future__ import annotations

import argparse
import os

from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_engines, add_json, add_trust
from .stop_signals import StopSignals

TOKEN_VARIABLE = "DISPOSE_RT_PAGE_TOKEN"
DESCRIPTION = """\
Serve a web page on this machine: upload a picture and a video, press Animate, and see the result beside the video.
Animations are made one at a time; visitors who wait see their place in the queue. Uploads and results are removed when
the page ends (Ctrl-C); what a page that was killed left is removed when the next one starts."""
EPILOG = """\
examples:
  dispose-rt page --engines engines
  dispose-rt page --engines engines --port 8000 --device cuda:1
  dispose-rt page --engines engines --allowed-host page.example.org --root-path /dispose

The page needs the packages of the extra "page": pip install 'dispose-rt[page]'. It works without a network. Animate
nobody's likeness without that person's consent. --json prints {"url"}.

Visitors who need a token open the page once with ?token=TOKEN at the end of its address, or send the header
"Authorization: Bearer TOKEN". docs/PAGE.md says what the page promises, and how to put it behind a proxy.

environment:
  DISPOSE_RT_PAGE_TOKEN  the token, where --token is not given; other users of this machine cannot read it there
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_engines(parser)
    add_trust(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: this machine alone)")
    add("--port", type=int, default=7860, metavar="N", help="TCP port (default: %(default)s)")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which visitors reach the page, such as a proxy's; may be given again (default: the address, "
        "and localhost)",
    )
    add(
        "--root-path",
        default="",
        metavar="PATH",
        help="path below which a proxy serves the page, such as /dispose (default: none)",
    )
    add("--token", help=f"let in only visitors who have this token (default: ${TOKEN_VARIABLE}, or everyone)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add_json(parser, "the page's address, once it is served")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Serve until a signal arrives."""
    from .. import Animator
    from ..page import check_gradio, serve_page

    check_gradio()  # before engines are looked for
    token = os.environ.get(TOKEN_VARIABLE) if options.token is None else options.token

    def announce(url: str) -> None:
        if options.json:
            console.print_document({"url": url})
        else:
            console.print_lines([f"the page is at {url} (Ctrl-C ends it)"])
        console.flush()

    with Animator(options.engines, device=options.device, trust=options.trust) as animator:
        serve_page(
            animator,
            options.engines,
            options.host,
            options.port,
            announce=announce,
            stop=stop.event,
            allowed_hosts=options.allowed_host,
            token=token,
            root_path=options.root_path,
        )
    return ExitCode.DONE
