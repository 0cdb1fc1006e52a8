"""`dispose-rt trust`: whose engine directories may run native code."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_json
from .stop_signals import StopSignals

if TYPE_CHECKING:
    from ..engines.trust import Trust

DESCRIPTION = "Trust an engine directory, or everything that a key signs; without arguments, list what is trusted."
EPILOG = """\
examples:
  dispose-rt trust
  dispose-rt trust engines/576x1024
  dispose-rt trust dispose-rt-key-...
  dispose-rt trust --forget engines/576x1024

Engines of AOTInductor and TensorRT are native code: an engine directory with such files is a program that runs with
your rights. `dispose-rt build` signs what it builds with your own key, and you may run it at once. Directories of
others need your word: `trust DIR` takes one directory as it is now, `trust KEY` all that this key signs. Engines of
ONNX Runtime hold no code and need neither. Where no home outlives the process, as in containers, DISPOSE_RT_TRUST
holds keys separated by commas, or "all".

--json prints {"own_key", "keys", "directories": {checksum: folder}}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("subjects", nargs="*", metavar="DIR|KEY", help="engine directory, folder of several, or key")
    parser.add_argument("--forget", action="store_true", help="stop trusting them")
    add_json(parser, "what is trusted afterwards")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Change the list, then print it or what was done."""
    from ..engines.trust import own_key, read_trust

    done = [line for subject in options.subjects for line in _change(subject, options.forget)]
    trust, own = read_trust(), own_key()
    if options.json:
        document = {"own_key": own, "keys": list(trust.keys), "directories": dict(trust.directories)}
        console.print_document(document)
    else:
        console.print_lines(done or _describe(trust, own))
    return ExitCode.DONE


def _change(subject: str, forget: bool) -> Iterator[str]:
    """Trust or forget a key, or the directories of a path."""
    from ..engines.manifest import read_manifests
    from ..engines.trust import (
        carries_code,
        forget_directory,
        forget_key,
        is_key,
        signer_of,
        trust_directory,
        trust_key,
    )

    if is_key(subject):
        if forget:
            yield f"{subject}: {'trusted no more' if forget_key(subject) else 'was not trusted'}"
        else:
            trust_key(subject)
            yield f"{subject}: what it signs is trusted"
        return
    for manifest in read_manifests(Path(subject)):
        if not carries_code(manifest):
            yield f"{manifest.folder}: engines of ONNX Runtime hold no code, and run without trust"
        elif forget:
            yield f"{manifest.folder}: {'trusted no more' if forget_directory(manifest) else 'was not trusted'}"
        else:
            trust_directory(manifest)
            signer = signer_of(manifest)
            yield f"{manifest.folder}: trusted as it is now" + (f"; signed by {signer}" if signer else "; not signed")


def _describe(trust: Trust, own: str | None) -> Iterator[str]:
    yield f"your own key: {own or 'none yet; the first build of native engines makes it'}"
    for key in trust.keys:
        yield f"trusted key: {key}"
    for folder in trust.directories.values():
        yield f"trusted directory: {folder}"
