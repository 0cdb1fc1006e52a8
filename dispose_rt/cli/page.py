"""`dispose-rt page`: a web page that makes videos."""

from __future__ import annotations

import argparse

from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_engines, add_json, add_trust
from .stop_signals import StopSignals

DESCRIPTION = """\
Serve a web page on this machine: upload a picture and a video, press Animate, and see the result beside the video.
Animations are made one at a time; visitors who wait see their place in the queue. Uploads and results are removed when
the page ends (Ctrl-C)."""
EPILOG = """\
examples:
  dispose-rt page --engines engines
  dispose-rt page --engines engines --port 8000 --device cuda:1

The page needs the packages of the extra "page": pip install 'dispose-rt[page]'. It works without a network. Animate
nobody's likeness without that person's consent. --json prints {"url"}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_engines(parser)
    add_trust(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: this machine alone)")
    add("--port", type=int, default=7860, metavar="N", help="TCP port (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add_json(parser, "the page's address, once it is served")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Serve until a signal arrives."""
    from .. import Animator
    from ..page import check_gradio, serve_page

    check_gradio()  # before engines are looked for

    def announce(url: str) -> None:
        if options.json:
            console.print_document({"url": url})
        else:
            console.print_lines([f"the page is at {url} (Ctrl-C ends it)"])
        console.flush()

    with Animator(options.engines, device=options.device, trust=options.trust) as animator:
        serve_page(animator, options.engines, options.host, options.port, announce=announce, stop=stop.event)
    return ExitCode.DONE
